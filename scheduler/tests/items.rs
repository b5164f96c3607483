//! Tasks that return a stream (decision 27): a story per test on one node's core; workers, the shard and other nodes are
//! played by hand.

use bytes::Bytes;
use mobula_base::ids::{FIRST_PUT_SLOT, STREAM_WINDOW_MAX};
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Assign, ClusterView, Failure, FailureKind, ItemOutcome, NewItems, NodeView, Output, StreamAck,
    StreamBatch, TaskOptions, TaskSpec, Value as Told, item_outcome, stream_item, task_bytes, value as wire,
};
use mobula_scheduler::items::ALL_TAKEN;
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use std::collections::VecDeque;
use std::time::Duration;
use stream_item::Item;

const ME: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);
const DRIVER: u64 = 100;
const WORKER: u64 = 5;
const JOB: JobId = JobId(7);
const LARGE: Value = Value::Shared { offset: 0, len: 1 << 20, crc: 3 };
const OUTPUT: Output = Output { crc: 3, size: 1 << 20 };

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
        Node::of(milli, true)
    }

    /// Whose job counts references or not.
    fn of(milli: u64, counted: bool) -> Self {
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
        node.step(Event::JobStarted { job: JOB, counted });
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

    fn drop_refs(&mut self, objects: &[ObjectId]) {
        self.step(Event::Dropped { client: DRIVER, objects: objects.to_vec() });
    }

    /// The worker puts an item, with these references inside.
    fn put(&mut self, id: ObjectId, value: Value, contains: &[ObjectId]) {
        let (client, object, contains) = (WORKER, id, contains.to_vec());
        let (job, by_driver, replicas) = (JOB, false, 0);
        self.step(Event::Put { client, object, job, value, by_driver, contains, replicas });
    }

    fn take(&mut self, task: TaskId, first: u32, upto: u32) {
        self.step(Event::Take { client: DRIVER, job: JOB, task, first, upto, over: false });
    }

    fn hears(&mut self, task: TaskId, attempt: u32, first: u32, values: &[Told]) {
        let news = NewItems { task: task_bytes(task), attempt, first, items: values.to_vec() };
        self.step(Event::NewItems { from: OTHER, news });
    }

    fn finish(&mut self, task: TaskId, attempt: u32) {
        let (value, contains, elements) = (Ok(small("mark")), Vec::new(), Default::default());
        let outcome = TaskOutcome { task, attempt, value, ran_ns: 5_000, contains, elements };
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

    /// What was said of streams, in order: `m` to the driver how many there are, `t` to the worker and `T` to the other node how
    /// many are taken, `N` to the other node which are new, `A` that it is given an attempt, `C` that it is to end it, `R` that
    /// the worker is given one.
    fn said(&mut self) -> String {
        let count = |n: u32| if n == ALL_TAKEN { "all".to_owned() } else { n.to_string() };
        let one = |effect: Effect| match effect {
            Effect::ItemsMade { client: DRIVER, made, .. } => Some(format!("m{made}")),
            Effect::ItemsTaken { worker: WORKER, taken, .. } => Some(format!("t{}", count(taken))),
            Effect::TellTaken { to: OTHER, taken, .. } => Some(format!("T{}", count(taken))),
            Effect::NewItems { to: OTHER, news } => {
                Some(format!("N{}..{}", news.first, news.first + news.items.len() as u32))
            }
            Effect::Assign { assign, .. } => Some(format!("A{}", assign.attempt)),
            Effect::Cancel { to: OTHER, .. } => Some("C".to_owned()),
            Effect::Run { attempt, .. } => Some(format!("R{attempt}")),
            _ => None,
        };
        let said: Vec<String> = std::mem::take(&mut self.effects).into_iter().filter_map(one).collect();
        said.join(" ")
    }

    /// Objects that this node knows of, and tasks that it keeps.
    fn counts(&self) -> (u64, u64) {
        let census = self.core.census();
        (census.objects.0, census.kept.iter().map(|(_, n)| n).sum())
    }

    /// The other node gives this one an attempt.
    fn assigned(&mut self, from: Incarnation, spec: TaskSpec, attempt: u32) {
        let assign = Assign { spec: Some(spec), attempt, hints: Vec::new() };
        self.step(Event::Assigned { from, assign });
    }
}

fn task(n: u64) -> TaskId {
    TaskId::new(JOB, TaskId::root(JOB), 0, n * 512)
}

fn spec(task: TaskId, window: u32) -> TaskSpec {
    let options = (window > 0).then(|| Box::new(TaskOptions { window, ..TaskOptions::default() }));
    TaskSpec {
        id: task_bytes(task),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        options,
        ..TaskSpec::default()
    }
}

fn small(text: &'static str) -> Value {
    Value::Inline(Bytes::from_static(text.as_bytes()))
}

fn inline(text: &'static str) -> Told {
    Told { value: Some(wire::Value::Inline(Bytes::from_static(text.as_bytes()))) }
}

fn large() -> Told {
    Told { value: Some(wire::Value::Elsewhere(OUTPUT)) }
}

/// A node whose only CPU is taken, and which has given a stream to the other one.
fn given_away() -> (Node, TaskId) {
    let mut node = Node::with_cpus(0);
    let stream = task(1);
    node.submit(spec(stream, 2));
    node.settle();
    assert_eq!(node.said(), "A1", "the other node runs it");
    (node, stream)
}

#[test]
fn items_are_taken_as_they_are_made_and_nothing_is_left_of_them() {
    let mut node = Node::new();
    let stream = task(1);
    let before = node.counts();
    node.submit(spec(stream, 2));
    node.put(stream.item(0), small("a"), &[]);
    node.put(stream.item(1), LARGE, &[]);
    node.settle();
    assert_eq!(node.said(), "R1 m1 m2");
    // Its worker waits; whoever asks is told why.
    node.step(Event::Blocked { worker: WORKER, returned: Vec::new() });
    let (explained, _) = node.core.explain("".parse().expect("all"), 9);
    let why = explained.iter().flat_map(|task| &task.because);
    assert!(
        why.into_iter().any(|why| why.contains("of the 2 items of its stream that it has made 0 are taken"))
    );
    node.step(Event::Unblocked { worker: WORKER });
    node.take(stream, 0, 1);
    assert_eq!(node.told(stream.item(0)), [Ready::Here(small("a"))]);
    assert_eq!(node.said(), "t1", "this node holds it already");
    // Twice is as good as once.
    node.take(stream, 0, 1);
    node.take(stream, 1, 2);
    assert_eq!(node.told(stream.item(1)), [Ready::Here(LARGE)]);
    assert_eq!(node.said(), "t2");
    node.step(Event::Dropped { client: WORKER, objects: vec![stream.item(0), stream.item(1)] });
    node.settle();
    assert_eq!(node.core.value_of(stream.item(1)), Some(&LARGE), "the driver refers to it");
    node.finish(stream, 1);
    node.settle();
    assert_eq!(node.told(stream.output(0)), [Ready::Here(small("mark"))]);
    node.step(Event::Take { client: DRIVER, job: JOB, task: stream, first: 2, upto: 2, over: true });
    node.drop_refs(&[stream.item(0), stream.item(1), stream.output(0)]);
    node.settle();
    assert_eq!(node.counts(), before);
}

#[test]
fn what_another_node_makes_comes_with_the_news_and_is_let_go_of_there_only_once_it_is_held() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a"), large()]);
    assert_eq!(node.said(), "m2");
    node.take(stream, 0, 2);
    assert_eq!(node.told(stream.item(0)), [Ready::Here(small("a"))]);
    assert_eq!(node.told(stream.item(1)), [Ready::Elsewhere(OUTPUT)]);
    assert_eq!(node.said(), "", "its holds are on their way");
    node.settle();
    assert_eq!(node.said(), "T2");
}

#[test]
fn news_that_are_repeated_late_or_of_others_change_nothing() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a"), inline("b")]);
    node.hears(stream, 1, 0, &[inline("a"), inline("b")]);
    node.hears(stream, 1, 1, &[inline("b"), inline("c")]);
    assert_eq!(node.said(), "m2 m3");
    // From beyond what is known, of an attempt that does not count, or of nothing.
    node.hears(stream, 1, 7, &[inline("h")]);
    node.hears(stream, 2, 3, &[inline("d")]);
    node.hears(task(9), 1, 0, &[inline("a")]);
    node.hears(stream, 1, 3, &[Told::default()]);
    assert_eq!(node.said(), "");
    // What a worker here puts under its name is not news of it, either.
    node.put(stream.item(3), small("d"), &[]);
    assert_eq!(node.said(), "");
}

#[test]
fn a_further_attempt_hears_what_was_taken_and_makes_the_rest() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a"), inline("b"), large()]);
    node.take(stream, 0, 1);
    node.settle();
    assert_eq!(node.said(), "m3 T1");
    node.members(&[ME, Incarnation(3)]);
    let granted = item_outcome::Outcome::Granted(mobula_proto::TaskView {
        attempt: 2,
        spec: Some(spec(stream, 2)),
        ..mobula_proto::TaskView::default()
    });
    node.settle_with(|item| matches!(item, Item::Next(_)).then(|| granted.clone()));
    let taken = |e: &Effect| matches!(e, Effect::TellTaken { to: Incarnation(3), taken: 1, .. });
    let assigned = node.effects.iter().position(|e| matches!(e, Effect::Assign { to: Incarnation(3), .. }));
    let told = node.effects.iter().position(taken);
    assert!(assigned.expect("it runs again") < told.expect("and knows that one is taken"));
    node.effects.clear();
    // The dead node had it; where it is now is heard of later.
    node.take(stream, 1, 3);
    assert_eq!(
        (node.told(stream.item(1)), node.told(stream.item(2))),
        (vec![Ready::Here(small("b"))], vec![])
    );
    let items = vec![inline("a"), inline("b"), large(), inline("d")];
    let news = NewItems { task: task_bytes(stream), attempt: 2, first: 0, items };
    node.step(Event::NewItems { from: Incarnation(3), news });
    assert_eq!(node.told(stream.item(2)), [Ready::Elsewhere(OUTPUT)]);
    assert_eq!(node.said(), "m4", "what is new is told once");
}

#[test]
fn an_item_that_is_made_again_and_is_another_ends_the_stream() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a"), inline("b")]);
    assert_eq!(node.said(), "m2");
    node.hears(stream, 1, 1, &[inline("other"), inline("c")]);
    assert_eq!(node.said(), "C", "nothing more of it is told");
    let failure = Failure::new(FailureKind::FailureCancelled, "the task was cancelled");
    let result = mobula_proto::PeerResult {
        task: task_bytes(stream),
        attempt: 1,
        failure: Some(failure),
        durable: true,
        ..Default::default()
    };
    node.step(Event::PeerResult { from: OTHER, result });
    let told = node.told(stream.output(0));
    assert!(matches!(&told[..], [Ready::Failed(f)] if f.kind() == FailureKind::FailureDiverged), "{told:?}");
}

#[test]
fn a_stream_that_was_made_otherwise_says_so_also_when_whoever_made_it_dies() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a")]);
    node.hears(stream, 1, 0, &[inline("other")]);
    assert_eq!(node.said(), "m1 C");
    node.members(&[ME, Incarnation(3)]);
    let granted = item_outcome::Outcome::Granted(mobula_proto::TaskView {
        attempt: 2,
        spec: Some(spec(stream, 2)),
        ..mobula_proto::TaskView::default()
    });
    node.settle_with(|item| matches!(item, Item::Next(_)).then(|| granted.clone()));
    let told = node.told(stream.output(0));
    assert!(matches!(&told[..], [Ready::Failed(f)] if f.kind() == FailureKind::FailureDiverged), "{told:?}");
}

#[test]
fn an_item_that_lies_here_already_and_is_another_ends_the_stream() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a"), inline("b")]);
    node.take(stream, 0, 1);
    node.settle();
    assert_eq!(node.said(), "m2 T1");
    // Whoever took it runs again, and begins with the first.
    node.submit(TaskSpec { replay: true, ..spec(stream, 2) });
    assert_eq!(node.said(), "Tall");
    node.hears(stream, 1, 0, &[inline("a"), inline("b")]);
    assert_eq!(node.said(), "m2");
    node.submit(TaskSpec { replay: true, ..spec(stream, 2) });
    assert_eq!(node.said(), "Tall");
    node.hears(stream, 1, 0, &[inline("other"), inline("b")]);
    assert_eq!(node.said(), "C", "it would have the first of one making and the second of another");
}

#[test]
fn nobody_waits_for_a_client_that_is_gone_or_takes_no_more() {
    let (mut node, stream) = given_away();
    node.hears(stream, 1, 0, &[inline("a")]);
    node.step(Event::Take { client: DRIVER, job: JOB, task: stream, first: 0, upto: 0, over: true });
    assert_eq!(node.said(), "m1 Tall");
    let (mut node, stream) = given_away();
    node.step(Event::ClientGone { client: DRIVER });
    assert_eq!(node.said(), "Tall");
    node.hears(stream, 1, 0, &[inline("a")]);
    assert_eq!(node.said(), "", "nobody is told");
    // A task that consumes dies with its worker; when it runs again, what runs of the stream goes on for nobody.
    let mut node = Node::new();
    node.submit(spec(stream, 2));
    node.put(stream.item(0), small("a"), &[]);
    node.submit(TaskSpec { replay: true, ..spec(stream, 2) });
    assert_eq!(node.said(), "R1 m1 tall");
    node.put(stream.item(1), small("b"), &[]);
    assert_eq!(node.said(), "", "whoever takes it now begins with the first");
}

#[test]
fn an_executor_tells_its_keeper_what_is_safe_and_heeds_what_it_says() {
    executes_for_another(true);
}

#[test]
fn what_lies_in_an_item_is_on_record_also_where_references_are_not_counted() {
    executes_for_another(false);
}

fn executes_for_another(counted: bool) {
    let mut node = Node::of(1000, counted);
    let (stream, child) = (task(1), task(2));
    node.assigned(OTHER, spec(stream, 2), 1);
    node.step(Event::PeerTaken { from: OTHER, task: stream, taken: 1 });
    node.put(stream.item(0), small("a"), &[]);
    assert_eq!(node.said(), "R1 t1 N0..1");
    // Whoever does not keep it has no say, and what was taken stays so.
    node.step(Event::PeerTaken { from: Incarnation(3), task: stream, taken: 9 });
    node.step(Event::PeerTaken { from: OTHER, task: stream, taken: 1 });
    assert_eq!(node.said(), "");
    // A reference to what it submits lies in the next: only when that is on record, and nothing overtakes it.
    let submitted = TaskSpec { parent: task_bytes(stream), ..spec(child, 0) };
    node.step(Event::Submit { client: WORKER, specs: vec![submitted] });
    node.put(stream.item(1), small("b"), &[child.output(0)]);
    node.put(stream.item(2), small("c"), &[]);
    assert_eq!(node.said(), "", "its record is on its way");
    node.settle();
    assert_eq!(node.said(), "N1..3");
    // Put again, or out of order: no news.
    node.put(stream.item(1), small("b"), &[]);
    node.put(stream.item(7), small("h"), &[]);
    node.put(stream.output(FIRST_PUT_SLOT), small("put"), &[]);
    assert_eq!(node.said(), "");
}

#[test]
fn an_attempt_that_is_for_nobody_or_for_somebody_new_does_not_wait() {
    // Its keeper dies.
    let mut node = Node::new();
    let stream = task(1);
    node.assigned(OTHER, spec(stream, 2), 1);
    node.put(stream.item(0), small("a"), &[]);
    assert_eq!(node.said(), "R1 N0..1");
    node.members(&[ME]);
    assert_eq!(node.said(), "tall");
    // Another node assigns it, which has not heard of the first items.
    let mut node = Node::new();
    node.assigned(Incarnation(3), spec(stream, 2), 1);
    node.assigned(Incarnation(3), spec(stream, 2), 1);
    assert_eq!(node.said(), "R1", "the same again is nothing new");
    node.assigned(OTHER, spec(stream, 2), 1);
    assert_eq!(node.said(), "tall");
    // A later attempt takes its place.
    let mut node = Node::new();
    node.assigned(OTHER, spec(stream, 2), 1);
    node.assigned(OTHER, spec(stream, 2), 2);
    assert_eq!(node.said(), "R1 tall");
}

#[test]
fn what_one_node_has_made_for_another_both_let_go_of() {
    let mut node = Node::new();
    let stream = task(1);
    node.assigned(OTHER, spec(stream, 2), 1);
    node.put(stream.item(0), LARGE, &[]);
    node.step(Event::Dropped { client: WORKER, objects: vec![stream.item(0)] });
    let discarded = |e: &Effect| matches!(e, Effect::Discard { .. });
    assert!(!node.effects.iter().any(discarded), "whoever takes it may want it");
    node.settle_with(|item| matches!(item, Item::Release(_)).then_some(item_outcome::Outcome::Kept(true)));
    assert_eq!(node.core.value_of(stream.item(0)), Some(&LARGE));
    // The last one to be done with it lets the other copy go, too.
    node.put(stream.item(1), LARGE, &[]);
    node.step(Event::Dropped { client: WORKER, objects: vec![stream.item(1)] });
    node.settle();
    let freed =
        |e: &Effect| matches!(e, Effect::Freed { to: OTHER, objects } if objects[..] == [stream.item(1)]);
    assert!(node.effects.iter().any(freed));
}

#[test]
fn a_stream_that_cannot_be_is_refused() {
    for (window, elements) in [(STREAM_WINDOW_MAX + 1, 0), (2, 2)] {
        let mut node = Node::new();
        let stream = task(1);
        let options = TaskOptions { window, elements, ..TaskOptions::default() };
        node.submit(TaskSpec { options: Some(Box::new(options)), ..spec(stream, 0) });
        let id = if elements > 0 { stream.element(0) } else { stream.output(0) };
        let told = node.told(id);
        let refused = |f: &Failure| f.kind() == FailureKind::FailureBadArguments;
        assert!(matches!(&told[..], [Ready::Failed(f)] if refused(f)), "{told:?}");
        assert_eq!(node.said(), "");
    }
}
