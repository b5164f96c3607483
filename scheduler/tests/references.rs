//! One node's core and references: what is elided, held, released, kept as a copy (R4, R6, R8, G3;
//! decision 14). A story per test; the shard is played by hand.

use bytes::Bytes;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, RunId, ShardId, TaskId};
use mobula_proto::{
    Arg, ArgHint, Assign, ClusterView, Done, Failure, FailureKind, ItemOutcome, JobStart, JobView, NodeView,
    Output, PeerResult, StreamAck, StreamBatch, StreamItem, TaskSpec, TaskState, TaskView, arg, item_outcome,
    object_bytes, object_id, stream_item, task_bytes, task_id,
};
use mobula_scheduler::{Config, Core, Effect, Event, Ready, TaskOutcome, Value};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use stream_item::Item;

const ME: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);
const DRIVER: u64 = 100;
const WORKER: u64 = 5;
const JOB: JobId = JobId(7);

struct Node {
    core: Core,
    now: Instant,
    effects: Vec<Effect>,
    batches: VecDeque<(ShardId, StreamBatch)>,
}

impl Node {
    fn new() -> Self {
        let config = Config {
            incarnation: ME,
            shards: 2,
            name: String::new(),
            resources: Resources::cpus_milli(1000),
            labels: Default::default(),
            workers: 1,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let mut node =
            Node { core: Core::new(config), now: Instant(0), effects: vec![], batches: VecDeque::new() };
        node.step(Event::JobStarted { job: JOB, counted: true });
        node.step(Event::WorkerUp { worker: WORKER, job: JOB });
        node.effects.clear();
        node
    }

    fn step(&mut self, event: Event) {
        self.step_all(vec![event]);
    }

    fn step_all(&mut self, events: Vec<Event>) {
        self.now = self.now + Duration::from_millis(1);
        let mut out = Vec::new();
        self.core.step(events, self.now, &mut out);
        for effect in out {
            match effect {
                Effect::Send { shard, batch } => self.batches.push_back((shard, batch)),
                effect => self.effects.push(effect),
            }
        }
    }

    /// Takes the oldest batch, which is not acknowledged yet.
    fn batch(&mut self) -> (ShardId, StreamBatch) {
        self.batches.pop_front().expect("a batch was sent")
    }

    /// Acknowledges a batch; `say` has the outcome of items that have one.
    fn ack(
        &mut self,
        (shard, batch): (ShardId, StreamBatch),
        say: impl Fn(&Item) -> Option<item_outcome::Outcome>,
    ) {
        let outcomes = (batch.first_seq..)
            .zip(&batch.items)
            .filter_map(|(seq, item)| {
                Some(ItemOutcome { seq, outcome: Some(say(item.item.as_ref().expect("has content"))?) })
            })
            .collect();
        let mark = batch.first_seq + batch.items.len() as u64 - 1;
        self.step(Event::Acked { shard, ack: StreamAck { mark, revision: 9, outcomes }, moved: Vec::new() });
    }

    /// Acknowledges whatever is and will be sent; what that was.
    fn settle(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some((shard, batch)) = self.batches.pop_front() {
            items.extend(batch.items.iter().filter_map(|item| item.item.clone()));
            self.ack((shard, batch), |_| None);
        }
        items
    }

    fn submit(&mut self, client: u64, spec: TaskSpec) {
        self.step(Event::Submit { client, specs: vec![spec] });
    }

    fn drop_refs(&mut self, client: u64, objects: &[ObjectId]) {
        self.step(Event::Dropped { client, objects: objects.to_vec() });
    }

    fn finish(&mut self, task: TaskId, attempt: u32, value: Result<Value, Failure>, contains: &[ObjectId]) {
        let outcome = TaskOutcome {
            elements: Default::default(),
            task,
            attempt,
            value,
            ran_ns: 5_000,
            contains: contains.to_vec(),
        };
        self.step(Event::Finished { worker: WORKER, outcomes: vec![outcome] });
    }

    fn discarded(&self) -> Vec<ObjectId> {
        let discard = |e: &Effect| if let Effect::Discard { object } = e { Some(*object) } else { None };
        self.effects.iter().filter_map(discard).collect()
    }

    fn objects(&self) -> u64 {
        self.core.census().objects.0
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
}

/// The `n`-th task of the driver whose run lies in `shard`, each in a run of its own.
fn task_in(shard: u32, n: usize) -> TaskId {
    let all = (0..).map(|run| TaskId::new(JOB, TaskId::root(JOB), 0, run * 512));
    all.filter(|task| task.run.shard(2) == ShardId(shard)).nth(n).expect("there are many")
}

fn spec(task: TaskId, args: &[ObjectId]) -> TaskSpec {
    let args = args.iter().map(|o| Arg { arg: Some(arg::Arg::Object(object_bytes(*o))) }).collect();
    TaskSpec {
        id: task_bytes(task),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        args,
        ..TaskSpec::default()
    }
}

fn out(task: TaskId) -> ObjectId {
    task.output(0)
}

fn small() -> Result<Value, Failure> {
    Ok(Value::Inline(Bytes::from_static(b"v")))
}

fn large() -> Result<Value, Failure> {
    Ok(Value::Shared { offset: 0, len: 1 << 20, crc: 3 })
}

/// Where in `items` each of the stories' steps stands: a letter and what it is about.
fn told(items: &[Item]) -> Vec<(char, ObjectId)> {
    let object = |bytes: &Bytes| object_id(bytes).expect("valid");
    let one = |item: &Item| match item {
        Item::Submit(spec) => ('s', out(task_id(&spec.id).expect("valid"))),
        Item::Done(done) => ('d', out(task_id(&done.task).expect("valid"))),
        Item::Name(name) if name.by.is_empty() => ('h', object(&name.object)),
        Item::Name(name) => (if name.hold { 'N' } else { 'n' }, object(&name.object)),
        Item::Unname(unname) => ('u', object(&unname.object)),
        Item::Release(release) => ('r', object(&release.object)),
        other => panic!("not expected: {other:?}"),
    };
    items.iter().map(one).collect()
}

fn items(batch: &(ShardId, StreamBatch)) -> Vec<Item> {
    batch.1.items.iter().filter_map(|item: &StreamItem| item.item.clone()).collect()
}

/// A batch to shard 0 is on its way, so that what follows waits.
fn busy() -> (Node, (ShardId, StreamBatch)) {
    let mut node = Node::new();
    let first = task_in(0, 9);
    node.submit(DRIVER, spec(first, &[]));
    let batch = node.batch();
    node.finish(first, 1, small(), &[]);
    (node, batch)
}

#[test]
fn what_came_and_went_before_its_record_was_sent_is_never_sent() {
    let (mut node, in_flight) = busy();
    let (a, b) = (task_in(0, 0), task_in(0, 1));
    node.submit(DRIVER, spec(a, &[]));
    node.submit(DRIVER, spec(b, &[out(a)]));
    node.drop_refs(DRIVER, &[out(a)]);
    node.finish(a, 1, small(), &[]);
    node.finish(b, 1, large(), &[]);
    assert!(!node.effects.iter().any(|e| matches!(e, Effect::Committed { .. })));
    node.drop_refs(DRIVER, &[out(b)]);
    let told_client = |e: &&Effect| matches!(e, Effect::Committed { revision: 0, .. });
    assert_eq!(node.effects.iter().filter(told_client).count(), 2, "b goes, and with it who named a");
    assert_eq!(node.discarded(), [out(b)]);
    node.ack(in_flight, |_| None);
    assert_eq!(told(&node.settle()), [('d', out(task_in(0, 9)))], "nothing of a and b");
    assert_eq!((node.objects(), node.core.unacknowledged()), (1, 0));
}

#[test]
fn a_value_that_is_still_named_by_what_was_sent_is_not_elided() {
    let (mut node, in_flight) = busy();
    let (a, b) = (task_in(0, 0), task_in(1, 0));
    // b's record lies in the other shard, which is idle: it leaves as soon as its edge is there.
    node.submit(DRIVER, spec(a, &[]));
    node.submit(DRIVER, spec(b, &[out(a)]));
    assert!(node.batches.is_empty(), "the edge waits behind the batch in flight, and b behind the edge");
    node.finish(a, 1, small(), &[]);
    node.ack(in_flight, |_| None);
    let edges = node.batch();
    assert_eq!(
        told(&items(&edges)),
        [('n', out(a)), ('s', out(a)), ('d', out(task_in(0, 9))), ('d', out(a))]
    );
    assert!(node.batches.is_empty());
    node.ack(edges, |_| None);
    let record = node.batch();
    assert_eq!(told(&items(&record)), [('s', out(b))]);
    node.finish(b, 1, small(), &[]);
    node.drop_refs(DRIVER, &[out(a), out(b)]);
    assert!(node.batches.is_empty(), "b's done-record is not acknowledged: a is not released");
    node.ack(record, |_| None);
    assert_eq!(told(&node.settle()), [('d', out(b)), ('r', out(a)), ('r', out(b))]);
    assert_eq!(node.objects(), 1);
}

#[test]
fn a_task_that_is_elided_while_its_record_waits_takes_its_edges_back() {
    let (mut node, in_flight) = busy();
    let (a, b) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, spec(a, &[]));
    node.finish(a, 1, small(), &[]);
    node.ack(in_flight, |_| None);
    let records = node.batch();
    // a is on its way. b names it from another shard: its edge has to wait.
    node.submit(DRIVER, spec(b, &[out(a)]));
    node.finish(b, 1, small(), &[]);
    node.drop_refs(DRIVER, &[out(b)]);
    node.ack(records, |_| None);
    assert_eq!(told(&node.settle()), [], "neither the edge nor the record");
    node.drop_refs(DRIVER, &[out(a)]);
    assert_eq!(told(&node.settle()), [('r', out(a))]);
    assert_eq!(node.core.unacknowledged(), 0);
}

#[test]
fn the_done_record_of_a_parent_comes_after_the_edges_of_what_its_value_contains() {
    let mut node = Node::new();
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, spec(parent, &[]));
    node.settle();
    node.submit(WORKER, TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) });
    let child_record = node.batch();
    node.finish(parent, 1, small(), &[out(child)]);
    // The worker refers to the child no longer, but the value does.
    node.drop_refs(WORKER, &[out(child)]);
    assert!(node.batches.is_empty(), "neither record nor edge of the child is acknowledged");
    node.ack(child_record, |_| None);
    let edge = node.batch();
    assert_eq!(told(&items(&edge)), [('n', out(child))]);
    node.ack(edge, |_| None);
    node.finish(child, 1, small(), &[]);
    let sent = node.settle();
    let done = sent.iter().find_map(|item| match item {
        Item::Done(done) if done.task == task_bytes(parent) => Some(done.clone()),
        _ => None,
    });
    assert_eq!(done.map(|done: Done| done.contains), Some(vec![object_bytes(out(child))]));
    let told = told(&sent);
    assert!(told.ends_with(&[('d', out(child)), ('r', out(child))]) || told.contains(&('r', out(child))));
}

#[test]
fn whether_references_are_counted_is_said_by_the_job_and_not_by_what_a_node_knows_of_formats() {
    for counted in [true, false] {
        let mut node = Node::new();
        let job = JobId(8);
        let start = Some(JobStart { job: job.0, counted, ..JobStart::default() });
        let jobs = vec![JobView { job: job.0, start, ..JobView::default() }];
        // The level has been raised since, or this node hears of the job late.
        node.step(Event::View(ClusterView { version: 1, level: 3, jobs, ..ClusterView::default() }));
        node.step(Event::WorkerUp { worker: WORKER + 1, job });
        let (parent, child) = (task_in(0, 0), task_in(1, 0));
        let of_job = |spec: TaskSpec| TaskSpec { job: job.0, ..spec };
        node.submit(DRIVER, of_job(spec(parent, &[])));
        node.settle();
        node.submit(WORKER + 1, of_job(TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) }));
        node.settle();
        let contains = vec![out(child)];
        let outcome = TaskOutcome {
            elements: Default::default(),
            task: parent,
            attempt: 1,
            value: small(),
            ran_ns: 5_000,
            contains,
        };
        node.step(Event::Finished { worker: WORKER + 1, outcomes: vec![outcome] });
        let named = told(&node.settle()).contains(&('n', out(child)));
        assert_eq!(named, counted);
    }
}

#[test]
fn a_task_without_retries_reports_only_when_what_it_submitted_is_committed() {
    let mut node = Node::new();
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, TaskSpec { max_retries: 0, ..spec(parent, &[]) });
    node.settle();
    node.submit(WORKER, TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) });
    node.finish(parent, 1, small(), &[]);
    let ready = |node: &Node| {
        node.effects.iter().any(
            |e| matches!(e, Effect::Ready { object, ready: Ready::Here(_), .. } if *object == out(parent)),
        )
    };
    assert!(!ready(&node), "nothing would replay it");
    node.settle();
    assert!(ready(&node));
}

#[test]
fn a_value_leaves_its_node_once_what_lies_inside_has_its_record_and_its_edge() {
    let (a, child) = (task_in(0, 0), task_in(1, 0));
    for refs in [vec![], vec![out(child)]] {
        let mut node = Node::new();
        node.members(&[ME, OTHER]);
        let assign = Assign { spec: Some(spec(a, &[])), attempt: 1, hints: vec![] };
        node.step(Event::Assigned { from: OTHER, assign });
        node.submit(WORKER, TaskSpec { parent: task_bytes(a), ..spec(child, &[]) });
        let record = node.batch();
        node.finish(a, 1, small(), &refs);
        let reported = |node: &Node| {
            node.effects.iter().find_map(|e| match e {
                Effect::Result { result, .. } => Some((result.durable, result.contains.clone())),
                _ => None,
            })
        };
        if refs.is_empty() {
            assert_eq!(reported(&node), Some((false, vec![])), "nobody can wait for the child");
            continue;
        }
        assert_eq!(reported(&node), None, "the child may never come, should this node die");
        node.ack(record, |_| None);
        assert_eq!(reported(&node), None, "nor is it held by the value yet");
        let edge = node.batch();
        assert_eq!(told(&items(&edge)), [('n', out(child))]);
        node.ack(edge, |_| None);
        assert_eq!(reported(&node), Some((true, vec![object_bytes(out(child))])));
    }
}

#[test]
fn a_value_goes_with_a_task_to_another_node_once_what_lies_inside_has_its_record() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (a, child) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, spec(a, &[]));
    node.settle();
    node.submit(WORKER, TaskSpec { parent: task_bytes(a), ..spec(child, &[]) });
    node.finish(a, 1, small(), &[out(child)]);
    let here = |e: &Effect| matches!(e, Effect::Ready { ready: Ready::Here(_), .. });
    assert!(node.effects.iter().any(here), "who reads it on this node dies with it");
    // This one and the child are as much as the node takes; what follows goes to the other one.
    let other = |function, n, args: &[ObjectId]| TaskSpec { function, ..spec(task_in(0, n), args) };
    node.submit(DRIVER, other(2, 1, &[]));
    let hint = |node: &Node, task: TaskId| {
        node.effects.iter().find_map(|e| match e {
            Effect::Assign { to, assign } if *to == OTHER => {
                let spec = assign.spec.as_ref().filter(|spec| spec.id == task_bytes(task));
                spec.and(assign.hints.first()).map(|hint| (hint.has_inline, hint.holders.len()))
            }
            _ => None,
        })
    };
    node.submit(DRIVER, other(3, 2, &[out(a)]));
    assert_eq!(hint(&node, task_in(0, 2)), Some((false, 0)), "it asks the home for it");
    node.settle();
    node.submit(DRIVER, other(4, 3, &[out(a)]));
    assert_eq!(hint(&node, task_in(0, 3)), Some((true, 0)));
}

#[test]
fn what_a_program_takes_out_of_a_value_is_held_before_the_value_is_released() {
    let mut node = Node::new();
    let (container, inner) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, spec(container, &[]));
    node.finish(container, 1, small(), &[]);
    node.settle();
    node.step(Event::Held { client: DRIVER, job: JOB, objects: vec![out(inner)] });
    node.drop_refs(DRIVER, &[out(container)]);
    let hold = node.batch();
    assert_eq!(told(&items(&hold)), [('h', out(inner))]);
    assert!(node.batches.is_empty(), "the container stays until the hold is acknowledged");
    node.ack(hold, |_| None);
    assert_eq!(told(&node.settle()), [('r', out(container))]);
    node.drop_refs(DRIVER, &[out(inner)]);
    assert_eq!(told(&node.settle()), [('r', out(inner))]);
    assert_eq!(node.objects(), 0);
}

#[test]
fn a_copy_that_others_need_stays_as_an_idle_one_until_its_home_says_otherwise() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    node.submit(DRIVER, spec(a, &[]));
    node.finish(a, 1, large(), &[]);
    node.settle();
    // Another task names it, so that its record left; that task runs elsewhere.
    let b = task_in(0, 1);
    node.submit(DRIVER, spec(b, &[out(a)]));
    node.settle();
    node.finish(b, 1, small(), &[]);
    node.settle();
    node.drop_refs(DRIVER, &[out(a)]);
    let release = node.batch();
    assert_eq!(told(&items(&release)), [('r', out(a))]);
    assert!(node.discarded().is_empty(), "a reader may be on its way");
    node.ack(release, |_| Some(item_outcome::Outcome::Kept(true)));
    assert_eq!((node.core.idle(ShardId(0)), node.core.idle(ShardId(1))), (vec![out(a)], vec![]));
    node.step(Event::Freed { objects: vec![out(a)] });
    assert_eq!((node.discarded(), node.core.idle(ShardId(0))), (vec![out(a)], vec![]));
}

#[test]
fn what_ran_here_for_another_node_is_kept_until_that_node_says_it_is_not_needed() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let a = task_in(0, 0);
    let assign = Assign { spec: Some(spec(a, &[])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.finish(a, 1, large(), &[]);
    assert_eq!(node.core.idle(ShardId(0)), [out(a)]);
    node.step(Event::Freed { objects: vec![out(a)] });
    assert_eq!((node.discarded(), node.objects()), (vec![out(a)], 0));
}

#[test]
fn the_node_that_made_it_is_told_when_nobody_needs_it() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (a, b) = (task_in(0, 0), task_in(0, 1));
    // The one CPU here is taken; the second task goes to the other node.
    let long = |n| task_in(1, n);
    node.submit(DRIVER, spec(a, &[]));
    for n in 0..4 {
        node.submit(DRIVER, spec(long(n), &[]));
    }
    node.submit(DRIVER, spec(b, &[]));
    node.settle();
    let assigned = node.effects.iter().find_map(|e| match e {
        Effect::Assign { to, assign } => Some((*to, assign.spec.clone()?.id)),
        _ => None,
    });
    let (to, id) = assigned.expect("one goes to the other node");
    let result = PeerResult {
        task: id.clone(),
        attempt: 1,
        output: Some(Output { crc: 4, size: 1 << 20 }),
        durable: true,
        ..PeerResult::default()
    };
    node.step(Event::PeerResult { from: to, result });
    node.settle();
    let object = out(task_id(&id).expect("valid"));
    node.drop_refs(DRIVER, &[object]);
    assert_eq!(told(&node.settle()), [('r', object)]);
    let freed = node
        .effects
        .iter()
        .any(|e| matches!(e, Effect::Freed { to, objects } if *to == OTHER && objects[..] == [object]));
    assert!(freed, "its copy may go");
}

#[test]
fn a_further_attempt_must_make_what_is_recorded_unless_the_job_accepts_what_differs() {
    for accept in [false, true] {
        let mut node = Node::new();
        let a = task_in(0, 0);
        let object = out(a);
        let get = Event::Get { client: DRIVER, job: JOB, objects: vec![object], want_value: true };
        node.step(Event::Held { client: DRIVER, job: JOB, objects: vec![object] });
        node.step(get);
        let lost = mobula_proto::Located {
            object: object_bytes(object),
            answer: Some(mobula_proto::located::Answer::Lost(1)),
        };
        node.step(Event::Located { asked: vec![object], answers: vec![lost] });
        let spec = TaskSpec { accept_divergence: accept, ..spec(a, &[]) };
        let recorded = Output { crc: 77, size: 1 };
        let granted = |item: &Item| {
            matches!(item, Item::Next(_)).then(|| {
                let (spec, outputs) = (Some(spec.clone()), vec![recorded]);
                item_outcome::Outcome::Granted(TaskView { attempt: 2, spec, outputs, ..TaskView::default() })
            })
        };
        while let Some(batch) = node.batches.pop_front() {
            node.ack(batch, granted);
        }
        node.finish(a, 2, small(), &[]);
        let answers: Vec<Ready> = node
            .effects
            .iter()
            .filter_map(|e| if let Effect::Ready { ready, .. } = e { Some(ready.clone()) } else { None })
            .collect();
        match &answers[..] {
            [Ready::Here(_)] => assert!(accept),
            [Ready::Failed(failure)] => assert!(!accept && failure.kind() == FailureKind::FailureDiverged),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_worker_that_dies_holds_nothing() {
    let mut node = Node::new();
    let inner = task_in(1, 3);
    node.step(Event::Held { client: WORKER, job: JOB, objects: vec![out(inner)] });
    node.settle();
    node.step(Event::WorkerGone { worker: WORKER });
    assert_eq!(told(&node.settle()), [('r', out(inner))]);
    assert_eq!(node.objects(), 0);
}

#[test]
fn what_a_worker_took_out_of_a_value_is_held_before_the_value_is_released_also_when_the_worker_dies() {
    for drops in [true, false] {
        let mut node = Node::new();
        let (container, inner) = (task_in(0, 0), task_in(1, 0));
        node.submit(DRIVER, spec(container, &[]));
        node.finish(container, 1, small(), &[]);
        node.settle();
        node.step(Event::Held { client: WORKER, job: JOB, objects: vec![out(container)] });
        node.drop_refs(DRIVER, &[out(container)]);
        node.step(Event::Held { client: WORKER, job: JOB, objects: vec![out(inner)] });
        let hold = node.batch();
        assert_eq!(told(&items(&hold)), [('h', out(inner))]);
        // Its task may have ended by now, and its value contain the one that was taken out.
        if drops {
            node.drop_refs(WORKER, &[out(container), out(inner)]);
        }
        node.step(Event::WorkerGone { worker: WORKER });
        assert!(node.batches.is_empty(), "the container stays until the hold is acknowledged");
        node.ack(hold, |_| None);
        let released: BTreeSet<(char, ObjectId)> = told(&node.settle()).into_iter().collect();
        assert_eq!(released, [('r', out(container)), ('r', out(inner))].into());
        assert_eq!(node.objects(), 0);
    }
}

#[test]
fn a_long_chain_is_forgotten_without_recursion() {
    const LENGTH: u64 = 20_000;
    let (mut node, _in_flight) = busy();
    // Runs of one slot.
    let run = |n: u64| RunId(task_in(0, 0).run.0.wrapping_add(u128::from(n / 512) << 64));
    let at = |n: u64| TaskId { run: run(n), place: (n % 512) as u16 };
    let mut last = None;
    for n in 0..LENGTH {
        let args: Vec<ObjectId> = last.into_iter().collect();
        node.submit(DRIVER, spec(at(n), &args));
        node.finish(at(n), 1, small(), &[]);
        node.drop_refs(DRIVER, &args);
        last = Some(out(at(n)));
    }
    assert_eq!(node.objects(), LENGTH + 1);
    node.drop_refs(DRIVER, &[out(at(LENGTH - 1))]);
    assert_eq!(node.objects(), 1, "the whole chain was elided");
}

#[test]
fn a_replayed_parent_s_child_whose_value_lies_here_is_recorded_and_not_run_again() {
    child_made_for_another_node(false);
}

#[test]
fn a_hold_on_what_was_taken_out_of_a_value_does_not_pass_for_its_record() {
    child_made_for_another_node(true);
}

fn child_made_for_another_node(is_held: bool) {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    let child_spec = TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) };
    // The other node keeps the child, which runs here; then it dies, before the child's record is committed.
    let assign = Assign { spec: Some(child_spec.clone()), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.finish(child, 1, small(), &[]);
    if is_held {
        node.step(Event::Held { client: DRIVER, job: JOB, objects: vec![out(child)] });
        node.settle();
    }
    node.members(&[ME]);
    node.submit(DRIVER, spec(parent, &[]));
    node.settle();
    // The parent's next attempt, here, submits the child again.
    node.submit(WORKER, TaskSpec { replay: true, ..child_spec });
    node.finish(parent, 1, small(), &[]);
    let record = node.batch();
    assert_eq!(told(&items(&record)), [('s', out(child))], "the parent's done-record waits for it");
    node.ack(record, |_| None);
    let sent = told(&node.settle());
    assert!(sent.contains(&('d', out(child))) && sent.contains(&('d', out(parent))), "{sent:?}");
    let runs = |e: &&Effect| matches!(e, Effect::Run { spec, .. } if spec.id == task_bytes(child));
    assert_eq!(node.effects.iter().filter(runs).count(), 1, "once, for the other node");
}

#[test]
fn a_task_submitted_again_while_its_end_is_on_its_way_is_found_here() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    node.submit(DRIVER, spec(a, &[]));
    let record = node.batch();
    node.finish(a, 1, small(), &[]);
    node.drop_refs(DRIVER, &[out(a)]);
    node.ack(record, |_| None);
    let end = node.batch();
    assert_eq!(told(&items(&end)), [('d', out(a))], "it is released once its end is recorded");
    node.effects.clear();
    node.submit(DRIVER, TaskSpec { replay: true, ..spec(a, &[]) });
    let ready =
        |e: &Effect| matches!(e, Effect::Ready { object, ready: Ready::Here(_), .. } if *object == out(a));
    assert!(node.effects.iter().any(ready), "{:?}", node.effects);
    node.ack(end, |_| None);
    node.drop_refs(DRIVER, &[out(a)]);
    assert_eq!(told(&node.settle()), [('r', out(a))]);
    assert_eq!(node.objects(), 0);
}

#[test]
fn a_value_that_waits_to_be_told_is_kept_in_memory() {
    let mut node = Node::new();
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, TaskSpec { max_retries: 0, ..spec(parent, &[]) });
    let record = node.batch();
    node.ack(record, |_| None);
    node.submit(WORKER, TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) });
    node.finish(parent, 1, large(), &[]);
    // What it submitted is not committed, and nothing would replay it (R5).
    assert_eq!(node.core.value_of(out(parent)), None);
    assert!(matches!(node.core.keeps(out(parent)), Some(Value::Shared { .. })), "its bytes must stay");
    let child_record = node.batch();
    node.ack(child_record, |_| None);
    assert!(node.core.value_of(out(parent)).is_some());
}

#[test]
fn a_value_that_waits_to_be_told_is_kept_beside_an_earlier_attempt_and_not_announced() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    let assign = |attempt| Assign { spec: Some(spec(parent, &[])), attempt, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign: assign(1) });
    node.submit(WORKER, TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) });
    let record = node.batch();
    // Its end is told at once; that what it submitted is committed will be told later.
    node.finish(parent, 1, Err(Failure::new(FailureKind::FailureWorkerDied, "killed")), &[]);
    node.step(Event::Assigned { from: OTHER, assign: assign(2) });
    node.submit(WORKER, TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) });
    node.finish(parent, 2, large(), &[out(child)]);
    assert!(matches!(node.core.keeps(out(parent)), Some(Value::Shared { .. })), "its bytes must stay");
    let said = |node: &Node| {
        node.effects.iter().any(|e| matches!(e, Effect::Held { object } if *object == out(parent)))
    };
    assert!(!said(&node), "whoever is sent here for it would find nothing");
    node.ack(record, |_| None);
    node.settle();
    assert!(node.core.value_of(out(parent)).is_some() && said(&node));
}

#[test]
fn an_attempt_that_two_keepers_assigned_is_run_once_and_reported_to_both() {
    let mut node = Node::new();
    let third = Incarnation(3);
    node.members(&[ME, OTHER, third]);
    let a = task_in(0, 0);
    let assign = || Assign { spec: Some(spec(a, &[])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign: assign() });
    // That keeper dies; its record goes with it, and a replayed parent elsewhere submits the task anew.
    node.step(Event::Assigned { from: third, assign: assign() });
    node.members(&[ME, third]);
    node.finish(a, 1, small(), &[]);
    let runs = |e: &&Effect| matches!(e, Effect::Run { .. });
    assert_eq!(node.effects.iter().filter(runs).count(), 1);
    let told = |e: &Effect| matches!(e, Effect::Result { to, .. } if *to == third);
    assert!(node.effects.iter().any(told), "whoever keeps it now hears of it");
}

#[test]
fn an_attempt_of_a_pruned_record_that_goes_on_is_reported_to_whoever_keeps_the_new_one() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let a = task_in(0, 0);
    let assign = Assign { spec: Some(spec(a, &[])), attempt: 2, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    // That keeper dies; its record goes with it, and a replayed parent submits the task anew, here. Its
    // attempts are counted from 1 again.
    node.submit(DRIVER, TaskSpec { replay: true, ..spec(a, &[]) });
    let record = node.batch();
    node.ack(record, |_| None);
    node.members(&[ME]);
    node.finish(a, 2, small(), &[]);
    let attempt = |item: &Item| if let Item::Done(done) = item { Some(done.attempt) } else { None };
    assert_eq!(node.settle().iter().filter_map(attempt).collect::<Vec<u32>>(), [1], "the record ends");
    let runs = |e: &&Effect| matches!(e, Effect::Run { .. });
    assert_eq!(node.effects.iter().filter(runs).count(), 1, "and nothing ran twice");
}

#[test]
fn what_was_made_before_its_record_came_anew_ends_after_the_records_of_its_children() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (a, child) = (task_in(0, 0), task_in(1, 0));
    let assign = Assign { spec: Some(spec(a, &[])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.submit(WORKER, TaskSpec { parent: task_bytes(a), ..spec(child, &[]) });
    let of_child = node.batch();
    node.finish(a, 1, small(), &[]);
    // Its keeper dies, and a replayed parent submits it anew, here.
    node.members(&[ME]);
    node.submit(DRIVER, TaskSpec { replay: true, ..spec(a, &[]) });
    let record = node.batch();
    node.ack(record, |_| None);
    let ends =
        |items: &[Item]| items.iter().any(|item| matches!(item, Item::Done(d) if d.task == task_bytes(a)));
    assert!(!node.batches.iter().any(|batch| ends(&items(batch))), "its child has no record yet");
    node.ack(of_child, |_| None);
    assert!(ends(&node.settle()));
}

#[test]
fn a_copy_from_elsewhere_does_not_pass_for_a_replayed_task_s_end() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (a, b) = (task_in(0, 0), task_in(0, 1));
    // A task of the other node came with the value of its argument, in which references may lie.
    let inline = Bytes::from_static(b"v");
    let hint = ArgHint { object: object_bytes(out(a)), inline, has_inline: true, ..ArgHint::default() };
    let assign = Assign { spec: Some(spec(b, &[out(a)])), attempt: 1, hints: vec![hint] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.members(&[ME]);
    // Its maker is dead, its record never came; a replayed parent submits it here.
    node.submit(DRIVER, TaskSpec { replay: true, ..spec(a, &[]) });
    let record = node.batch();
    assert_eq!(told(&items(&record)), [('s', out(a))]);
    node.finish(b, 1, small(), &[]);
    node.ack(record, |_| None);
    let ran = |e: &Effect| matches!(e, Effect::Run { spec, .. } if spec.id == task_bytes(a));
    assert!(node.effects.iter().any(ran), "it is made again, with what lies inside");
}

#[test]
fn an_attempt_that_died_after_a_put_is_followed_once_the_edges_of_the_put_are_there() {
    let mut node = Node::new();
    let (a, inner) = (task_in(0, 0), task_in(1, 3));
    node.submit(DRIVER, spec(a, &[]));
    node.settle();
    let object = ObjectId { task: a, slot: mobula_base::ids::FIRST_PUT_SLOT };
    let value = Value::Inline(Bytes::from_static(b"v"));
    let contains = vec![out(inner)];
    node.step(Event::Put {
        client: WORKER,
        object,
        job: JOB,
        value,
        by_driver: false,
        contains,
        replicas: 0,
    });
    node.step(Event::WorkerGone { worker: WORKER });
    let is_next = |item: &Item| matches!(item, Item::Next(_));
    let (edges, others): (VecDeque<_>, VecDeque<_>) =
        std::mem::take(&mut node.batches).into_iter().partition(|(shard, _)| *shard == ShardId(1));
    node.batches = others;
    assert!(!node.settle().iter().any(is_next), "its edge is on its way");
    node.batches = edges;
    let sent = node.settle();
    let next = sent.iter().find_map(|item| if let Item::Next(next) = item { Some(next) } else { None });
    let next = next.expect("proposed by now");
    assert_eq!((next.from, next.failed, &next.contains[..]), (1, true, &[object_bytes(out(inner))][..]));
}

#[test]
fn a_task_that_is_submitted_again_names_its_argument_after_its_earlier_record_was_let_go() {
    let mut node = Node::new();
    let (a, b) = (task_in(0, 0), task_in(0, 1));
    node.submit(DRIVER, spec(a, &[]));
    node.finish(a, 1, small(), &[]);
    node.submit(DRIVER, spec(b, &[out(a)]));
    node.finish(b, 1, small(), &[]);
    node.settle();
    // Something is on its way: what follows is one batch, if it may be.
    node.submit(DRIVER, spec(task_in(0, 2), &[]));
    let in_flight = node.batch();
    node.drop_refs(DRIVER, &[out(b)]);
    node.submit(DRIVER, spec(b, &[out(a)]));
    node.ack(in_flight, |_| None);
    let batch = node.batch();
    assert_eq!(told(&items(&batch)), [('r', out(b))], "its prune would end the edge");
    node.ack(batch, |_| None);
    assert_eq!(told(&node.settle()), [('n', out(a)), ('s', out(b))]);
}

#[test]
fn a_replayed_task_waits_for_the_end_of_its_earlier_edges_and_tells_its_own_anew() {
    let mut node = Node::new();
    let (a, b) = (task_in(1, 0), task_in(0, 0));
    node.submit(DRIVER, spec(a, &[]));
    node.finish(a, 1, small(), &[]);
    node.settle();
    node.effects.clear();
    node.submit(DRIVER, TaskSpec { replay: true, ..spec(b, &[out(a)]) });
    // Takes one batch that says this.
    let says = |node: &mut Node, expected: (char, ObjectId), answer: Option<item_outcome::Outcome>| {
        let batch = node.batch();
        assert_eq!(told(&items(&batch)), [expected]);
        assert!(!node.effects.iter().any(|e| matches!(e, Effect::Run { .. })));
        node.ack(batch, |_| answer.clone());
    };
    let known = |early| {
        let (state, keeper) = (TaskState::TaskPending as i32, ME.0);
        let view = TaskView { state, keeper, attempt: 1, early, ..TaskView::default() };
        Some(item_outcome::Outcome::Known(view))
    };
    says(&mut node, ('n', out(a)), None);
    says(&mut node, ('s', out(b)), Some(item_outcome::Outcome::Early(true)));
    for early in [true, false] {
        assert!(node.batches.is_empty(), "it is asked after a while");
        node.now = node.now + Duration::from_secs(1);
        node.step(Event::Tick);
        says(&mut node, ('s', out(b)), known(early));
    }
    // What was told before may have gone with what has ended.
    says(&mut node, ('n', out(a)), None);
    says(&mut node, ('s', out(b)), known(false));
    assert!(node.effects.iter().any(|e| matches!(e, Effect::Run { .. })));
    let committed = |e: &&Effect| matches!(e, Effect::Committed { task, .. } if *task == b);
    assert_eq!(node.effects.iter().filter(committed).count(), 1);
}

#[test]
fn a_put_is_released_after_its_edges_in_other_shards() {
    let mut node = Node::new();
    let inner = task_in(1, 0);
    node.submit(DRIVER, spec(inner, &[]));
    node.settle();
    // Shard 1 takes its time from here on.
    node.finish(inner, 1, small(), &[]);
    let slow = node.batch();
    let object = (0..)
        .map(|n| TaskId::new(JOB, TaskId::root(JOB), 1, n * 512).output(mobula_base::ids::FIRST_PUT_SLOT))
        .find(|id| id.task.run.shard(2) == ShardId(0))
        .expect("one of them");
    let value = Value::Inline(Bytes::from_static(b"v"));
    let contains = vec![out(inner)];
    node.step(Event::Put { client: DRIVER, object, job: JOB, value, by_driver: true, contains, replicas: 0 });
    node.drop_refs(DRIVER, &[object]);
    let release = |item: &Item| matches!(item, Item::Release(_));
    assert!(!node.settle().iter().any(release), "its edge has not come");
    node.ack(slow, |_| None);
    assert_eq!(node.settle().iter().filter(|item| release(item)).count(), 1);
    assert_eq!(node.objects(), 1, "the task's value is still referred to");
}

#[test]
fn a_put_that_was_named_and_let_go_of_before_it_came_is_held_from_its_record_on() {
    let (mut node, in_flight) = busy();
    let (named, bad) = (task_in(0, 0), task_in(0, 1));
    node.submit(DRIVER, spec(bad, &[]));
    node.finish(bad, 1, Err(Failure::new(FailureKind::FailureUserError, "bad")), &[]);
    let object = (0..)
        .map(|n| TaskId::new(JOB, TaskId::root(JOB), 1, n * 512).output(mobula_base::ids::FIRST_PUT_SLOT))
        .find(|id| id.task.run.shard(2) == ShardId(0))
        .expect("one of them");
    // While the put waits for room, a task that names it comes and goes: nobody refers to it for a moment.
    node.submit(DRIVER, spec(named, &[object, out(bad)]));
    node.drop_refs(DRIVER, &[out(named)]);
    let value = large().expect("a value");
    node.step(Event::Put {
        client: DRIVER,
        object,
        job: JOB,
        value,
        by_driver: true,
        contains: vec![],
        replicas: 0,
    });
    node.ack(in_flight, |_| None);
    let sent = node.settle();
    let release = sent.iter().position(|i| matches!(i, Item::Release(r) if r.object == object_bytes(object)));
    let put = sent.iter().position(|i| matches!(i, Item::Put(_)));
    assert!(release.is_some() && release < put, "else its release ends the hold of its record: {sent:?}");
}

#[test]
fn a_record_that_waits_while_its_task_is_granted_holds_nothing_up() {
    let mut node = Node::new();
    let (b, x, after) = (task_in(0, 0), task_in(1, 0), task_in(0, 1));
    let objects = vec![out(x)];
    node.step(Event::Held { client: DRIVER, job: JOB, objects: objects.clone() });
    node.step(Event::Get { client: DRIVER, job: JOB, objects: objects.clone(), want_value: true });
    node.settle();
    let answer = Some(mobula_proto::located::Answer::Lost(1));
    let lost = mobula_proto::Located { object: object_bytes(out(x)), answer };
    node.step(Event::Located { asked: objects, answers: vec![lost] });
    let next = node.batch();
    // A replayed parent submits it again meanwhile, with an argument in the other shard.
    let record = TaskSpec { replay: true, ..spec(x, &[out(b)]) };
    node.submit(WORKER, record.clone());
    let edge = node.batch();
    node.ack(next, |_| {
        let spec = Some(record.clone());
        Some(item_outcome::Outcome::Granted(TaskView { attempt: 2, spec, ..TaskView::default() }))
    });
    node.ack(edge, |_| None);
    assert!(told(&node.settle()).contains(&('h', out(x))), "it is not told by the record, which is given up");
    node.submit(DRIVER, spec(after, &[out(x)]));
    assert!(told(&node.settle()).contains(&('s', out(after))), "its edge is in the shard of the other");
}

/// What a task had put is lost: the node asks for the next attempt of the task.
fn asks_for_next(node: &mut Node, task: TaskId) -> (ObjectId, (ShardId, StreamBatch)) {
    let inside = ObjectId { task, slot: mobula_base::ids::FIRST_PUT_SLOT };
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![inside], want_value: true });
    located(node, inside, mobula_proto::located::Answer::Lost(1));
    (inside, node.batch())
}

#[test]
fn what_is_submitted_anew_before_its_next_attempt_is_refused_goes_on() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    let (inside, next) = asks_for_next(&mut node, a);
    assert!(matches!(items(&next)[..], [Item::Next(_)]));
    node.submit(WORKER, TaskSpec { replay: true, ..spec(a, &[]) });
    node.effects.clear();
    // Its record went meanwhile.
    node.ack(next, |_| Some(item_outcome::Outcome::Refused(TaskView::default())));
    assert!(locates(&node, inside) > 0, "what an earlier attempt put is looked for");
    let record = node.batch();
    assert_eq!(told(&items(&record)), [('s', out(a))]);
    node.effects.clear();
    node.ack(record, |_| None);
    let is_first = |effect: &Effect| matches!(effect, Effect::Run { attempt: 1, .. });
    assert!(node.effects.iter().any(is_first), "{:?}", node.effects);
}

#[test]
fn what_this_node_took_over_is_held_when_somebody_here_submits_it_again() {
    for ended in [false, true] {
        let mut node = Node::new();
        let a = task_in(0, 0);
        let (_, next) = asks_for_next(&mut node, a);
        let view = TaskView { spec: Some(spec(a, &[])), attempt: 2, ..TaskView::default() };
        node.ack(next, |_| Some(item_outcome::Outcome::Granted(view.clone())));
        let again = TaskSpec { replay: true, ..spec(a, &[]) };
        if !ended {
            node.submit(WORKER, again.clone());
            assert_eq!(told(&node.settle()), [('h', out(a))]);
        }
        node.finish(a, 2, small(), &[]);
        if ended {
            // Its end is on its way, and its record may go with it: it is submitted like any other.
            let done = node.batch();
            node.submit(WORKER, again.clone());
            node.ack(done, |_| None);
            let record = node.batch();
            assert_eq!(told(&items(&record)), [('s', out(a))]);
            node.effects.clear();
            node.ack(record, |_| None);
            // The earlier record went with its end: this one is new, and its attempts count from 1.
            let is_first = |effect: &Effect| matches!(effect, Effect::Run { attempt: 1, .. });
            assert!(node.effects.iter().any(is_first), "{:?}", node.effects);
            node.finish(a, 1, small(), &[]);
        }
        assert!(matches!(node.settle()[..], [Item::Done(_)]));
        node.drop_refs(WORKER, &[out(a)]);
        assert_eq!(told(&node.settle()), [('r', out(a))]);
    }
}

#[test]
fn what_was_let_go_before_its_last_attempt_ended_is_submitted_again_like_any_other() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    node.submit(WORKER, spec(a, &[]));
    node.settle();
    node.finish(a, 1, small(), &[]);
    node.settle();
    let (_, next) = asks_for_next(&mut node, a);
    node.drop_refs(WORKER, &[out(a)]);
    let view = TaskView { spec: Some(spec(a, &[])), attempt: 2, ..TaskView::default() };
    node.ack(next, |_| Some(item_outcome::Outcome::Granted(view.clone())));
    let release = node.batch();
    assert_eq!(told(&items(&release)), [('r', out(a))]);
    node.finish(a, 2, small(), &[]);
    // The value is forgotten, while its task is kept until its end is recorded.
    node.ack(release, |_| None);
    let done = node.batch();
    assert!(matches!(items(&done)[..], [Item::Done(_)]), "{done:?}");
    node.submit(WORKER, TaskSpec { replay: true, ..spec(a, &[]) });
    node.ack(done, |_| None);
    // Its record went with its end: a hold alone would be of nothing.
    assert_eq!(told(&node.settle()), [('s', out(a))]);
}

/// An attempt that made a small value.
fn ended_well(task: TaskId, attempt: u32) -> TaskOutcome {
    let (value, elements) = (small(), Default::default());
    TaskOutcome { task, attempt, value, ran_ns: 5_000, contains: Vec::new(), elements }
}

#[test]
fn what_ended_and_is_submitted_again_in_front_of_its_end_is_not_run_again() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    let (_, next) = asks_for_next(&mut node, a);
    let view = TaskView { spec: Some(spec(a, &[])), attempt: 2, ..TaskView::default() };
    node.ack(next, |_| Some(item_outcome::Outcome::Granted(view.clone())));
    node.effects.clear();
    // Records go before ends in a batch, so the shard sees the task submitted again before it sees its end.
    let outcome = ended_well(a, 2);
    let again = Event::Submit { client: WORKER, specs: vec![TaskSpec { replay: true, ..spec(a, &[]) }] };
    let both = vec![Event::Finished { worker: WORKER, outcomes: vec![outcome] }, again];
    node.step_all(both);
    let sent = node.batch();
    assert!(matches!(items(&sent)[..], [Item::Submit(_), Item::Done(_)]), "{sent:?}");
    let state = TaskState::TaskPending as i32;
    let pending = TaskView { task: task_bytes(a), attempt: 2, keeper: ME.0, state, ..TaskView::default() };
    node.ack(sent, |item| match item {
        Item::Submit(_) => Some(item_outcome::Outcome::Known(pending.clone())),
        _ => None,
    });
    let runs = |effect: &Effect| matches!(effect, Effect::Run { .. });
    assert!(!node.effects.iter().any(runs), "{:?}", node.effects);
    node.settle();
    assert!(
        node.core.census().kept.iter().all(|(_, count)| *count == 0),
        "its end was recorded: nobody keeps it any more"
    );
    node.step(Event::Get { client: WORKER, job: JOB, objects: vec![out(a)], want_value: true });
    assert!(node.effects.iter().any(|e| matches!(e, Effect::Ready { object, .. } if *object == out(a))));
}

#[test]
fn an_attempt_whose_end_was_refused_is_not_run_again_when_its_task_is_submitted_again() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    let (_, next) = asks_for_next(&mut node, a);
    let granted = |attempt| {
        item_outcome::Outcome::Granted(TaskView { spec: Some(spec(a, &[])), attempt, ..TaskView::default() })
    };
    node.ack(next, |_| Some(granted(2)));
    node.effects.clear();
    let outcome = ended_well(a, 2);
    node.step(Event::Finished { worker: WORKER, outcomes: vec![outcome] });
    let end = node.batch();
    assert!(matches!(items(&end)[..], [Item::Done(_)]), "{end:?}");
    // A replayed parent submits it while its end is on its way; and whoever is said to have run it is fenced by then.
    let again = TaskSpec { replay: true, ..spec(a, &[]) };
    node.step(Event::Submit { client: WORKER, specs: vec![again] });
    let state = TaskState::TaskPending as i32;
    let pending = TaskView { task: task_bytes(a), attempt: 2, keeper: ME.0, state, ..TaskView::default() };
    node.ack(end, |_| Some(item_outcome::Outcome::Refused(pending.clone())));
    let sent = node.batch();
    assert!(matches!(items(&sent)[..], [Item::Submit(_), Item::Next(_)]), "{sent:?}");
    node.ack(sent, |item| match item {
        Item::Submit(_) => Some(item_outcome::Outcome::Known(pending.clone())),
        Item::Next(_) => Some(granted(3)),
        _ => None,
    });
    let runs = |effect: &Effect| if let Effect::Run { attempt, .. } = effect { Some(*attempt) } else { None };
    assert_eq!(node.effects.iter().filter_map(runs).collect::<Vec<_>>(), [3]);
}

#[test]
fn what_waits_for_a_lost_argument_takes_no_room_from_others() {
    let mut node = Node::new();
    let (lost, after) = (task_in(1, 0), task_in(1, 1));
    let output = Some(Output { crc: 3, size: 1 << 20 });
    let hint =
        ArgHint { object: object_bytes(out(lost)), holders: vec![OTHER.0], output, ..ArgHint::default() };
    // As many as a node of one CPU takes before it knows how long they run.
    for n in 0..2 {
        let spec = Some(spec(task_in(0, n), &[out(lost)]));
        node.step(Event::Assigned {
            from: OTHER,
            assign: Assign { spec, attempt: 1, hints: vec![hint.clone()] },
        });
    }
    node.submit(DRIVER, spec(after, &[]));
    let runs = |node: &Node| node.effects.iter().any(|effect| matches!(effect, Effect::Run { .. }));
    assert!(!runs(&node), "it waits for room: the argument is on its way");
    let why = mobula_scheduler::FetchError::NotFound;
    node.step(Event::FetchFailed { object: out(lost), from: OTHER, why });
    assert!(runs(&node), "it may be what makes the argument again");
}

#[test]
fn what_a_driver_put_has_a_second_copy_whenever_there_is_a_node_for_it() {
    let mut node = Node::new();
    let object = TaskId::root(JOB).output(mobula_base::ids::FIRST_PUT_SLOT);
    let value = Value::Shared { offset: 0, len: 1 << 20, crc: 3 };
    let (client, by_driver, contains) = (DRIVER, true, Vec::new());
    node.step(Event::Put { client, object, job: JOB, value, by_driver, contains, replicas: 0 });
    node.settle();
    let copies = |node: &mut Node| -> Vec<Incarnation> {
        let to = |e: &Effect| if let Effect::Replicate { to, .. } = e { Some(*to) } else { None };
        let found = node.effects.iter().filter_map(to).collect();
        node.effects.clear();
        found
    };
    let third = Incarnation(3);
    assert_eq!(copies(&mut node), [], "there is no other node");
    node.members(&[ME, OTHER]);
    assert_eq!(copies(&mut node), [OTHER]);
    node.members(&[ME, OTHER, third]);
    assert_eq!(copies(&mut node), [], "one is enough");
    node.members(&[ME, third]);
    assert_eq!(copies(&mut node), [third]);
    // Others refer to it when the driver lets go of it, and take it for as safe.
    node.drop_refs(DRIVER, &[object]);
    let release = node.batches.pop_front().expect("it is told");
    node.ack(release, |_| Some(item_outcome::Outcome::Kept(true)));
    node.members(&[ME, OTHER]);
    assert_eq!(copies(&mut node), [OTHER], "it is still needed");
    node.step(Event::Freed { objects: vec![object] });
    node.members(&[ME, third]);
    assert_eq!(copies(&mut node), [], "nobody needs it any more");
}

#[test]
fn a_second_copy_of_what_is_lost_is_not_waited_for() {
    let mut node = Node::new();
    let object = TaskId::root(JOB).output(mobula_base::ids::FIRST_PUT_SLOT);
    let output = Output { crc: 3, size: 1 << 20 };
    node.step(Event::Replicate { object, job: JOB, holder: OTHER, output, want: 0, at: vec![] });
    node.step(Event::FetchFailed { object, from: OTHER, why: mobula_scheduler::FetchError::NotFound });
    node.now = node.now + Duration::from_secs(1);
    node.step(Event::Tick);
    let asked = node.effects.iter().any(|e| matches!(e, Effect::Locate { .. }));
    assert!(asked, "the home may know of another one");
    let failure = Failure::new(FailureKind::FailureObjectLost, "every copy is gone");
    let answer = Some(mobula_proto::located::Answer::Failed(failure));
    let located = mobula_proto::Located { object: object_bytes(object), answer };
    node.step(Event::Located { asked: vec![object], answers: vec![located] });
    assert_eq!(node.objects(), 0);
}

#[test]
fn the_failure_of_a_parent_is_recorded_after_the_records_of_its_children() {
    let mut node = Node::new();
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    node.submit(DRIVER, spec(parent, &[]));
    node.settle();
    node.submit(WORKER, TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) });
    let child_record = node.batch();
    node.finish(parent, 1, Err(Failure::new(FailureKind::FailureUserError, "later")), &[]);
    let told = |e: &Effect| matches!(e, Effect::Ready { ready: Ready::Failed(_), .. });
    assert!(node.effects.iter().any(told), "who asked for it hears of it at once");
    assert!(node.batches.is_empty(), "somebody else may have been given the child's reference");
    node.ack(child_record, |_| None);
    let sent = node.settle();
    let failed = |item: &Item| matches!(item, Item::Done(done) if done.failure.is_some());
    assert_eq!(sent.iter().filter(|item| failed(item)).count(), 1);
}

#[test]
fn a_value_that_waits_to_be_told_goes_with_its_job() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (a, child) = (task_in(0, 0), task_in(1, 0));
    let assign =
        Assign { spec: Some(TaskSpec { max_retries: 0, ..spec(a, &[]) }), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.submit(WORKER, TaskSpec { parent: task_bytes(a), ..spec(child, &[]) });
    let record = node.batch();
    node.finish(a, 1, small(), &[]);
    let ended = mobula_proto::JobView { job: JOB.0, ended: true, ..Default::default() };
    let alive = |n: Incarnation| NodeView { incarnation: n.0, alive: true, ..NodeView::default() };
    let nodes = vec![alive(ME), alive(OTHER)];
    node.step(Event::View(ClusterView { version: 2, nodes, jobs: vec![ended], ..ClusterView::default() }));
    node.ack(record, |_| None);
    node.settle();
    assert_eq!(node.objects(), 0);
}

#[test]
fn a_child_that_is_known_already_is_let_go_when_its_replayed_parent_has_died() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (parent, child) = (task_in(0, 0), task_in(1, 0));
    let child_spec = TaskSpec { parent: task_bytes(parent), ..spec(child, &[]) };
    let assign = Assign { spec: Some(child_spec.clone()), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    node.finish(child, 1, small(), &[]);
    node.submit(DRIVER, spec(parent, &[]));
    node.settle();
    node.submit(WORKER, TaskSpec { replay: true, ..child_spec });
    let record = node.batch();
    node.step(Event::WorkerGone { worker: WORKER });
    let view = TaskView { state: TaskState::TaskDone as i32, attempt: 1, ..TaskView::default() };
    let known =
        |item: &Item| matches!(item, Item::Submit(_)).then(|| item_outcome::Outcome::Known(view.clone()));
    node.ack(record, known);
    let sent = node.settle();
    let let_go = |item: &&Item| matches!(item, Item::Release(r) if r.object == object_bytes(out(child)));
    assert_eq!(sent.iter().filter(let_go).count(), 1, "{sent:?}");
}

#[test]
fn what_was_let_go_and_is_referred_to_again_does_not_pass_for_known() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    node.submit(DRIVER, spec(a, &[]));
    node.settle();
    node.finish(a, 1, small(), &[]);
    node.settle();
    node.drop_refs(DRIVER, &[out(a)]);
    let release = node.batch();
    // Out of an older value, while the release is on its way: by then nobody needs the record.
    node.step(Event::Held { client: WORKER, job: JOB, objects: vec![out(a)] });
    node.ack(release, |_| None);
    node.settle();
    node.submit(WORKER, TaskSpec { replay: true, ..spec(a, &[]) });
    assert!(told(&node.settle()).contains(&('s', out(a))));
}

#[test]
fn what_is_dropped_while_its_task_is_run_again_for_something_else_is_let_go() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    let put = |n| ObjectId { task: a, slot: mobula_base::ids::FIRST_PUT_SLOT + n };
    node.step(Event::Held { client: DRIVER, job: JOB, objects: vec![put(0), put(1)] });
    node.settle();
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![put(0)], want_value: true });
    let answer = Some(mobula_proto::located::Answer::Lost(1));
    let lost = mobula_proto::Located { object: object_bytes(put(0)), answer };
    node.step(Event::Located { asked: vec![put(0)], answers: vec![lost] });
    let next = node.batch();
    assert!(matches!(items(&next)[..], [Item::Next(_)]));
    node.drop_refs(DRIVER, &[put(1)]);
    node.ack(next, |_| None);
    assert!(told(&node.settle()).contains(&('r', put(1))));
}

/// What the home of `object` says.
fn located(node: &mut Node, object: ObjectId, answer: mobula_proto::located::Answer) {
    let located = mobula_proto::Located { object: object_bytes(object), answer: Some(answer) };
    node.step(Event::Located { asked: vec![object], answers: vec![located] });
}

fn locates(node: &Node, object: ObjectId) -> usize {
    let asks = |e: &&Effect| matches!(e, Effect::Locate { objects, .. } if objects.contains(&object));
    node.effects.iter().filter(asks).count()
}

#[test]
fn what_a_task_puts_again_is_looked_for_before_the_task_has_ended() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    let put = ObjectId { task: a, slot: mobula_base::ids::FIRST_PUT_SLOT };
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![put], want_value: true });
    located(&mut node, put, mobula_proto::located::Answer::Lost(1));
    let next = node.batch();
    let view = TaskView { spec: Some(spec(a, &[])), attempt: 2, ..TaskView::default() };
    assert_eq!(locates(&node, put), 1);
    node.ack(next, |_| Some(item_outcome::Outcome::Granted(view.clone())));
    assert_eq!(locates(&node, put), 2, "it may be waiting for whoever needs what it puts");
    // The attempt has not put it yet; then its home is asked again, and knows.
    located(&mut node, put, mobula_proto::located::Answer::Lost(2));
    node.now = node.now + Duration::from_secs(1);
    node.step(Event::Tick);
    assert_eq!(locates(&node, put), 3);
    assert!(node.batches.is_empty(), "and no third attempt is proposed");
}

#[test]
fn what_failed_here_and_was_made_by_the_attempt_that_counts_is_looked_for() {
    let mut node = Node::new();
    let a = task_in(0, 0);
    node.submit(DRIVER, spec(a, &[]));
    let record = node.batch();
    node.finish(a, 1, Err(Failure::new(FailureKind::FailureStoreFull, "no room")), &[]);
    // A replayed parent has submitted it elsewhere, where there was room, and that record came first.
    let (attempt, keeper, state) = (1, OTHER.0, TaskState::TaskDone as i32);
    let view = TaskView { attempt, keeper, state, ..TaskView::default() };
    node.ack(record, |_| Some(item_outcome::Outcome::Known(view.clone())));
    let done = node.batch();
    assert!(matches!(items(&done)[..], [Item::Done(_)]));
    node.ack(done, |_| Some(item_outcome::Outcome::Refused(view.clone())));
    node.step(Event::Get { client: DRIVER, job: JOB, objects: vec![out(a)], want_value: true });
    assert_eq!(locates(&node, out(a)), 1);
}

#[test]
fn an_attempt_that_is_for_nobody_does_not_wait_for_what_nobody_knows() {
    let third = Incarnation(3);
    for again in [false, true] {
        let mut node = Node::new();
        node.members(&[ME, OTHER, third]);
        let (a, inner) = (task_in(0, 0), task_in(0, 1));
        let assign = || Assign { spec: Some(spec(a, &[])), attempt: 1, hints: vec![] };
        node.step(Event::Assigned { from: OTHER, assign: assign() });
        node.step(Event::Held { client: WORKER, job: JOB, objects: vec![out(inner)] });
        node.settle();
        node.step(Event::Blocked { worker: WORKER, returned: vec![] });
        node.step(Event::Get { client: WORKER, job: JOB, objects: vec![out(inner)], want_value: true });
        let unknown = || mobula_proto::located::Answer::Unknown(true);
        let kills = |node: &Node| node.effects.iter().filter(|e| matches!(e, Effect::Kill { .. })).count();
        located(&mut node, out(inner), unknown());
        assert_eq!(kills(&node), 0, "its record may be on its way");
        // Whoever submitted both dies before the records are there.
        node.members(&[ME, third]);
        if again {
            node.step(Event::Assigned { from: third, assign: assign() });
        }
        located(&mut node, out(inner), unknown());
        assert_eq!(kills(&node), usize::from(!again), "whoever assigned it anew submits that one, too");
        if !again {
            node.step(Event::WorkerGone { worker: WORKER });
            node.settle();
            assert_eq!(node.objects(), 0);
        }
    }
}

#[test]
fn a_run_that_ends_before_its_arguments_have_come_waits_for_them_no_longer() {
    let mut node = Node::new();
    node.members(&[ME, OTHER]);
    let (a, arg) = (task_in(0, 0), task_in(1, 0));
    let assign = Assign { spec: Some(spec(a, &[out(arg)])), attempt: 1, hints: vec![] };
    node.step(Event::Assigned { from: OTHER, assign });
    assert_eq!(node.objects(), 1);
    node.step(Event::Cancel { from: Some(OTHER), tasks: vec![a], recursive: false });
    node.settle();
    assert_eq!(node.objects(), 0);
}

#[test]
fn a_task_that_ends_before_its_arguments_have_come_waits_for_them_no_longer() {
    let mut node = Node::new();
    let (first, second, arg) = (task_in(0, 0), task_in(0, 1), task_in(1, 0));
    node.submit(DRIVER, spec(first, &[out(arg), out(arg)]));
    node.submit(DRIVER, spec(second, &[out(arg)]));
    node.settle();
    node.step(Event::Cancel { from: None, tasks: vec![first], recursive: false });
    let here = mobula_proto::located::Answer::Value(Bytes::from_static(&[1]));
    located(&mut node, out(arg), here);
    let given = |e: &Effect| if let Effect::Run { spec, .. } = e { task_id(&spec.id).ok() } else { None };
    let given: Vec<TaskId> = node.effects.iter().filter_map(given).collect();
    assert_eq!(given, [second], "the other one still waits");
    let third = task_in(0, 2);
    let late = task_in(1, 1);
    node.submit(DRIVER, spec(third, &[out(late)]));
    node.settle();
    let before = node.objects();
    node.step(Event::Cancel { from: None, tasks: vec![third], recursive: false });
    node.drop_refs(DRIVER, &[out(third)]);
    node.settle();
    assert_eq!(node.objects(), before - 2, "neither what it made nor what it waited for");
}

#[test]
fn what_waits_for_what_nobody_knows_is_given_up_once_nobody_needs_it() {
    for dead in [false, true] {
        let mut node = Node::new();
        node.members(&[ME, OTHER]);
        let (missing, a, b) = (task_in(1, 0), task_in(0, 0), task_in(0, 1));
        node.submit(WORKER, spec(a, &[out(missing)]));
        node.submit(WORKER, spec(b, &[out(a)]));
        node.settle();
        let nobody = |node: &mut Node| {
            for _ in 0..15 {
                node.now = node.now + Duration::from_secs(1);
                located(node, out(missing), mobula_proto::located::Answer::Unknown(true));
            }
        };
        if dead {
            node.members(&[ME]);
        }
        nobody(&mut node);
        assert!(node.batches.is_empty(), "the worker refers to them");
        node.drop_refs(WORKER, &[out(a), out(b)]);
        nobody(&mut node);
        let items = node.settle();
        let given_up = |item: &Item| match item {
            Item::Next(next) if next.abandoned => task_id(&next.task).ok(),
            _ => None,
        };
        let given_up: Vec<TaskId> = items.iter().filter_map(given_up).collect();
        if dead {
            assert_eq!(given_up, [b, a]);
            let released = Item::Release(mobula_proto::Release { object: object_bytes(out(missing)) });
            assert!(items.contains(&released));
            assert_eq!(node.objects(), 0);
        } else {
            assert!(given_up.is_empty(), "a record may only be late");
        }
    }
}
