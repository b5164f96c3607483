//! The messages a snapshot is made of.

use super::cluster::{Death, Job, Member};
use super::events::EventsDump;
use super::groups::GroupsDump;
use super::slots::OwnedDump;
use super::watch::HistoryDump;
use bytes::Bytes;
use mobula_proto as proto;
use prost::Message;
use std::collections::BTreeMap;

/// Version of the dump at the first level of formats; each level has its own.
pub(super) const FIRST_VERSION: u32 = 3;

/// See `run::Chunk`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ChunkDump {
    #[prost(uint32, tag = "1")]
    pub first: u32,
    #[prost(fixed64, tag = "2")]
    pub keeper: u64,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub digests: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub ends: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    pub specs: Bytes,
    /// From level 3 on.
    #[prost(bool, tag = "7")]
    pub plain: bool,
}

/// See `run::DoneSet`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DoneDump {
    #[prost(bytes = "bytes", tag = "1")]
    pub places: Bytes,
    #[prost(fixed64, tag = "2")]
    pub executor: u64,
    #[prost(fixed64, repeated, tag = "3")]
    pub holders: Vec<u64>,
    #[prost(bytes = "bytes", tag = "4")]
    pub outputs: Bytes,
}

/// See `run::Standing`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OverrideDump {
    #[prost(uint32, tag = "1")]
    pub place: u32,
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
    #[prost(fixed64, tag = "3")]
    pub keeper: u64,
    #[prost(uint32, tag = "4")]
    pub failures: u32,
    #[prost(message, optional, tag = "5")]
    pub done: Option<proto::Done>,
    #[prost(message, optional, tag = "6")]
    pub failed: Option<proto::Failure>,
    /// What earlier attempts made; from level 3 on.
    #[prost(message, optional, tag = "7")]
    pub before: Option<proto::Done>,
    /// Who ran the last attempt of what failed; from level 3 on.
    #[prost(fixed64, tag = "8")]
    pub failed_at: u64,
}

/// See `refs::Needed`; of the object at a place and a slot.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NeededDump {
    #[prost(uint32, tag = "1")]
    pub place: u32,
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    #[prost(fixed64, repeated, tag = "3")]
    pub holds: Vec<u64>,
    #[prost(message, repeated, tag = "4")]
    pub edges: Vec<EdgeDump>,
}

/// An edge by its source.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EdgeDump {
    #[prost(bytes = "bytes", tag = "1")]
    pub by: Bytes,
    /// 1: its record names the object; 2: its value contains it.
    #[prost(uint32, tag = "2")]
    pub kinds: u32,
    #[prost(fixed64, tag = "3")]
    pub sender: u64,
}

/// What level 3 knows of a put beyond its small value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PutDump {
    #[prost(bytes = "bytes", tag = "1")]
    pub object: Bytes,
    #[prost(fixed64, tag = "2")]
    pub job: u64,
    /// Absent: it is named, and has not come yet.
    #[prost(message, optional, tag = "3")]
    pub put: Option<proto::SmallPut>,
    #[prost(message, optional, tag = "4")]
    pub needed: Option<NeededDump>,
    #[prost(fixed64, tag = "5")]
    pub by: u64,
}

/// Runs with something that an incarnation must see to.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ConcernDump {
    #[prost(fixed64, tag = "1")]
    pub incarnation: u64,
    /// 16 bytes each, ascending.
    #[prost(bytes = "bytes", tag = "2")]
    pub runs: Bytes,
    /// Their jobs.
    #[prost(fixed64, repeated, tag = "3")]
    pub jobs: Vec<u64>,
}

/// See `counting::Waiting`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WaitingDump {
    #[prost(fixed64, repeated, tag = "1")]
    pub fenced: Vec<u64>,
    /// 16 bytes each.
    #[prost(bytes = "bytes", tag = "2")]
    pub runs: Bytes,
    /// 22 bytes each.
    #[prost(bytes = "bytes", tag = "3")]
    pub objects: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub arrived: Bytes,
}

/// See `outbox::Outbox`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OutboxDump {
    #[prost(uint64, tag = "1")]
    pub last: u64,
    #[prost(message, repeated, tag = "2")]
    pub ends: Vec<proto::LooseEnd>,
    #[prost(btree_map = "uint32, uint64", tag = "3")]
    pub marks: BTreeMap<u32, u64>,
}

/// A run that has gone entirely, and which places it had.
#[derive(Clone, PartialEq, Message)]
pub(super) struct BygoneDump {
    #[prost(bytes = "bytes", tag = "1")]
    pub run: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub places: Bytes,
}

/// All that counting references adds to a shard; from level 3 on.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CountingDump {
    #[prost(message, repeated, tag = "1")]
    pub owned: Vec<proto::SlotRow>,
    #[prost(message, repeated, tag = "2")]
    pub puts: Vec<PutDump>,
    #[prost(message, repeated, tag = "3")]
    pub concerns: Vec<ConcernDump>,
    #[prost(message, optional, tag = "4")]
    pub waiting: Option<WaitingDump>,
    #[prost(message, optional, tag = "5")]
    pub outbox: Option<OutboxDump>,
    #[prost(message, repeated, tag = "6")]
    pub bygone: Vec<BygoneDump>,
    #[prost(fixed64, repeated, tag = "7")]
    pub uncounted: Vec<u64>,
    /// Object ids of puts of drivers that have gone, the oldest first.
    #[prost(bytes = "bytes", tag = "8")]
    pub bygone_puts: Bytes,
}

/// A run: in snapshots while it is hot, in the files of cold runs afterwards.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RunDump {
    #[prost(fixed64, tag = "1")]
    pub job: u64,
    #[prost(message, repeated, tag = "2")]
    pub chunks: Vec<ChunkDump>,
    #[prost(message, repeated, tag = "3")]
    pub dones: Vec<DoneDump>,
    #[prost(message, repeated, tag = "4")]
    pub different: Vec<OverrideDump>,
    /// From here on: of level 3, and only in runs that it made.
    #[prost(bool, tag = "5")]
    pub counts: bool,
    #[prost(bytes = "bytes", tag = "6")]
    pub released: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pub pruned: Bytes,
    #[prost(message, repeated, tag = "8")]
    pub needed: Vec<NeededDump>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HotRun {
    #[prost(bytes = "bytes", tag = "1")]
    pub run: Bytes,
    /// An encoded [`RunDump`].
    #[prost(bytes = "bytes", tag = "2")]
    pub bytes: Bytes,
}

/// See `tasks::JobSum`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JobDump {
    #[prost(fixed64, tag = "1")]
    pub job: u64,
    #[prost(uint64, tag = "2")]
    pub tasks: u64,
    #[prost(uint64, tag = "3")]
    pub cold_runs: u64,
    #[prost(fixed64, tag = "4")]
    pub cold_digest: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StreamDump {
    #[prost(fixed64, tag = "1")]
    pub incarnation: u64,
    #[prost(uint64, tag = "2")]
    pub mark: u64,
    #[prost(uint64, tag = "3")]
    pub last_first: u64,
    #[prost(uint64, tag = "4")]
    pub last_len: u64,
    #[prost(message, optional, tag = "5")]
    pub last_ack: Option<proto::StreamAck>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionDump {
    #[prost(fixed64, tag = "1")]
    pub session: u64,
    #[prost(uint64, tag = "2")]
    pub last_seq: u64,
    #[prost(message, optional, tag = "3")]
    pub reply: Option<proto::CallReply>,
    #[prost(uint64, tag = "4")]
    pub used: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ClusterDump {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(uint32, tag = "2")]
    pub shards: u32,
    #[prost(uint32, tag = "3")]
    pub slots: u32,
    #[prost(uint64, tag = "4")]
    pub last_incarnation: u64,
    #[prost(message, repeated, tag = "5")]
    pub members: Vec<Member>,
    #[prost(fixed64, repeated, tag = "6")]
    pub dead: Vec<u64>,
    #[prost(message, repeated, tag = "7")]
    pub deaths: Vec<Death>,
    #[prost(btree_map = "fixed64, message", tag = "8")]
    pub jobs: BTreeMap<u64, Job>,
    #[prost(uint64, tag = "9")]
    pub version: u64,
    #[prost(message, optional, tag = "10")]
    pub heads: Option<proto::HeadTable>,
    #[prost(uint32, tag = "11")]
    pub level: u32,
    #[prost(string, tag = "12")]
    pub program: String,
    /// Absent until slots move, and below level 2.
    #[prost(message, optional, tag = "13")]
    pub slots_table: Option<proto::SlotTable>,
    /// Absent until there was a placement group, and below level 4.
    #[prost(message, optional, tag = "14")]
    pub groups: Option<GroupsDump>,
    /// Absent in dumps from before there were events.
    #[prost(message, optional, tag = "20")]
    pub events: Option<EventsDump>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Dump {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(message, repeated, tag = "2")]
    pub hot: Vec<HotRun>,
    #[prost(message, repeated, tag = "3")]
    pub puts: Vec<proto::SmallPut>,
    #[prost(message, repeated, tag = "4")]
    pub streams: Vec<StreamDump>,
    #[prost(fixed64, repeated, tag = "5")]
    pub fenced: Vec<u64>,
    #[prost(message, repeated, tag = "6")]
    pub kv: Vec<proto::KvEntry>,
    #[prost(message, repeated, tag = "7")]
    pub sessions: Vec<SessionDump>,
    #[prost(message, optional, tag = "8")]
    pub cluster: Option<ClusterDump>,
    #[prost(message, repeated, tag = "9")]
    pub jobs: Vec<JobDump>,
    #[prost(fixed64, repeated, tag = "10")]
    pub forgotten: Vec<u64>,
    #[prost(message, optional, tag = "11")]
    pub history: Option<HistoryDump>,
    #[prost(uint64, tag = "12")]
    pub last_session: u64,
    #[prost(uint64, tag = "13")]
    pub session_uses: u64,
    /// From level 4 on: the version of the program that wrote it.
    #[prost(string, tag = "14")]
    pub writer: String,
    /// Absent until a move of slots touches the shard, and below level 2.
    #[prost(message, optional, tag = "15")]
    pub slots: Option<OwnedDump>,
    /// Absent until the shard counts references, and below level 3.
    #[prost(message, optional, tag = "16")]
    pub counting: Option<CountingDump>,
}
