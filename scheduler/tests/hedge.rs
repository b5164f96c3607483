//! Pure tasks that take too long on another node: a story per test.

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Assign, ClusterView, Done, Failure, FailureKind, ItemOutcome, NextAttempt, NodeView, Output, PeerResult,
    StreamAck, StreamBatch, TaskOptions, TaskSpec, TaskView, item_outcome, stream_item, task_bytes, task_id,
};
use mobula_scheduler::hedge::{HEDGE_FACTOR, HEDGE_KNOWN, HEDGE_MIN};
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const ME: Incarnation = Incarnation(1);
const DRIVER: u64 = 100;
const JOB: JobId = JobId(7);
/// What is usual of the function.
const USUAL: Duration = Duration::from_millis(40);
/// A task that has been away so long is a straggler.
const TOO_LONG: Duration = Duration::from_millis(200);

/// A node without a CPU, beside two others that have some; the store grants what is asked for.
struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
    batches: VecDeque<(ShardId, StreamBatch)>,
    records: BTreeMap<Bytes, TaskSpec>,
    nexts: Vec<NextAttempt>,
    dones: Vec<Done>,
    holds_back: bool,
    refuses: bool,
    /// An edge was told.
    named: bool,
    next: u64,
}

impl Node {
    /// Whose job may hedge so many of a thousand tasks.
    fn new(permille: u32) -> Self {
        Self::with_cpus(0, permille)
    }

    /// The same with so many CPUs of its own.
    fn with_cpus(cpus: u64, permille: u32) -> Self {
        let config = Config {
            incarnation: ME,
            shards: 1,
            name: "n1".into(),
            resources: Resources::cpus_milli(cpus * 1000),
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
            nexts: Vec::new(),
            dones: Vec::new(),
            holds_back: false,
            refuses: false,
            named: false,
            next: 0,
        };
        node.members(&[2, 3]);
        node.step(Event::JobStarted { job: JOB, counted: true });
        node.step(Event::HedgeBudget { job: JOB, permille });
        node
    }

    /// One whose job may hedge, and that knows what is usual of the function.
    fn knowing() -> Self {
        let mut node = Node::new(100);
        node.comes_to_know(2 * HEDGE_KNOWN as u64);
        node
    }

    fn comes_to_know(&mut self, many: u64) {
        let tasks: Vec<(TaskId, Incarnation)> = (0..many).map(|_| self.submit(pure())).collect();
        self.wait(USUAL);
        for (task, at) in tasks {
            self.comes_back(at, task, 1, b"v");
        }
        self.effects.clear();
    }

    fn members(&mut self, others: &[u64]) {
        self.members_with(&others.iter().map(|n| (*n, 64)).collect::<Vec<_>>());
    }

    /// With so many CPUs.
    fn members_with(&mut self, others: &[(u64, u32)]) {
        let view = |(n, cpus): &(u64, u32)| NodeView {
            incarnation: *n,
            name: format!("n{n}"),
            cpu_milli: cpus * 1000,
            alive: true,
            ..NodeView::default()
        };
        let nodes = [(ME.0, 0)].iter().chain(others).map(view).collect();
        self.step(Event::View(ClusterView { version: 1, nodes, ..ClusterView::default() }));
    }

    fn step(&mut self, event: Event) {
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
                Some(stream_item::Item::Name(name)) => self.named |= !name.by.is_empty(),
                Some(stream_item::Item::Next(next)) => {
                    self.nexts.push(next.clone());
                    let spec = self.records.get(&next.task).cloned();
                    let view = TaskView { attempt: next.from + 1, spec, ..TaskView::default() };
                    let outcome = Some(match self.refuses {
                        true => item_outcome::Outcome::Refused(view),
                        false => item_outcome::Outcome::Granted(view),
                    });
                    outcomes.push(ItemOutcome { seq, outcome });
                }
                _ => {}
            }
        }
        let mark = batch.first_seq + batch.items.len() as u64 - 1;
        self.step(Event::Acked { shard, ack: StreamAck { mark, revision: 1, outcomes }, moved: Vec::new() });
        true
    }

    /// Submits a task; where it goes.
    fn submit(&mut self, spec: TaskSpec) -> (TaskId, Incarnation) {
        let task = TaskId::new(JOB, TaskId::root(JOB), 0, self.next);
        self.next += 1;
        self.step(Event::Submit { client: DRIVER, specs: vec![TaskSpec { id: task_bytes(task), ..spec }] });
        let given = self.assigned();
        assert_eq!(given.len(), 1, "{given:?}");
        assert_eq!((given[0].0, given[0].2), (task, 1));
        (task, given[0].1)
    }

    /// A task that takes too long; where it is.
    fn straggler(&mut self) -> (TaskId, Incarnation) {
        let (task, slow) = self.submit(pure());
        self.wait(TOO_LONG);
        (task, slow)
    }

    /// Time passes, and the core does what is due.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.core.deadline().filter(|due| *due <= until) {
            self.now = due.max(self.now);
            self.step(Event::Tick);
        }
        self.now = until;
        self.step(Event::Tick);
    }

    fn comes_back(&mut self, from: Incarnation, task: TaskId, attempt: u32, value: &'static [u8]) {
        let output = Some(Output { size: value.len() as u64, crc: value.len() as u32 });
        let inline = Bytes::from_static(value);
        let task = task_bytes(task);
        let (has_inline, durable, ran_ns) = (true, true, 5_000_000);
        let result = PeerResult {
            task,
            attempt,
            output,
            inline,
            has_inline,
            durable,
            ran_ns,
            ..PeerResult::default()
        };
        self.step(Event::PeerResult { from, result });
    }

    fn fails(&mut self, from: Incarnation, task: TaskId, attempt: u32) {
        self.fails_with(FailureKind::FailureUserError, from, task, attempt);
    }

    fn fails_with(&mut self, kind: FailureKind, from: Incarnation, task: TaskId, attempt: u32) {
        let failure = Some(Failure::new(kind, "no"));
        let result =
            PeerResult { task: task_bytes(task), attempt, failure, durable: true, ..PeerResult::default() };
        self.step(Event::PeerResult { from, result });
    }

    fn take<T>(&mut self, pick: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        let found = self.effects.iter().filter_map(&pick).collect();
        self.effects.retain(|effect| pick(effect).is_none());
        found
    }

    fn assigned(&mut self) -> Vec<(TaskId, Incarnation, u32)> {
        self.take(|effect| match effect {
            Effect::Assign { to, assign } => {
                let spec = assign.spec.as_ref().expect("has one");
                Some((task_id(&spec.id).expect("valid"), *to, assign.attempt))
            }
            _ => None,
        })
    }

    fn notices(&mut self, kind: &str) -> usize {
        self.take(|effect| {
            matches!(effect, Effect::Notice { notice, .. } if notice.kind == kind).then_some(())
        })
        .len()
    }

    fn values(&mut self) -> Vec<TaskId> {
        self.take(|effect| match effect {
            Effect::Ready { object, ready: Ready::Here(_), .. } => Some(object.task),
            _ => None,
        })
    }

    fn cancels(&mut self) -> Vec<Incarnation> {
        self.take(|effect| match effect {
            Effect::Cancel { to, .. } => Some(*to),
            _ => None,
        })
    }

    /// Attempt and executor of the record of its end.
    fn end_of(&self, task: TaskId) -> Vec<(u32, u64)> {
        let its = self.dones.iter().filter(|done| done.task == task_bytes(task));
        its.map(|done| (done.attempt, done.executor)).collect()
    }

    /// Kept tasks that each node was given, as the core counts them.
    fn load_of(&self, node: Incarnation) -> u32 {
        self.core.placed_on(node)
    }
}

fn plain() -> TaskSpec {
    TaskSpec {
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        ..TaskSpec::default()
    }
}

fn pure() -> TaskSpec {
    TaskSpec { options: Some(Box::new(TaskOptions { pure: true, ..TaskOptions::default() })), ..plain() }
}

fn other_than(node: Incarnation) -> Incarnation {
    Incarnation(if node == Incarnation(2) { 3 } else { 2 })
}

#[test]
fn the_next_attempt_begins_elsewhere_and_may_come_first() {
    assert!(USUAL * HEDGE_FACTOR < TOO_LONG && HEDGE_MIN < TOO_LONG);
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    let fast = other_than(slow);
    assert_eq!(node.assigned(), [(task, fast, 2)]);
    assert_eq!((node.notices("hedge"), node.notices("rebuild-start")), (1, 0));
    assert_eq!((node.load_of(slow), node.load_of(fast)), (1, 1), "both are at work");
    assert!(!node.nexts[0].failed, "nothing has failed");
    node.comes_back(fast, task, 2, b"v");
    assert_eq!(node.values(), [task]);
    assert_eq!(node.end_of(task), [(2, fast.0)]);
    node.comes_back(slow, task, 1, b"v");
    assert_eq!((node.values(), node.notices("diverged")), (vec![], 0));
    assert_eq!(node.end_of(task).len(), 1);
    assert_eq!((node.load_of(slow), node.load_of(fast)), (0, 0));
}

#[test]
fn the_straggler_may_still_come_first() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    let fast = other_than(slow);
    assert_eq!(node.assigned(), [(task, fast, 2)]);
    node.comes_back(slow, task, 1, b"v");
    assert_eq!(node.values(), [task]);
    assert_eq!(node.end_of(task), [(2, slow.0)], "its value is that of the attempt that counts");
    assert_eq!((node.load_of(slow), node.load_of(fast)), (0, 1));
    node.comes_back(fast, task, 2, b"other");
    assert_eq!(node.values(), []);
    assert_eq!(node.notices("diverged"), 1, "it is not pure");
    assert_eq!((node.load_of(slow), node.load_of(fast)), (0, 0));
}

#[test]
fn one_that_comes_before_the_next_is_granted_counts_from_then_on() {
    let mut node = Node::knowing();
    let (task, slow) = node.submit(pure());
    node.holds_back = true;
    node.wait(TOO_LONG);
    node.comes_back(slow, task, 1, b"v");
    assert_eq!(node.values(), [], "nobody knows yet which attempt counts");
    node.holds_back = false;
    while node.ack() {}
    assert_eq!(node.values(), [task]);
    assert_eq!((node.end_of(task), node.assigned()), (vec![(2, slow.0)], vec![]));
    assert_eq!((node.load_of(slow), node.load_of(other_than(slow))), (0, 0));
}

#[test]
fn what_the_straggler_fails_with_is_not_the_end() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    let fast = other_than(slow);
    node.fails(slow, task, 1);
    assert_eq!((node.end_of(task), node.nexts.len()), (vec![], 1));
    node.comes_back(fast, task, 2, b"v");
    assert_eq!((node.values(), node.end_of(task)), (vec![task], vec![(2, fast.0)]));
    assert_eq!((node.load_of(slow), node.load_of(fast)), (0, 0));
}

#[test]
fn the_death_of_either_node_leaves_the_other() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    node.assigned();
    node.members(&[slow.0]);
    assert_eq!(node.assigned(), [(task, slow, 3)], "there is no other node");
    node.comes_back(slow, task, 1, b"v");
    assert_eq!(node.values(), [], "it gave way to attempt 3");
    node.comes_back(slow, task, 3, b"v");
    assert_eq!((node.values(), node.load_of(slow)), (vec![task], 0));

    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    node.assigned();
    node.members(&[other_than(slow).0]);
    assert_eq!(node.nexts.len(), 1, "the one that counts is elsewhere");
    node.comes_back(other_than(slow), task, 2, b"v");
    assert_eq!(node.values(), [task]);
}

#[test]
fn a_straggler_is_taken_when_the_other_dies() {
    let mut node = Node::knowing();
    node.members(&[2, 3, 4]);
    let (task, slow) = node.straggler();
    let given = node.assigned();
    let fast = given[0].1;
    let left: Vec<u64> = [2, 3, 4].into_iter().filter(|n| *n != fast.0).collect();
    node.holds_back = true;
    node.members(&left);
    node.comes_back(slow, task, 1, b"v");
    node.holds_back = false;
    while node.ack() {}
    assert_eq!((node.end_of(task), node.assigned()), (vec![(3, slow.0)], vec![]));
}

#[test]
fn a_cancellation_reaches_both() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    node.assigned();
    node.step(Event::Cancel { from: None, tasks: vec![task], recursive: false });
    let mut told = node.cancels();
    told.sort_unstable();
    assert_eq!(told, [Incarnation(2), Incarnation(3)]);
    node.fails(slow, task, 1);
    assert_eq!(node.end_of(task), []);
    node.fails(other_than(slow), task, 2);
    assert_eq!(node.end_of(task).len(), 1);
}

#[test]
fn only_what_may_run_twice_is_hedged_and_no_more_than_the_job_wants() {
    let limited = |spec: TaskSpec| {
        let mut node = Node::knowing();
        node.submit(spec);
        node.wait(TOO_LONG);
        node.nexts.len()
    };
    assert_eq!(limited(pure()), 1);
    assert_eq!(limited(plain()), 0, "it does not say that it is pure");
    assert_eq!(limited(TaskSpec { max_retries: 0, ..pure() }), 0, "it may not be repeated");
    let mut options = pure().options.expect("some");
    options.elements = 2;
    assert_eq!(limited(TaskSpec { options: Some(options), ..plain() }), 0, "it returns several values");
    assert_eq!(limited(TaskSpec { function: 2, ..pure() }), 0, "nobody knows what is usual of it");

    let mut node = Node::new(100);
    node.comes_to_know(30);
    (0..10).for_each(|_| _ = node.submit(pure()));
    node.wait(TOO_LONG);
    assert_eq!(node.nexts.len(), 3, "a tenth of 30");
    let mut node = Node::new(0);
    node.comes_to_know(30);
    node.submit(pure());
    node.wait(TOO_LONG);
    assert_eq!(node.nexts.len(), 0, "its job wants none");
}

#[test]
fn nothing_is_hedged_where_all_are_busy() {
    let mut node = Node::knowing();
    node.members(&[2]);
    node.submit(pure());
    node.wait(TOO_LONG);
    assert_eq!(node.nexts.len(), 0);
    node.members(&[2, 3]);
    node.wait(TOO_LONG);
    assert_eq!(node.nexts.len(), 1, "it is looked again and again");
}

#[test]
fn idle_cpus_bound_how_many_are_hedged_at_once() {
    let mut node = Node::new(1000);
    node.comes_to_know(128);
    node.members(&[2]);
    (0..10).for_each(|_| _ = node.submit(pure()));
    node.members_with(&[(2, 64), (3, 1)]);
    node.holds_back = true;
    node.wait(TOO_LONG);
    node.holds_back = false;
    while node.ack() {}
    assert_eq!(node.nexts.len(), 1, "one CPU is idle");
}

#[test]
fn more_may_run_beside_than_are_kept() {
    let mut node = Node::new(1000);
    node.comes_to_know(128);
    node.members_with(&[(2, 1000), (3, 1000)]);
    let tasks: Vec<(TaskId, Incarnation)> = (0..100).map(|_| node.submit(pure())).collect();
    node.wait(TOO_LONG);
    assert_eq!(node.assigned().len(), 100);
    for (task, slow) in tasks {
        node.comes_back(other_than(slow), task, 2, b"v");
    }
    assert_eq!(node.load_of(Incarnation(2)) + node.load_of(Incarnation(3)), 100);
}

#[test]
fn what_came_before_a_refusal_is_forgotten() {
    let mut node = Node::knowing();
    let (task, slow) = node.submit(pure());
    node.holds_back = true;
    node.wait(TOO_LONG);
    node.comes_back(slow, task, 1, b"v");
    (node.holds_back, node.refuses) = (false, true);
    while node.ack() {}
    assert_eq!(node.load_of(slow), 0);
}

#[test]
fn one_that_comes_while_the_next_has_no_node_counts() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    let fast = other_than(slow);
    assert_eq!(node.assigned(), [(task, fast, 2)]);
    node.fails_with(FailureKind::FailureNoRoom, fast, task, 2);
    node.comes_back(slow, task, 1, b"v");
    assert_eq!((node.values(), node.end_of(task)), (vec![task], vec![(2, slow.0)]));
    node.wait(TOO_LONG);
    assert_eq!((node.assigned(), node.load_of(slow), node.load_of(fast)), (vec![], 0, 0));
}

#[test]
fn a_straggler_is_told_of_a_cancellation_while_the_next_has_no_node() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    node.fails_with(FailureKind::FailureNoRoom, other_than(slow), task, 2);
    node.step(Event::Cancel { from: None, tasks: vec![task], recursive: false });
    assert_eq!(node.cancels(), [slow]);
}

#[test]
fn what_was_cancelled_is_not_hedged() {
    let mut node = Node::knowing();
    let (task, _) = node.submit(pure());
    node.step(Event::Cancel { from: None, tasks: vec![task], recursive: false });
    node.wait(TOO_LONG);
    assert_eq!(node.nexts.len(), 0);
}

#[test]
fn a_record_that_comes_anew_does_not_wait_for_an_attempt_of_the_one_before() {
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    let fast = other_than(slow);
    node.assigned();
    node.comes_back(slow, task, 1, b"v");
    // Attempt 2 is stuck there. Nobody refers to the value any more, and a replayed parent submits the task anew.
    node.step(Event::Dropped { client: DRIVER, objects: vec![task.output(0)] });
    node.members(&[fast.0]);
    let again = TaskSpec { id: task_bytes(task), replay: true, ..pure() };
    node.step(Event::Submit { client: DRIVER, specs: vec![again] });
    let given = node.assigned();
    assert_eq!(given, [(task, fast, 2)], "the next number, so that it joins what runs there");
    node.values();
    node.comes_back(fast, task, 2, b"v");
    assert_eq!(node.values(), [task]);
}

/// A node with a CPU and worker 1, which has a pure task.
fn with_a_pure_task() -> (Node, TaskId) {
    let mut node = Node::with_cpus(1, 0);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    let task = TaskId::new(JOB, TaskId::root(JOB), 0, 0);
    node.step(Event::Submit { client: DRIVER, specs: vec![TaskSpec { id: task_bytes(task), ..pure() }] });
    (node, task)
}

#[test]
fn a_straggler_may_come_before_what_its_keeper_runs_itself() {
    let mut node = Node::with_cpus(1, 100);
    node.step(Event::WorkerUp { worker: 1, job: JOB });
    // As many as a node of one CPU takes before it knows how long they run: what comes then goes elsewhere.
    let here: Vec<TaskId> = (0..2)
        .map(|n| {
            let id = TaskId::new(JOB, TaskId::root(JOB), 1, n);
            let filler = TaskSpec { id: task_bytes(id), function: 2, ..plain() };
            node.step(Event::Submit { client: DRIVER, specs: vec![filler] });
            id
        })
        .collect();
    node.comes_to_know(2 * HEDGE_KNOWN as u64);
    node.members(&[2]);
    let (task, slow) = node.submit(pure());
    for id in here {
        ends(&mut node, id, Vec::new());
    }
    node.effects.clear();
    node.wait(TOO_LONG);
    let runs = |effect: &Effect| if let Effect::Run { attempt, .. } = effect { Some(*attempt) } else { None };
    assert_eq!((node.take(runs), node.assigned()), (vec![2], vec![]), "nobody else is there");
    node.comes_back(slow, task, 1, b"v");
    assert_eq!((node.values(), node.end_of(task)), (vec![task], vec![(2, slow.0)]));
    let value = Ok(Value::Inline(Bytes::from_static(b"v")));
    let elements = Default::default();
    let late = TaskOutcome { task, attempt: 2, value, ran_ns: 1, contains: Vec::new(), elements };
    node.step(Event::Finished { worker: 1, outcomes: vec![late] });
    assert_eq!((node.values(), node.end_of(task).len(), node.load_of(slow)), (vec![], 1, 0));
}

/// It ends; what is recorded of that.
fn ends(node: &mut Node, task: TaskId, contains: Vec<ObjectId>) -> Vec<FailureKind> {
    let value = Ok(Value::Inline(Bytes::from_static(b"v")));
    let outcome = TaskOutcome { task, attempt: 1, value, ran_ns: 1, contains, elements: Default::default() };
    node.step(Event::Finished { worker: 1, outcomes: vec![outcome] });
    node.dones.iter().filter_map(|done| done.failure.as_ref()).map(Failure::kind).collect()
}

#[test]
fn a_pure_task_that_submits_ends() {
    let (mut node, task) = with_a_pure_task();
    let child =
        TaskSpec { id: task_bytes(TaskId::new(JOB, task, 0, 0)), parent: task_bytes(task), ..plain() };
    node.step(Event::Submit { client: 1, specs: vec![child] });
    let stops = node.take(|effect| matches!(effect, Effect::Stop { .. }).then_some(()));
    assert_eq!(stops.len(), 1);
    assert_eq!(ends(&mut node, task, Vec::new()), [FailureKind::FailureBadArguments]);
}

#[test]
fn what_runs_beside_is_taken_back_and_ends_where_it_has_not_begun() {
    let taken_back = |effect: &Effect| match effect {
        Effect::TakeBack { to, task, attempt } => Some((*to, *task, *attempt)),
        _ => None,
    };
    let mut node = Node::knowing();
    let (task, slow) = node.straggler();
    node.comes_back(other_than(slow), task, 2, b"v");
    assert_eq!(node.take(taken_back), [(slow, task, 1)]);

    let results = |effect: &Effect| match effect {
        Effect::Result { to, result } => Some((*to, result.attempt, result.failure.is_some())),
        _ => None,
    };
    let (mut node, _) = with_a_pure_task();
    let other = TaskId::new(JOB, TaskId::root(JOB), 0, 1);
    let (from, attempt) = (Incarnation(2), 3);
    let spec = Some(TaskSpec { id: task_bytes(other), ..pure() });
    node.step(Event::Assigned { from, assign: Assign { spec, attempt, hints: Vec::new() } });
    node.step(Event::TakenBack { from: Incarnation(9), task: other, attempt });
    assert_eq!(node.take(results), [], "that one has not assigned it");
    node.step(Event::TakenBack { from, task: other, attempt });
    assert_eq!(node.take(results), [(from, 3, true)]);
}

#[test]
fn a_pure_task_returns_no_references() {
    let (mut node, task) = with_a_pure_task();
    let other = TaskId::new(JOB, TaskId::root(JOB), 0, 9).output(0);
    assert_eq!(ends(&mut node, task, vec![other]), [FailureKind::FailureBadArguments]);
    assert!(!node.named, "no edge is left of it");
    let (mut node, task) = with_a_pure_task();
    assert_eq!(ends(&mut node, task, Vec::new()), []);
}

#[test]
fn what_runs_beside_is_forgotten_with_its_job() {
    let mut node = Node::knowing();
    node.straggler();
    node.step(Event::JobEnded(JOB));
    assert_eq!((node.load_of(Incarnation(2)), node.load_of(Incarnation(3))), (0, 0));
}
