//! Where a core sends what it is given, with other nodes that differ in size, name and labels.

use mobula_base::resources::GPU;
use mobula_base::{Incarnation, Instant, JobId, Resources, TaskId};
use mobula_proto::{
    Arg, Assign, ClusterView, Failure, FailureKind, ItemOutcome, Label, LabelOp, LabelTerm, NamedResource,
    NodeAffinity, NodeView, Output, PeerResult, Placement, StreamAck, TaskOptions, TaskSpec, TaskView, arg,
    item_outcome, object_bytes, stream_item, task_bytes, task_id,
};
use mobula_scheduler::placement::INFEASIBLE_AFTER;
use mobula_scheduler::waiting::TELL_AFTER;
use mobula_scheduler::{Config, Core, Effect, Event, Ready};
use std::collections::BTreeMap;
use std::time::Duration;

const ME: u64 = 1;
const DRIVER: u64 = 100;
const JOB: JobId = JobId(7);

/// Node 1, whose core this is, has label zone=a; nodes 2 and 3 are told of by a view.
struct Node {
    core: Core,
    now: Instant,
    next: u64,
    effects: Vec<Effect>,
    records: BTreeMap<Vec<u8>, TaskSpec>,
}

impl Node {
    fn new() -> Self {
        Self::of(ME)
    }

    /// Another of the nodes.
    fn of(me: u64) -> Self {
        let config = Config {
            incarnation: Incarnation(me),
            shards: 1,
            name: "n1".into(),
            resources: Resources::cpus_milli(4000),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            workers: 4,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let (core, records) = (Core::new(config), BTreeMap::new());
        let mut node = Node { core, now: Instant(0), next: 0, effects: Vec::new(), records };
        node.view(&[
            node_view(1, &[("zone", "a")]),
            node_view(2, &[("zone", "b")]),
            node_view(3, &[("gpu", "yes")]),
        ]);
        node.step(Event::JobStarted { job: JOB, counted: true });
        node
    }

    fn step(&mut self, event: Event) {
        self.now = self.now + Duration::from_millis(1);
        self.core.step([event], self.now, &mut self.effects);
    }

    fn view(&mut self, nodes: &[NodeView]) {
        self.step(Event::View(ClusterView { version: 1, nodes: nodes.to_vec(), ..ClusterView::default() }));
    }

    /// Submits so many tasks alike.
    fn submit(&mut self, many: u64, placement: Option<Placement>, cpu_milli: u32) {
        let options = placement
            .map(|placement| Box::new(TaskOptions { placement: Some(placement), ..TaskOptions::default() }));
        let one = |index| TaskSpec { cpu_milli, options: options.clone(), ..spec(index) };
        let specs = (self.next..self.next + many).map(one);
        let specs = specs.collect();
        self.next += many;
        self.step(Event::Submit { client: DRIVER, specs });
    }

    /// Acknowledges a batch, if there is one, and grants the attempts that it proposes.
    fn ack(&mut self) -> bool {
        let Some(at) = self.effects.iter().position(|effect| matches!(effect, Effect::Send { .. })) else {
            return false;
        };
        let Effect::Send { shard, batch } = self.effects.remove(at) else { return false };
        let mut outcomes = Vec::new();
        for (seq, item) in (batch.first_seq..).zip(&batch.items) {
            match &item.item {
                Some(stream_item::Item::Submit(spec)) => {
                    drop(self.records.insert(spec.id.to_vec(), spec.clone()))
                }
                Some(stream_item::Item::Next(next)) => {
                    let spec = self.records.get(&next.task[..]).cloned();
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

    /// How many tasks each other node was given.
    fn assigned(&mut self) -> BTreeMap<u64, u64> {
        let mut given = BTreeMap::new();
        for effect in &self.effects {
            if let Effect::Assign { to, .. } = effect {
                *given.entry(to.0).or_default() += 1;
            }
        }
        self.effects.clear();
        given
    }

    /// Where so many tasks with this placement go.
    fn places(many: u64, placement: Placement) -> BTreeMap<u64, u64> {
        let mut node = Node::new();
        node.submit(many, Some(placement), 1000);
        let mut given = node.assigned();
        let here = node.runs();
        if here > 0 {
            given.insert(ME, here);
        }
        given
    }

    /// Runs that wait for a worker, or are with one.
    fn runs(&self) -> u64 {
        self.core.census().runs.iter().map(|(_, n)| n).sum()
    }

    /// Another node has made something large.
    fn made_at(&mut self, node: u64, index: u64, ran: Duration, size: u64) {
        let output = Some(Output { crc: 1, size });
        let task = spec(index).id;
        let ran_ns = ran.as_nanos() as u64;
        let result = PeerResult { task, attempt: 1, output, durable: true, ran_ns, ..PeerResult::default() };
        self.step(Event::PeerResult { from: Incarnation(node), result });
    }

    /// Submits so many tasks that take the value of another.
    fn submit_taking(&mut self, many: u64, index: u64) {
        let object = task_id(&spec(index).id).expect("made here").output(0);
        let arg = Arg { arg: Some(arg::Arg::Object(object_bytes(object))) };
        let one = |index| TaskSpec { cpu_milli: 1000, args: vec![arg.clone()], ..spec(index) };
        let specs = (self.next..self.next + many).map(one).collect();
        self.next += many;
        self.step(Event::Submit { client: DRIVER, specs });
    }

    fn failures(&self) -> Vec<(FailureKind, String)> {
        let failed = |effect: &Effect| match effect {
            Effect::Ready { ready: Ready::Failed(failure), .. } => {
                Some((failure.kind(), failure.message.clone()))
            }
            _ => None,
        };
        self.effects.iter().filter_map(failed).collect()
    }

    fn notices(&self, kind: &str) -> Vec<String> {
        let told = |effect: &Effect| match effect {
            Effect::Notice { notice, .. } if notice.kind == kind => Some(notice.text.clone()),
            _ => None,
        };
        self.effects.iter().filter_map(told).collect()
    }
}

fn spec(index: u64) -> TaskSpec {
    TaskSpec {
        id: task_bytes(TaskId::new(JOB, TaskId::root(JOB), 0, index)),
        job: JOB.0,
        parent: task_bytes(TaskId::root(JOB)),
        function: 1,
        max_retries: 3,
        ..TaskSpec::default()
    }
}

fn node_view(n: u64, labels: &[(&str, &str)]) -> NodeView {
    let labels = labels.iter().map(|(key, value)| Label { key: (*key).into(), value: (*value).into() });
    NodeView {
        incarnation: n,
        name: format!("n{n}"),
        cpu_milli: 4000,
        alive: true,
        labels: labels.collect(),
        ..NodeView::default()
    }
}

fn spread() -> Placement {
    Placement { spread: true, ..Placement::default() }
}

fn affinity(name: &str, soft: bool) -> Placement {
    let node = Some(NodeAffinity { name: name.into(), incarnation: 0, soft });
    Placement { node, ..Placement::default() }
}

fn labels(terms: &[(&str, LabelOp, &[&str])]) -> Placement {
    let term = |(key, op, values): &(&str, LabelOp, &[&str])| LabelTerm {
        key: (*key).into(),
        op: *op as i32,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    };
    Placement { labels: terms.iter().map(term).collect(), ..Placement::default() }
}

#[test]
fn without_a_placement_tasks_stay_here_while_there_is_room() {
    let mut node = Node::new();
    node.submit(4, None, 1000);
    assert_eq!(node.assigned(), BTreeMap::new());
}

#[test]
fn spread_tasks_go_to_every_node_alike() {
    assert_eq!(Node::places(9, spread()), [(1, 3), (2, 3), (3, 3)].into());
    // Also when each has ended before the next comes.
    let mut node = Node::new();
    let mut given: BTreeMap<u64, u64> = BTreeMap::new();
    for _ in 0..6 {
        node.submit(1, Some(spread()), 1000);
        let last = node.effects.iter().rev().find_map(|effect| match effect {
            Effect::Assign { to, assign } => Some((*to, task_id(&assign.spec.as_ref()?.id).ok()?)),
            _ => None,
        });
        if let Some((to, task)) = last {
            let result = PeerResult {
                task: task_bytes(task),
                attempt: 1,
                has_inline: true,
                durable: true,
                ..Default::default()
            };
            node.step(Event::PeerResult { from: to, result });
            *given.entry(to.0).or_default() += 1;
        }
        node.effects.clear();
    }
    // The first stays here and waits for a worker; the idle ones take turns after that.
    assert_eq!(given, [(2, 3), (3, 2)].into());
}

#[test]
fn what_needs_something_scarce_goes_where_that_is_free() {
    let gpu = |milli| vec![NamedResource { name: GPU.into(), milli }];
    let mut node = Node::new();
    let with = |n, gpus: u64| NodeView { resources: gpu(gpus * 1000), ..node_view(n, &[]) };
    node.view(&[node_view(1, &[]), with(2, 2), with(3, 1)]);
    // CPUs there are plenty; each GPU has a task running and one in line.
    for _ in 0..8 {
        let index = node.next;
        node.next += 1;
        let specs = vec![TaskSpec { resources: gpu(1000), cpu_milli: 100, ..spec(index) }];
        node.step(Event::Submit { client: DRIVER, specs });
    }
    assert_eq!(node.assigned(), [(2, 4), (3, 2)].into());
}

#[test]
fn hard_affinity_holds_and_soft_affinity_gives_way() {
    assert_eq!(Node::places(5, affinity("n3", false)), [(3, 5)].into());
    let by_life = NodeAffinity { incarnation: 2, ..NodeAffinity::default() };
    let by_life = Placement { node: Some(by_life), ..Placement::default() };
    assert_eq!(Node::places(5, by_life), [(2, 5)].into());
    // Four CPUs, each with one task running and one in line.
    assert_eq!(Node::places(8, affinity("n3", true)), [(3, 8)].into());
    assert_eq!(Node::places(10, affinity("n3", true)), [(1, 2), (3, 8)].into(), "it has no room for more");
    assert_eq!(Node::places(2, affinity("gone", true)), [(1, 2)].into());
    let mut node = Node::new();
    node.submit(10, Some(affinity("n3", false)), 1000);
    assert_eq!(node.assigned(), [(3, 8)].into());
    assert_eq!(node.core.census().infeasible, 0, "the others wait for it");
}

#[test]
fn labels_choose_nodes() {
    let places = |terms: &[(&str, LabelOp, &[&str])]| -> Vec<u64> {
        let placement = Placement { spread: true, ..labels(terms) };
        Node::places(6, placement).into_keys().collect()
    };
    assert_eq!(places(&[("zone", LabelOp::LabelIn, &["b", "c"])]), [2]);
    assert_eq!(places(&[("zone", LabelOp::LabelIn, &["a", "b"])]), [1, 2]);
    assert_eq!(places(&[("zone", LabelOp::LabelNotIn, &["b"])]), [1, 3], "also where there is none");
    assert_eq!(places(&[("zone", LabelOp::LabelExists, &[])]), [1, 2]);
    assert_eq!(places(&[("zone", LabelOp::LabelNotExists, &[])]), [3]);
    let both: [(&str, LabelOp, &[&str]); 2] =
        [("zone", LabelOp::LabelExists, &[]), ("zone", LabelOp::LabelNotIn, &["a"])];
    assert_eq!(places(&both), [2], "all must hold");
}

#[test]
fn what_can_never_be_placed_says_why_at_once_waits_and_fails() {
    let mut node = Node::new();
    node.submit(3, Some(labels(&[("zone", LabelOp::LabelIn, &["c"])])), 2000);
    let told = node.notices("infeasible");
    assert_eq!(told.len(), 1, "once for all alike: {told:?}");
    for part in ["cpu 2", "zone is in (c)", "n1 has cpu 4, zone=a", "n3 has cpu 4, gpu=yes"] {
        assert!(told[0].contains(part), "{part} in {}", told[0]);
    }
    assert_eq!(node.core.census().infeasible, 3);
    assert_eq!(node.failures(), []);
    node.now = node.now + INFEASIBLE_AFTER;
    node.step(Event::Tick);
    let failures = node.failures();
    assert_eq!(failures.len(), 3, "all of them together");
    assert!(failures.iter().all(|(kind, why)| *kind == FailureKind::FailureInfeasible && *why == told[0]));
    assert_eq!(node.core.census().infeasible, 0);
}

#[test]
fn a_node_that_joins_in_time_takes_what_waits_for_it() {
    let mut node = Node::new();
    node.submit(2, Some(affinity("n4", false)), 1000);
    let told = node.notices("infeasible");
    assert!(told[0].contains("\"n4\" and no other"), "{told:?}");
    node.view(&[node_view(1, &[]), node_view(4, &[])]);
    assert_eq!(node.assigned(), [(4, 2)].into());
    node.now = node.now + INFEASIBLE_AFTER;
    node.step(Event::Tick);
    assert_eq!(node.failures(), []);
}

#[test]
fn a_hard_wish_outlives_the_node_that_a_task_was_on() {
    let mut node = Node::new();
    node.submit(1, Some(labels(&[("gpu", LabelOp::LabelExists, &[])])), 1000);
    while node.ack() {}
    assert_eq!(node.assigned(), [(3, 1)].into());
    // Its node dies; the next attempt may not go anywhere else either.
    node.view(&[node_view(1, &[("zone", "a")]), node_view(2, &[("zone", "b")])]);
    while node.ack() {}
    assert_eq!(node.notices("infeasible").len(), 1, "{:?}", node.effects);
    assert_eq!(node.assigned(), BTreeMap::new());
    node.view(&[node_view(1, &[]), node_view(2, &[]), node_view(5, &[("gpu", "yes")])]);
    assert_eq!(node.assigned(), [(5, 1)].into());
}

#[test]
fn nodes_that_send_tasks_away_begin_with_different_ones() {
    // To the emptiest; of equals this node takes the next one behind itself, another node another.
    let first = |me: u64| {
        let mut node = Node::of(me);
        node.submit(9, None, 1000);
        node.assigned()
    };
    assert_eq!([first(1), first(2), first(3)], [[(2, 1)].into(), [(3, 1)].into(), [(1, 1)].into()]);
}

#[test]
fn re_executions_go_where_there_is_room() {
    let mut node = Node::new();
    node.submit(20, None, 1000);
    while node.ack() {}
    assert_eq!(
        (node.runs(), node.assigned()),
        (8, [(2, 6), (3, 6)].into()),
        "four CPUs, and as many in line"
    );
    node.view(&[node_view(1, &[]), node_view(2, &[])]);
    while node.ack() {}
    // Two go where there is room; the others go all the same, to both nodes alike.
    assert_eq!((node.runs(), node.assigned()), (10, [(2, 4)].into()));
}

#[test]
fn re_executions_take_idle_cpus_elsewhere_before_they_stand_in_line_here() {
    let mut node = Node::new();
    node.submit(8, Some(affinity("n2", true)), 1000);
    while node.ack() {}
    assert_eq!((node.runs(), node.assigned()), (0, [(2, 8)].into()));
    node.view(&[node_view(1, &[]), node_view(3, &[])]);
    while node.ack() {}
    assert_eq!((node.runs(), node.assigned()), (4, [(3, 4)].into()), "four CPUs here and four there");
}

#[test]
fn re_executions_do_not_pile_up_where_their_data_are() {
    let mut node = Node::new();
    node.submit(1, Some(affinity("n3", false)), 1000);
    while node.ack() {}
    node.assigned();
    node.made_at(3, 0, Duration::from_millis(10), 100_000_000);
    node.submit_taking(8, 0);
    while node.ack() {}
    assert_eq!(node.assigned(), [(3, 8)].into());
    // Four lose their workers; others take their places before the next attempts are granted.
    for index in 1..5 {
        let failure = Some(Failure::new(FailureKind::FailureWorkerDied, "it was killed"));
        let result = PeerResult { task: spec(index).id, attempt: 1, failure, ..PeerResult::default() };
        node.step(Event::PeerResult { from: Incarnation(3), result });
    }
    node.submit_taking(4, 0);
    while node.ack() {}
    assert_eq!(
        (node.runs(), node.assigned()),
        (4, [(3, 4)].into()),
        "there is room here, and none at node 3"
    );
}

#[test]
fn a_task_waits_for_its_data_as_long_as_bringing_them_would_take() {
    let large = 100_000_000;
    let mut node = Node::new();
    node.submit(1, Some(affinity("n3", false)), 1000);
    node.assigned();
    node.made_at(3, 0, Duration::from_millis(10), large);
    // Node 3 takes eight; here and on node 2 there is nothing to do, but a transfer takes 800 ms.
    node.submit_taking(12, 0);
    assert_eq!((node.runs(), node.assigned()), (0, [(3, 8)].into()));
    node.made_at(3, 1, Duration::from_millis(10), 0);
    assert_eq!((node.runs(), node.assigned()), (0, [(3, 1)].into()), "whenever it has room, the next");
    // Others are not held up meanwhile.
    node.submit(1, None, 1000);
    assert_eq!((node.runs(), node.assigned()), (1, [].into()));
    node.now = node.now + Duration::from_millis(800);
    node.step(Event::Tick);
    assert_eq!((node.runs(), node.assigned()), (4, [].into()), "that was long enough");
}

#[test]
fn a_task_does_not_wait_for_a_turn_that_comes_later_than_its_data_could() {
    let mut node = Node::new();
    node.submit(1, Some(affinity("n3", false)), 1000);
    node.assigned();
    // 8 ms to bring, and minutes until a CPU is free there.
    node.made_at(3, 0, Duration::from_secs(60), 1_000_000);
    node.submit_taking(12, 0);
    assert_eq!((node.runs(), node.assigned()), (4, [(3, 8)].into()));
}

#[test]
fn nobody_waits_for_the_dead() {
    let mut node = Node::new();
    node.submit(1, Some(affinity("n3", false)), 1000);
    node.assigned();
    node.made_at(3, 0, Duration::from_millis(10), 100_000_000);
    node.submit_taking(9, 0);
    assert_eq!((node.runs(), node.assigned()), (0, [(3, 8)].into()));
    node.view(&[node_view(1, &[]), node_view(2, &[])]);
    while node.ack() {}
    // What was held was ready, and goes at once; the eight wait for their argument to be made again.
    assert_eq!((node.runs(), node.assigned()), (1, [].into()));
}

/// A task of another node comes, is given to a worker, and waits inside for something.
fn waits_inside(node: &mut Node, worker: u64, index: u64) {
    let assign = Assign { spec: Some(spec(index)), attempt: 1, ..Assign::default() };
    node.step(Event::Assigned { from: Incarnation(2), assign });
    node.step(Event::WorkerUp { worker, job: JOB });
    node.step(Event::Blocked { worker, returned: Vec::new() });
}

fn told_waiting(node: &mut Node) -> Vec<(u64, u32)> {
    let told = |effect: &Effect| match effect {
        Effect::Waiting { to, tasks } => Some((to.0, *tasks)),
        _ => None,
    };
    let told = node.effects.iter().filter_map(told).collect();
    node.effects.clear();
    told
}

#[test]
fn who_assigned_tasks_that_wait_inside_here_is_told_after_a_while() {
    let mut node = Node::new();
    waits_inside(&mut node, 11, 0);
    waits_inside(&mut node, 12, 1);
    // One of this node's own is nobody else's business.
    node.next = 2;
    node.submit(1, None, 1000);
    node.step(Event::WorkerUp { worker: 13, job: JOB });
    node.step(Event::Blocked { worker: 13, returned: Vec::new() });
    assert_eq!(told_waiting(&mut node), []);
    node.now = node.now + TELL_AFTER;
    node.step(Event::Tick);
    assert_eq!(told_waiting(&mut node), [(2, 2)]);
    // Fewer is told at once, more is not.
    waits_inside(&mut node, 14, 3);
    node.step(Event::Unblocked { worker: 11 });
    assert_eq!(told_waiting(&mut node), []);
    node.step(Event::WorkerGone { worker: 12 });
    assert_eq!(told_waiting(&mut node), [(2, 1)]);
    node.step(Event::Unblocked { worker: 14 });
    assert_eq!(told_waiting(&mut node), [(2, 0)]);
    node.now = node.now + TELL_AFTER;
    node.step(Event::Tick);
    assert_eq!(told_waiting(&mut node), []);
}

#[test]
fn a_node_whose_tasks_wait_inside_is_not_full() {
    let mut node = Node::new();
    node.submit(9, Some(affinity("n3", false)), 1000);
    while node.ack() {}
    assert_eq!(node.assigned(), [(3, 8)].into());
    // What all of these wait for may be the one that has no place.
    node.step(Event::PeerWaiting { from: Incarnation(3), tasks: 8 });
    while node.ack() {}
    assert_eq!(node.assigned(), [(3, 1)].into());
    node.submit(20, Some(affinity("n3", false)), 1000);
    while node.ack() {}
    assert_eq!(node.assigned(), [(3, 7)].into(), "as many as if nobody waited there");
    node.step(Event::PeerWaiting { from: Incarnation(3), tasks: 0 });
    node.made_at(3, 0, Duration::from_millis(10), 0);
    while node.ack() {}
    assert_eq!(node.assigned(), [].into());
    // The word of one that has died says nothing of the next life.
    node.step(Event::PeerWaiting { from: Incarnation(9), tasks: 8 });
    node.view(&[node_view(1, &[]), NodeView { name: "n3".into(), ..node_view(9, &[]) }]);
    while node.ack() {}
    assert_eq!(node.assigned(), [(9, 23)].into(), "eight, and 15 that run again, whatever the room");
}
