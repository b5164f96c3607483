//! Everything that comes into the daemon's loop.

use crate::spill::SpillError;
use crate::transfer::Lent;
use mobula_base::{Incarnation, JobId, ObjectId, ShardId, TaskPrefix};
use mobula_net::written::Written;
use mobula_objstore::StoreError;
use mobula_objstore::depot::{File, Kept, Spilled};
use mobula_objstore::table::Place;
use mobula_proto::{
    Claims, ClientMsg, ClusterView, DaemonMsg, Hello, JobStart, LookReply, LookRequest, Output, PeerMsg,
};
use mobula_scheduler::explain::Explained;
use mobula_scheduler::{Census, ClientId, Event, Value};
use tokio::sync::{mpsc, oneshot};

/// One thing that happened.
pub enum Input {
    /// For the core alone.
    Core(Event),
    /// A driver's job is committed: its link is open.
    DriverUp { client: ClientId, job: JobId, start: JobStart, outbox: Written<DaemonMsg> },
    /// A worker said hello.
    WorkerHello { client: ClientId, hello: Hello, outbox: Written<DaemonMsg>, taken: oneshot::Sender<bool> },
    /// A link spoke.
    FromClient { client: ClientId, msgs: Vec<ClientMsg> },
    /// A link closed.
    ClientClosed { client: ClientId },
    /// A worker process ended.
    WorkerEnded { token: u64, how: String },
    /// A peer spoke.
    FromPeer { from: Incarnation, msgs: Vec<PeerMsg> },
    /// The membership and jobs.
    View(ClusterView),
    /// A transfer to another node wants the bytes; of which these are on record, if any.
    Lookup { object: ObjectId, want: Output, reply: oneshot::Sender<Option<Lent>> },
    /// It looks at them no longer.
    Served { object: ObjectId, transfer: u64 },
    /// A transfer wants room.
    Reserve { object: ObjectId, len: u64, job: JobId, reply: oneshot::Sender<Result<u64, StoreError>> },
    /// A transfer has filled its room.
    Filled { object: ObjectId, crc: u32 },
    /// A transfer gave its room up.
    Abandoned { object: ObjectId },
    /// The file of an object is durable, or was not taken.
    SpillWritten { object: ObjectId, outcome: Result<Option<u64>, SpillError> },
    /// An object is in memory again, or its file is of no use.
    SpillRead { object: ObjectId, outcome: Result<(), SpillError> },
    /// The file of an object was found damaged while it was sent to another node.
    SpillDamaged { object: ObjectId, file: File },
    /// It is time to try the disk for spilled objects again.
    SpillAgain,
    /// What is held for a shard, for a re-report.
    Held { shard: ShardId, reply: HeldReply },
    /// Copies for which this node has no use, for a report to their home.
    Idle { shard: ShardId, reply: oneshot::Sender<Vec<ObjectId>> },
    /// The load, for a heartbeat.
    Load { reply: oneshot::Sender<Load> },
    /// How tasks stand, and whether there are more than are told.
    Explain { prefix: TaskPrefix, reply: oneshot::Sender<(Vec<Explained>, bool)> },
    /// Rows of what there is, for people who look.
    Look { prefix: TaskPrefix, asked: Box<LookRequest>, reply: oneshot::Sender<LookReply> },
    /// It is time to measure what workers have of memory.
    MeasureMemory,
    /// How much there is of everything, for people who watch.
    Count { reply: oneshot::Sender<Counts> },
    /// The cluster has declared this node dead (R10).
    Fenced,
}

/// Takes the epoch of the slot map that a report of holdings goes by, and the holdings.
pub type HeldReply = oneshot::Sender<(u64, Vec<ObjectId>)>;

/// What a heartbeat says.
#[derive(Debug, Clone, Default)]
pub struct Load {
    /// Free CPU, thousandths.
    pub cpu_milli_free: u64,
    /// Tasks that wait or run here.
    pub queued: u32,
    /// Bytes used in the store.
    pub store_bytes_used: u64,
    /// What is reserved for placement groups, and what is free beside CPUs.
    pub claims: Claims,
}

/// What a node tells those who watch it.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Tasks, workers, queues.
    pub core: Census,
    /// Objects in the store: sealed, still being written, and gone but for those who look at them.
    pub objects: (u64, u64, u64),
    /// Bytes used in the store, and in all.
    pub store_bytes: (u64, u64),
    /// Objects that left memory.
    pub spilled: Spilled,
    /// Requests that wait for room in the store.
    pub waiting_for_room: u64,
    /// Drivers that are attached.
    pub drivers: u64,
}

/// The daemon's inbox. Bounded, so that a daemon that falls behind slows down who speaks to it.
pub type Inbox = mpsc::Sender<Input>;
/// Inputs that may wait.
pub const INBOX_MAX: usize = 16 * 1024;

/// A place in the store as a value of the core.
pub fn shared(place: Place) -> Value {
    Value::Shared { offset: place.offset, len: place.len, crc: place.crc }
}

/// What the store has of an object as a value of the core, which does not know what lies in files: whoever is
/// told a place is told it by the store.
pub fn kept(kept: Kept) -> Value {
    let (len, crc) = kept.output();
    match kept {
        Kept::Memory(place) => shared(place),
        Kept::File(_) => Value::Shared { offset: 0, len, crc },
    }
}
