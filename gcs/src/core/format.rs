//! The messages a snapshot is made of.

use super::cluster::{Death, Job, Member};
use bytes::Bytes;
use mobula_proto as proto;
use prost::Message;
use std::collections::BTreeMap;

/// Version of the dump that this build writes; it reads only this one.
pub(super) const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct TaskDump {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub spec: Bytes,
    #[prost(fixed64, tag = "3")]
    pub digest: u64,
    #[prost(uint64, tag = "4")]
    pub revision: u64,
    #[prost(uint32, tag = "5")]
    pub attempt: u32,
    #[prost(fixed64, tag = "6")]
    pub keeper: u64,
    #[prost(uint32, tag = "7")]
    pub failures: u32,
    #[prost(uint32, tag = "8")]
    pub max_retries: u32,
    #[prost(message, optional, tag = "9")]
    pub done: Option<proto::Done>,
    #[prost(message, optional, tag = "10")]
    pub failed: Option<proto::Failure>,
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
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Dump {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(message, repeated, tag = "2")]
    pub tasks: Vec<TaskDump>,
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
}
