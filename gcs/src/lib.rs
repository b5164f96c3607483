//! The control store: what must survive, sharded, each shard replicated by Raft.
//!
//! This crate must not know what a task does, where it should run, or how values move: it keeps
//! records and answers questions about them. It runs unchanged on real disks and networks and in
//! simulation; time comes from tokio, randomness from the seed.
//!
//! Read it in this order:
//!
//! - [`core`] — the tables of one shard as a pure function from commands to replies.
//! - [`cold`] — where runs go that are not in memory.
//! - [`log`] — the one log of all shards of a head, with group commit.
//! - [`snapshot`], [`identity`] — the other files of a data directory.
//! - [`level`] — which formats a cluster writes, and how that rises.
//! - [`damage`], [`scrub`], [`recall`] — what happens to a replica whose disk has changed, and who looks.
//! - [`raft`] — openraft behind one door; failover without waiting for a timeout.
//! - [`server`] — what a head answers.
//! - [`bootstrap`] — how heads become a cluster; [`duties`] — what a head does unasked;
//!   [`witness`] — elections, told to shard 0; [`sweep`] — references; [`clock`].
//! - [`membership`] — how heads come and go later. [`moves`] — how slots move between shards.
//! - [`groups`] — how placement groups come to their places.
//! - [`backup`] — what is kept outside, and new clusters made of it.
//! - [`metrics`] — what a head tells Prometheus.
//! - [`config`], [`head`] — all of it together; [`hook`] — what tests may see and bend.
//! - `hostile` — bytes from outside that nobody has checked, for tests and fuzzing.
//! - [`client`] — finding the leader, repeating safely.

pub mod backup;
pub mod bootstrap;
pub mod client;
pub mod clock;
pub mod cold;
pub mod config;
pub mod core;
pub mod damage;
pub mod duties;
pub mod error;
#[cfg(test)]
mod golden;
pub mod groups;
pub mod head;
pub mod hook;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod identity;
pub mod level;
pub mod log;
pub mod membership;
pub mod metrics;
pub mod moves;
pub mod raft;
pub mod recall;
pub mod scrub;
pub mod server;
pub mod snapshot;
pub mod sweep;
pub mod witness;

pub use client::Client;
pub use config::{HeadConfig, Parts};
pub use error::Error;
pub use head::Head;
pub use level::Formats;
pub use raft::bare;
pub use raft::timing::RaftTiming;
pub use raft::types::in_scope;
