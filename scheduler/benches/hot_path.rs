//! What a task costs a node's core, from submission to the last release, without sockets, threads or clock.
//!
//! Prints nanoseconds per task; `tools/instructions.sh` counts instructions in [`Core::step`] instead, which are
//! the same on every run, whatever else a machine does.
//!
//! `cargo bench -p mobula-scheduler --bench hot_path -- [held|dropped] [TASKS]`

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{StreamAck, StreamBatch, TaskSpec, task_bytes, task_id};
use mobula_scheduler::{Config, Core, Effect, Event, LINGER, TaskOutcome, Value};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const JOB: JobId = JobId(7);
const DRIVER: u64 = 1;
/// Submissions in one event, as a driver that is faster than the node sends them.
const TOGETHER: u64 = 512;
/// References that a driver which drops them keeps.
const KEPT: usize = 10_000;

struct Bench {
    core: Core,
    now: Instant,
    events: Vec<Event>,
    effects: Vec<Effect>,
    batches: VecDeque<(ShardId, StreamBatch)>,
    finished: BTreeMap<u64, Vec<TaskOutcome>>,
    told: VecDeque<ObjectId>,
    ended: u64,
    records: u64,
}

impl Bench {
    fn new() -> Self {
        let config = Config {
            incarnation: Incarnation(1),
            shards: 4,
            name: String::new(),
            resources: Resources::cpus_milli(2000),
            labels: BTreeMap::new(),
            workers: 2,
            linger: LINGER,
            crc: |bytes| bytes.len() as u32,
        };
        let mut events = vec![Event::JobStarted { job: JOB, counted: true }];
        events.extend([10, 11].map(|worker| Event::WorkerUp { worker, job: JOB }));
        Bench {
            core: Core::new(config),
            now: Instant(0),
            events,
            effects: Vec::new(),
            batches: VecDeque::new(),
            finished: BTreeMap::new(),
            told: VecDeque::new(),
            ended: 0,
            records: 0,
        }
    }

    /// Submits the tasks from `first` on, and asks for their values.
    fn submit(&mut self, first: u64) {
        let root = TaskId::root(JOB);
        let ids: Vec<TaskId> = (first..first + TOGETHER).map(|n| TaskId::new(JOB, root, 0, n)).collect();
        let spec = |id: &TaskId| TaskSpec {
            id: task_bytes(*id),
            job: JOB.0,
            parent: task_bytes(root),
            function: 1,
            cpu_milli: 1000,
            max_retries: 3,
            digest: 9,
            ..TaskSpec::default()
        };
        self.events.push(Event::Submit { client: DRIVER, specs: ids.iter().map(spec).collect() });
        let objects = ids.iter().map(|id| id.output(0)).collect();
        self.events.push(Event::Get { client: DRIVER, job: JOB, objects, want_value: true });
    }

    /// One turn: workers have ended what they had, shards have acknowledged the oldest batches.
    fn turn(&mut self) {
        let finished = std::mem::take(&mut self.finished);
        self.events
            .extend(finished.into_iter().map(|(worker, outcomes)| Event::Finished { worker, outcomes }));
        for (shard, batch) in self.batches.drain(..) {
            self.records += batch.items.len() as u64;
            let mark = batch.first_seq + batch.items.len() as u64 - 1;
            let ack = StreamAck { mark, revision: mark, outcomes: Vec::new() };
            self.events.push(Event::Acked { shard, ack, moved: Vec::new() });
        }
        self.now = self.now + Duration::from_micros(100);
        let mut effects = std::mem::take(&mut self.effects);
        self.core.step(self.events.drain(..), self.now, &mut effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Run { worker, spec, attempt, .. } => {
                let task = task_id(&spec.id).expect("made here");
                let value = Ok(Value::Inline(Bytes::from_static(&[1])));
                let outcome = TaskOutcome {
                    elements: Default::default(),
                    task,
                    attempt,
                    value,
                    ran_ns: 200,
                    contains: Vec::new(),
                };
                self.finished.entry(worker).or_default().push(outcome);
            }
            Effect::Send { shard, batch } => self.batches.push_back((shard, batch)),
            Effect::Ready { object, .. } => {
                self.told.push_back(object);
                self.ended += 1;
            }
            _ => {}
        }
    }

    fn drop_oldest(&mut self, keep: usize) {
        let over = self.told.len().saturating_sub(keep);
        if over > 0 {
            let objects = self.told.drain(..over).collect();
            self.events.push(Event::Dropped { client: DRIVER, objects });
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let drops = words.iter().any(|word| word == "dropped");
    let tasks = words.iter().find_map(|word| word.parse().ok()).unwrap_or(204_800_u64);
    let mut bench = Bench::new();
    let started = std::time::Instant::now();
    let mut submitted = 0;
    while bench.ended < tasks {
        // As many as a node takes in before it lets drivers wait.
        if submitted < tasks && submitted < bench.ended + 16 * TOGETHER {
            bench.submit(submitted);
            submitted += TOGETHER;
        }
        bench.turn();
        if drops {
            bench.drop_oldest(KEPT);
        }
    }
    if drops {
        bench.drop_oldest(0);
    }
    bench.events.push(Event::Flush);
    while !bench.events.is_empty() || bench.core.unacknowledged() > 0 {
        bench.turn();
    }
    let ns = started.elapsed().as_nanos() as f64 / submitted as f64;
    let per_task = bench.records as f64 / submitted as f64;
    println!(
        "{} tasks, {}: {ns:.0} ns and {per_task:.2} records each; {} objects known in the end",
        submitted,
        if drops { "references dropped" } else { "references held" },
        bench.core.census().objects.0
    );
}
