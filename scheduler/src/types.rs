//! Events in, effects out. Both are closed: a new one should break every place that must think
//! about it.

use crate::memory::Measured;
use bytes::Bytes;
use mobula_base::{Incarnation, JobId, ObjectId, ShardId, TaskId};
use mobula_proto::{
    Assign, ClusterView, Failure, GroupState, InGroup, Located, NewItems, Notice, Output, PeerResult,
    StreamAck, StreamBatch, StreamItem, TaskSpec,
};
use smallvec::SmallVec;
use std::sync::Arc;
use thin_vec::ThinVec;

/// A local link of the daemon: one driver or one worker. Never reused.
pub type ClientId = u64;

/// Clients that have to do with an object: mostly one.
pub(crate) type Clients = SmallVec<[ClientId; 2]>;

/// A value in this node's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Small: travels inside messages.
    Inline(Bytes),
    /// Sealed in the shared region.
    Shared {
        /// Offset in the region, bytes.
        offset: u64,
        /// Length, bytes.
        len: u64,
        /// CRC-32 of the bytes.
        crc: u32,
    },
}

impl Value {
    /// Size and checksum; `crc_of` computes the checksum of inline bytes.
    pub fn output(&self, crc_of: impl Fn(&[u8]) -> u32) -> Output {
        match self {
            Value::Inline(bytes) => Output { crc: crc_of(bytes), size: bytes.len() as u64 },
            Value::Shared { len, crc, .. } => Output { crc: *crc, size: *len },
        }
    }
}

/// What a client is told about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Ready {
    /// It is in this node's memory.
    Here(Value),
    /// It exists on another node.
    Elsewhere(Output),
    /// It will never exist.
    Failed(Failure),
}

/// How one attempt of a task ended on this node.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskOutcome {
    /// The task.
    pub task: TaskId,
    /// The attempt that ended.
    pub attempt: u32,
    /// Its value, or why there is none.
    pub value: Result<Value, Failure>,
    /// Objects whose references lie inside the value.
    pub contains: Vec<ObjectId>,
    /// How long the function ran, nanoseconds.
    pub ran_ns: u64,
    /// What it returned in parts, if it was to (decision 26).
    pub elements: Elements,
}

/// What a task returns in parts; mostly none.
pub type Elements = ThinVec<Element>;

/// One of several objects that a task returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Its value.
    pub value: Value,
    /// Objects whose references lie inside.
    pub contains: Vec<ObjectId>,
}

/// Why a transfer did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The holder could not be reached or the connection broke.
    Unreachable,
    /// The holder does not have it.
    NotFound,
    /// The bytes do not match their checksum.
    Corrupt,
    /// This node's store has no room.
    StoreFull(String),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A driver or worker submits tasks.
    Submit { client: ClientId, specs: Vec<TaskSpec> },
    /// A client wants to know of objects, or (`want_value`) have them in this node's memory.
    Get { client: ClientId, job: JobId, objects: Vec<ObjectId>, want_value: bool },
    /// A client stored a value, in which references lie; it refers to it from here on.
    Put {
        client: ClientId,
        object: ObjectId,
        job: JobId,
        value: Value,
        by_driver: bool,
        contains: Vec<ObjectId>,
        /// On so many nodes it shall be; 0: nobody said.
        replicas: u32,
    },
    /// A client took references out of values. (It refers to what it submits and puts anyway.)
    Held { client: ClientId, job: JobId, objects: Vec<ObjectId> },
    /// A client takes these items of a stream, and refers to them from here on; `over`: it takes no more.
    Take {
        /// Who.
        client: ClientId,
        /// Its job.
        job: JobId,
        /// Whose items.
        task: TaskId,
        /// The first of them.
        first: u32,
        /// The first that is not among them.
        upto: u32,
        /// Whether it is done with the stream.
        over: bool,
    },
    /// A client dropped its last references to these.
    Dropped { client: ClientId, objects: Vec<ObjectId> },
    /// Nobody needs these any more, says their home or a node that heard it: copies may go.
    Freed { objects: Vec<ObjectId> },
    /// A driver's link closed.
    ClientGone { client: ClientId },
    /// A worker is ready.
    WorkerUp { worker: ClientId, job: JobId },
    /// A worker's link closed.
    WorkerGone { worker: ClientId },
    /// A worker could not be started.
    SpawnFailed { job: JobId, failure: Failure, fatal: bool },
    /// A worker finished tasks, in the order it ran them.
    Finished { worker: ClientId, outcomes: Vec<TaskOutcome> },
    /// A worker waits inside its task; these queued tasks come back (R16).
    Blocked { worker: ClientId, returned: Vec<TaskId> },
    /// A worker waits inside its task for room in shared memory; these queued tasks come back. It keeps its
    /// CPU: whatever else ran would want room, too.
    Stalled { worker: ClientId, returned: Vec<TaskId> },
    /// A worker was not given these after all: an argument was not here any more.
    NotGiven { worker: ClientId, tasks: Vec<TaskId> },
    /// It goes on, whatever it waited for.
    Unblocked { worker: ClientId },
    /// The copy of this node is gone, damaged where it lay.
    CopyLost { object: ObjectId },
    /// A copy that an earlier life of this node had is still here; others may know of it.
    Attached { object: ObjectId, job: JobId, value: Value },
    /// A client wants these tasks to end, or a node whose client does; with what they submitted, if `recursive`.
    Cancel { from: Option<Incarnation>, tasks: Vec<TaskId>, recursive: bool },
    /// Another node's keeper wants a task run here.
    Assigned { from: Incarnation, assign: Assign },
    /// An executor reports.
    PeerResult { from: Incarnation, result: PeerResult },
    /// All that an earlier reported task had submitted is committed.
    PeerDurable { from: Incarnation, task: TaskId, attempt: u32 },
    /// A keeper does not want an attempt any more that it has assigned here.
    TakenBack {
        /// Who.
        from: Incarnation,
        /// Of which task.
        task: TaskId,
        /// Which.
        attempt: u32,
    },
    /// Another node has made items of a stream for this one.
    NewItems {
        /// Which node.
        from: Incarnation,
        /// What it says.
        news: NewItems,
    },
    /// So many items of a stream that is made here are taken, says its keeper.
    PeerTaken {
        /// The keeper.
        from: Incarnation,
        /// Whose items.
        task: TaskId,
        /// How many.
        taken: u32,
    },
    /// So many of the tasks that this node has assigned to another wait inside there, and have given their CPUs back.
    PeerWaiting { from: Incarnation, tasks: u32 },
    /// A peer asks this node to keep a copy: one of `want`, which are, or shall be, at these nodes; 0: a second one.
    Replicate {
        object: ObjectId,
        job: JobId,
        holder: Incarnation,
        output: Output,
        want: u32,
        at: Vec<Incarnation>,
    },
    /// A shard acknowledged the batch in flight. `moved`: those of its items that it answered so.
    Acked { shard: ShardId, ack: StreamAck, moved: Vec<StreamItem> },
    /// Answers of a home shard. Objects asked and not answered are asked again.
    Located { asked: Vec<ObjectId>, answers: Vec<Located> },
    /// A transfer ended.
    Fetched { object: ObjectId, value: Value },
    /// A transfer failed.
    FetchFailed { object: ObjectId, from: Incarnation, why: FetchError },
    /// The membership and the jobs, as committed.
    View(ClusterView),
    /// Workers of a job end once they have had so many tasks; 0 for never.
    WorkerReuse {
        /// The job.
        job: JobId,
        /// Tasks that one worker is given.
        tasks: u32,
    },
    /// A share of a job's pure tasks may be hedged.
    HedgeBudget {
        /// The job.
        job: JobId,
        /// So many of a thousand that came back from other nodes.
        permille: u32,
    },
    /// A driver of this node started a job.
    JobStarted {
        /// The job.
        job: JobId,
        /// Whether its references are counted; else its objects stay until it ends.
        counted: bool,
    },
    /// The job of a driver of this node ended.
    JobEnded(JobId),
    /// A client wants to hear how a placement group stands, now and whenever that changes, until it is no more.
    WatchGroup {
        /// Who.
        client: ClientId,
        /// Which.
        group: InGroup,
    },
    /// What the workers of this node have of its memory.
    Memory(Measured),
    /// A client waits until all that it submitted is durable: what lingers is sent.
    Flush,
    /// The deadline passed.
    Tick,
}

/// What should happen.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Give a task to a worker, with the numbers of the GPUs that it may use. The argument at the place `made` it makes
    /// itself before: there is nothing of it here.
    Run {
        worker: ClientId,
        spec: Arc<TaskSpec>,
        attempt: u32,
        args: Vec<Value>,
        made: Option<u32>,
        devices: Vec<u32>,
    },
    /// Tell a worker that this attempt is to stop, or not to begin.
    Stop { worker: ClientId, task: TaskId, attempt: u32 },
    /// End a worker process, which has not stopped a task in time, or waits in one that is for nobody.
    Kill { worker: ClientId },
    /// Tell a node that these tasks are to end.
    Cancel { to: Incarnation, tasks: Vec<TaskId>, recursive: bool },
    /// Let a worker process end: it has had as many tasks as its job lets one have, and has none.
    Retire { worker: ClientId },
    /// Start a worker process.
    Spawn { job: JobId },
    /// Hand a task to another node.
    Assign { to: Incarnation, assign: Assign },
    /// Report to a keeper.
    Result { to: Incarnation, result: PeerResult },
    /// Report that a task's submissions are committed.
    Durable { to: Incarnation, task: TaskId, attempt: u32 },
    /// Tell an executor that an attempt is not wanted any more.
    TakeBack {
        /// Whom.
        to: Incarnation,
        /// Of which task.
        task: TaskId,
        /// Which.
        attempt: u32,
    },
    /// Tell a keeper of items of a stream that were made here.
    NewItems {
        /// Whom.
        to: Incarnation,
        /// What is new.
        news: NewItems,
    },
    /// Tell an executor how many items of a stream are taken.
    TellTaken {
        /// Whom.
        to: Incarnation,
        /// Whose items.
        task: TaskId,
        /// How many.
        taken: u32,
    },
    /// Tell a worker the same.
    ItemsTaken {
        /// Whom.
        worker: ClientId,
        /// Whose items.
        task: TaskId,
        /// How many.
        taken: u32,
    },
    /// Tell a client how many items of a stream there are, or were.
    ItemsMade {
        /// Whom.
        client: ClientId,
        /// Whose items.
        task: TaskId,
        /// How many.
        made: u32,
    },
    /// Tell a node how many of the tasks that it has assigned here wait inside.
    Waiting { to: Incarnation, tasks: u32 },
    /// Send the next batch of a stream; repeat it until it is acknowledged.
    Send { shard: ShardId, batch: StreamBatch },
    /// Ask the home shard.
    Locate { shard: ShardId, objects: Vec<ObjectId> },
    /// Copy an object from another node.
    Fetch { object: ObjectId, job: JobId, from: Incarnation, output: Output },
    /// Tell a client about an object.
    Ready { client: ClientId, object: ObjectId, ready: Ready },
    /// Tell a client that a lineage record is durable.
    Committed { client: ClientId, task: TaskId, revision: u64 },
    /// Tell the home shard that this node holds a copy (soft state).
    Held { object: ObjectId },
    /// Nobody uses this copy any more: free its memory.
    Discard { object: ObjectId },
    /// Tell a node that nobody needs these any more.
    Freed { to: Incarnation, objects: Vec<ObjectId> },
    /// Ask a node to keep a copy: one of `want`, which are, or shall be, at these nodes; 0: a second one.
    Replicate {
        to: Incarnation,
        object: ObjectId,
        job: JobId,
        output: Output,
        want: u32,
        at: Vec<Incarnation>,
    },
    /// Tell the control store what is reserved here: there is news.
    TellClaims,
    /// Tell a client how a placement group stands.
    Group { client: ClientId, state: GroupState },
    /// For whoever watches the job.
    Notice { job: JobId, notice: Notice },
    /// Free all objects and stop all workers of a job.
    FreeJob(JobId),
}
