//! What a node offers is never promised twice and always comes back: CPUs, GPUs by their numbers, named
//! resources. A ledger of its own goes by what the core tells the workers; the core's is compared with it.

use bytes::Bytes;
use mobula_base::resources::{GPU, MEMORY};
use mobula_base::{Incarnation, Instant, JobId, Resources, TaskId};
use mobula_proto::{Failure, FailureKind, NamedResource, TaskSpec, task_bytes, task_id};
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const DRIVER: u64 = 1000;
const JOB: JobId = JobId(3);
const GPUS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Submits a task with one of the demands.
    Submit(u8),
    /// A worker ends what it runs.
    Finish(u8, bool),
    /// A worker dies.
    Dies(u8),
    /// A worker waits inside its task; what it has not begun comes back.
    Blocks(u8),
    Unblocks(u8),
    /// A task is cancelled; one that runs stops at once or not at all.
    Cancel(u8),
    /// The job ends, and with it all of its workers.
    JobEnds,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<u8>().prop_map(Step::Submit),
        5 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(w, fails)| Step::Finish(w, fails)),
        2 => any::<u8>().prop_map(Step::Dies),
        2 => any::<u8>().prop_map(Step::Blocks),
        2 => any::<u8>().prop_map(Step::Unblocks),
        1 => any::<u8>().prop_map(Step::Cancel),
    ];
    (prop::collection::vec(step, 1..200), any::<bool>()).prop_map(|(mut steps, ends)| {
        steps.extend(ends.then_some(Step::JobEnds));
        steps
    })
}

/// Thousandths of CPU, GPU, memory and tape.
const DEMANDS: [[u64; 4]; 9] = [
    [1000, 0, 0, 0],
    [333, 0, 0, 0],
    [0, 1000, 0, 0],
    [500, 250, 0, 0],
    [100, 999, 1, 0],
    [1000, 2000, 0, 0],
    [1000, 0, 300_000, 0],
    [0, 0, 0, 700],
    [2000, 500, 100_001, 300],
];

fn totals() -> Resources {
    let named = [(GPU, GPUS * 1000), (MEMORY, 1_000_000), ("tape", 1000)];
    Resources::new(4000, named.map(|(name, milli)| (name.to_owned(), milli)))
}

/// What a worker was given, in order: which task, its demand, and the devices it may use.
type Given = VecDeque<(TaskId, u32, [u64; 4], Vec<u32>)>;

#[derive(Default)]
struct Worker {
    given: Given,
    blocked: bool,
    /// Its first task has waited: it may run without a CPU of its own by now.
    has_waited: bool,
}

struct World {
    core: Core,
    now: Instant,
    next: u64,
    workers: BTreeMap<u64, Worker>,
    demands: Vec<[u64; 4]>,
    ready: BTreeSet<TaskId>,
}

impl World {
    fn new() -> Self {
        let config = Config {
            incarnation: Incarnation(1),
            shards: 1,
            name: "n1".into(),
            resources: totals(),
            labels: BTreeMap::new(),
            workers: 6,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let core = Core::new(config);
        let (workers, demands, ready) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut world = World { core, now: Instant(0), next: 10, workers, demands, ready };
        world.event(Event::JobStarted { job: JOB, counted: true });
        world
    }

    fn event(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(5);
        let mut effects = Vec::new();
        self.core.step([event], self.now, &mut effects);
        let mut follow = Vec::new();
        for effect in effects {
            match effect {
                Effect::Run { worker, spec, attempt, devices, .. } => {
                    let worker = self.workers.get_mut(&worker).expect("a live worker");
                    let task = task_id(&spec.id).expect("valid");
                    let demand = self.demands.iter().zip(0..).find(|(_, index)| id(*index) == task);
                    worker.given.push_back((task, attempt, *demand.expect("known").0, devices));
                }
                Effect::Kill { worker } => {
                    follow.extend(self.workers.remove(&worker).map(|_| Event::WorkerGone { worker }));
                }
                Effect::Spawn { job } => {
                    self.next += 1;
                    self.workers.insert(self.next, Worker::default());
                    follow.push(Event::WorkerUp { worker: self.next, job });
                }
                // Nothing is ever acknowledged but what must be for the next attempt.
                Effect::Send { shard, batch } => {
                    let next = |item: &mobula_proto::StreamItem| match &item.item {
                        Some(mobula_proto::stream_item::Item::Next(next)) => {
                            Some((next.task.clone(), next.from + 1))
                        }
                        _ => None,
                    };
                    let granted = (batch.first_seq..).zip(&batch.items);
                    let granted = granted.filter_map(|(seq, item)| {
                        let (task, attempt) = next(item)?;
                        let index = (0..self.demands.len() as u64).find(|i| task_bytes(id(*i)) == task)?;
                        let spec = Some(spec(index, self.demands[index as usize]));
                        let view = mobula_proto::TaskView { attempt, spec, ..Default::default() };
                        let outcome = Some(mobula_proto::item_outcome::Outcome::Granted(view));
                        Some(mobula_proto::ItemOutcome { seq, outcome })
                    });
                    let mark = batch.first_seq + batch.items.len() as u64 - 1;
                    let ack = mobula_proto::StreamAck { mark, revision: 1, outcomes: granted.collect() };
                    follow.push(Event::Acked { shard, ack, moved: Vec::new() });
                }
                Effect::Ready { object, ready: Ready::Here(_) | Ready::Failed(_), .. } => {
                    self.ready.insert(object.task);
                }
                Effect::FreeJob(_) => self.workers.clear(),
                _ => {}
            }
        }
        self.check();
        for event in follow {
            self.event(event);
        }
    }

    /// Nothing is promised twice, and what is free is what nobody has.
    fn check(&self) {
        let mut used = [0; 4];
        let mut of_device = [0; GPUS as usize];
        for worker in self.workers.values() {
            let Some((_, _, demand, devices)) = worker.given.front() else { continue };
            let waits = worker.blocked || worker.has_waited;
            for (kind, sum) in used.iter_mut().enumerate().filter(|(kind, _)| *kind > 0 || !waits) {
                *sum += demand[kind];
            }
            assert_eq!(devices.len() as u64, demand[1].div_ceil(1000), "as many devices as it asked for");
            for device in devices {
                of_device[*device as usize] += demand[1].min(1000);
            }
            let alike = worker.given.iter().all(|(_, _, of, at)| of == demand && at == devices);
            assert!(alike, "what a worker has in line goes by its one lease");
        }
        let total = [4000, GPUS * 1000, 1_000_000, 1000];
        assert!(used.iter().zip(total).all(|(used, total)| *used <= total), "{used:?} of {total:?}");
        assert!(of_device.iter().all(|used| *used <= 1000), "{of_device:?}");
        let free = self.core.free_resources();
        let free = [free.of(GPU), free.of(MEMORY), free.of("tape")];
        assert_eq!(free, [total[1] - used[1], total[2] - used[2], total[3] - used[3]]);
    }

    fn pick(&self, pick: u8, which: impl Fn(&Worker) -> bool) -> Option<u64> {
        let fit: Vec<u64> = self.workers.iter().filter(|(_, w)| which(w)).map(|(id, _)| *id).collect();
        fit.get(usize::from(pick) % fit.len().max(1)).copied()
    }

    fn walk(&mut self, step: Step) {
        match step {
            Step::Submit(kind) => {
                let demand = DEMANDS[usize::from(kind) % DEMANDS.len()];
                let index = self.demands.len() as u64;
                self.demands.push(demand);
                self.event(Event::Submit { client: DRIVER, specs: vec![spec(index, demand)] });
            }
            Step::Finish(pick, fails) => {
                let Some(id) = self.pick(pick, |w| !w.given.is_empty() && !w.blocked) else { return };
                let worker = self.workers.get_mut(&id).expect("just seen");
                let (task, attempt, ..) = worker.given.pop_front().expect("it has work");
                // What comes next on the same lease has no CPU of its own either, if the first gave it away.
                worker.has_waited &= !worker.given.is_empty();
                let value = match fails {
                    true => Err(Failure::new(FailureKind::FailureUserError, "drawn")),
                    false => Ok(Value::Inline(Bytes::from_static(b"v"))),
                };
                let outcome = TaskOutcome {
                    elements: Default::default(),
                    task,
                    attempt,
                    value,
                    ran_ns: 1_000,
                    contains: Vec::new(),
                };
                self.event(Event::Finished { worker: id, outcomes: vec![outcome] });
            }
            Step::Dies(pick) => {
                if let Some(id) = self.pick(pick, |_| true) {
                    self.workers.remove(&id);
                    self.event(Event::WorkerGone { worker: id });
                }
            }
            Step::Blocks(pick) => {
                let Some(id) = self.pick(pick, |w| !w.given.is_empty() && !w.blocked) else { return };
                let worker = self.workers.get_mut(&id).expect("just seen");
                (worker.blocked, worker.has_waited) = (true, true);
                let returned = worker.given.drain(1..).map(|(task, ..)| task).collect();
                self.event(Event::Blocked { worker: id, returned });
            }
            Step::Unblocks(pick) => {
                if let Some(id) = self.pick(pick, |w| w.blocked) {
                    self.workers.get_mut(&id).expect("just seen").blocked = false;
                    self.event(Event::Unblocked { worker: id });
                }
            }
            Step::Cancel(pick) => {
                let many = self.demands.len();
                if many > 0 {
                    let tasks = vec![id(u64::from(pick) % many as u64)];
                    self.event(Event::Cancel { from: None, tasks, recursive: false });
                }
            }
            Step::JobEnds => {
                let workers: Vec<u64> = self.workers.keys().copied().collect();
                self.event(Event::JobEnded(JOB));
                for worker in workers {
                    self.event(Event::WorkerGone { worker });
                }
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..5000 {
            if self.ready.len() == self.demands.len() {
                return;
            }
            self.walk(Step::Unblocks(0));
            self.walk(Step::Finish(0, false));
        }
    }
}

fn id(index: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, index)
}

fn spec(index: u64, demand: [u64; 4]) -> TaskSpec {
    let named = [(GPU, demand[1]), (MEMORY, demand[2]), ("tape", demand[3])];
    let resources = named.into_iter().filter(|(_, milli)| *milli > 0);
    TaskSpec {
        id: task_bytes(id(index)),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: index % 2,
        cpu_milli: demand[0] as u32,
        resources: resources.map(|(name, milli)| NamedResource { name: name.into(), milli }).collect(),
        max_retries: 100,
        ..TaskSpec::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_promised_twice_and_all_comes_back(steps in steps()) {
        let mut world = World::new();
        let ends = steps.iter().any(|step| matches!(step, Step::JobEnds));
        for step in steps {
            world.walk(step);
        }
        if !ends {
            world.settle();
            prop_assert_eq!(world.ready.len(), world.demands.len(), "a task never got what it asked for");
        }
        prop_assert_eq!(world.core.free_resources(), &totals());
    }
}

#[test]
fn a_worker_that_waits_keeps_its_devices() {
    let mut world = World::new();
    world.walk(Step::Submit(5));
    let devices = |world: &World| -> Vec<Vec<u32>> {
        world.workers.values().filter_map(|w| w.given.front()).map(|given| given.3.clone()).collect()
    };
    assert_eq!(devices(&world), [[0, 1]]);
    world.walk(Step::Blocks(0));
    world.walk(Step::Submit(5));
    assert_eq!(devices(&world), [[0, 1]], "two more are not there");
    world.walk(Step::Submit(3));
    world.walk(Step::Submit(3));
    assert_eq!(devices(&world), [vec![0, 1], vec![2], vec![2]], "parts of one device");
}

#[test]
fn one_and_a_half_gpus_are_refused() {
    let mut world = World::new();
    world.demands.push([0, 1500, 0, 0]);
    let mut effects = Vec::new();
    let specs = vec![spec(0, [0, 1500, 0, 0])];
    world.core.step([Event::Submit { client: DRIVER, specs }], Instant(u64::MAX / 2), &mut effects);
    let refused = |effect: &Effect| match effect {
        Effect::Ready { ready: Ready::Failed(failure), .. } => Some(failure.kind()),
        _ => None,
    };
    assert_eq!(effects.iter().find_map(refused), Some(FailureKind::FailureBadArguments));
}
