//! What the frames carry, and how openraft's types become bytes.

use crate::raft::types::{Entry, LogId, Proposal, Vote};
use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;

/// First payload of a segment: enough to know where every shard stood when it was begun.
#[derive(Clone, PartialEq, Message)]
pub struct SegmentHeader {
    /// Format version of the log.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Identity of the cluster.
    #[prost(fixed64, tag = "2")]
    pub cluster: u64,
    /// Identity of the head.
    #[prost(uint64, tag = "3")]
    pub head: u64,
    /// Number of this segment.
    #[prost(uint64, tag = "4")]
    pub generation: u64,
    /// Every shard's vote, purge and truncation points.
    #[prost(message, repeated, tag = "5")]
    pub shards: Vec<ShardPoint>,
}

/// Where one shard stands.
#[derive(Clone, PartialEq, Message)]
pub struct ShardPoint {
    /// Which shard.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// Encoded vote, empty for none.
    #[prost(bytes = "bytes", tag = "2")]
    pub vote: Bytes,
    /// Encoded log id up to which entries are purged, empty for none.
    #[prost(bytes = "bytes", tag = "3")]
    pub purged: Bytes,
    /// Entries from this index on were void when the segment was begun: one past the last entry.
    #[prost(uint64, tag = "4")]
    pub end: u64,
}

/// A batch of entries.
#[derive(Clone, PartialEq, Message)]
pub struct EntryBatch {
    /// In order of their indexes.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<StoredEntry>,
}

/// One log entry.
#[derive(Clone, PartialEq, Message)]
pub struct StoredEntry {
    /// Encoded log id.
    #[prost(bytes = "bytes", tag = "1")]
    pub log_id: Bytes,
    /// 0 blank, 1 proposal, 2 membership.
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    /// The command, or the encoded membership.
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
}

/// Encodes a value of openraft's.
pub fn pack<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(postcard::to_stdvec(value).expect("plain data has an encoding"))
}

/// The inverse of [`pack`].
///
/// # Errors
/// The bytes are not a `T`.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// As [`unpack`], where no bytes stand for nothing.
pub fn unpack_option<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<Option<T>> {
    if bytes.is_empty() { Ok(None) } else { unpack(bytes).map(Some) }
}

/// A place in a log, which another can follow.
///
/// # Errors
/// The bytes are none, or the last number that there is.
pub fn load_id(bytes: &[u8]) -> io::Result<LogId> {
    let id: LogId = unpack(bytes)?;
    if id.index == u64::MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no log is that long"));
    }
    Ok(id)
}

/// As [`load_id`], where no bytes stand for nothing.
pub fn load_id_option(bytes: &[u8]) -> io::Result<Option<LogId>> {
    if bytes.is_empty() { Ok(None) } else { load_id(bytes).map(Some) }
}

/// An entry as it is stored.
pub fn store_entry(entry: &Entry) -> StoredEntry {
    let (kind, payload) = match &entry.payload {
        EntryPayload::Blank => (0, Bytes::new()),
        EntryPayload::Normal(proposal) => (1, proposal.0.clone()),
        EntryPayload::Membership(membership) => (2, pack(membership)),
    };
    StoredEntry { log_id: pack(&entry.log_id), kind, payload }
}

/// The inverse of [`store_entry`].
///
/// # Errors
/// The bytes are not an entry.
pub fn load_entry(stored: &StoredEntry) -> io::Result<Entry> {
    let log_id = load_id(&stored.log_id)?;
    let payload = match stored.kind {
        0 => EntryPayload::Blank,
        // Copied, so that an entry does not keep a whole segment in memory.
        1 => EntryPayload::Normal(Proposal(Bytes::copy_from_slice(&stored.payload))),
        2 => EntryPayload::Membership(unpack(&stored.payload)?),
        kind => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry of kind {kind}"))),
    };
    Ok(Entry { log_id, payload })
}

/// Reads an encoded vote.
///
/// # Errors
/// The bytes are not a vote.
pub fn load_vote(bytes: &[u8]) -> io::Result<Option<Vote>> {
    unpack_option(bytes)
}
