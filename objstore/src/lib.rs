//! The object store of one node: immutable objects in memory shared with the workers.
//!
//! This crate decides where an object lives, who may write it, what leaves memory for a file when room runs
//! short, and who waits for room. It opens no socket and no file, starts no thread and reads no clock; `node`
//! does those things.
//!
//! Read it in this order:
//!
//! - [`table`] — the objects and their states; the invariants are listed there.
//! - [`pins`] — who looks at which place, so that it is not used again too early.
//! - [`depot`] — memory and files together: what is spilled, what is brought back, who waits.
//! - [`spill_file`] — what such a file looks like; [`packing`] — when its bytes are packed, and how.
//! - [`arena`] — carving one region into allocations; its metadata is outside the shared memory.
//! - [`region`] — the memory itself, mapped or on the heap. All `unsafe` is here.

pub mod arena;
pub mod depot;
pub mod hostile;
mod lru;
pub mod packing;
pub mod pins;
pub mod region;
pub mod spill_file;
pub mod table;

pub use depot::Depot;
pub use pins::Reader;
pub use region::Region;
pub use table::{Store, StoreError};
