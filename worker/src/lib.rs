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
//! An object is there for as long as somebody refers to it. Dropping the last [`ObjectRef`] in this program
//! says so to the node daemon, in order with what was submitted before; when no other program, value or
//! unfinished task refers to the object either, its memory is freed and its lineage forgotten, without
//! waiting for the end of the job. A task that ends drops what it had. So keep a reference for as long as
//! you mean to [`ObjectRef::get`] it, and drop it when you do not: a loop over millions of tasks that
//! collects all references keeps all values.
//!
//! This crate must not know where tasks are placed, nor anything of Raft. Read it in this order:
//!
//! - [`client`] — [`Client`]: submit, put, wait, what is committed; [`options`] — how it connects.
//! - [`mod@reference`] — [`ObjectRef`]: get, with and without deadline.
//! - `holds` — what this program refers to, and how its daemon hears of it.
//! - `later` — put and wait in `async` tasks; which task and attempt this is.
//! - [`put`] — putting a value, on several nodes.
//! - `room`, `copy` — writing large values into shared memory.
//! - [`task`], [`args`], [`value`] — what a submission is made of.
//! - [`cancel`] — ending tasks early; which failures are retried.
//! - [`placement`] — where a task may run; [`group`] — resources that are reserved together; [`runtime`] — what workers find around them.
//! - [`split`] — tasks that return several objects.
//! - [`stream`] — taking what a task makes one after the other; [`streamed`] — making it.
//! - [`function`] — the registry that `#[remote]` fills.
//! - [`context`] — inside which task the code runs: deterministic ids (R1).
//! - [`link`] — the connection to the node daemon, as threads or as async tasks; `pump` — what it says.
//! - [`exec`] — the worker's loop; `recent` — what it has made lately.

extern crate self as mobula;

pub mod args;
pub mod cancel;
pub mod client;
pub mod context;
mod copy;
pub mod error;
pub mod exec;
pub mod function;
pub mod group;
mod holds;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod hostile;
mod later;
pub mod link;
pub mod options;
pub mod placement;
mod pump;
pub mod put;
mod recent;
pub mod reference;
mod room;
pub mod runtime;
pub mod split;
pub mod stream;
pub mod streamed;
pub mod task;
pub mod value;

pub use args::{ArgReader, Args, FromArgs, IntoArg, Many};
pub use cancel::{RetryOn, Scope};
pub use client::{Client, Notice};
pub use context::current;
pub use error::Error;
pub use exec::run_worker_if_asked;
pub use function::Function;
pub use group::{Bundle, GroupHandle, PlacementGroup, Strategy};
pub use mobula_base::{JobId, ObjectId, TaskId};
pub use mobula_macros::remote;
pub use mobula_proto::FailureKind;
pub use options::{ConnectOptions, Durability, OnDivergence};
pub use placement::{Affinity, Label, Node};
pub use put::Put;
pub use reference::{AnyRef, ObjectRef};
pub use runtime::Runtime;
pub use split::Split;
pub use stream::Stream;
pub use streamed::Streamed;
pub use task::Task;
pub use value::Blob;

#[doc(hidden)]
pub use inventory;
#[doc(hidden)]
pub use pump::not_begun;

#[cfg(not(target_os = "linux"))]
compile_error!("Mobula runs on Linux only: it shares memory by memfd and passes it over Unix sockets");
