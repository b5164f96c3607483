//! The object store of one node: immutable objects in memory shared with the workers.
//!
//! This crate decides where an object lives and who may write it. It opens no socket, starts no
//! thread and reads no clock; `node` does those things.
//!
//! Read it in this order:
//!
//! - [`table`] — the objects and their states; the invariants are listed there.
//! - [`pins`] — who looks at which place, so that it is not used again too early.
//! - [`arena`] — carving one region into allocations; its metadata is outside the shared memory.
//! - [`region`] — the memory itself, mapped or on the heap. All `unsafe` is here.

pub mod arena;
pub mod pins;
pub mod region;
pub mod table;

pub use pins::Reader;
pub use region::Region;
pub use table::{Store, StoreError};
