//! Whose worker ends when memory runs short: the choice, and what becomes of the task.

use mobula_base::{Incarnation, Instant, JobId, Resources, ShardId, TaskId};
use mobula_proto::{
    Failure, FailureKind, ItemOutcome, NextAttempt, RetryOn, StreamAck, StreamBatch, TaskOptions, TaskSpec,
    TaskState, TaskView, item_outcome, stream_item, task_bytes,
};
use mobula_scheduler::memory::{Candidate, Measured, PAUSE, Verdict, WORTH_MIN, choose};
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;

const ME: Incarnation = Incarnation(1);
const JOB: JobId = JobId(7);
const DRIVER: u64 = 100;
const MB: u64 = 1_000_000;
const BIG: u64 = 500 * MB;
/// A machine with nothing left, and one with enough.
const FULL: [(u64, u64); 2] = [(1, 9), (96, 95)];
const ROOMY: [(u64, u64); 2] = [(1, 9), (95, 95)];

fn candidate(worker: u64, bytes: u64, since: u64, retriable: bool) -> Candidate {
    Candidate { worker, bytes, limit: None, since: Instant(since), retriable }
}

#[test]
fn the_newest_that_may_run_again_goes_first() {
    let full = |candidates: &[Candidate]| match choose(candidates, true)[..] {
        [] => None,
        [(worker, Verdict::NodeFull)] => Some(worker),
        ref other => panic!("{other:?}"),
    };
    let (old, new, once) =
        (candidate(1, BIG, 5, true), candidate(2, BIG, 8, true), candidate(3, BIG, 9, false));
    assert_eq!(full(&[old.clone(), new.clone(), once.clone()]), Some(2));
    assert_eq!(full(&[old.clone(), once.clone()]), Some(1));
    assert_eq!(full(std::slice::from_ref(&once)), Some(3), "it is that or the daemon");
    assert_eq!(full(&[candidate(4, WORTH_MIN - 1, 9, true), old.clone()]), Some(1), "the newest has nothing");
    assert_eq!(full(&[candidate(4, WORTH_MIN - 1, 9, true)]), None, "it is somebody else's");
    assert_eq!(choose(&[old, new, once], false), []);
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let limit = prop::option::of(0..4 * WORTH_MIN);
    let one = (0..4 * WORTH_MIN, limit, 0..5u64, any::<bool>());
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let of = |(worker, (bytes, limit, since, retriable)): (u64, _)| Candidate {
            worker,
            bytes,
            limit,
            since: Instant(since),
            retriable,
        };
        (1u64..).zip(all).map(of).collect()
    })
}

proptest! {
    #[test]
    fn the_choice_is_just(all in candidates(), is_full: bool, turn in any::<prop::sample::Index>()) {
        let chosen = choose(&all, is_full);
        let of = |worker: u64| all.iter().find(|c| c.worker == worker).expect("it was a candidate");
        let is_over = |c: &Candidate| c.limit.is_some_and(|limit| c.bytes > limit);
        let over: Vec<u64> = all.iter().filter(|c| is_over(c)).map(|c| c.worker).collect();
        let ended = |verdict| chosen.iter().filter(|(_, v)| *v == verdict).map(|(w, _)| *w).collect::<Vec<_>>();
        prop_assert_eq!(ended(Verdict::OverLimit), over.clone());
        let for_node = ended(Verdict::NodeFull);
        let worth: Vec<&Candidate> = all.iter().filter(|c| c.bytes >= WORTH_MIN).collect();
        let expects_one = is_full && over.is_empty() && !worth.is_empty();
        prop_assert_eq!(for_node.len(), usize::from(expects_one));
        for worker in for_node {
            let it = of(worker);
            prop_assert!(it.bytes >= WORTH_MIN);
            // Nobody who could run again was spared for one that cannot, and of its kind none began later.
            prop_assert!(it.retriable || worth.iter().all(|c| !c.retriable));
            prop_assert!(worth.iter().all(|c| c.retriable != it.retriable || c.since <= it.since));
        }
        // Whatever the order in which they are looked at.
        let mut turned = all.clone();
        if !turned.is_empty() {
            let by = turn.index(turned.len());
            turned.rotate_left(by);
        }
        let mut again = choose(&turned, is_full);
        again.sort_unstable_by_key(|(worker, _)| *worker);
        prop_assert_eq!(again, chosen);
    }
}

struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
    batches: VecDeque<(ShardId, StreamBatch)>,
}

impl Node {
    /// With so many workers, and one CPU for each.
    fn new(workers: u64) -> Self {
        let config = Config {
            incarnation: ME,
            shards: 1,
            name: String::new(),
            resources: Resources::cpus_milli(1000 * workers),
            labels: Default::default(),
            workers: workers as u32,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let (effects, batches) = (Vec::new(), VecDeque::new());
        let mut node = Node { core: Core::new(config), now: Instant(0), effects, batches };
        node.step(Event::JobStarted { job: JOB, counted: true });
        (1..=workers).for_each(|worker| node.step(Event::WorkerUp { worker, job: JOB }));
        node
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
    }

    /// Acknowledges all that is sent and grants what is proposed: the proposals.
    fn settle(&mut self, spec: &TaskSpec) -> Vec<NextAttempt> {
        let mut proposed = Vec::new();
        while let Some((shard, batch)) = self.batches.pop_front() {
            let mut outcomes = Vec::new();
            for (seq, item) in (batch.first_seq..).zip(&batch.items) {
                if let Some(stream_item::Item::Next(next)) = &item.item {
                    let view = TaskView {
                        task: next.task.clone(),
                        spec: Some(spec.clone()),
                        state: TaskState::TaskPending as i32,
                        attempt: next.from + 1,
                        keeper: ME.0,
                        ..TaskView::default()
                    };
                    outcomes.push(ItemOutcome { seq, outcome: Some(item_outcome::Outcome::Granted(view)) });
                    proposed.push(next.clone());
                }
            }
            let mark = batch.first_seq + batch.items.len() as u64 - 1;
            let ack = StreamAck { mark, revision: 9, outcomes };
            self.step(Event::Acked { shard, ack, moved: Vec::new() });
        }
        proposed
    }

    fn submit(&mut self, spec: &TaskSpec) {
        self.step(Event::Submit { client: DRIVER, specs: vec![spec.clone()] });
        self.settle(spec);
    }

    fn measure(&mut self, workers: &[(u64, u64)], rooms: &[(u64, u64)]) {
        self.step(Event::Memory(Measured { workers: workers.to_vec(), rooms: rooms.to_vec() }));
    }

    fn killed(&mut self) -> Vec<u64> {
        let kill = |e: &Effect| if let Effect::Kill { worker } = e { Some(*worker) } else { None };
        let killed = self.effects.iter().filter_map(kill).collect();
        self.effects.retain(|e| kill(e).is_none());
        killed
    }

    fn failures(&mut self) -> Vec<Failure> {
        let failed = |e: &Effect| match e {
            Effect::Ready { ready: Ready::Failed(failure), .. } => Some(failure.clone()),
            _ => None,
        };
        let failures = self.effects.iter().filter_map(failed).collect();
        self.effects.retain(|e| failed(e).is_none());
        failures
    }

    fn runs(&mut self) -> Vec<(u64, u32)> {
        let run = |e: &Effect| match e {
            Effect::Run { worker, attempt, .. } => Some((*worker, *attempt)),
            _ => None,
        };
        let runs = self.effects.iter().filter_map(run).collect();
        self.effects.retain(|e| run(e).is_none());
        runs
    }
}

fn task(n: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, n)
}

fn spec(n: u64, max_retries: u32, options: TaskOptions) -> TaskSpec {
    TaskSpec {
        id: task_bytes(task(n)),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries,
        options: (options != TaskOptions::default()).then(|| Box::new(options)),
        ..TaskSpec::default()
    }
}

fn limited(n: u64, retry_on: Option<RetryOn>) -> TaskSpec {
    spec(n, 3, TaskOptions { memory_limit: 100 * MB, retry_on, ..TaskOptions::default() })
}

#[test]
fn who_has_more_than_its_task_may_ends_with_that_failure_once() {
    let mut node = Node::new(2);
    node.submit(&limited(0, None));
    node.submit(&spec(1, 3, TaskOptions::default()));
    assert_eq!(node.runs(), [(1, 1), (2, 1)]);
    for _ in 0..3 {
        node.measure(&[(1, 100 * MB), (2, BIG)], &ROOMY);
        assert_eq!(node.killed(), [], "it has what it may, and nobody said what the other may");
    }
    for _ in 0..3 {
        node.measure(&[(1, 100 * MB + 1), (2, BIG)], &ROOMY);
    }
    assert_eq!(node.killed(), [1], "once");
    assert_eq!(node.failures(), []);
    node.step(Event::WorkerGone { worker: 1 });
    let failures = node.failures();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].kind(), FailureKind::FailureOutOfMemory);
    for part in ["had 101 MB", "may have 100 MB", "memory_limit_mb", "RetryOn::OutOfMemory"] {
        assert!(failures[0].message.contains(part), "{part}: {}", failures[0].message);
    }
    assert_eq!(node.settle(&limited(0, None)), [], "it is not tried again");
    assert_eq!(node.core.census().ended_for_memory, [("task_limit", 1), ("node_full", 0)]);
}

#[test]
fn a_task_that_asks_for_it_is_tried_again() {
    let again = limited(0, Some(RetryOn { out_of_memory: true, ..RetryOn::default() }));
    let mut node = Node::new(1);
    node.submit(&again);
    (0..2).for_each(|_| node.measure(&[(1, BIG)], &[]));
    assert_eq!(node.killed(), [1]);
    node.step(Event::WorkerGone { worker: 1 });
    let proposed = node.settle(&again);
    assert_eq!(proposed.len(), 1);
    let failure = proposed[0].failure.clone().expect("how it failed stands should it be the last");
    assert_eq!((failure.kind(), proposed[0].failed), (FailureKind::FailureOutOfMemory, true));
    node.step(Event::WorkerUp { worker: 2, job: JOB });
    assert_eq!(node.runs(), [(1, 1), (2, 2)]);
}

#[test]
fn what_has_just_begun_is_not_blamed_for_what_was_before() {
    let mut node = Node::new(1);
    (0..3).for_each(|n| node.submit(&limited(n, None)));
    for n in 0..3 {
        node.measure(&[(1, BIG)], &[]);
        assert_eq!(node.killed(), [], "task {n}");
        let value = Ok(Value::Inline(vec![1].into()));
        let (task, attempt, contains) = (task(n), 1, Vec::new());
        let outcome =
            TaskOutcome { elements: Default::default(), task, attempt, value, contains, ran_ns: 5_000 };
        node.step(Event::Finished { worker: 1, outcomes: vec![outcome] });
    }
    node.measure(&[(1, BIG)], &FULL);
    assert_eq!(node.killed(), [], "it has nothing to do");
}

#[test]
fn a_full_node_ends_one_after_the_other_and_they_run_again() {
    let mut node = Node::new(3);
    let specs: Vec<TaskSpec> =
        (0..3).map(|n| spec(n, 3 * u32::from(n < 2), TaskOptions::default())).collect();
    for spec in &specs {
        node.submit(spec);
        let all = [(1, BIG), (2, BIG), (3, BIG)];
        node.measure(&all, &ROOMY);
    }
    assert_eq!(node.runs(), [(1, 1), (2, 1), (3, 1)]);
    let all = [(1, BIG), (2, BIG), (3, BIG)];
    node.measure(&all, &FULL);
    assert_eq!(node.killed(), [2], "the third may not run again");
    node.measure(&all, &FULL);
    assert_eq!(node.killed(), [], "it is about to end");
    node.step(Event::WorkerGone { worker: 2 });
    node.measure(&[(1, BIG), (3, BIG)], &FULL);
    assert_eq!(node.killed(), [], "what it had may be counted yet");
    let proposed = node.settle(&specs[1]);
    assert_eq!(proposed.len(), 1);
    assert_eq!(proposed[0].failure.as_ref().map(Failure::kind), Some(FailureKind::FailureNodeOutOfMemory));
    assert_eq!(node.failures(), []);
    node.now = node.now + PAUSE;
    node.measure(&[(1, BIG), (3, BIG)], &FULL);
    assert_eq!(node.killed(), [1]);
    node.step(Event::WorkerGone { worker: 1 });
    node.settle(&specs[0]);
    node.now = node.now + PAUSE;
    node.measure(&[(3, BIG)], &FULL);
    assert_eq!(node.killed(), [3], "better it than the daemon");
    node.step(Event::WorkerGone { worker: 3 });
    assert_eq!(node.settle(&specs[2]), []);
    assert_eq!(node.core.census().ended_for_memory, [("task_limit", 0), ("node_full", 3)]);
    let failures = node.failures();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].kind(), FailureKind::FailureNodeOutOfMemory);
    for part in ["1 MB in use", "had 500 MB", "`memory_mb`"] {
        assert!(failures[0].message.contains(part), "{part}: {}", failures[0].message);
    }
}

#[test]
fn what_was_cancelled_stays_cancelled() {
    let mut node = Node::new(1);
    node.submit(&limited(0, None));
    node.measure(&[(1, BIG)], &[]);
    node.step(Event::Cancel { from: None, tasks: vec![task(0)], recursive: false });
    node.measure(&[(1, BIG)], &[]);
    assert_eq!(node.killed(), [1], "but it does not take memory for as long as its grace lasts");
    node.step(Event::WorkerGone { worker: 1 });
    assert_eq!(
        node.failures().iter().map(Failure::kind).collect::<Vec<_>>(),
        [FailureKind::FailureCancelled]
    );
}
