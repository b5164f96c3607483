//! What one node decides: which tasks run where, what waits for what, and how lost objects come
//! back.
//!
//! [`Core::step`] takes an event and says what should happen next. This crate opens no socket,
//! starts no thread, reads no clock and knows neither where bytes live nor how a worker is
//! started; `node` does those things and reports back through [`Event`].
//!
//! Read it in this order:
//!
//! - [`types`] — events, effects and values.
//! - [`core`] — the state of a node and `step`, which only dispatches.
//! - [`submit`] — a task arrives; its record goes to its shard, its arguments are awaited (R4).
//! - [`placement`] — here, or which other node (local first, then locality and load).
//! - `patience` — when a task had better wait for the node that has its arguments.
//! - `strategy` — which nodes a task's placement admits, and what to say when none does.
//! - [`execute`] — tasks on this node: arguments, dispatch, results; `workers` — worker processes and what they hold.
//! - `follow` — a task behind the one that makes its argument, in one worker's line.
//! - [`waiting`] — what other nodes hear of their tasks that wait inside here.
//! - [`outcome`] — what a keeper does with a result; done-records (R3, R4).
//! - [`hedge`] — pure tasks that take far longer than others, and begin elsewhere, too.
//! - `elements` — tasks that return several objects.
//! - [`items`] — tasks that return a stream, which is taken while they run.
//! - [`cancel`] — tasks that are cancelled or run too long; which failures are retried.
//! - [`memory`] — whose worker ends when memory runs short.
//! - [`objects`] — what this node knows of each object, and who waits for it.
//! - [`refs`] — who on this node refers to an object, and what its home is told (R6, R8); [`elide`] — when a
//!   record is sent, and when it never is (R4).
//! - [`copies`] — what was put so that it is there several times, after a loss, too.
//! - [`recovery`] — locate, compare-and-set on the attempt, dead nodes (R7, R10); `again` — what is submitted again (R2).
//! - [`abandon`] — what waits for something that nobody knows, and that nobody needs.
//! - [`stream`] — the sequenced stream of records to a shard; [`streams`] — all of them, and what happens
//!   when slots move from one to another (R12).
//! - [`bend`] — other sizes than the usual ones, for simulations.
//! - `hostile` — messages that nobody should send, for tests and fuzzing.
//! - [`census`] — how much there is of everything, for people who watch; [`explain`] — what one task waits for;
//!   [`rows`] — lists of it; [`trace`] — what ran, and when.

pub mod abandon;
mod again;
pub mod bend;
pub mod cancel;
pub mod census;
pub mod copies;
pub mod core;
mod elements;
pub mod elide;
pub mod execute;
pub mod explain;
mod follow;
pub mod groups;
pub mod hedge;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod items;
mod line;
pub mod map;
pub mod memory;
pub mod objects;
pub mod outcome;
mod patience;
pub mod placement;
pub mod recovery;
pub mod refs;
mod reserve;
pub mod rows;
mod strategy;
pub mod stream;
pub mod streams;
pub mod submit;
pub mod trace;
pub mod types;
pub mod waiting;
mod workers;

pub use crate::core::{Config, Core, LINGER};
pub use bend::Bends;
pub use census::Census;
pub use types::{ClientId, Effect, Element, Elements, Event, FetchError, Ready, TaskOutcome, Value};
