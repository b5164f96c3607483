//! Tasks that return several objects (decision 26): a story per test on one node's core; the shard and other nodes are
//! played by hand.

use bytes::Bytes;
use mobula_base::ids::ELEMENTS_MAX;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Arg, Assign, ClusterView, Failure, FailureKind, Here, Holder, ItemOutcome, Located, NodeView, Output,
    PeerResult, StreamAck, StreamBatch, TaskOptions, TaskSpec, TaskState, TaskView, Value as Told, arg,
    item_outcome, located, object_bytes, object_id, stream_item, task_bytes, value as wire,
};
use mobula_scheduler::{Config, Core, Effect, Element, Event, Ready, TaskOutcome, Value};
use std::collections::VecDeque;
use std::time::Duration;
use stream_item::Item;

const ME: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);
const DRIVER: u64 = 100;
const WORKER: u64 = 5;
const JOB: JobId = JobId(7);
const LARGE: Value = Value::Shared { offset: 0, len: 1 << 20, crc: 3 };

struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
    batches: VecDeque<(ShardId, StreamBatch)>,
    /// All items that were sent.
    said: Vec<Item>,
}

impl Node {
    fn new() -> Self {
        Node::with_cpus(1000)
    }

    fn with_cpus(milli: u64) -> Self {
        let config = Config {
            incarnation: ME,
            shards: 1,
            name: String::new(),
            resources: Resources::cpus_milli(milli),
            labels: Default::default(),
            workers: 1,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let (core, batches) = (Core::new(config), VecDeque::new());
        let mut node = Node { core, now: Instant(0), effects: vec![], batches, said: vec![] };
        node.step(Event::JobStarted { job: JOB, counted: true });
        node.step(Event::WorkerUp { worker: WORKER, job: JOB });
        node.members(&[ME, OTHER]);
        node.effects.clear();
        node
    }

    fn members(&mut self, alive: &[Incarnation]) {
        let node = |n: &Incarnation| NodeView {
            incarnation: n.0,
            cpu_milli: 1000,
            alive: true,
            ..NodeView::default()
        };
        let nodes = alive.iter().map(node).collect();
        self.step(Event::View(ClusterView { version: 1, nodes, ..ClusterView::default() }));
    }

    fn step(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(1);
        let mut out = Vec::new();
        self.core.step([event], self.now, &mut out);
        for effect in out {
            match effect {
                Effect::Send { shard, batch } => {
                    self.said.extend(batch.items.iter().filter_map(|item| item.item.clone()));
                    self.batches.push_back((shard, batch));
                }
                effect => self.effects.push(effect),
            }
        }
    }

    /// Acknowledges whatever is and will be sent; `say` has the outcome of items that have one.
    fn settle_with(&mut self, say: impl Fn(&Item) -> Option<item_outcome::Outcome>) {
        while let Some((shard, batch)) = self.batches.pop_front() {
            let one = |(seq, item): (u64, &mobula_proto::StreamItem)| {
                Some(ItemOutcome { seq, outcome: Some(say(item.item.as_ref()?)?) })
            };
            let outcomes = (batch.first_seq..).zip(&batch.items).filter_map(one).collect();
            let mark = batch.first_seq + batch.items.len() as u64 - 1;
            let ack = StreamAck { mark, revision: 9, outcomes };
            self.step(Event::Acked { shard, ack, moved: Vec::new() });
        }
    }

    fn settle(&mut self) {
        self.settle_with(|_| None);
    }

    fn submit(&mut self, spec: TaskSpec) {
        self.step(Event::Submit { client: DRIVER, specs: vec![spec] });
    }

    fn get(&mut self, client: u64, id: ObjectId) {
        self.step(Event::Get { client, job: JOB, objects: vec![id], want_value: true });
    }

    fn drop_refs(&mut self, objects: &[ObjectId]) {
        self.step(Event::Dropped { client: DRIVER, objects: objects.to_vec() });
    }

    fn finish(&mut self, task: TaskId, attempt: u32, values: &[Value]) {
        let element = |value: &Value| Element { value: value.clone(), contains: Vec::new() };
        let elements = values.iter().map(element).collect();
        let value = Ok(small("mark"));
        let outcome = TaskOutcome { task, attempt, value, ran_ns: 5_000, contains: Vec::new(), elements };
        self.step(Event::Finished { worker: WORKER, outcomes: vec![outcome] });
    }

    fn fail(&mut self, task: TaskId, failure: Failure) {
        let outcome = TaskOutcome {
            task,
            attempt: 1,
            value: Err(failure),
            ran_ns: 5_000,
            contains: Vec::new(),
            elements: Default::default(),
        };
        self.step(Event::Finished { worker: WORKER, outcomes: vec![outcome] });
    }

    /// What the driver was told of an object, in order.
    fn told(&self, id: ObjectId) -> Vec<Ready> {
        let of_it = |e: &Effect| match e {
            Effect::Ready { client: DRIVER, object, ready } if *object == id => Some(ready.clone()),
            _ => None,
        };
        self.effects.iter().filter_map(of_it).collect()
    }

    fn runs(&self) -> Vec<(TaskId, u32)> {
        let run = |e: &Effect| match e {
            Effect::Run { spec, attempt, .. } => {
                Some((mobula_proto::task_id(&spec.id).expect("valid"), *attempt))
            }
            _ => None,
        };
        self.effects.iter().filter_map(run).collect()
    }

    fn assigned(&self) -> Vec<&Assign> {
        let all = self.effects.iter();
        all.filter_map(|e| if let Effect::Assign { assign, .. } = e { Some(assign) } else { None }).collect()
    }

    fn discarded(&self, id: ObjectId) -> bool {
        self.effects.iter().any(|e| matches!(e, Effect::Discard { object } if *object == id))
    }

    /// Objects that this node knows of, and tasks that it keeps.
    fn counts(&self) -> (u64, u64) {
        let census = self.core.census();
        (census.objects.0, census.kept.iter().map(|(_, n)| n).sum())
    }

    /// Which elements of `task` were told to be held (h) and released (r), which of its records came (s) and ended
    /// (d), in order.
    fn lineage(&self, of: TaskId) -> String {
        let element = |id: &Bytes| {
            let id = object_id(id).expect("valid");
            id.element().filter(|_| id.task == of).map(|n| n.to_string())
        };
        let is_it = |id: &Bytes| *id == task_bytes(of);
        let one = |item: &Item| match item {
            Item::Submit(spec) if is_it(&spec.id) => Some("s".to_owned()),
            Item::Done(done) if is_it(&done.task) => Some("d".to_owned()),
            Item::Name(name) if name.hold => Some(format!("h{}", element(&name.object)?)),
            Item::Release(release) if object_id(&release.object) == Ok(of.output(0)) => Some("r".to_owned()),
            Item::Release(release) => Some(format!("r{}", element(&release.object)?)),
            _ => None,
        };
        self.said.iter().filter_map(one).collect::<Vec<_>>().join(" ")
    }
}

fn task(n: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, n * 512)
}

fn spec(task: TaskId, elements: u32, args: &[ObjectId]) -> TaskSpec {
    let args = args.iter().map(|o| Arg { arg: Some(arg::Arg::Object(object_bytes(*o))) }).collect();
    let options = (elements > 0).then(|| Box::new(TaskOptions { elements, ..TaskOptions::default() }));
    TaskSpec {
        id: task_bytes(task),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        args,
        options,
        ..TaskSpec::default()
    }
}

fn small(text: &'static str) -> Value {
    Value::Inline(Bytes::from_static(text.as_bytes()))
}

/// What another node reports that has made two elements, one of them large.
fn made_elsewhere(task: TaskId, attempt: u32) -> PeerResult {
    let told = |value| Told { value: Some(value) };
    PeerResult {
        task: task_bytes(task),
        attempt,
        has_inline: true,
        inline: Bytes::from_static(b"mark"),
        output: Some(Output { crc: 4, size: 4 }),
        elements: vec![
            told(wire::Value::Inline(Bytes::from_static(b"a"))),
            told(wire::Value::Elsewhere(Output { crc: 3, size: 1 << 20 })),
        ],
        durable: true,
        ..PeerResult::default()
    }
}

/// A node whose only CPU is taken, and which has given a task of two elements to the other one.
fn given_away() -> (Node, TaskId) {
    let mut node = Node::with_cpus(0);
    let split = task(1);
    node.submit(spec(split, 2, &[]));
    node.settle();
    assert_eq!(node.assigned().len(), 1, "the other node runs it");
    (node, split)
}

#[test]
fn elements_are_waited_for_and_told_at_once_each_to_whoever_wants_it() {
    let mut node = Node::new();
    let split = task(1);
    node.submit(spec(split, 3, &[]));
    node.get(DRIVER, split.element(1));
    node.settle();
    let asked = |e: &Effect| matches!(e, Effect::Locate { .. });
    assert!(!node.effects.iter().any(asked), "nobody is asked for what is made here");
    assert_eq!(node.core.deadline(), None, "nor is it looked at again and again");
    node.effects.retain(|e| !matches!(e, Effect::Ready { .. }));
    node.finish(split, 1, &[small("a"), LARGE, small("c")]);
    assert_eq!(node.told(split.element(0)), [Ready::Here(small("a"))]);
    assert_eq!(node.told(split.element(1)), [Ready::Here(LARGE)]);
    assert_eq!(node.told(split.element(2)), [Ready::Here(small("c"))]);
    assert_eq!(node.told(split.output(0)), [], "nobody refers to the mark");
}

#[test]
fn holds_are_told_before_the_end_and_nothing_is_left_when_all_are_dropped() {
    let mut node = Node::new();
    let split = task(1);
    let before = node.counts();
    node.submit(spec(split, 2, &[]));
    node.finish(split, 1, &[LARGE, small("b")]);
    node.settle();
    assert_eq!(node.lineage(split), "h0 h1 s d r", "the mark is let go by itself");
    node.drop_refs(&[split.element(0)]);
    assert!(node.discarded(split.element(0)), "its memory goes at once");
    node.settle();
    assert_eq!(node.core.value_of(split.element(1)), Some(&small("b")), "the other one stays");
    node.drop_refs(&[split.element(1)]);
    node.settle();
    assert_eq!(node.lineage(split), "h0 h1 s d r r0 r1");
    assert_eq!(node.counts(), before);
}

#[test]
fn what_was_dropped_before_it_was_made_is_not_kept() {
    let mut node = Node::new();
    let split = task(1);
    let before = node.counts();
    node.submit(spec(split, 2, &[]));
    node.drop_refs(&[split.element(0)]);
    node.settle();
    node.finish(split, 1, &[LARGE, small("b")]);
    node.settle();
    assert_eq!((node.core.keeps(split.element(0)), node.lineage(split)), (None, "h0 h1 s r0 d r".to_owned()));
    assert_eq!(node.core.value_of(split.element(1)), Some(&small("b")));
    node.drop_refs(&[split.element(1)]);
    node.settle();
    assert_eq!(node.counts(), before);
}

#[test]
fn a_failure_is_that_of_every_element_also_for_whoever_comes_later_and_of_what_needs_one() {
    let failed = |ready: &[Ready], kind: FailureKind| {
        assert!(matches!(ready, [Ready::Failed(f)] if f.kind() == kind), "{ready:?}");
    };
    let mut node = Node::new();
    let (split, reader) = (task(1), task(2));
    node.submit(spec(split, 2, &[]));
    node.submit(spec(reader, 0, &[split.element(1)]));
    node.fail(split, Failure::new(FailureKind::FailureUserError, "no"));
    for n in 0..2 {
        failed(&node.told(split.element(n)), FailureKind::FailureUserError);
    }
    failed(&node.told(reader.output(0)), FailureKind::FailureDependency);
    node.effects.clear();
    node.get(DRIVER, split.element(0));
    failed(&node.told(split.element(0)), FailureKind::FailureUserError);
    // Cancelled before it began.
    let (busy, cancelled) = (task(3), task(4));
    node.submit(spec(busy, 0, &[]));
    node.submit(spec(cancelled, 1, &[busy.output(0)]));
    node.step(Event::Cancel { from: None, tasks: vec![cancelled], recursive: false });
    failed(&node.told(cancelled.element(0)), FailureKind::FailureCancelled);
}

#[test]
fn an_element_that_does_not_exist_yet_is_an_argument() {
    let mut node = Node::new();
    let (split, reader) = (task(1), task(2));
    node.submit(spec(split, 2, &[]));
    node.submit(spec(reader, 0, &[split.element(1)]));
    // Nobody refers to it any more but the task that takes it.
    node.drop_refs(&[split.element(0), split.element(1)]);
    node.settle();
    assert_eq!(node.runs(), [(split, 1)]);
    node.finish(split, 1, &[LARGE, small("b")]);
    node.settle();
    assert_eq!(node.runs(), [(split, 1), (reader, 1)]);
    let args = node.effects.iter().find_map(|e| match e {
        Effect::Run { spec, args, .. } if spec.id == task_bytes(reader) => Some(args.clone()),
        _ => None,
    });
    assert_eq!(args, Some(vec![small("b")]));
}

#[test]
fn what_another_node_has_made_is_known_here_small_ones_with_their_bytes() {
    let (mut node, split) = given_away();
    let reader = task(2);
    node.submit(spec(reader, 0, &[split.element(1)]));
    node.effects.clear();
    node.step(Event::PeerResult { from: OTHER, result: made_elsewhere(split, 1) });
    assert_eq!(node.told(split.element(0)), [Ready::Here(small("a"))]);
    assert_eq!(node.told(split.element(1)), [Ready::Elsewhere(Output { crc: 3, size: 1 << 20 })]);
    let hints = &node.assigned()[0].hints;
    assert_eq!(
        (hints.len(), &hints[0].holders[..]),
        (1, &[OTHER.0][..]),
        "whoever needs it is told where it is"
    );
    // Its home learns of the copy that came along; the large one's is freed where it lies.
    assert!(node.effects.iter().any(|e| matches!(e, Effect::Held { object } if *object == split.element(0))));
    node.step(Event::PeerResult {
        from: OTHER,
        result: PeerResult { elements: Vec::new(), ..made_elsewhere(reader, 1) },
    });
    node.settle();
    node.drop_refs(&[split.element(0), split.element(1), reader.output(0)]);
    node.settle();
    let freed =
        |e: &Effect| matches!(e, Effect::Freed { to: OTHER, objects } if objects.contains(&split.element(1)));
    assert!(node.effects.iter().any(freed));
    assert_eq!(node.counts(), (0, 0));
}

#[test]
fn whoever_makes_them_for_another_node_keeps_them_until_they_are_freed() {
    let mut node = Node::new();
    let split = task(1);
    let assign = Assign { spec: Some(spec(split, 2, &[])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.finish(split, 1, &[small("a"), LARGE]);
    let result = node.effects.iter().find_map(|e| match e {
        Effect::Result { to: OTHER, result } => Some(result.clone()),
        _ => None,
    });
    assert_eq!(result.expect("reported").elements, made_elsewhere(split, 1).elements);
    assert_eq!(node.core.idle(ShardId(0)).len(), 3, "its home is asked about them and the mark");
    node.step(Event::Freed { objects: vec![split.element(1)] });
    assert!(node.discarded(split.element(1)));
    assert_eq!(node.core.value_of(split.element(0)), Some(&small("a")));
    node.step(Event::Freed { objects: vec![split.element(0), split.output(0)] });
    assert_eq!(node.counts(), (0, 0));
}

#[test]
fn the_node_that_had_an_element_dies_and_the_task_runs_again_for_it_alone() {
    let (mut node, split) = given_away();
    node.step(Event::PeerResult { from: OTHER, result: made_elsewhere(split, 1) });
    node.settle();
    node.members(&[ME, Incarnation(3)]);
    node.get(DRIVER, split.element(1));
    // Its home says that it is lost, and grants the next attempt.
    let lost = |id| Located { object: object_bytes(id), answer: Some(located::Answer::Lost(1)) };
    node.step(Event::Located { asked: vec![split.element(1)], answers: vec![lost(split.element(1))] });
    let granted = |item: &Item| {
        matches!(item, Item::Next(_)).then(|| {
            let spec = Some(spec(split, 2, &[]));
            let state = TaskState::TaskPending as i32;
            item_outcome::Outcome::Granted(TaskView { attempt: 2, spec, state, ..TaskView::default() })
        })
    };
    node.effects.clear();
    node.settle_with(granted);
    // Asked for anew while it runs: the task's end is waited for.
    node.get(DRIVER, split.element(1));
    let assigned = node.assigned();
    assert_eq!((assigned.len(), assigned[0].attempt), (1, 2));
    let from = Incarnation(3);
    node.step(Event::PeerResult { from, result: made_elsewhere(split, 2) });
    assert_eq!(node.told(split.element(0)), [], "undisturbed");
    let fetch = |e: &Effect| matches!(e, Effect::Fetch { object, from: at, .. } if (*object, *at) == (split.element(1), from));
    assert!(node.effects.iter().any(fetch));
    node.step(Event::Fetched { object: split.element(1), value: LARGE });
    assert!(node.told(split.element(1)).contains(&Ready::Here(LARGE)));
}

#[test]
fn whoever_takes_the_task_over_keeps_what_others_hold() {
    let mut node = Node::new();
    let split = task(1);
    // A client took one of two references out of a value.
    node.step(Event::Held { client: DRIVER, job: JOB, objects: vec![split.element(0)] });
    node.get(DRIVER, split.element(0));
    let lost = Located { object: object_bytes(split.element(0)), answer: Some(located::Answer::Lost(1)) };
    node.step(Event::Located { asked: vec![split.element(0)], answers: vec![lost] });
    node.settle_with(|item| {
        matches!(item, Item::Next(_)).then(|| {
            let spec = Some(spec(split, 2, &[]));
            item_outcome::Outcome::Granted(TaskView { attempt: 2, spec, ..TaskView::default() })
        })
    });
    node.finish(split, 2, &[small("a"), LARGE]);
    node.settle();
    assert_eq!(node.told(split.element(0)), [Ready::Here(small("a"))]);
    let idle = node.core.idle(ShardId(0));
    assert!(idle.contains(&split.element(1)), "its home says when it may go: {idle:?}");
}

#[test]
fn of_a_task_that_others_keep_the_home_says_where_an_element_is() {
    let mut node = Node::new();
    let split = task(1);
    let id = split.element(0);
    let spec = TaskSpec { replay: true, ..spec(split, 1, &[]) };
    node.submit(spec);
    // A replayed parent had submitted it: another node has it by now.
    let view =
        TaskView { attempt: 1, keeper: OTHER.0, state: TaskState::TaskDone as i32, ..TaskView::default() };
    node.settle_with(|item| {
        matches!(item, Item::Submit(_)).then(|| item_outcome::Outcome::Known(view.clone()))
    });
    let asked = |e: &Effect| matches!(e, Effect::Locate { objects, .. } if objects.contains(&id));
    assert!(node.effects.iter().any(asked));
    let holders = vec![Holder { incarnation: OTHER.0, ..Holder::default() }];
    let here = located::Answer::Here(Here { holders, output: None });
    let answers = vec![Located { object: object_bytes(id), answer: Some(here) }];
    node.step(Event::Located { asked: vec![id], answers });
    assert!(matches!(node.told(id)[..], [Ready::Elsewhere(_)]));
}

#[test]
fn what_was_made_in_parts_for_another_node_is_made_again_when_its_record_comes_anew() {
    let mut node = Node::new();
    let split = task(1);
    let assign = Assign { spec: Some(spec(split, 2, &[])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.finish(split, 1, &[small("a"), small("b")]);
    // Nobody needs this one, and the other node dies before the record was there. A replayed parent submits it again.
    node.step(Event::Freed { objects: vec![split.element(1)] });
    node.members(&[ME]);
    node.submit(TaskSpec { replay: true, ..spec(split, 2, &[]) });
    node.settle();
    assert_eq!(node.runs(), [(split, 1), (split, 1)]);
    node.finish(split, 1, &[small("a"), small("b")]);
    node.settle();
    assert_eq!(node.told(split.element(1)), [Ready::Here(small("b"))]);
}

#[test]
fn other_elements_than_were_asked_for_are_a_failure_that_says_so() {
    let mut node = Node::new();
    let (split, many) = (task(1), task(2));
    node.submit(spec(split, 2, &[]));
    node.finish(split, 1, &[LARGE]);
    let told = node.told(split.element(1));
    let says = |ready: &[Ready], text: &str| {
        assert!(matches!(ready, [Ready::Failed(f)] if f.message.contains(text)), "{ready:?}");
    };
    says(&told, "to return 2 objects and returned 1");
    assert_eq!(node.core.keeps(split.element(0)), None);
    // By a node of an earlier release.
    let (mut keeper, old) = given_away();
    let result = PeerResult { elements: Vec::new(), ..made_elsewhere(old, 1) };
    keeper.step(Event::PeerResult { from: OTHER, result });
    says(&keeper.told(old.element(0)), "to return 2 objects and returned 0");
    node.submit(spec(many, ELEMENTS_MAX + 1, &[]));
    says(&node.told(many.element(0)), "at most 32");
    assert_eq!(node.counts().1, 1, "the second one is not kept");
}
