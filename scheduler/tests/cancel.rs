//! Tasks that end early, and tasks that run again after a failure of their own: a story per test.

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, Resources, ShardId, TaskId};
use mobula_proto::{
    Arg, Assign, ClusterView, Done, Failure, FailureKind, ItemOutcome, NextAttempt, NodeView, PeerResult,
    RetryOn, StreamAck, StreamBatch, TaskOptions, TaskSpec, TaskView, arg, item_outcome, object_bytes,
    stream_item, task_bytes, task_id,
};
use mobula_scheduler::cancel::STOP_GRACE;
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const ME: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);
const DRIVER: u64 = 100;
const JOB: JobId = JobId(7);

/// A node with one CPU and worker 1, beside another node; what it sends to the store is granted.
struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
    batches: VecDeque<(ShardId, StreamBatch)>,
    records: BTreeMap<Bytes, TaskSpec>,
    dones: Vec<Done>,
    nexts: Vec<NextAttempt>,
    holds_back: bool,
}

impl Node {
    fn new(others: &[Incarnation]) -> Self {
        let config = Config {
            incarnation: ME,
            shards: 1,
            name: "n1".into(),
            resources: Resources::cpus_milli(1000),
            labels: BTreeMap::new(),
            workers: 1,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let mut node = Node {
            core: Core::new(config),
            now: Instant(0),
            effects: Vec::new(),
            batches: VecDeque::new(),
            records: BTreeMap::new(),
            dones: Vec::new(),
            nexts: Vec::new(),
            holds_back: false,
        };
        node.members(others);
        node.step(Event::JobStarted { job: JOB, counted: true });
        node.step(Event::WorkerUp { worker: 1, job: JOB });
        node.effects.clear();
        node
    }

    fn members(&mut self, others: &[Incarnation]) {
        let view = |n: &Incarnation| NodeView {
            incarnation: n.0,
            cpu_milli: 1000,
            alive: true,
            ..NodeView::default()
        };
        let nodes = [ME].iter().chain(others).map(view).collect();
        self.step(Event::View(ClusterView { version: 1, nodes, ..ClusterView::default() }));
    }

    fn step(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(1);
        let mut out = Vec::new();
        self.core.step([event], self.now, &mut out);
        for effect in out {
            match effect {
                Effect::Send { shard, batch } => self.batches.push_back((shard, batch)),
                effect => self.effects.push(effect),
            }
        }
        while !self.holds_back && self.ack() {}
    }

    /// The store takes the oldest batch.
    fn ack(&mut self) -> bool {
        let Some((shard, batch)) = self.batches.pop_front() else { return false };
        let mut outcomes = Vec::new();
        for (seq, item) in (batch.first_seq..).zip(&batch.items) {
            match &item.item {
                Some(stream_item::Item::Submit(spec)) => {
                    drop(self.records.insert(spec.id.clone(), spec.clone()))
                }
                Some(stream_item::Item::Done(done)) => self.dones.push(done.clone()),
                Some(stream_item::Item::Next(next)) => {
                    self.nexts.push(next.clone());
                    let spec = self.records.get(&next.task).cloned();
                    let view = TaskView { attempt: next.from + 1, spec, ..TaskView::default() };
                    let outcome = Some(item_outcome::Outcome::Granted(view));
                    outcomes.push(ItemOutcome { seq, outcome });
                }
                _ => {}
            }
        }
        let mark = batch.first_seq + batch.items.len() as u64 - 1;
        self.step(Event::Acked { shard, ack: StreamAck { mark, revision: 1, outcomes }, moved: Vec::new() });
        true
    }

    fn submit(&mut self, specs: Vec<TaskSpec>) {
        self.step(Event::Submit { client: DRIVER, specs });
    }

    fn cancel(&mut self, task: TaskId, recursive: bool) {
        self.step(Event::Cancel { from: None, tasks: vec![task], recursive });
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.step(Event::Tick);
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

    fn take<T>(&mut self, pick: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        let found = self.effects.iter().filter_map(&pick).collect();
        self.effects.retain(|effect| pick(effect).is_none());
        found
    }

    fn runs(&mut self) -> Vec<(TaskId, u32)> {
        self.take(|effect| match effect {
            Effect::Run { spec, attempt, .. } => Some((task_id(&spec.id).expect("valid"), *attempt)),
            _ => None,
        })
    }

    fn stops(&mut self) -> Vec<(u64, TaskId)> {
        self.take(|effect| match effect {
            Effect::Stop { worker, task, .. } => Some((*worker, *task)),
            _ => None,
        })
    }

    fn kills(&mut self) -> usize {
        self.take(|effect| matches!(effect, Effect::Kill { .. }).then_some(())).len()
    }

    fn failures(&mut self) -> Vec<(TaskId, FailureKind)> {
        self.take(|effect| match effect {
            Effect::Ready { object, ready: Ready::Failed(failure), .. } => {
                Some((object.task, failure.kind()))
            }
            _ => None,
        })
    }

    /// What the store knows of tasks that failed.
    fn recorded(&self) -> Vec<(TaskId, FailureKind)> {
        let failed = |done: &Done| Some((task_id(&done.task).ok()?, done.failure.as_ref()?.kind()));
        self.dones.iter().filter_map(failed).collect()
    }
}

fn task(index: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, index)
}

fn child_of(parent: TaskId, index: u64) -> TaskSpec {
    let id = TaskId::new(JOB, parent, 0, index);
    TaskSpec { id: task_bytes(id), parent: task_bytes(parent), ..spec(0, &[]) }
}

fn spec(index: u64, needs: &[TaskId]) -> TaskSpec {
    let args = needs.iter().map(|t| Arg { arg: Some(arg::Arg::Object(object_bytes(t.output(0)))) });
    TaskSpec {
        id: task_bytes(task(index)),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        args: args.collect(),
        ..TaskSpec::default()
    }
}

fn with(options: TaskOptions, index: u64) -> TaskSpec {
    TaskSpec { options: Some(Box::new(options)), ..spec(index, &[]) }
}

fn small() -> Result<Value, Failure> {
    Ok(Value::Inline(Bytes::from_static(b"v")))
}

fn error(text: &str) -> Result<Value, Failure> {
    Err(Failure::new(FailureKind::FailureUserError, text))
}

const CANCELLED: FailureKind = FailureKind::FailureCancelled;

#[test]
fn what_has_not_begun_never_does_and_its_end_is_recorded() {
    let mut node = Node::new(&[]);
    node.submit(vec![spec(0, &[]), spec(1, &[]), spec(2, &[task(1)]), spec(3, &[task(0)])]);
    assert_eq!(node.runs(), [(task(0), 1)]);
    node.cancel(task(3), false);
    assert_eq!(node.failures(), [(task(3), CANCELLED)], "it waits for its argument");
    node.cancel(task(1), false);
    let needs = FailureKind::FailureDependency;
    assert_eq!(node.failures(), [(task(1), CANCELLED), (task(2), needs)], "and whoever needs it");
    node.cancel(task(1), false);
    assert_eq!(node.failures(), [], "twice is as good as once");
    assert_eq!(node.recorded(), [(task(3), CANCELLED), (task(1), CANCELLED), (task(2), needs)]);
    node.finish(1, task(0), 1, small());
    assert_eq!((node.runs(), node.stops()), (vec![], vec![]));
    node.cancel(task(0), true);
    assert_eq!(node.failures(), [], "what has ended stays as it is");
    assert_eq!(node.core.load(), (1000, 0));
}

#[test]
fn what_runs_is_told_and_whatever_it_makes_does_not_count() {
    let mut node = Node::new(&[]);
    node.submit(vec![spec(0, &[])]);
    node.runs();
    node.cancel(task(0), false);
    node.cancel(task(0), false);
    assert_eq!(node.stops(), [(1, task(0))], "once");
    assert_eq!(node.failures(), []);
    let value = Value::Shared { offset: 0, len: 1 << 20, crc: 3 };
    node.finish(1, task(0), 1, Ok(value));
    assert_eq!(node.failures(), [(task(0), CANCELLED)]);
    assert_eq!(node.recorded(), [(task(0), CANCELLED)]);
    let discarded = node.take(|effect| matches!(effect, Effect::Discard { .. }).then_some(()));
    assert_eq!(discarded.len(), 1, "its memory is free");
    node.wait(STOP_GRACE);
    assert_eq!(node.kills(), 0, "it has stopped");
}

#[test]
fn what_does_not_stop_is_killed_and_not_tried_again() {
    let mut node = Node::new(&[]);
    node.submit(vec![spec(0, &[])]);
    node.runs();
    node.cancel(task(0), false);
    node.wait(STOP_GRACE / 2);
    assert_eq!(node.kills(), 0);
    node.wait(STOP_GRACE);
    assert_eq!(node.kills(), 1);
    node.step(Event::WorkerGone { worker: 1 });
    assert_eq!(node.failures(), [(task(0), CANCELLED)]);
    assert_eq!((node.nexts.len(), node.core.load()), (0, (1000, 0)));
}

#[test]
fn what_stands_in_line_at_a_worker_is_taken_out() {
    let mut node = Node::new(&[]);
    // Short ones stand in line.
    node.submit(vec![spec(0, &[])]);
    node.step(Event::Finished {
        worker: 1,
        outcomes: vec![TaskOutcome {
            elements: Default::default(),
            task: task(0),
            attempt: 1,
            value: small(),
            ran_ns: 1000,
            contains: vec![],
        }],
    });
    node.submit(vec![spec(1, &[]), spec(2, &[])]);
    assert_eq!(node.runs().len(), 3);
    node.cancel(task(2), false);
    assert_eq!(node.stops(), [(1, task(2))]);
    // The first waits inside, and gives back what was queued behind it.
    node.step(Event::Blocked { worker: 1, returned: vec![task(2)] });
    assert_eq!(node.failures(), [(task(2), CANCELLED)]);
    node.wait(STOP_GRACE);
    assert_eq!(node.kills(), 0, "the other task goes on");
}

#[test]
fn children_are_cancelled_with_their_parent_if_asked() {
    for recursive in [false, true] {
        let mut node = Node::new(&[]);
        node.submit(vec![spec(0, &[])]);
        node.step(Event::Submit { client: 1, specs: vec![child_of(task(0), 0), child_of(task(0), 1)] });
        let grandchild = child_of(TaskId::new(JOB, task(0), 0, 0), 0);
        node.step(Event::Submit { client: 1, specs: vec![grandchild] });
        node.cancel(task(0), recursive);
        let waiting = node.core.census().kept.iter().map(|(_, n)| n).sum::<u64>();
        assert_eq!(waiting, if recursive { 1 } else { 4 }, "the parent is being stopped");
        assert_eq!(node.stops(), [(1, task(0))]);
    }
}

#[test]
fn a_task_on_another_node_is_cancelled_there_and_when_that_dies_nowhere_else() {
    let mut node = Node::new(&[OTHER]);
    node.submit((0..3).map(|n| spec(n, &[])).collect());
    let given = node.take(|effect| match effect {
        Effect::Assign { to, assign } => Some((*to, task_id(&assign.spec.as_ref()?.id).ok()?)),
        _ => None,
    });
    let (to, away) = given[0];
    node.cancel(away, true);
    let told = node.take(|effect| match effect {
        Effect::Cancel { to, tasks, recursive } => Some((*to, tasks.clone(), *recursive)),
        _ => None,
    });
    assert_eq!(told, [(to, vec![away], true)]);
    node.members(&[]);
    assert_eq!(node.nexts.len(), 1, "the shard is asked who goes on");
    assert_eq!(node.failures(), [(away, CANCELLED)], "nobody does");
    assert_eq!(node.recorded(), [(away, CANCELLED)]);
}

#[test]
fn a_value_that_was_made_before_the_executor_heard_counts() {
    let mut node = Node::new(&[OTHER]);
    node.submit((0..3).map(|n| spec(n, &[])).collect());
    let given = node.take(|effect| match effect {
        Effect::Assign { assign, .. } => task_id(&assign.spec.as_ref()?.id).ok(),
        _ => None,
    });
    node.cancel(given[0], false);
    let result = PeerResult {
        task: task_bytes(given[0]),
        attempt: 1,
        has_inline: true,
        durable: true,
        ..PeerResult::default()
    };
    node.step(Event::PeerResult { from: OTHER, result });
    assert_eq!((node.failures(), node.recorded()), (vec![], vec![]));
}

#[test]
fn an_executor_that_is_told_reports_that_it_was_cancelled() {
    let mut node = Node::new(&[OTHER]);
    let assign = Assign { spec: Some(spec(0, &[])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    assert_eq!(node.runs(), [(task(0), 1)]);
    node.step(Event::Cancel { from: Some(OTHER), tasks: vec![task(0)], recursive: true });
    assert_eq!(node.stops(), [(1, task(0))]);
    node.finish(1, task(0), 1, error("stopped half way"));
    let told = node.take(|effect| match effect {
        Effect::Result { to, result } => Some((*to, result.failure.as_ref().map(Failure::kind))),
        _ => None,
    });
    assert_eq!(told, [(OTHER, Some(CANCELLED))]);
}

#[test]
fn whoever_does_not_keep_a_task_asks_all() {
    let mut node = Node::new(&[OTHER, Incarnation(3)]);
    node.cancel(task(9), false);
    let told = node.take(|effect| match effect {
        Effect::Cancel { to, .. } => Some(to.0),
        _ => None,
    });
    assert_eq!(told, [2, 3]);
    node.step(Event::Cancel { from: Some(OTHER), tasks: vec![task(9)], recursive: false });
    let again = node.take(|effect| matches!(effect, Effect::Cancel { .. }).then_some(()));
    assert_eq!(again.len(), 0, "it is not passed on");
}

#[test]
fn a_task_that_waits_for_its_record_is_cancelled_once_that_stands() {
    let mut node = Node::new(&[]);
    node.holds_back = true;
    node.submit(vec![TaskSpec { max_retries: 0, ..spec(0, &[]) }]);
    node.cancel(task(0), false);
    assert_eq!(node.failures(), []);
    node.ack();
    assert_eq!((node.runs(), node.failures()), (vec![], vec![(task(0), CANCELLED)]));
}

#[test]
fn an_attempt_that_takes_too_long_is_stopped_with_a_cause_of_its_own() {
    let mut node = Node::new(&[]);
    let options = TaskOptions { timeout_ms: 100, ..TaskOptions::default() };
    node.submit(vec![spec(0, &[]), with(options, 1)]);
    node.wait(Duration::from_secs(10));
    assert_eq!(node.stops(), [], "its time begins when it does");
    node.finish(1, task(0), 1, small());
    assert_eq!(node.runs().len(), 2);
    node.wait(Duration::from_millis(50));
    assert_eq!(node.stops(), []);
    node.wait(Duration::from_millis(60));
    assert_eq!(node.stops(), [(1, task(1))]);
    node.finish(1, task(1), 1, error("told to stop"));
    assert_eq!(node.failures(), [(task(1), FailureKind::FailureTimedOut)]);
    assert_eq!(node.nexts.len(), 0, "not tried again unless asked");
}

#[test]
fn errors_are_retried_only_where_asked() {
    let retry = |retry_on| TaskOptions { retry_on: Some(retry_on), ..TaskOptions::default() };
    let errors = RetryOn { errors: true, ..RetryOn::default() };
    let some = RetryOn { errors: true, containing: vec!["busy".into()], ..RetryOn::default() };
    let panics = RetryOn { panics: true, ..RetryOn::default() };
    for (options, text, retried) in [
        (TaskOptions::default(), "busy", false),
        (retry(errors), "anything", true),
        (retry(some.clone()), "the server is busy", true),
        (retry(some), "no such file", false),
        (retry(panics), "busy", false),
    ] {
        let mut node = Node::new(&[]);
        node.submit(vec![with(options, 0)]);
        node.runs();
        node.finish(1, task(0), 1, error(text));
        if retried {
            let next = &node.nexts[0];
            assert!(next.failed && next.failure.as_ref().is_some_and(|failure| failure.message == text));
            assert_eq!((node.runs(), node.failures()), (vec![(task(0), 2)], vec![]));
            node.finish(1, task(0), 2, small());
            assert_eq!(node.failures(), []);
        } else {
            let own = vec![(task(0), FailureKind::FailureUserError)];
            assert_eq!((node.nexts.len(), node.failures()), (0, own));
        }
    }
}

#[test]
fn a_cancelled_task_is_not_retried_for_its_own_errors() {
    let mut node = Node::new(&[]);
    let errors = RetryOn { errors: true, timeouts: true, ..RetryOn::default() };
    node.submit(vec![with(TaskOptions { retry_on: Some(errors), ..TaskOptions::default() }, 0)]);
    node.cancel(task(0), false);
    node.finish(1, task(0), 1, error("half way"));
    assert_eq!((node.failures(), node.nexts.len()), (vec![(task(0), CANCELLED)], 0));
}

#[test]
fn the_time_of_an_attempt_does_not_count_for_a_later_one_of_that_number() {
    let mut node = Node::new(&[OTHER]);
    let options = TaskOptions { timeout_ms: 100, ..TaskOptions::default() };
    let assign = || Assign { spec: Some(with(options.clone(), 1)), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign: assign() });
    node.wait(Duration::from_millis(50));
    node.finish(1, task(1), 1, small());
    // Its record was pruned, and came anew.
    node.step(Event::Assigned { from: OTHER, assign: assign() });
    node.wait(Duration::from_millis(60));
    assert!(node.stops().is_empty(), "it has run for less than its time");
    node.wait(Duration::from_millis(60));
    assert_eq!(node.stops(), [(1, task(1))]);
}

#[test]
fn an_attempt_that_counts_no_more_does_not_run_for_ever() {
    let third = Incarnation(3);
    let mut node = Node::new(&[OTHER, third]);
    node.step(Event::WorkerUp { worker: 2, job: JOB });
    let options = TaskOptions { timeout_ms: 100, ..TaskOptions::default() };
    let spec = with(options, 1);
    let assign = |attempt| Assign { spec: Some(spec.clone()), attempt, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign: assign(1) });
    // Its keeper has died, and another one has been granted the next.
    node.members(&[third]);
    node.step(Event::Assigned { from: third, assign: assign(2) });
    assert_eq!(node.kills(), 0);
    node.wait(Duration::from_millis(110));
    assert_eq!(node.kills(), 1, "it holds a worker and a CPU");
    node.step(Event::WorkerGone { worker: 1 });
    assert_eq!(node.runs(), [(task(1), 1), (task(1), 2)]);
}
