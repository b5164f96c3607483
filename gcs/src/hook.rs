//! What a head lets be seen and bent from outside: how the simulator's judges watch every replica,
//! and how it plants the bugs that prove them awake. Production passes [`Unhooked`].

use std::sync::Arc;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plant {
    /// A vote is given before, and without, being written.
    SkipVote,
    /// Fresh reads are served without asking a majority.
    ReadWithoutIndex,
    /// A repeated request executes again.
    RepeatTwice,
    /// An answer to a watch starts with the change before the one asked for.
    WatchTwice,
    /// A failed proposal keeps its place among those under way.
    LeakProposalSlot,
    /// One replica applies a value other than the one that was committed.
    ApplyDifferently,
    /// A data directory is used without asking whose it is.
    TakeAnyDisk,
    /// A data directory is believed to be all that it was.
    TrustDisk,
}

/// The identity of a log entry: the term and head of the leader that made it, and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// Term of the leader.
    pub term: u64,
    /// The leader.
    pub leader: u64,
    /// Place in the log.
    pub index: u64,
}

/// What the outside may hear and decide. Calls come from inside a replica: they must be quick.
pub trait Hook: Send + Sync + 'static {
    /// A replica of `shard` has applied an entry; `command` and `reply` are empty when the entry was
    /// none of ours.
    fn applied(&self, shard: u32, entry: EntryId, command: &[u8], reply: &[u8]) {
        let _ = (shard, entry, command, reply);
    }

    /// A replica of `shard` has replaced its tables by a snapshot up to an entry.
    fn installed(&self, shard: u32, entry: EntryId) {
        let _ = (shard, entry);
    }

    /// This head has granted its vote of `shard` to a candidate.
    fn granted(&self, shard: u32, term: u64, candidate: u64) {
        let _ = (shard, term, candidate);
    }

    /// Whether a bug is planted in this head.
    fn has(&self, plant: Plant) -> bool {
        let _ = plant;
        false
    }
}

/// Nobody watches and nothing is bent.
pub struct Unhooked;

impl Hook for Unhooked {}

/// A shared hook.
pub type SharedHook = Arc<dyn Hook>;
