//! How long records wait on their node before the control store hears of them, and what ends the wait (R4).

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, Resources, TaskId};
use mobula_proto::{
    ClusterView, Failure, FailureKind, NodeView, StreamAck, StreamItem, TaskSpec, stream_item::Item,
    task_bytes,
};
use mobula_scheduler::{Config, Core, Effect, Event, LINGER, TaskOutcome, Value};
use std::time::Duration;

const ME: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);
const DRIVER: u64 = 100;
const WORKER: u64 = 5;
const JOB: JobId = JobId(7);
const SHORT: Duration = Duration::from_millis(1);

struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
}

impl Node {
    fn new() -> Self {
        let config = Config {
            incarnation: ME,
            shards: 1,
            name: String::new(),
            resources: Resources::cpus_milli(1000),
            labels: Default::default(),
            workers: 1,
            linger: LINGER,
            crc: |bytes| bytes.len() as u32,
        };
        let mut node = Node { core: Core::new(config), now: Instant(0), effects: Vec::new() };
        node.step(Event::JobStarted { job: JOB, counted: true });
        node.step(Event::WorkerUp { worker: WORKER, job: JOB });
        node
    }

    fn step(&mut self, event: Event) {
        self.step_after(SHORT, event);
    }

    fn step_after(&mut self, pause: Duration, event: Event) {
        self.now = self.now + pause;
        self.core.step([event], self.now, &mut self.effects);
    }

    fn submit(&mut self, client: u64, spec: TaskSpec) {
        self.step(Event::Submit { client, specs: vec![spec] });
    }

    fn finish(&mut self, task: TaskId, value: Result<Value, Failure>) {
        let outcome = TaskOutcome {
            elements: Default::default(),
            task,
            attempt: 1,
            value,
            ran_ns: 5_000,
            contains: Vec::new(),
        };
        self.step(Event::Finished { worker: WORKER, outcomes: vec![outcome] });
    }

    fn drop_value(&mut self, task: TaskId) {
        self.step(Event::Dropped { client: DRIVER, objects: vec![task.output(0)] });
    }

    /// What was sent since the last call; it is acknowledged.
    fn sent(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            if let Effect::Send { shard, batch } = effect {
                let mark = batch.first_seq + batch.items.len() as u64 - 1;
                items.extend(batch.items.into_iter().filter_map(|StreamItem { item }| item));
                let ack = StreamAck { mark, revision: mark, outcomes: Vec::new() };
                self.step(Event::Acked { shard, ack, moved: Vec::new() });
            }
        }
        items
    }
}

fn task(n: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, n)
}

fn spec(task: TaskId) -> TaskSpec {
    let parent = task_bytes(TaskId::root(JOB));
    TaskSpec {
        id: task_bytes(task),
        job: JOB.0,
        parent,
        cpu_milli: 1000,
        max_retries: 3,
        ..TaskSpec::default()
    }
}

fn small() -> Result<Value, Failure> {
    Ok(Value::Inline(Bytes::from_static(b"v")))
}

#[test]
fn the_control_store_never_hears_of_what_comes_and_goes() {
    let mut node = Node::new();
    for n in 0..1000 {
        node.submit(DRIVER, spec(task(n)));
        node.finish(task(n), small());
        node.drop_value(task(n));
    }
    assert_eq!(node.sent(), []);
    assert_eq!((node.core.unacknowledged(), node.core.deadline()), (0, None), "and nothing is left");
}

#[test]
fn what_stays_is_sent_when_it_has_lingered_its_time_and_what_is_younger_is_not() {
    let mut node = Node::new();
    node.submit(DRIVER, spec(task(0)));
    let due = node.now + LINGER;
    node.step_after(LINGER / 2, Event::Submit { client: DRIVER, specs: vec![spec(task(1))] });
    assert_eq!((node.sent(), node.core.deadline()), (vec![], Some(due)));
    let left = due - node.now;
    node.step_after(left, Event::Tick);
    assert_eq!(node.sent(), [Item::Submit(spec(task(0)))]);
    node.step_after(LINGER, Event::Tick);
    assert_eq!(node.sent(), [Item::Submit(spec(task(1)))]);
}

#[test]
fn a_client_that_waits_until_all_is_durable_does_not_wait_for_the_time() {
    let mut node = Node::new();
    node.submit(DRIVER, spec(task(0)));
    node.step(Event::Flush);
    assert_eq!(node.sent(), [Item::Submit(spec(task(0)))]);
}

#[test]
fn a_parent_that_ends_waits_for_the_records_of_its_children_and_not_for_their_time() {
    let mut node = Node::new();
    let (parent, child) = (task(0), TaskId::new(JOB, task(0), 0, 0));
    node.submit(DRIVER, spec(parent));
    let child_spec = TaskSpec { parent: task_bytes(parent), ..spec(child) };
    node.submit(WORKER, child_spec.clone());
    assert_eq!(node.sent(), []);
    node.finish(parent, small());
    assert_eq!(node.sent(), [Item::Submit(spec(parent)), Item::Submit(child_spec)]);
}

#[test]
fn what_begins_once_its_record_is_committed_has_it_sent_at_once() {
    let without_retries = TaskSpec { max_retries: 0, ..spec(task(0)) };
    let of_a_job_with_commit = TaskSpec { commit_first: true, ..spec(task(0)) };
    for spec in [without_retries, of_a_job_with_commit] {
        let mut node = Node::new();
        node.submit(DRIVER, spec.clone());
        assert!(!node.effects.iter().any(|effect| matches!(effect, Effect::Run { .. })));
        assert_eq!(node.sent(), [Item::Submit(spec)]);
        assert!(node.effects.iter().any(|effect| matches!(effect, Effect::Run { .. })));
    }
}

#[test]
fn what_goes_to_another_node_takes_along_the_records_of_all_that_it_may_ask_for() {
    let mut node = Node::new();
    let view =
        |n: Incarnation| NodeView { incarnation: n.0, cpu_milli: 1000, alive: true, ..NodeView::default() };
    let nodes = [ME, OTHER].map(view).into();
    node.step(Event::View(ClusterView { version: 1, nodes, ..ClusterView::default() }));
    for n in 0..2 {
        node.submit(DRIVER, spec(task(n)));
    }
    assert_eq!(node.sent(), [], "they are here");
    let mut n = 2;
    while !node.effects.iter().any(|effect| matches!(effect, Effect::Assign { .. })) {
        assert!(n < 100, "no task is given to a node that has nothing to do");
        node.submit(DRIVER, spec(task(n)));
        n += 1;
    }
    assert_eq!(node.sent().len() as u64, n, "all records");
}

#[test]
fn what_fails_is_no_exception() {
    let mut node = Node::new();
    node.submit(DRIVER, spec(task(0)));
    node.finish(task(0), Err(Failure::new(FailureKind::FailureUserError, "no")));
    assert_eq!(node.sent(), []);
    node.step_after(LINGER, Event::Tick);
    assert!(matches!(&node.sent()[..], [Item::Submit(_), Item::Done(done)] if done.failure.is_some()));
}
