//! What there is: a shard with its leader, nodes, and what is on its way between them.

use super::Tally;
use mobula_base::random::Random;
use mobula_base::sim_disk::SimDisk;
use mobula_base::{Incarnation, Instant, JobId, Resources, TaskId};
use mobula_gcs::cold;
use mobula_gcs::core::beats::Beats;
use mobula_gcs::core::cluster::Cluster;
use mobula_gcs::core::{ShardState, first_sweep};
use mobula_gcs::groups::Pace;
use mobula_proto::command::Op;
use mobula_proto::{
    Call, ClusterView, Command, HeartbeatRequest, InitCluster, JobStart, NamedResource, NodeJoin,
    OpenSession, RaiseLevel, TaskSpec, call, call_reply, group_command, reply,
};
use mobula_scheduler::{ClientId, Config, Core, Event};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The one job; its driver is at the first node, which lives.
pub const JOB: JobId = JobId(7);
/// The driver's link.
pub const DRIVER: ClientId = 1;
/// Nodes that there are.
pub const NODES: usize = 4;
/// What each offers.
pub const CPUS: u64 = 4;
/// And of that.
pub const GPUS: u64 = 2;

/// A worker process and what it was given.
#[derive(Default)]
pub struct Worker {
    /// The first runs.
    pub queue: VecDeque<(Arc<TaskSpec>, u32)>,
    /// It waits inside its task.
    pub blocked: bool,
}

/// A node, from its start to its death.
pub struct Node {
    /// What decides.
    pub core: Core,
    /// Its processes.
    pub workers: BTreeMap<ClientId, Worker>,
    /// The newest view it has seen, as its shell remembers.
    pub seen: u64,
    /// It is dead, though that is not committed yet.
    pub is_dead: bool,
    pub(super) next_client: ClientId,
}

/// What the driver asked for, and what came of it.
pub struct Task {
    /// As it was submitted.
    pub spec: TaskSpec,
    /// `None`: not yet. Else whether it has a value.
    pub ended: Option<bool>,
}

/// Everything.
pub struct World {
    /// What was done.
    pub tally: Tally,
    pub(super) random: Random,
    pub(super) now: Instant,
    pub(super) shard: ShardState,
    pub(super) index: u64,
    session: (u64, u64),
    /// The leader's: lost with it.
    pub(super) beats: Beats,
    pub(super) pace: Pace,
    /// As it was before the last entries.
    pub(super) history: VecDeque<Cluster>,
    /// What the leader goes by, while it has not applied all that is in its log.
    pub(super) behind: Option<Cluster>,
    /// Proposed and not committed.
    pub(super) proposed: VecDeque<group_command::Op>,
    pub(super) nodes: BTreeMap<u64, Node>,
    /// On their way to the leader.
    pub(super) heartbeats: Vec<HeartbeatRequest>,
    /// On their way to a node.
    pub(super) views: Vec<(u64, ClusterView)>,
    /// From node to node: in order, and lost only with one of them.
    pub(super) messages: BTreeMap<(u64, u64), VecDeque<Event>>,
    pub(super) tasks: BTreeMap<TaskId, Task>,
    /// Ids of groups that were made, with the revisions of their making.
    pub(super) made: Vec<(u64, u64)>,
    pub(super) next_group: u64,
    pub(super) submitted: u64,
    /// Groups of which a bundle has lost its place with a node.
    pub(super) struck: BTreeSet<u64>,
}

impl World {
    /// A cluster whose nodes know each other.
    pub fn new(seed: u64) -> Self {
        let cold = cold::open_one(Arc::new(SimDisk::new(seed)), 0).expect("a simulated disk has room");
        let mut world = World {
            tally: Tally::default(),
            random: Random::new(seed).fork("placement groups"),
            now: Instant::default(),
            shard: ShardState::new(0, cold),
            index: 0,
            session: (0, 0),
            beats: Beats::default(),
            pace: Pace::default(),
            history: VecDeque::new(),
            behind: None,
            proposed: VecDeque::new(),
            nodes: BTreeMap::new(),
            heartbeats: Vec::new(),
            views: Vec::new(),
            messages: BTreeMap::new(),
            tasks: BTreeMap::new(),
            made: Vec::new(),
            next_group: 1,
            submitted: 0,
            struck: BTreeSet::new(),
        };
        world.apply(Op::Init(InitCluster { cluster: 1, shards: 1, slots: mobula_base::ids::SLOTS }));
        world.apply(Op::Raise(RaiseLevel { level: 4, program: "simulated".into(), heads: 0 }));
        world.apply(first_sweep(0, 1));
        let open = Call { op: Some(call::Op::Open(OpenSession {})), ..Call::default() };
        match world.apply(Op::Call(open)) {
            Some(reply::Reply::Call(reply)) => match reply.reply {
                Some(call_reply::Reply::Session(session)) => world.session = (session, 0),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
        (0..NODES).for_each(|_| world.join());
        let start = JobStart { job: JOB.0, incarnation: 1, counted: true, ..JobStart::default() };
        world.call(call::Op::JobStart(start));
        world.all_see();
        world
    }

    /// Appends to the log of shard 0.
    pub(super) fn apply(&mut self, op: Op) -> Option<reply::Reply> {
        self.index += 1;
        let reply = self.shard.apply(self.index, &Command::from(op)).reply;
        assert_eq!(self.shard.broken(), None);
        while self.shard.counting.has_work() {
            self.index += 1;
            self.shard.apply(self.index, &Command::from(Op::Sweep(mobula_proto::Sweep::default())));
        }
        reply
    }

    pub(super) fn call(&mut self, op: call::Op) -> call_reply::Reply {
        self.session.1 += 1;
        let (session, seq) = self.session;
        match self.apply(Op::Call(Call { session, seq, op: Some(op) })) {
            Some(reply::Reply::Call(reply)) => reply.reply.expect("answered"),
            other => panic!("{other:?}"),
        }
    }

    /// A node joins.
    pub(super) fn join(&mut self) {
        let number = self.shard.cluster.last_incarnation + 1;
        let join = NodeJoin {
            name: format!("node-{number}"),
            address: format!("n{number}:1"),
            cpu_milli: CPUS as u32 * 1000,
            resources: vec![NamedResource { name: "gpu".into(), milli: GPUS * 1000 }],
            ..NodeJoin::default()
        };
        let call_reply::Reply::Incarnation(incarnation) = self.call(call::Op::NodeJoin(join)) else {
            panic!("a node is not taken")
        };
        let config = Config {
            incarnation: Incarnation(incarnation),
            shards: 1,
            name: format!("node-{incarnation}"),
            resources: totals(),
            labels: BTreeMap::new(),
            workers: CPUS as u32,
            linger: Duration::ZERO,
            crc: |bytes| bytes.len() as u32,
        };
        let (core, workers) = (Core::new(config), BTreeMap::new());
        let node = Node { core, workers, seen: 0, is_dead: false, next_client: 10 };
        self.nodes.insert(incarnation, node);
        self.event(incarnation, Event::JobStarted { job: JOB, counted: true });
    }

    /// The cluster as shard 0 has it.
    pub(super) fn view(&self) -> ClusterView {
        self.shard.cluster.view()
    }

    /// Every node sees the cluster as it is.
    pub(super) fn all_see(&mut self) {
        let view = self.view();
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.sees(node, view.clone());
        }
    }

    /// A view comes to a node, whose shell drops what is older than what it has seen.
    pub(super) fn sees(&mut self, node: u64, view: ClusterView) {
        let Some(at) = self.nodes.get_mut(&node).filter(|at| !at.is_dead && at.seen < view.version) else {
            return;
        };
        at.seen = view.version;
        self.event(node, Event::View(view));
    }

    pub(super) fn living(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| !node.is_dead).map(|(number, _)| *number).collect()
    }

    /// Something goes into what is compared between runs.
    pub(super) fn note(&mut self, what: &str, number: u64) {
        let before = self.tally.fingerprint.to_le_bytes();
        self.tally.fingerprint = mobula_base::ids::hash64(&[&before, what.as_bytes(), &number.to_le_bytes()]);
    }
}

/// What a node offers.
pub fn totals() -> Resources {
    Resources::new(CPUS * 1000, [("gpu".to_owned(), GPUS * 1000)])
}
