//! Mobula's Rust API: what runs inside a driver or worker process.
//!
//! ```no_run
//! #[mobula::remote]
//! fn add(a: u64, b: u64) -> u64 {
//!     a + b
//! }
//!
//! fn main() -> Result<(), mobula::Error> {
//!     mobula::run_worker_if_asked(); // this binary serves as worker binary, too
//!     let client = mobula::Client::connect(mobula::ConnectOptions::default())?;
//!     let three = client.submit(add::task(1, 2));
//!     let ten = client.submit(add::task(&three, 7).retries(5));
//!     assert_eq!(ten.get()?, 10);
//!     client.end(true)
//! }
//! ```
//!
//! This crate must not know where tasks are placed, nor anything of Raft. Read it in this order:
//!
//! - [`client`] — [`Client`]: submit, put, wait, what is committed.
//! - [`mod@reference`] — [`ObjectRef`]: get, with and without deadline.
//! - [`task`], [`args`], [`value`] — what a submission is made of.
//! - [`function`] — the registry that `#[remote]` fills.
//! - [`context`] — inside which task the code runs: deterministic ids (R1).
//! - [`link`] — the connection to the node daemon, as threads or as async tasks.
//! - [`exec`] — the worker's loop.

extern crate self as mobula;

pub mod args;
pub mod client;
pub mod context;
pub mod error;
pub mod exec;
pub mod function;
pub mod link;
pub mod reference;
pub mod task;
pub mod value;

pub use args::{ArgReader, Args, FromArgs, IntoArg, Many};
pub use client::{Client, ConnectOptions, Notice};
pub use context::current;
pub use error::Error;
pub use exec::run_worker_if_asked;
pub use function::Function;
pub use mobula_base::{JobId, ObjectId, TaskId};
pub use mobula_macros::remote;
pub use mobula_proto::FailureKind;
pub use reference::ObjectRef;
pub use task::Task;
pub use value::Blob;

#[doc(hidden)]
pub use inventory;

#[cfg(not(target_os = "linux"))]
compile_error!("Mobula runs on Linux only: it shares memory by memfd and passes it over Unix sockets");
