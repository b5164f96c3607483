//! The log of a head: all shards append to one sequence of segments through one writer, so that
//! one sync commits whatever all shards have queued (group commit).
//!
//! Read it in this order: `frame` (bytes of one frame), `segments` (reading back; torn or
//! damaged), `record` (what frames carry), `recover` (segments to shards), `item` (what can be written), `files` (appending,
//! rotating, removing), [`writer`] (the queue and its thread), [`store`] (one shard's view, for
//! openraft).

mod files;
mod frame;
mod item;
pub mod record;
mod recover;
mod segments;
pub mod store;
#[cfg(test)]
mod tests;
pub mod writer;

pub use item::{LogIdentity, Record};
pub use recover::Recovered;
pub use writer::LogWriter;
