//! One life of a node: the production core and object table, and the state of the shell around them.

use super::options::Options;
use super::program::Content;
use super::room::Waiting;
use super::worker::Client;
use mobula_base::{Incarnation, Instant, ObjectId, Resources, ShardId};
use mobula_objstore::Depot;
use mobula_objstore::depot::{self, File};
use mobula_proto::{ClusterView, Failure, HoldingRequest, Output, PeerMsg, StreamBatch, TaskSpec, peer_msg};
use mobula_scheduler::{ClientId, Config, Core, Event, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// The driver's link.
pub const DRIVER: ClientId = 1;
/// A store's invariants are looked at after so many changes: it takes as long as there are objects.
const STORE_CHECKED_EVERY: u64 = 32;
/// Creator of transfers in the store: no link has this number.
pub const TRANSFER: u64 = 0;

/// What a driver or worker says to its daemon.
#[derive(Clone, Debug)]
pub enum Said {
    /// Submits a task.
    Submit(Box<TaskSpec>),
    /// Wants to know of an object, or to have its value.
    Get { object: ObjectId, want_value: bool },
    /// Needs room for a large value.
    Create { object: ObjectId, len: u64 },
    /// Has written it, or found it there.
    Seal { object: ObjectId, content: Content },
    /// Stores a small value.
    Put { object: ObjectId, content: Content },
    /// A task ended; a large value was written to what `Create` gave.
    Finished {
        task: mobula_base::TaskId,
        attempt: u32,
        value: Result<Written, Failure>,
        contains: Vec<ObjectId>,
        ran_ns: u64,
        elements: Vec<Content>,
    },
    /// Waits inside its task; these come back.
    Blocked(Vec<mobula_base::TaskId>),
    /// Waits inside its task for room; these come back.
    Stalled(Vec<mobula_base::TaskId>),
    /// Has read the arguments of a task.
    ArgsTaken(mobula_base::TaskId),
    /// Has not made what this task needs.
    NotBegun(mobula_base::TaskId),
    /// Goes on.
    Unblocked,
    /// Holds references that lay in values.
    Held(Vec<ObjectId>),
    /// Its last references are gone.
    Dropped(Vec<ObjectId>),
    /// Looks no longer where these lie, once for each time it was told.
    Unpin(Vec<ObjectId>),
    /// Takes an item of a stream; or none any more.
    Take { task: mobula_base::TaskId, first: u32, over: bool },
    /// Cancels a task, perhaps with all that it has submitted.
    Cancel(mobula_base::TaskId, bool),
    /// The driver's job is over.
    EndJob,
}

/// A task for a worker.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its record, with the program's own argument alone.
    pub spec: Box<TaskSpec>,
    /// Which attempt.
    pub attempt: u32,
    /// Its arguments.
    pub args: Vec<Value>,
    /// Those of them that the worker makes before.
    pub made: Vec<(usize, ObjectId)>,
}

/// How a task hands its value over.
#[derive(Clone, Debug)]
pub enum Written {
    /// In the message.
    Inline(Content),
    /// In memory, or it was there already.
    Shared(Content),
}

/// What a daemon says to a driver or worker.
#[derive(Clone, Debug)]
pub enum Told {
    /// Run this.
    Run(Given),
    /// An attempt is to stop, or not to begin.
    Stop { task: mobula_base::TaskId, attempt: u32 },
    /// An object exists (or never will).
    Ready { object: ObjectId, value: Seen },
    /// There is no room for an object yet.
    RoomWaits(ObjectId),
    /// What it does not look at just now it had better give back.
    Recall(Vec<ObjectId>),
    /// So many items of a stream that it takes from are made.
    Made { task: mobula_base::TaskId, items: u32 },
    /// So many items of a stream that it makes are taken.
    Taken { task: mobula_base::TaskId, items: u32 },
    /// There is room, or the object is there already, with this checksum; or there is none.
    Created { object: ObjectId, room: Result<Option<u32>, Failure> },
}

/// An object as a client sees it.
#[derive(Clone, Debug)]
pub enum Seen {
    /// In this node's memory.
    Here(Value),
    /// Elsewhere.
    Elsewhere(Output),
    /// Never.
    Failed(Failure),
}

/// What comes to the daemon's loop.
#[derive(Clone, Debug)]
pub enum Input {
    /// An event as it is.
    Core(Event),
    /// From a client.
    Said { client: ClientId, said: Said },
    /// A worker connects.
    Hello { worker: ClientId },
    /// A client's link closed.
    Closed { client: ClientId },
    /// The driver's job is committed.
    DriverUp,
    /// From another node.
    FromPeer { from: Incarnation, msgs: Vec<PeerMsg> },
    /// A view.
    View(Rc<ClusterView>),
    /// A transfer has begun: its bytes take so long, once there is room, and may break off.
    Arrived { object: ObjectId, from: Incarnation, content: Content, takes: Duration, breaks: bool },
    /// A transfer has filled its room, or broke off.
    Filled { object: ObjectId, from: Incarnation, offset: u64, content: Content, breaks: bool },
    /// A file is durable, or was not taken.
    FileWritten { object: ObjectId, outcome: depot::Written },
    /// An object is in memory again, or its file is damaged.
    FileRead { object: ObjectId, outcome: Result<(), ()> },
    /// A file was found damaged when it was sent to another node.
    FileDamaged { object: ObjectId, file: File },
    /// The disk may take files again.
    DiskAgain,
    /// A shard wants all holdings, for this term.
    ReportAll { shard: ShardId, term: u64, deaths: u64 },
    /// A report is due: which copies has nobody here a use for?
    Idle { shard: ShardId },
    /// A transfer to another node has ended.
    Served { object: ObjectId, transfer: u64 },
    /// This life is over.
    Fenced,
}

/// Messages to another node: kept until they are acknowledged.
#[derive(Default)]
pub struct Outgoing {
    /// Not acknowledged, in order.
    pub unacked: VecDeque<PeerMsg>,
    /// How many were acknowledged.
    pub acked: u64,
    /// How many of the unacknowledged were sent over this connection.
    pub sent: usize,
    /// Which connection this is.
    pub connection: u64,
    /// What is sent now arrives no earlier than what was sent before.
    pub arrives: Instant,
    /// Something over this connection was lost: it is dead, though nobody knows yet.
    pub broken: bool,
    /// A connection has been up.
    pub was_up: bool,
    /// Looks at progress are scheduled.
    pub watched: bool,
    /// When something was acknowledged last.
    pub progress: Instant,
}

/// One stream to a shard: a batch at a time.
#[derive(Default)]
pub struct StreamCall {
    /// The batch in flight, as it travels.
    pub batch: Option<Rc<StreamBatch>>,
    /// Which try this is.
    pub tries: u64,
}

/// Reports of holdings to a shard.
#[derive(Default)]
pub struct Reporter {
    /// Term of the leader that has been told all.
    pub term: u64,
    /// Whether each is here, as it stands now: come since the last report began.
    pub held: BTreeMap<ObjectId, bool>,
    /// In the report that is under way, or to be repeated.
    pub waiting: BTreeMap<ObjectId, bool>,
    /// Which report this is.
    pub tries: u64,
    /// The loop is being asked for idle copies.
    pub asking: bool,
    /// Deaths acted on when the report began.
    pub deaths: u64,
    /// A report is under way.
    pub asked: Option<HoldingRequest>,
    /// A look is scheduled.
    pub scheduled: bool,
    /// Deaths that the leader knows to be acted on.
    pub told: u64,
    /// The last answer was no acceptance.
    pub open: bool,
    /// Idle copies are asked about again from then on.
    pub idle_from: Instant,
}

/// One life.
pub struct Life {
    /// Its number.
    pub incarnation: Incarnation,
    /// What decides.
    pub core: Core,
    /// What it holds, in memory and files.
    pub store: Depot,
    /// Who waits for it.
    pub waiting: Waiting,
    /// What an earlier life has left on the disk, until that is taken up.
    pub found: Option<Vec<(ObjectId, File)>>,
    /// What was taken up, and not compared with what is on record yet.
    pub attached: BTreeSet<ObjectId>,
    /// Reports that were asked for before.
    pub early_reports: Vec<(ShardId, u64, u64)>,
    /// What lies where in its memory.
    pub memory: BTreeMap<u64, Content>,
    /// What has come and not been looked at.
    pub inbox: Vec<Input>,
    /// A turn is scheduled.
    pub turning: bool,
    /// A tick is scheduled for then.
    pub tick: Option<Instant>,
    /// Newest view that was looked at.
    pub view_version: u64,
    /// Newest view that was acted on.
    pub acted: u64,
    /// A death was learnt of in this turn.
    pub has_buried: bool,
    /// Who is dead.
    pub dead: BTreeSet<u64>,
    /// Where the living are.
    pub addresses: BTreeMap<u64, usize>,
    /// What goes to each.
    pub outgoing: BTreeMap<u64, Outgoing>,
    /// Highest number seen from each.
    pub seen: BTreeMap<u64, u64>,
    /// For nodes that no view has named yet.
    pub early: BTreeMap<u64, Vec<peer_msg::Msg>>,
    /// To each shard.
    pub streams: Vec<StreamCall>,
    /// To each shard.
    pub reporters: Vec<Reporter>,
    /// Questions under way.
    pub locates: BTreeMap<u64, Vec<ObjectId>>,
    /// Number of the next question.
    pub next_locate: u64,
    /// Heartbeats said.
    pub beats: u64,
    /// Drivers and workers.
    pub clients: BTreeMap<ClientId, Client>,
    /// Number of the next client.
    pub next_client: ClientId,
    /// Whether the job is known.
    pub has_job: bool,
    /// It is over.
    pub fenced: bool,
    /// Copies that were promised and asked for and are not here, as their homes have been told.
    pub missed: BTreeSet<ObjectId>,
    /// Number of the last transfer to another node.
    pub next_transfer: u64,
    /// What was sealed in this turn.
    pub fresh: Vec<ObjectId>,
    /// What tasks made in this turn, of that which was missed.
    pub made_anew: Vec<ObjectId>,
    /// Events for the core, kept for its memory.
    pub events: Vec<Event>,
    /// Bytes of its store when its memory was looked at last, and how often that was.
    pub used: (u64, u64),
}

impl Life {
    /// A node that has just joined.
    pub fn new(machine: usize, incarnation: u64, options: &Options, found: Vec<(ObjectId, File)>) -> Self {
        let (cpus, shards) = (options.cpus[machine], options.shards);
        let config = Config {
            incarnation: Incarnation(incarnation),
            shards: shards as u32,
            name: format!("node-{machine}"),
            resources: Resources::cpus_milli(cpus * 1000),
            labels: [("zone".to_owned(), super::program::label_of(machine).to_owned())].into(),
            workers: cpus as u32,
            linger: options.linger.unwrap_or_else(|| crate::linger::of(incarnation)),
            crc: super::program::crc,
        };
        let mut store = Depot::new(options.store_of(machine), options.disk_us.is_some());
        found.iter().for_each(|(_, file)| store.skip_number(file.number));
        let mut core = Core::new(config);
        core.bend(options.bends);
        Life {
            incarnation: Incarnation(incarnation),
            core,
            store,
            waiting: Waiting::default(),
            found: (!found.is_empty()).then_some(found),
            attached: BTreeSet::new(),
            early_reports: Vec::new(),
            memory: BTreeMap::new(),
            inbox: Vec::new(),
            turning: false,
            tick: None,
            view_version: 0,
            acted: 0,
            has_buried: false,
            dead: BTreeSet::new(),
            addresses: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            seen: BTreeMap::new(),
            early: BTreeMap::new(),
            streams: (0..shards).map(|_| StreamCall::default()).collect(),
            reporters: (0..shards).map(|_| Reporter::default()).collect(),
            locates: BTreeMap::new(),
            next_locate: 0,
            beats: 0,
            clients: BTreeMap::new(),
            next_client: DRIVER + 1,
            has_job: false,
            fenced: false,
            missed: BTreeSet::new(),
            next_transfer: 0,
            fresh: Vec::new(),
            made_anew: Vec::new(),
            events: Vec::new(),
            used: (0, 0),
        }
    }

    /// What was freed is there no more: who still reads it reads something else.
    pub fn forget_freed(&mut self) {
        let used = self.store.usage().0;
        if used != self.used.0 {
            let store = &self.store;
            self.memory.retain(|offset, _| store.is_taken(*offset));
            self.used = (used, self.used.1 + 1);
            if self.used.1.is_multiple_of(STORE_CHECKED_EVERY) {
                self.store.check_invariants();
            }
        }
    }

    /// What a value in this node's memory is.
    pub fn content(&self, value: &Value) -> Option<Content> {
        match value {
            Value::Inline(bytes) => Content::decode(bytes),
            Value::Shared { offset, .. } => self.memory.get(offset).cloned(),
        }
    }
}
