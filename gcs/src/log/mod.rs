//! The log of a head: all shards append to one sequence of segments through one writer, so that
//! one sync commits whatever all shards have queued (group commit).
//!
//! Read it in this order: `sizes`, `frame` (bytes of one frame), `segments` (reading back; torn or
//! damaged), `record` (what frames carry), `index` (where a shard's entries are; the newest in
//! memory), `recover` (segments to shards), `reader` (old entries), `item` (what can be written),
//! `spares` (files filled ahead of need, and the reserve), `files` (appending, rotating, recycling),
//! [`writer`] (the queue and its thread), [`store`] (one shard's view, for openraft).

#[cfg(test)]
mod crash_tests;
mod files;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod index;
mod item;
mod left;
#[cfg(test)]
mod model_tests;
mod reader;
pub mod record;
mod recover;
pub mod segments;
mod sizes;
mod spares;
pub mod store;
#[cfg(test)]
mod tests;
pub mod writer;

pub use index::ShardIndex;
pub use item::{LogIdentity, Record};
pub use left::{Left, look};
pub use writer::LogWriter;
