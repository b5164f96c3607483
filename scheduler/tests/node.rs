//! One node's core, driven by hand: a story per test.

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Arg, Assign, ClusterView, Failure, FailureKind, Here, Holder, ItemOutcome, Located, NodeView, Output,
    PeerResult, StreamAck, StreamBatch, TaskSpec, TaskView, arg, item_outcome, located, object_bytes,
    stream_item, task_bytes,
};
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use std::time::Duration;

const ME: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);
const DRIVER: u64 = 100;
const JOB: JobId = JobId(7);

struct Node {
    core: Core,
    now: Instant,
    /// Effects that nobody has looked at.
    effects: Vec<Effect>,
    /// Batches that are not acknowledged.
    batches: Vec<(ShardId, StreamBatch)>,
    auto_ack: bool,
}

impl Node {
    fn new(cpus: u64) -> Self {
        let config = Config {
            incarnation: ME,
            shards: 2,
            name: String::new(),
            resources: Resources::cpus_milli(cpus * 1000),
            labels: Default::default(),
            workers: cpus as u32,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let core = Core::new(config);
        let mut node = Node { core, now: Instant(0), effects: vec![], batches: vec![], auto_ack: true };
        node.step(Event::JobStarted { job: JOB, counted: true });
        node.effects.clear();
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
        while self.auto_ack && !self.batches.is_empty() {
            self.ack(vec![]);
        }
    }

    /// Acknowledges the oldest batch with these outcomes.
    fn ack(&mut self, outcomes: Vec<item_outcome::Outcome>) {
        let (shard, batch) = self.batches.remove(0);
        let outcomes =
            outcomes.into_iter().map(|o| ItemOutcome { seq: batch.first_seq, outcome: Some(o) }).collect();
        let mark = batch.first_seq + batch.items.len() as u64 - 1;
        self.step(Event::Acked { shard, ack: StreamAck { mark, revision: 9, outcomes }, moved: Vec::new() });
    }

    fn take<T>(&mut self, pick: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        let found = self.effects.iter().filter_map(&pick).collect();
        self.effects.retain(|e| pick(e).is_none());
        found
    }

    fn runs(&mut self) -> Vec<(u64, TaskId, u32)> {
        self.take(|e| match e {
            Effect::Run { worker, spec, attempt, .. } => {
                Some((*worker, mobula_proto::task_id(&spec.id).expect("valid"), *attempt))
            }
            _ => None,
        })
    }

    fn ready(&mut self) -> Vec<(ObjectId, Ready)> {
        self.take(|e| match e {
            Effect::Ready { object, ready, .. } => Some((*object, ready.clone())),
            _ => None,
        })
    }

    /// The first task that was given to another node.
    fn spilled_over(&mut self) -> Bytes {
        let assigned = self.take(|e| match e {
            Effect::Assign { assign, .. } => assign.spec.clone().map(|s| s.id),
            _ => None,
        });
        assigned.first().expect("one spilled over").clone()
    }

    fn finish(&mut self, worker: u64, task: TaskId, attempt: u32, value: Result<Value, Failure>) {
        let outcome = TaskOutcome {
            elements: Default::default(),
            task,
            attempt,
            value,
            ran_ns: 5_000_000,
            contains: Vec::new(),
        };
        self.step(Event::Finished { worker, outcomes: vec![outcome] });
    }

    fn members(&mut self, alive: &[Incarnation]) {
        let nodes = alive
            .iter()
            .map(|n| NodeView { incarnation: n.0, cpu_milli: 2000, alive: true, ..NodeView::default() })
            .collect();
        self.step(Event::View(ClusterView { version: 1, nodes, ..ClusterView::default() }));
    }
}

fn spec(index: u64, args: &[ObjectId]) -> TaskSpec {
    let args = args.iter().map(|o| Arg { arg: Some(arg::Arg::Object(object_bytes(*o))) }).collect();
    TaskSpec {
        id: task_bytes(task(index)),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        args,
        ..TaskSpec::default()
    }
}

fn task(index: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, index)
}

fn small(text: &'static str) -> Result<Value, Failure> {
    Ok(Value::Inline(Bytes::from_static(text.as_bytes())))
}

fn count(counts: &[(&'static str, u64)], state: &str) -> u64 {
    counts.iter().find(|(known, _)| *known == state).expect("a state").1
}

fn items(node: &Node) -> Vec<&stream_item::Item> {
    node.batches.iter().flat_map(|(_, b)| &b.items).filter_map(|i| i.item.as_ref()).collect()
}

#[test]
fn a_chain_runs_in_order_and_its_values_reach_the_driver() {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    let specs = vec![spec(0, &[]), spec(1, &[task(0).output(0)])];
    node.step(Event::Submit { client: DRIVER, specs });
    assert_eq!(node.runs(), vec![(1, task(0), 1)]);
    node.finish(1, task(0), 1, small("a"));
    assert_eq!(node.runs(), vec![(1, task(1), 1)], "its argument exists now");
    node.finish(1, task(1), 1, small("b"));
    let ready: Vec<ObjectId> = node.ready().into_iter().map(|(o, _)| o).collect();
    assert_eq!(ready, vec![task(0).output(0), task(1).output(0)]);
    assert_eq!(node.core.unacknowledged(), 0);
}

/// A node of one CPU and one worker, which knows that the function is short.
fn of_short_tasks() -> Node {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(99, &[])] });
    let outcome = TaskOutcome {
        elements: Default::default(),
        task: task(99),
        attempt: 1,
        value: small("x"),
        ran_ns: 5_000,
        contains: Vec::new(),
    };
    node.step(Event::Finished { worker: 1, outcomes: vec![outcome] });
    node.effects.clear();
    node
}

/// Submits a chain of three.
fn submit_chain(node: &mut Node) {
    let specs = vec![spec(0, &[]), spec(1, &[task(0).output(0)]), spec(2, &[task(1).output(0)])];
    node.step(Event::Submit { client: DRIVER, specs });
}

#[test]
fn a_chain_of_short_tasks_stands_in_one_line() {
    let mut node = of_short_tasks();
    submit_chain(&mut node);
    let given = node.take(|e| match e {
        Effect::Run { worker, args, made, .. } => Some((*worker, args.len(), *made)),
        _ => None,
    });
    assert_eq!(given, [(1, 0, None), (1, 1, Some(0)), (1, 1, Some(0))]);
    // What is submitted while its maker is in line stands behind it, too; of two that wait for one value none does.
    let specs = vec![spec(3, &[task(2).output(0)])];
    node.step(Event::Submit { client: DRIVER, specs });
    assert_eq!(node.runs(), [(1, task(3), 1)]);
    let specs = vec![spec(4, &[task(3).output(0)]), spec(5, &[task(3).output(0)])];
    node.step(Event::Submit { client: DRIVER, specs });
    assert_eq!(node.runs(), [(1, task(4), 1)], "the first was alone when it came");
    for n in 0..5 {
        node.finish(1, task(n), 1, small("v"));
    }
    assert_eq!(node.runs(), [(1, task(5), 1)]);
    node.finish(1, task(5), 1, small("v"));
    assert_eq!(node.ready().len(), 6);
    assert_eq!(node.core.census().runs.iter().map(|(_, n)| n).sum::<u64>(), 0);
}

#[test]
fn a_worker_that_has_had_its_tasks_ends_and_another_one_takes_the_next() {
    let mut node = Node::new(1);
    node.step(Event::WorkerReuse { job: JOB, tasks: 2 });
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.effects.clear();
    node.step(Event::Submit { client: DRIVER, specs: (0..3).map(|n| spec(n, &[])).collect() });
    let retired =
        |node: &mut Node| node.take(|e| if let Effect::Retire { worker } = e { Some(*worker) } else { None });
    for n in 0..2 {
        assert_eq!(node.runs(), [(1, task(n), 1)]);
        assert!(retired(&mut node).is_empty());
        node.finish(1, task(n), 1, small("v"));
    }
    assert!(node.runs().is_empty(), "it has had two");
    assert_eq!(retired(&mut node), [1]);
    let spawns = node.take(|e| matches!(e, Effect::Spawn { .. }).then_some(()));
    assert_eq!(spawns.len(), 1);
    node.step(Event::WorkerUp { worker: 2, job: JOB });
    assert_eq!(node.runs(), [(2, task(2), 1)]);
    node.step(Event::WorkerGone { worker: 1 });
    node.finish(2, task(2), 1, small("v"));
    assert_eq!(node.ready().len(), 3);
}

#[test]
fn what_its_worker_has_not_made_is_given_again_with_its_argument() {
    let mut node = of_short_tasks();
    submit_chain(&mut node);
    node.runs();
    node.finish(1, task(0), 1, small("v"));
    // The worker had forgotten it.
    node.step(Event::NotGiven { worker: 1, tasks: vec![task(1), task(2)] });
    let given = node.take(|e| match e {
        Effect::Run { spec, args, made, .. } => Some((spec.id.clone(), args.clone(), *made)),
        _ => None,
    });
    assert_eq!(given, [(task_bytes(task(1)), vec![Value::Inline("v".into())], None)]);
}

#[test]
fn what_stands_behind_a_failure_fails_with_it() {
    let mut node = of_short_tasks();
    submit_chain(&mut node);
    node.runs();
    node.finish(1, task(0), 1, Err(Failure::new(FailureKind::FailureUserError, "no such file")));
    node.step(Event::NotGiven { worker: 1, tasks: vec![task(1)] });
    node.step(Event::NotGiven { worker: 1, tasks: vec![task(2)] });
    let failed = |ready: &Ready| matches!(ready, Ready::Failed(f) if f.message.contains("no such file"));
    let ready = node.ready();
    assert!(ready.len() == 3 && ready.iter().all(|(_, ready)| failed(ready)), "{ready:?}");
    assert!(node.runs().is_empty());
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(7, &[])] });
    assert_eq!(node.runs(), [(1, task(7), 1)], "the worker is free");
}

#[test]
fn what_runs_behind_a_task_that_was_stopped_too_late_ends_after_what_it_submits() {
    let mut node = of_short_tasks();
    submit_chain(&mut node);
    node.runs();
    node.step(Event::Cancel { from: None, tasks: vec![task(0)], recursive: false });
    // Its worker had made it by then, and went on with what stands behind.
    node.finish(1, task(0), 1, small("v"));
    let failed = |ready: Vec<(ObjectId, Ready)>| -> Vec<ObjectId> {
        let failed = ready.into_iter().filter(|(_, ready)| matches!(ready, Ready::Failed(_)));
        failed.map(|(object, _)| object).collect()
    };
    assert_eq!(failed(node.ready()), [task(0).output(0)], "the next one may be running");
    let child = TaskSpec { parent: task_bytes(task(1)), ..spec(50, &[]) };
    node.step(Event::Submit { client: 1, specs: vec![child] });
    node.finish(1, task(1), 1, small("of a cancelled task"));
    assert_eq!(failed(node.ready()), [task(1).output(0)]);
    // It would have to stop all the same if it were cancelled itself, or out of its time.
    node.effects.clear();
    node.step(Event::Cancel { from: None, tasks: vec![task(2)], recursive: false });
    let stops = node.take(|e| if let Effect::Stop { task, .. } = e { Some(*task) } else { None });
    assert_eq!(stops, [task(2)]);
    node.finish(1, task(2), 1, small("of a cancelled task"));
    assert_eq!(failed(node.ready()), [task(2).output(0)]);
}

#[test]
fn what_stands_behind_an_attempt_that_does_not_count_does_not_count_either() {
    let mut node = of_short_tasks();
    submit_chain(&mut node);
    node.runs();
    // Another keeper has taken the first over, and chosen this node.
    let assign = Assign { spec: Some(spec(0, &[])), attempt: 2, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    for n in 0..3 {
        node.finish(1, task(n), 1, small("of the wrong attempt"));
    }
    assert!(node.ready().is_empty());
    assert_eq!(node.runs(), [(1, task(0), 2)]);
    node.finish(1, task(0), 2, small("v"));
    let given = node.take(|e| match e {
        Effect::Run { spec, args, .. } => Some((spec.id.clone(), args.clone())),
        _ => None,
    });
    assert_eq!(given[0], (task_bytes(task(1)), vec![Value::Inline("v".into())]));
}

#[test]
fn a_failure_reaches_everything_that_needs_it_with_its_cause() {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    let specs = vec![spec(0, &[]), spec(1, &[task(0).output(0)]), spec(2, &[task(1).output(0)])];
    node.step(Event::Submit { client: DRIVER, specs });
    node.finish(1, task(0), 1, Err(Failure::new(FailureKind::FailureUserError, "no such file")));
    let ready = node.ready();
    assert_eq!(ready.len(), 3);
    for (_, ready) in ready {
        let Ready::Failed(failure) = ready else { panic!("{ready:?}") };
        assert!(failure.message.contains("no such file"), "{failure:?}");
    }
}

#[test]
fn a_blocked_worker_gives_back_its_cpu_and_what_was_queued_behind() {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    node.runs();
    // The parent submits a child and waits for it; there is one CPU.
    let child = TaskId::new(JOB, task(0), 0, 0);
    let child_spec = TaskSpec { id: task_bytes(child), parent: task_bytes(task(0)), ..spec(0, &[]) };
    node.step(Event::Submit { client: 1, specs: vec![child_spec] });
    assert_eq!(node.runs(), vec![], "the only CPU is taken");
    let census = node.core.census();
    assert_eq!(count(&census.runs, "running"), 1);
    assert_eq!(count(&census.kept, "placed") + count(&census.kept, "queued"), 2);
    assert_eq!(census.queues.iter().map(|(_, waiting)| waiting).sum::<u64>(), 1, "the child waits");
    assert_eq!(census.cpu_milli, (0, 1000));
    node.step(Event::Blocked { worker: 1, returned: vec![] });
    let census = node.core.census();
    assert_eq!((count(&census.runs, "blocked"), count(&census.runs, "running")), (1, 0));
    assert_eq!((count(&census.workers, "blocked"), count(&census.workers, "starting")), (1, 1));
    let spawned = node.take(|e| matches!(e, Effect::Spawn { .. }).then_some(()));
    assert_eq!(spawned.len(), 1, "another worker is started for the child");
    node.step(Event::WorkerUp { worker: 2, job: JOB });
    assert_eq!(node.runs(), vec![(2, child, 1)]);
    assert_eq!(count(&node.core.census().workers, "busy"), 1);
    node.finish(2, child, 1, small("c"));
    node.step(Event::Unblocked { worker: 1 });
    node.finish(1, task(0), 1, small("p"));
    assert_eq!(node.ready().len(), 2);
}

#[test]
fn what_is_on_its_way_to_a_worker_that_waits_keeps_its_cpu() {
    let mut node = Node::new(2);
    for worker in [1, 2, 3] {
        node.step(Event::WorkerUp { worker, job: JOB });
    }
    // What is known to be short is put behind one that runs.
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    let (task, value, contains, elements) = (task(0), small("v"), Vec::new(), Default::default());
    let outcome = TaskOutcome { task, attempt: 1, value, contains, ran_ns: 1_000, elements };
    node.step(Event::Finished { worker: 1, outcomes: vec![outcome] });
    node.runs();
    node.step(Event::Submit { client: DRIVER, specs: (1..5).map(|n| spec(n, &[])).collect() });
    let given = node.runs();
    let line: Vec<TaskId> = given.iter().filter(|(w, ..)| *w == 1).map(|(_, task, _)| *task).collect();
    assert_eq!((given.len(), line.len()), (4, 2), "two CPUs, two lines: {given:?}");
    // The first one waits; what stands behind it had not come there yet.
    node.step(Event::Blocked { worker: 1, returned: vec![] });
    node.step(Event::Submit { client: DRIVER, specs: (5..9).map(|n| spec(n, &[])).collect() });
    assert!(node.runs().iter().all(|(w, ..)| *w == 2), "the third worker would be one too many");
    // It comes, and the worker still waits: so it is handed back, and the CPU is free.
    node.step(Event::Blocked { worker: 1, returned: vec![line[1]] });
    assert!(node.runs().iter().any(|(w, task, _)| (*w, *task) == (3, line[1])));
}

#[test]
fn a_parent_is_done_only_when_what_it_submitted_is_committed() {
    let mut node = Node::new(2);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    node.auto_ack = false;
    let child = TaskId::new(JOB, task(0), 0, 0);
    let child_spec = TaskSpec { id: task_bytes(child), parent: task_bytes(task(0)), ..spec(0, &[]) };
    node.step(Event::Submit { client: 1, specs: vec![child_spec] });
    node.finish(1, task(0), 1, small("p"));
    assert!(node.ready().iter().any(|(o, _)| *o == task(0).output(0)), "the value may be used at once");
    assert!(!items(&node).iter().any(|i| matches!(i, stream_item::Item::Done(_))), "R4");
    node.ack(vec![]);
    assert!(items(&node).iter().any(|i| matches!(i, stream_item::Item::Done(_))), "now it may go");
}

#[test]
fn a_task_without_retries_starts_only_once_committed() {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.auto_ack = false;
    let once = TaskSpec { max_retries: 0, ..spec(0, &[]) };
    node.step(Event::Submit { client: DRIVER, specs: vec![once] });
    assert_eq!(node.runs(), vec![], "R7");
    node.ack(vec![]);
    assert_eq!(node.runs().len(), 1);
}

#[test]
fn the_next_attempt_starts_only_when_granted() {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    node.runs();
    node.auto_ack = false;
    node.step(Event::WorkerGone { worker: 1 });
    node.step(Event::WorkerUp { worker: 2, job: JOB });
    assert_eq!(node.runs(), vec![]);
    let view = TaskView { attempt: 2, spec: Some(spec(0, &[])), ..TaskView::default() };
    node.ack(vec![item_outcome::Outcome::Granted(view)]);
    assert_eq!(node.runs(), vec![(2, task(0), 2)]);
    // The answer of the dead attempt, should one come, is for nobody.
    node.finish(2, task(0), 1, small("old"));
    assert_eq!(node.ready(), vec![]);
}

#[test]
fn work_spills_over_and_a_dead_node_s_work_comes_back() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: (0..5).map(|i| spec(i, &[])).collect() });
    let assigned = node.take(|e| match e {
        Effect::Assign { to, assign } => Some((*to, assign.spec.clone().expect("has a spec").id)),
        _ => None,
    });
    assert!(!assigned.is_empty() && assigned.iter().all(|(to, _)| *to == OTHER));
    node.auto_ack = false;
    node.members(&[ME]);
    let proposed = items(&node)
        .iter()
        .filter(|i| matches!(i, stream_item::Item::Next(n) if n.from == 1 && n.failed))
        .count();
    assert_eq!(proposed, assigned.len(), "each lost attempt is proposed again, once");
}

#[test]
fn a_lost_object_is_asked_for_and_rebuilt_once() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    let lost = TaskId::new(JOB, TaskId::root(JOB), 9, 0).output(0);
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![lost], want_value: true });
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![lost], want_value: true });
    let asked = node.take(|e| matches!(e, Effect::Locate { .. }).then_some(()));
    assert_eq!(asked.len(), 1);
    node.auto_ack = false;
    let answer = Located { object: object_bytes(lost), answer: Some(located::Answer::Lost(1)) };
    node.step(Event::Located { asked: vec![lost], answers: vec![answer] });
    assert_eq!(items(&node).len(), 1, "one compare-and-set for two readers");
    let again = TaskSpec { id: task_bytes(lost.task), ..spec(0, &[]) };
    let view = TaskView { attempt: 2, spec: Some(again), ..TaskView::default() };
    node.ack(vec![item_outcome::Outcome::Granted(view)]);
    assert_eq!(node.runs(), vec![(1, lost.task, 2)]);
    node.finish(1, lost.task, 2, small("again"));
    assert_eq!(node.ready().len(), 2, "both readers get it");
}

#[test]
fn a_holder_that_is_gone_sends_the_reader_back_to_the_shard() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    let object = TaskId::new(JOB, TaskId::root(JOB), 9, 0).output(0);
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![object], want_value: true });
    let here = Here {
        holders: vec![Holder { incarnation: OTHER.0, address: String::new() }],
        output: Some(Output { crc: 1, size: 1 << 20 }),
    };
    let answer = Located { object: object_bytes(object), answer: Some(located::Answer::Here(here)) };
    node.effects.clear();
    node.step(Event::Located { asked: vec![object], answers: vec![answer] });
    let fetches = node.take(|e| matches!(e, Effect::Fetch { from: OTHER, .. }).then_some(()));
    assert_eq!(fetches.len(), 1);
    node.step(Event::FetchFailed { object, from: OTHER, why: mobula_scheduler::FetchError::Unreachable });
    assert_eq!(node.take(|e| matches!(e, Effect::Locate { .. }).then_some(())).len(), 0, "not at once");
    node.now = node.now + Duration::from_millis(100);
    node.step(Event::Tick);
    assert_eq!(node.take(|e| matches!(e, Effect::Locate { .. }).then_some(())).len(), 1);
}

#[test]
fn results_of_other_nodes_are_taken_once() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::Submit { client: DRIVER, specs: (0..5).map(|i| spec(i, &[])).collect() });
    let id = node.spilled_over();
    let result = PeerResult {
        task: id,
        attempt: 1,
        inline: Bytes::from_static(b"x"),
        has_inline: true,
        durable: true,
        ..PeerResult::default()
    };
    node.step(Event::PeerResult { from: OTHER, result: result.clone() });
    node.step(Event::PeerResult { from: OTHER, result });
    assert_eq!(node.ready().len(), 1);
}

#[test]
fn a_task_that_fits_nowhere_says_so() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::Submit { client: DRIVER, specs: vec![TaskSpec { cpu_milli: 64_000, ..spec(0, &[]) }] });
    assert_eq!(node.ready(), vec![], "a node may be about to join");
    node.now = node.now + Duration::from_secs(4);
    node.step(Event::Tick);
    let ready = node.ready();
    let Some((_, Ready::Failed(failure))) = ready.first() else { panic!("{ready:?}") };
    assert!(
        failure.message.contains("can never be placed") && failure.message.contains("cpu 64"),
        "{failure:?}"
    );
}

#[test]
fn the_end_of_a_job_leaves_nothing() {
    let mut node = Node::new(1);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: (0..50).map(|i| spec(i, &[])).collect() });
    node.step(Event::JobEnded(JOB));
    assert_eq!(node.core.load(), (1000, 0), "all CPU is free, nothing waits");
    assert!(node.core.held(ShardId(0)).is_empty() && node.core.held(ShardId(1)).is_empty());
}

#[test]
fn a_result_whose_node_died_before_it_was_recorded_is_made_again() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::Submit { client: DRIVER, specs: (0..5).map(|i| spec(i, &[])).collect() });
    let id = node.spilled_over();
    node.auto_ack = false;
    let output = Some(Output { crc: 1, size: 1 << 20 });
    let result = PeerResult { task: id.clone(), attempt: 1, output, durable: true, ..PeerResult::default() };
    node.step(Event::PeerResult { from: OTHER, result });
    assert!(items(&node).iter().any(|i| matches!(i, stream_item::Item::Done(_))));
    // The fence overtakes the done-record: it is refused, and this node is still the keeper.
    let view = TaskView { task: id.clone(), attempt: 1, state: 1, keeper: ME.0, ..TaskView::default() };
    node.ack(vec![item_outcome::Outcome::Refused(view)]);
    let again =
        items(&node).iter().any(|i| matches!(i, stream_item::Item::Next(n) if n.task == id && n.from == 1));
    assert!(again, "otherwise whoever needs it waits for ever");
}

/// Found by messages that nobody should send, which then turned out to be possible: a keeper dies, and the
/// one that is granted the next attempt chooses the same node.
#[test]
fn an_attempt_runs_once_where_an_earlier_one_is_still_in_line_or_with_a_worker() {
    let assign = |attempt| mobula_proto::Assign { spec: Some(spec(0, &[])), attempt, ..Default::default() };
    for earlier_has_a_worker in [false, true] {
        let mut node = Node::new(2);
        if earlier_has_a_worker {
            node.step(Event::WorkerUp { worker: 1, job: JOB });
        }
        node.step(Event::Assigned { from: OTHER, assign: assign(1) });
        node.step(Event::Assigned { from: Incarnation(9), assign: assign(2) });
        node.step(Event::WorkerUp { worker: 2, job: JOB });
        node.step(Event::WorkerUp { worker: 3, job: JOB });
        let mut runs = node.runs();
        runs.retain(|run| run.2 == 2);
        assert_eq!(runs.len(), 1, "{runs:?}");
        // The end of the earlier one's worker is not the end of the later one.
        node.step(Event::WorkerGone { worker: 1 });
        let reported = node.take(|e| match e {
            Effect::Result { result, .. } => Some(result.attempt),
            _ => None,
        });
        assert!(reported.is_empty(), "{reported:?}");
        node.finish(runs[0].0, task(0), 2, small("value"));
        let reported = node.take(|e| match e {
            Effect::Result { to, result } => Some((*to, result.attempt, result.failure.is_none())),
            _ => None,
        });
        // Each hears of it by the number that it knows: of a record that came anew the lower one counts.
        assert_eq!(reported, [(OTHER, 1, true), (Incarnation(9), 2, true)]);
    }
}

#[test]
fn a_worker_that_waits_for_room_keeps_its_cpu_and_gives_back_what_was_queued_behind() {
    let mut node = Node::new(2);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    assert_eq!(node.runs(), vec![(1, task(0), 1)]);
    // It is short, as far as is known: others are queued behind its like.
    node.finish(1, task(0), 1, small("v"));
    let submitted = (1..4).map(|index| TaskSpec { cpu_milli: 2000, ..spec(index, &[]) }).collect();
    node.step(Event::Submit { client: DRIVER, specs: submitted });
    let given = node.runs();
    assert!(!given.is_empty() && given.iter().all(|(worker, ..)| *worker == 1), "{given:?}");
    let behind: Vec<TaskId> = given[1..].iter().map(|(_, task, _)| *task).collect();
    node.effects.clear();
    node.step(Event::Stalled { worker: 1, returned: behind });
    let census = node.core.census();
    assert_eq!((count(&census.workers, "stalled"), census.cpu_milli.0), (1, 0));
    assert_eq!(node.runs(), vec![], "it takes nothing, and nobody else has a CPU");
    assert_eq!(node.take(|e| matches!(e, Effect::Spawn { .. }).then_some(())).len(), 0);
    node.step(Event::Unblocked { worker: 1 });
    node.finish(1, given[0].1, 1, small("v"));
    assert!(!node.runs().is_empty(), "it goes on");
}

#[test]
fn what_was_not_given_after_all_is_given_again_once_its_argument_is_back() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    let object = task(0).output(0);
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    node.runs();
    node.finish(1, task(0), 1, Ok(Value::Shared { offset: 0, len: 1 << 20, crc: 5 }));
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(1, &[object])] });
    assert_eq!(node.runs(), vec![(1, task(1), 1)]);
    // The file of the argument turns out to be damaged.
    node.effects.clear();
    node.step(Event::CopyLost { object });
    node.step(Event::NotGiven { worker: 1, tasks: vec![task(1)] });
    assert_eq!(node.core.census().cpu_milli.0, 1000, "it has no CPU meanwhile");
    assert_eq!(node.runs(), vec![]);
    assert_eq!(node.take(|e| matches!(e, Effect::Locate { .. }).then_some(())).len(), 1);
    let here = Here {
        holders: vec![Holder { incarnation: OTHER.0, address: String::new() }],
        output: Some(Output { crc: 5, size: 1 << 20 }),
    };
    let answer = Located { object: object_bytes(object), answer: Some(located::Answer::Here(here)) };
    node.step(Event::Located { asked: vec![object], answers: vec![answer] });
    node.step(Event::Fetched { object, value: Value::Shared { offset: 64, len: 1 << 20, crc: 5 } });
    assert_eq!(node.runs(), vec![(1, task(1), 1)]);
}

#[test]
fn spare_is_what_was_brought_from_a_live_node_and_has_no_use_here() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    let value = || Value::Shared { offset: 0, len: 1 << 20, crc: 5 };
    let of_a_task = TaskId::new(JOB, TaskId::root(JOB), 9, 0).output(0);
    let of_a_put = TaskId::new(JOB, TaskId::root(JOB), 9, 1).output(mobula_base::ids::FIRST_PUT_SLOT);
    let left_here = TaskId::new(JOB, TaskId::root(JOB), 9, 2).output(0);
    for object in [of_a_task, of_a_put] {
        let here = Here {
            holders: vec![Holder { incarnation: OTHER.0, address: String::new() }],
            output: Some(Output { crc: 5, size: 1 << 20 }),
        };
        let answer = Located { object: object_bytes(object), answer: Some(located::Answer::Here(here)) };
        node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![object], want_value: true });
        node.step(Event::Located { asked: vec![object], answers: vec![answer] });
        node.step(Event::Fetched { object, value: value() });
    }
    // An earlier life has left it: others may have it, or not.
    node.step(Event::Attached { object: left_here, job: JOB, value: value() });
    assert!(node.core.held(node.core.shard_of(left_here.task)).contains(&left_here), "it is reported");
    assert!(node.core.take_spare().into_iter().eq([of_a_task]));
    assert_eq!(node.core.value_of(of_a_task), None);
    assert!(node.core.value_of(of_a_put).is_some() && node.core.value_of(left_here).is_some());
    assert!(node.core.take_spare().is_empty());
}

/// A spare copy that a task came to use was let go all the same, brought again for that task, and let go, for ever.
#[test]
fn what_a_task_has_come_to_use_is_not_spare() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    let object = TaskId::new(JOB, TaskId::root(JOB), 9, 0).output(0);
    let here = Here {
        holders: vec![Holder { incarnation: OTHER.0, address: String::new() }],
        output: Some(Output { crc: 5, size: 1 << 20 }),
    };
    let answer = Located { object: object_bytes(object), answer: Some(located::Answer::Here(here)) };
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![object], want_value: true });
    node.step(Event::Located { asked: vec![object], answers: vec![answer] });
    node.step(Event::Fetched { object, value: Value::Shared { offset: 0, len: 1 << 20, crc: 5 } });
    let assign = Assign { spec: Some(spec(0, &[object])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    assert_eq!(node.runs(), [(1, task(0), 1)]);
    assert!(node.core.take_spare().is_empty());
    assert!(node.core.value_of(object).is_some());
    node.finish(1, task(0), 1, Ok(Value::Inline(vec![1].into())));
    assert!(node.core.take_spare().into_iter().eq([object]), "it is once the task has ended");
}

/// Whoever needs what a running task has put gets it from its next attempt, and this one may wait for them.
#[test]
fn a_task_whose_put_was_damaged_while_it_runs_ends() {
    let mut node = Node::new(1);
    node.members(&[ME, OTHER]);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    node.step(Event::Submit { client: DRIVER, specs: vec![spec(0, &[])] });
    node.runs();
    let object = task(0).output(mobula_base::ids::FIRST_PUT_SLOT);
    let value = Value::Shared { offset: 0, len: 1 << 20, crc: 5 };
    let put =
        Event::Put { client: 1, object, job: JOB, value, by_driver: false, contains: vec![], replicas: 0 };
    node.step(put.clone());
    let kills =
        |node: &mut Node| node.take(|e| if let Effect::Kill { worker } = e { Some(*worker) } else { None });
    assert_eq!(kills(&mut node), []);
    node.step(Event::CopyLost { object });
    assert_eq!(kills(&mut node), [1]);
    // Of one that has ended there is another attempt if need be.
    node.step(put);
    node.finish(1, task(0), 1, Ok(Value::Inline(vec![1].into())));
    node.step(Event::CopyLost { object });
    assert_eq!(kills(&mut node), []);
}
