//! The names under which this crate uses openraft, in one place.

use crate::snapshot::Parcel;
use bytes::Bytes;
use openraft::alias;
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An encoded `Command`: decoded once, where it is applied.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal(pub Bytes);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An encoded `Reply`; empty for entries that are not commands.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer(pub Bytes);

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answer of {} bytes", self.0.len())
    }
}

/// Randomness from the seed of the scope, everything else from tokio.
pub type Runtime = DeterministicRng<TokioRuntime>;

openraft::declare_raft_types!(
    /// The Raft of one shard.
    pub Types: D = Proposal, R = Answer, Node = openraft::BasicNode, AsyncRuntime = Runtime
);

/// A vote.
pub type Vote = alias::VoteOf<Types>;
/// A log id.
pub type LogId = alias::LogIdOf<Types>;
/// A log entry.
pub type Entry = alias::EntryOf<Types>;
/// Membership and where it was set.
pub type StoredMembership = alias::StoredMembershipOf<Types>;
/// What a snapshot covers.
pub type SnapshotMeta = alias::SnapshotMetaOf<Types>;
/// A snapshot and what it covers.
pub type Snapshot = alias::SnapshotOf<Types, Parcel>;
/// A running replica of a shard.
pub type Raft = openraft::Raft<Types, super::machine::Machine>;

/// Runs `fut` with openraft's randomness drawn from `seed`. A head must be started inside.
pub async fn in_scope<F: Future>(seed: u64, fut: F) -> F::Output {
    Runtime::scope(seed, fut).await
}
