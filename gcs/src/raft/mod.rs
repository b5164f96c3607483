//! openraft, hidden: the only part of Mobula that knows which consensus library this is.
//!
//! Read it in this order: [`types`], [`machine`] (applying and snapshots), [`network`] (between
//! heads), [`proposer`] (gathering what waits into one entry), [`group`] (one shard's handle), [`members`] (who its members are), [`timing`], [`failover`] (a dead leader is replaced at
//! once). [`bare`] is none of this: consensus and the log alone, for a benchmark.

pub mod bare;
pub mod failover;
pub mod group;
pub mod machine;
pub mod members;
pub mod network;
pub mod proposer;
mod reserve;
pub mod timing;
pub mod types;
