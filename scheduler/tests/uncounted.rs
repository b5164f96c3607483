//! Jobs whose references are not counted (they began before their cluster counted any): what a task has submitted is on
//! record before a reference to it leaves the node all the same (R4). The shard and the other node are played by hand.

use bytes::Bytes;
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Arg, Assign, ClusterView, NodeAffinity, NodeView, Placement, StreamAck, StreamBatch, TaskOptions,
    TaskSpec, arg, object_bytes, task_bytes,
};
use mobula_scheduler::{Config, Core, Effect, Event, TaskOutcome, Value};
use std::time::Duration;

const ME: u64 = 1;
const OTHER: u64 = 2;
const DRIVER: u64 = 100;
const WORKER: u64 = 5;
const JOB: JobId = JobId(7);

struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
    batches: Vec<(ShardId, StreamBatch)>,
}

impl Node {
    /// It runs the first task of the driver, which has submitted another.
    fn new() -> Self {
        let config = Config {
            incarnation: Incarnation(ME),
            shards: 1,
            name: String::new(),
            resources: Resources::cpus_milli(1000),
            labels: Default::default(),
            workers: 1,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let (core, now) = (Core::new(config), Instant(0));
        let mut node = Node { core, now, effects: Vec::new(), batches: Vec::new() };
        node.step(Event::JobStarted { job: JOB, counted: false });
        node.step(Event::WorkerUp { worker: WORKER, job: JOB });
        let view = |n| NodeView { incarnation: n, cpu_milli: 1000, alive: true, ..NodeView::default() };
        let nodes = [ME, OTHER].map(view).to_vec();
        node.step(Event::View(ClusterView { version: 1, nodes, ..ClusterView::default() }));
        node.step(Event::Submit { client: DRIVER, specs: vec![spec(parent(), &[])] });
        node.settle();
        let submitted = TaskSpec { parent: task_bytes(parent()), ..spec(child(), &[]) };
        node.step(Event::Submit { client: WORKER, specs: vec![submitted] });
        node
    }

    fn step(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(1);
        let mut out = Vec::new();
        self.core.step([event], self.now, &mut out);
        for effect in out {
            match effect {
                Effect::Send { shard, batch } => self.batches.push((shard, batch)),
                effect => self.effects.push(effect),
            }
        }
    }

    /// What was sent to the shard, and what is sent then, is committed.
    fn settle(&mut self) {
        while let Some((shard, batch)) = self.batches.pop() {
            let mark = batch.first_seq + batch.items.len() as u64 - 1;
            let ack = StreamAck { mark, revision: 9, outcomes: Vec::new() };
            self.step(Event::Acked { shard, ack, moved: Vec::new() });
        }
    }

    /// The first task ends with a reference to what it has submitted.
    fn ends(&mut self) {
        let (task, value, contains) = (parent(), Ok(small("v")), vec![child().output(0)]);
        let outcome =
            TaskOutcome { task, attempt: 1, value, ran_ns: 5_000, contains, elements: Default::default() };
        self.step(Event::Finished { worker: WORKER, outcomes: vec![outcome] });
    }

    /// Copies that the other node is asked to make.
    fn copies(&self) -> Vec<ObjectId> {
        let of = |e: &Effect| if let Effect::Replicate { object, .. } = e { Some(*object) } else { None };
        self.effects.iter().filter_map(of).collect()
    }

    fn assigned(&self) -> Vec<Assign> {
        let of = |e: &Effect| if let Effect::Assign { assign, .. } = e { Some(assign.clone()) } else { None };
        self.effects.iter().filter_map(of).collect()
    }
}

fn parent() -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, 0)
}

fn child() -> TaskId {
    TaskId::new(JOB, parent(), 0, 0)
}

fn small(text: &'static str) -> Value {
    Value::Inline(Bytes::from_static(text.as_bytes()))
}

fn spec(task: TaskId, args: &[ObjectId]) -> TaskSpec {
    let argument = |id: &ObjectId| Arg { arg: Some(arg::Arg::Object(object_bytes(*id))) };
    TaskSpec {
        id: task_bytes(task),
        job: JOB.0,
        cpu_milli: 1000,
        max_retries: 3,
        args: args.iter().map(argument).collect(),
        ..TaskSpec::default()
    }
}

#[test]
fn copies_of_a_put_wait_until_what_lies_inside_is_on_record() {
    let mut node = Node::new();
    let object = parent().output(FIRST_PUT_SLOT);
    let (job, value, by_driver, replicas) = (JOB, small("put"), false, 2);
    let contains = vec![child().output(0)];
    node.step(Event::Put { client: WORKER, object, job, value, by_driver, contains, replicas });
    node.ends();
    assert_eq!(node.copies(), [], "the child's record is on its way");
    node.settle();
    assert_eq!(node.copies(), [object]);
}

#[test]
fn a_value_goes_along_with_a_task_only_when_what_lies_inside_is_on_record() {
    for settles in [false, true] {
        let mut node = Node::new();
        node.ends();
        if settles {
            node.settle();
        }
        let there = NodeAffinity { incarnation: OTHER, ..NodeAffinity::default() };
        let placement = Some(Placement { node: Some(there), ..Placement::default() });
        let options = Some(Box::new(TaskOptions { placement, ..TaskOptions::default() }));
        let takes = TaskId::new(JOB, TaskId::root(JOB), 0, 1);
        let specs = vec![TaskSpec { options, ..spec(takes, &[parent().output(0)]) }];
        node.step(Event::Submit { client: DRIVER, specs });
        let assigned = node.assigned();
        let [Assign { hints, .. }] = &assigned[..] else { panic!("{assigned:?}") };
        let goes_along = hints.iter().any(|hint| hint.has_inline || !hint.holders.is_empty());
        assert_eq!(goes_along, settles, "{hints:?}");
    }
}
