//! The messages a snapshot is made of.

use super::cluster::{Death, Job, Member};
use super::events::EventsDump;
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
    /// From level 3 on: the version of the program that wrote it.
    #[prost(string, tag = "14")]
    pub writer: String,
    /// Absent until a move of slots touches the shard, and below level 2.
    #[prost(message, optional, tag = "15")]
    pub slots: Option<OwnedDump>,
}
