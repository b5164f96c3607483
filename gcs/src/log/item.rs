//! What can be asked of the log's writer.

use super::frame;
use super::record::EntryBatch;
use bytes::Bytes;
use prost::Message;

/// Whose log this is; said at the start of every segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster: u64,
    /// The head.
    pub head: u64,
}

/// Something to write.
#[derive(Clone, Debug)]
pub enum Record {
    /// Entries of a shard.
    Entries {
        /// The shard.
        shard: u32,
        /// One past the last index.
        end: u64,
        /// The entries; the log's thread encodes them, straight into what is written.
        batch: EntryBatch,
    },
    /// A vote.
    Vote {
        /// The shard.
        shard: u32,
        /// The encoded vote.
        vote: Bytes,
    },
    /// Entries from `end` on are void.
    Truncate {
        /// The shard.
        shard: u32,
        /// One past the last index that stays.
        end: u64,
    },
    /// Entries up to and including `index` are in a snapshot.
    Purge {
        /// The shard.
        shard: u32,
        /// The last index that may go.
        index: u64,
        /// Its encoded log id.
        log_id: Bytes,
    },
}

impl Record {
    /// Bytes of its frame.
    pub fn weight(&self) -> usize {
        frame::HEADER
            + match self {
                Record::Entries { batch, .. } => batch.encoded_len(),
                Record::Vote { vote: bytes, .. } | Record::Purge { log_id: bytes, .. } => bytes.len(),
                Record::Truncate { .. } => 8,
            }
    }
}
