//! Random stories: whatever happens in whatever order, every submitted task ends, and nothing
//! leaks. The core checks its own invariants after each step (debug builds).

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Arg, ClusterView, Failure, FailureKind, ItemOutcome, Located, NodeView, Output, PeerResult, StreamAck,
    StreamBatch, TaskOptions, TaskSpec, TaskState, TaskView, Value as Told, arg, item_outcome, located,
    object_bytes, stream_item, task_bytes, task_id, value as wire,
};
use mobula_scheduler::memory::Measured;
use mobula_scheduler::{Config, Core, Effect, Element, Event, TaskOutcome, Value};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const ME: Incarnation = Incarnation(1);
const JOB: JobId = JobId(3);
const DRIVER: u64 = 1000;
const CPUS: u64 = 2;
/// Bytes of a value that stays where it was made.
const LARGE: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Step {
    /// Submits a task that takes some earlier outputs.
    Submit(Vec<u8>),
    /// A worker finishes what it runs: right, or with an error.
    Finish(u8, bool),
    /// A worker dies, and another comes.
    WorkerDies(u8),
    /// There is no memory left, and each worker has much of it.
    MemoryShort,
    /// A worker waits inside its task, and gives back what it has not begun.
    Blocks(u8),
    /// It goes on.
    Unblocks(u8),
    /// The other node reports its oldest task: a small value, or one that stays there.
    PeerFinishes(bool),
    /// The other node dies, and a new one joins.
    PeerDies,
    /// The oldest batch is acknowledged.
    Ack,
    /// An acknowledgement arrives once more.
    AckAgain,
    /// The oldest question is answered.
    Answer,
    /// The driver wants the bytes of an earlier output.
    Get(u8),
    /// The driver cancels an earlier task, perhaps with what it submitted.
    Cancel(u8, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..3).prop_map(Step::Submit),
        4 => (any::<u8>(), prop::bool::weighted(0.1)).prop_map(|(w, fails)| Step::Finish(w, fails)),
        1 => any::<u8>().prop_map(Step::WorkerDies),
        1 => Just(Step::MemoryShort),
        1 => any::<u8>().prop_map(Step::Blocks),
        1 => any::<u8>().prop_map(Step::Unblocks),
        2 => any::<bool>().prop_map(Step::PeerFinishes),
        1 => Just(Step::PeerDies),
        3 => Just(Step::Ack),
        1 => Just(Step::AckAgain),
        2 => Just(Step::Answer),
        1 => any::<u8>().prop_map(Step::Get),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(task, recursive)| Step::Cancel(task, recursive)),
    ];
    prop::collection::vec(step, 1..150)
}

/// In so many parts a task returns what it makes; 0: as one value.
fn parts(task: TaskId) -> u32 {
    if task.place % 3 == 1 { 2 } else { 0 }
}

/// What whoever submits a task refers to.
fn returned(task: TaskId) -> Vec<ObjectId> {
    match parts(task) {
        0 => vec![task.output(0)],
        parts => (0..parts).map(|n| task.element(n)).collect(),
    }
}

/// One node's core, its home shard, its workers and one other node.
struct World {
    core: Core,
    now: Instant,
    submitted: Vec<TaskId>,
    ready: BTreeSet<ObjectId>,
    batches: VecDeque<(ShardId, StreamBatch)>,
    records: BTreeMap<TaskId, (TaskSpec, u32, TaskState)>,
    workers: BTreeMap<u64, VecDeque<(TaskId, u32)>>,
    blocked: BTreeSet<u64>,
    acked: Option<(ShardId, StreamAck)>,
    /// What the shard was asked and has not answered: a question about what it does not know yet waits.
    asked: VecDeque<Vec<ObjectId>>,
    peer: Incarnation,
    peer_tasks: VecDeque<(TaskId, u32)>,
    next: u64,
}

impl World {
    fn new() -> Self {
        let config = Config {
            incarnation: ME,
            shards: 1,
            name: String::new(),
            resources: Resources::cpus_milli(CPUS * 1000),
            labels: Default::default(),
            workers: CPUS as u32,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let mut world = World {
            core: Core::new(config),
            now: Instant(0),
            submitted: vec![],
            ready: BTreeSet::new(),
            batches: VecDeque::new(),
            records: BTreeMap::new(),
            workers: BTreeMap::new(),
            blocked: BTreeSet::new(),
            acked: None,
            asked: VecDeque::new(),
            peer: Incarnation(2),
            peer_tasks: VecDeque::new(),
            next: 10,
        };
        world.view();
        world.event(Event::JobStarted { job: JOB, counted: true });
        world
    }

    fn view(&mut self) {
        let node = |n: Incarnation| NodeView {
            incarnation: n.0,
            cpu_milli: 2000,
            alive: true,
            ..NodeView::default()
        };
        let nodes = vec![node(ME), node(self.peer)];
        self.event(Event::View(ClusterView { nodes, ..ClusterView::default() }));
    }

    fn event(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(50);
        let mut effects = Vec::new();
        self.core.step([event], self.now, &mut effects);
        // Its counts can be taken at any moment.
        let census = self.core.census();
        assert_eq!(census.unacknowledged, self.core.unacknowledged());
        let mut follow = Vec::new();
        for effect in effects {
            match effect {
                Effect::Run { worker, spec, attempt, .. } => {
                    let task = task_id(&spec.id).expect("valid");
                    self.workers.get_mut(&worker).expect("a live worker").push_back((task, attempt));
                }
                Effect::Retire { worker } | Effect::Kill { worker } => {
                    if self.workers.remove(&worker).is_some() {
                        self.blocked.remove(&worker);
                        follow.push(Event::WorkerGone { worker });
                    }
                }
                Effect::Spawn { job } => {
                    self.next += 1;
                    self.workers.insert(self.next, VecDeque::new());
                    follow.push(Event::WorkerUp { worker: self.next, job });
                }
                Effect::Assign { to, assign } => {
                    assert_eq!(to, self.peer, "tasks go to live nodes");
                    let task = task_id(&assign.spec.expect("has a spec").id).expect("valid");
                    self.peer_tasks.push_back((task, assign.attempt));
                }
                Effect::Send { shard, batch } => self.batches.push_back((shard, batch)),
                Effect::Locate { objects, .. } => self.asked.push_back(objects),
                Effect::Ready { object, .. } => drop(self.ready.insert(object)),
                Effect::Fetch { object, from, .. } => {
                    follow.push(if from == self.peer {
                        Event::Fetched { object, value: Value::Shared { offset: 0, len: LARGE, crc: 1 } }
                    } else {
                        let why = mobula_scheduler::FetchError::Unreachable;
                        Event::FetchFailed { object, from, why }
                    });
                }
                Effect::Result { .. } | Effect::Durable { .. } | Effect::TakeBack { .. } | Effect::Waiting { .. } | Effect::Replicate { .. } => {}
                Effect::Committed { .. }
                | Effect::Held { .. }
                | Effect::Notice { .. }
                | Effect::Discard { .. }
                | Effect::Freed { .. }
                // Some do not listen: they end when they end, or are killed.
                | Effect::Stop { .. }
                | Effect::NewItems { .. }
                | Effect::TellTaken { .. }
                | Effect::ItemsTaken { .. }
                | Effect::ItemsMade { .. }
                | Effect::Cancel { .. }
                | Effect::TellClaims
                | Effect::Group { .. }
                | Effect::FreeJob(_) => {}
            }
        }
        for event in follow {
            self.event(event);
        }
    }

    /// The shard knows only inline results here, so what is done lies with this node.
    fn locate(&self, objects: Vec<ObjectId>) -> Event {
        let answers = objects
            .iter()
            .map(|id| {
                let answer =
                    self.records.get(&id.task).map(|(_, attempt, _)| located::Answer::Lost(*attempt));
                Located { object: object_bytes(*id), answer }
            })
            .collect();
        Event::Located { asked: objects, answers }
    }

    /// Applies the oldest batch as the shard would.
    fn ack(&mut self) {
        let Some((shard, batch)) = self.batches.pop_front() else { return };
        let mut outcomes = Vec::new();
        for (i, item) in batch.items.iter().enumerate() {
            let outcome = match item.item.as_ref().expect("has content") {
                stream_item::Item::Submit(spec) => {
                    let task = task_id(&spec.id).expect("valid");
                    self.records.insert(task, (spec.clone(), 1, TaskState::TaskPending));
                    None
                }
                stream_item::Item::Done(done) => {
                    let task = task_id(&done.task).expect("valid");
                    let record = self.records.get_mut(&task).expect("submitted before it is done");
                    assert_eq!(record.1, done.attempt, "only the current attempt reports");
                    record.2 = TaskState::TaskDone;
                    None
                }
                stream_item::Item::Next(next) => {
                    let task = task_id(&next.task).expect("valid");
                    let record = self.records.get_mut(&task).expect("submitted before it is retried");
                    assert_eq!(record.1, next.from, "an attempt is proposed from the current one");
                    record.1 += 1;
                    record.2 = TaskState::TaskPending;
                    let spec = Some(record.0.clone());
                    Some(item_outcome::Outcome::Granted(TaskView {
                        attempt: record.1,
                        spec,
                        ..TaskView::default()
                    }))
                }
                // Packed only on the way to the store.
                stream_item::Item::Put(_)
                | stream_item::Item::Run(_)
                | stream_item::Item::RunDone(_)
                | stream_item::Item::Name(_)
                | stream_item::Item::Unname(_)
                | stream_item::Item::Release(_)
                | stream_item::Item::RunRelease(_) => None,
            };
            outcomes
                .extend(outcome.map(|o| ItemOutcome { seq: batch.first_seq + i as u64, outcome: Some(o) }));
        }
        let mark = batch.first_seq + batch.items.len() as u64 - 1;
        let ack = StreamAck { mark, revision: 1, outcomes };
        self.acked = Some((shard, ack.clone()));
        self.event(Event::Acked { shard, ack, moved: Vec::new() });
    }

    fn answer(&mut self) {
        if let Some(objects) = self.asked.pop_front() {
            let event = self.locate(objects);
            self.event(event);
        }
    }

    fn blocks(&mut self, pick: u8) {
        let awake: Vec<u64> = self
            .workers
            .iter()
            .filter(|(worker, queue)| !queue.is_empty() && !self.blocked.contains(worker))
            .map(|(worker, _)| *worker)
            .collect();
        let Some(worker) = awake.get(usize::from(pick) % awake.len().max(1)).copied() else { return };
        let queue = self.workers.get_mut(&worker).expect("just seen");
        let returned = queue.drain(1..).map(|(task, _)| task).collect();
        self.blocked.insert(worker);
        self.event(Event::Blocked { worker, returned });
    }

    fn unblocks(&mut self, pick: u8) {
        let worker = self.blocked.iter().nth(usize::from(pick) % self.blocked.len().max(1)).copied();
        if let Some(worker) = worker {
            self.blocked.remove(&worker);
            self.event(Event::Unblocked { worker });
        }
    }

    fn finish(&mut self, pick: u8, fails: bool) {
        let awake =
            |(worker, queue): &(&u64, &VecDeque<_>)| !queue.is_empty() && !self.blocked.contains(worker);
        let workers: Vec<u64> = self.workers.iter().filter(awake).map(|(w, _)| *w).collect();
        let Some(worker) = workers.get(usize::from(pick) % workers.len().max(1)).copied() else { return };
        let (task, attempt) = self.workers.get_mut(&worker).and_then(VecDeque::pop_front).expect("has work");
        let value = match fails {
            true => Err(Failure::new(FailureKind::FailureUserError, "drawn")),
            false => Ok(Value::Inline(Bytes::from_static(b"v"))),
        };
        let made = [Value::Inline(Bytes::from_static(b"e")), Value::Shared { offset: 0, len: LARGE, crc: 1 }];
        let elements = made.into_iter().map(|value| Element { value, contains: Vec::new() });
        let outcome = TaskOutcome {
            elements: elements.take(if fails { 0 } else { parts(task) as usize }).collect(),
            task,
            attempt,
            value,
            ran_ns: 1_000,
            contains: Vec::new(),
        };
        self.event(Event::Finished { worker, outcomes: vec![outcome] });
    }

    fn peer_finishes(&mut self, large: bool) {
        let Some((task, attempt)) = self.peer_tasks.pop_front() else { return };
        let (inline, output) = match large {
            true => (Bytes::new(), Some(Output { crc: 1, size: LARGE })),
            false => (Bytes::from_static(b"v"), None),
        };
        let element = Told {
            value: Some(match large {
                true => wire::Value::Elsewhere(Output { crc: 1, size: LARGE }),
                false => wire::Value::Inline(Bytes::from_static(b"e")),
            }),
        };
        let result = PeerResult {
            task: task_bytes(task),
            attempt,
            inline,
            has_inline: !large,
            output,
            durable: true,
            elements: vec![element.clone(); parts(task) as usize],
            ..PeerResult::default()
        };
        self.event(Event::PeerResult { from: self.peer, result });
    }

    fn walk(&mut self, step: Step) {
        match step {
            Step::Submit(picks) => {
                let index = self.submitted.len() as u64;
                let task = TaskId::new(JOB, TaskId::root(JOB), 0, index);
                let known = self.submitted.len();
                let args = picks.iter().filter(|_| known > 0).map(|p| {
                    let objects = returned(self.submitted[usize::from(*p) % known]);
                    let object = objects[usize::from(*p / 64) % objects.len()];
                    Arg { arg: Some(arg::Arg::Object(object_bytes(object))) }
                });
                let spec = TaskSpec {
                    id: task_bytes(task),
                    job: JOB.0,
                    parent: task_bytes(TaskId::root(JOB)),
                    function: index % 3,
                    cpu_milli: if index.is_multiple_of(4) { 500 } else { 1000 },
                    max_retries: if index.is_multiple_of(5) { 0 } else { 3 },
                    args: args.collect(),
                    options: (parts(task) > 0)
                        .then(|| Box::new(TaskOptions { elements: parts(task), ..TaskOptions::default() })),
                    ..TaskSpec::default()
                };
                self.submitted.push(task);
                self.event(Event::Submit { client: DRIVER, specs: vec![spec] });
            }
            Step::Finish(pick, fails) => self.finish(pick, fails),
            Step::WorkerDies(pick) => {
                let workers: Vec<u64> = self.workers.keys().copied().collect();
                if let Some(worker) = workers.get(usize::from(pick) % workers.len().max(1)).copied() {
                    self.workers.remove(&worker);
                    self.blocked.remove(&worker);
                    self.event(Event::WorkerGone { worker });
                }
            }
            Step::MemoryShort => {
                let workers: Vec<(u64, u64)> = self.workers.keys().map(|worker| (*worker, 1 << 30)).collect();
                let measured = Measured { workers, rooms: vec![(2, 1)] };
                // Whoever has just begun is not judged.
                self.event(Event::Memory(measured.clone()));
                self.event(Event::Memory(measured));
            }
            Step::Blocks(pick) => self.blocks(pick),
            Step::Unblocks(pick) => self.unblocks(pick),
            Step::PeerFinishes(large) => self.peer_finishes(large),
            Step::PeerDies => {
                self.peer = Incarnation(self.peer.0 + 1);
                self.peer_tasks.clear();
                self.view();
            }
            Step::Ack => self.ack(),
            Step::AckAgain => {
                if let Some((shard, ack)) = self.acked.clone() {
                    self.event(Event::Acked { shard, ack, moved: Vec::new() });
                }
            }
            Step::Answer => self.answer(),
            Step::Cancel(pick, recursive) => {
                if let Some(task) = self.submitted.get(usize::from(pick) % self.submitted.len().max(1)) {
                    self.event(Event::Cancel { from: None, tasks: vec![*task], recursive });
                }
            }
            Step::Get(pick) => {
                if let Some(task) = self.submitted.get(usize::from(pick) % self.submitted.len().max(1)) {
                    let objects = returned(*task);
                    self.event(Event::Get { client: DRIVER, job: JOB, objects, want_value: true });
                }
            }
        }
    }

    /// Faults stop: everything that was begun must end.
    fn settle(&mut self) {
        for _ in 0..2000 {
            self.ack();
            self.answer();
            self.unblocks(0);
            self.finish(0, false);
            self.peer_finishes(false);
            self.event(Event::Tick);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_task_ends_and_nothing_leaks(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.walk(step);
        }
        world.settle();
        for task in &world.submitted {
            for object in returned(*task) {
                prop_assert!(world.ready.contains(&object), "{} never ended", object);
            }
        }
        prop_assert_eq!(world.core.load(), (CPUS * 1000, 0), "CPU or tasks leaked");
        prop_assert_eq!(world.core.unacknowledged(), 0);
        world.event(Event::JobEnded(JOB));
        let census = world.core.census();
        prop_assert!(census.kept.iter().chain(&census.runs).chain(&census.workers).all(|(_, n)| *n == 0));
        prop_assert_eq!(world.core.leftover(), None);
    }
}
