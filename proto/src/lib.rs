//! Messages that cross a process boundary or outlive a process, generated from
//! `proto/mobula.proto`, and the few conversions every user of them needs.
//!
//! This crate knows nothing of what a message means.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/mobula.v1.rs"));
}

pub mod terse;

pub use v1::*;

use bytes::Bytes;
use mobula_base::{ObjectId, Resources, ShardId, SlotSet, TaskId};

/// Encoded descriptors of all services and messages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
/// First field of every hello: "MOBU".
pub const MAGIC: u32 = 0x4d4f_4255;
/// Version of the link and peer protocols; both ends must agree.
pub const WIRE_VERSION: u32 = 1;
/// From this level of formats on, nodes list references (R6, R8) and the store prunes.
pub const LEVEL_REFERENCES: u32 = 3;
/// From this level of formats on there are placement groups.
pub const LEVEL_GROUPS: u32 = 4;
/// Bundles of one placement group at most.
pub const GROUP_BUNDLES_MAX: usize = 256;
/// Bytes of the request for one, as it is encoded, at most.
pub const GROUP_BYTES_MAX: usize = 256 << 10;
/// Files that a job ships for its workers at most.
pub const SHIPPED_FILES_MAX: usize = 4096;
/// Results up to this many bytes travel inside messages; larger ones through shared memory.
pub const INLINE_MAX: usize = 100 * 1024;
/// No frame of the link or peer protocols may be larger than this.
pub const FRAME_MAX: usize = 64 << 20;

/// A malformed field in a message from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}
impl std::error::Error for Malformed {}

/// Reads a task id.
pub fn task_id(bytes: &[u8]) -> Result<TaskId, Malformed> {
    TaskId::from_bytes(bytes).ok_or(Malformed("task id is not 18 bytes"))
}

/// Reads an object id.
pub fn object_id(bytes: &[u8]) -> Result<ObjectId, Malformed> {
    ObjectId::from_bytes(bytes).ok_or(Malformed("object id is not 22 bytes"))
}

/// Writes a task id.
pub fn task_bytes(id: TaskId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

/// Writes an object id.
pub fn object_bytes(id: ObjectId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}

impl From<v1::command::Op> for v1::Command {
    fn from(op: v1::command::Op) -> Self {
        v1::Command { op: Some(op), unix_ms: 0 }
    }
}

/// Writes a slot map.
pub fn slot_map(map: &mobula_base::SlotMap) -> v1::SlotMap {
    let row = |(first, last, shard): (u32, u32, ShardId)| v1::SlotRow { first, last, shard: shard.0 };
    v1::SlotMap { epoch: map.epoch(), rows: map.rows().into_iter().map(row).collect() }
}

/// Writes a set of slots.
pub fn slot_rows(slots: &SlotSet) -> Vec<v1::SlotRow> {
    slots.rows().into_iter().map(|(first, last)| v1::SlotRow { first, last, shard: 0 }).collect()
}

/// Reads a set of slots.
pub fn slot_set(rows: &[v1::SlotRow]) -> Result<SlotSet, Malformed> {
    SlotSet::from_rows(rows.iter().map(|row| (row.first, row.last))).ok_or(Malformed("no rows of slots"))
}

impl v1::SlotMap {
    /// Reads it.
    pub fn read(&self) -> Result<mobula_base::SlotMap, Malformed> {
        let rows = self.rows.iter().map(|row| (row.first, row.last, ShardId(row.shard)));
        mobula_base::SlotMap::from_rows(self.epoch, rows).ok_or(Malformed("the slot map has holes"))
    }
}

impl v1::Failure {
    /// A failure without a chain of causes.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        v1::Failure { kind: kind as i32, message: message.into(), causes: Vec::new() }
    }
}

fn amounts(cpu_milli: u32, named: &[v1::NamedResource]) -> Resources {
    Resources::new(u64::from(cpu_milli), named.iter().map(|r| (r.name.clone(), r.milli)))
}

impl v1::NodeView {
    /// What the node offers.
    pub fn total(&self) -> Resources {
        amounts(self.cpu_milli, &self.resources)
    }
}

impl v1::Bundle {
    /// What is reserved for it.
    pub fn demand(&self) -> Resources {
        amounts(self.cpu_milli, &self.resources)
    }
}

impl v1::Claims {
    /// What is free.
    pub fn free(&self, cpu_milli: u32) -> Resources {
        amounts(cpu_milli, &self.free)
    }
}

impl v1::TaskSpec {
    /// What the task needs while it runs.
    pub fn demand(&self) -> Resources {
        amounts(self.cpu_milli, &self.resources)
    }

    /// Where it may run, if it does not matter not.
    pub fn placement(&self) -> Option<&Placement> {
        self.options.as_deref()?.placement.as_ref()
    }

    /// The digest of function, arguments and options (R2); `id`, `replay` and `parent` stay out.
    pub fn compute_digest(&self) -> u64 {
        let mut parts: Vec<&[u8]> = Vec::with_capacity(4 + self.args.len() * 2);
        let function = self.function.to_le_bytes();
        let options = (u64::from(self.cpu_milli) << 32 | u64::from(self.max_retries)).to_le_bytes();
        parts.push(&function);
        parts.push(&options);
        for arg in &self.args {
            match &arg.arg {
                Some(arg::Arg::Value(value)) => parts.extend([&b"v"[..], &value[..]]),
                Some(arg::Arg::Object(object)) => parts.extend([&b"o"[..], &object[..]]),
                None => parts.push(b"-"),
            }
        }
        let options = self.options.as_deref().map(prost::Message::encode_to_vec);
        parts.extend(options.iter().flat_map(|options| [&b"with"[..], options]));
        let amounts: Vec<[u8; 8]> = self.resources.iter().map(|r| r.milli.to_le_bytes()).collect();
        for (resource, milli) in self.resources.iter().zip(&amounts) {
            parts.extend([resource.name.as_bytes(), &milli[..]]);
        }
        mobula_base::ids::hash64(&parts)
    }
}
