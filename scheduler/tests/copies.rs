//! What is put so that it is there several times (decision 24): several cores that hear of each other, of deaths and of
//! those who join in any order; the home shard is played by hand.

use bytes::Bytes;
use mobula_base::random::Random;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId};
use mobula_proto::{
    Arg, ArgHint, Assign, ClusterView, Failure, FailureKind, Here, Holder, Located, NodeView, StreamAck,
    TaskSpec, arg, located, object_bytes, task_bytes,
};
use mobula_scheduler::copies::COPY_AGAIN;
use mobula_scheduler::{Config, Core, Effect, Event, FetchError, TaskOutcome, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

const JOB: JobId = JobId(7);
const DRIVER: u64 = 100;
const LARGE: Value = Value::Shared { offset: 0, len: 1 << 20, crc: 5 };

struct Node {
    core: Core,
    /// Views that it has yet to hear of.
    views: VecDeque<ClusterView>,
    /// What it is told, by whom, in order.
    inbox: BTreeMap<u64, VecDeque<Event>>,
    /// It has no room for copies.
    full: bool,
}

struct World {
    nodes: BTreeMap<u64, Node>,
    now: Instant,
    next: u64,
    version: u64,
    /// Transfers that were asked for.
    fetches: u64,
    /// Transfers break off, and the home knows of nothing yet.
    begins: bool,
}

fn object() -> ObjectId {
    TaskId::new(JOB, TaskId::root(JOB), 0, 0).output(mobula_base::ids::FIRST_PUT_SLOT)
}

impl World {
    fn new(nodes: u64) -> Self {
        let (nodes_by_id, now) = (BTreeMap::new(), Instant(0));
        let mut world = World { nodes: nodes_by_id, now, next: 1, version: 0, fetches: 0, begins: false };
        (0..nodes).for_each(|_| world.joins());
        world.settle(&mut Random::new(0));
        world
    }

    fn joins(&mut self) {
        let config = Config {
            incarnation: Incarnation(self.next),
            shards: 1,
            name: String::new(),
            resources: Resources::cpus_milli(1000),
            labels: BTreeMap::default(),
            workers: 1,
            linger: Duration::ZERO,
            crc: |b| b.len() as u32,
        };
        let (core, views, inbox) = (Core::new(config), VecDeque::new(), BTreeMap::new());
        self.nodes.insert(self.next, Node { core, views, inbox, full: false });
        let joined = self.next;
        self.next += 1;
        self.tell(joined, 0, Event::JobStarted { job: JOB, counted: true });
        self.new_view();
    }

    /// It dies with all that it has said and that nobody has heard.
    fn dies(&mut self, node: u64) {
        self.nodes.remove(&node);
        self.nodes.values_mut().for_each(|other| drop(other.inbox.remove(&node)));
        self.new_view();
    }

    fn new_view(&mut self) {
        self.version += 1;
        let alive =
            |n: &u64| NodeView { incarnation: *n, cpu_milli: 1000, alive: true, ..NodeView::default() };
        let nodes = self.nodes.keys().map(alive).collect();
        let view = ClusterView { version: self.version, nodes, ..ClusterView::default() };
        self.nodes.values_mut().for_each(|node| node.views.push_back(view.clone()));
    }

    fn tell(&mut self, to: u64, from: u64, event: Event) {
        if let Some(node) = self.nodes.get_mut(&to) {
            node.inbox.entry(from).or_default().push_back(event);
        }
    }

    fn step(&mut self, at: u64, event: Event) {
        self.now = self.now + Duration::from_millis(1);
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let mut effects = Vec::new();
        node.core.step([event], self.now, &mut effects);
        effects.into_iter().for_each(|effect| self.perform(at, effect));
    }

    fn perform(&mut self, me: u64, effect: Effect) {
        let from = Incarnation(me);
        match effect {
            Effect::Replicate { to, object, job, output, want, at } => {
                self.tell(to.0, me, Event::Replicate { object, job, holder: from, output, want, at });
            }
            Effect::Freed { to, objects } => self.tell(to.0, me, Event::Freed { objects }),
            Effect::Fetch { object, from: holder, .. } => {
                self.fetches += 1;
                let value = self.nodes.get(&holder.0).and_then(|n| n.core.value_of(object).cloned());
                let why = |why| Event::FetchFailed { object, from: holder, why };
                let event = match value {
                    _ if !self.nodes.contains_key(&holder.0) || self.begins => why(FetchError::Unreachable),
                    None => why(FetchError::NotFound),
                    Some(_) if self.nodes[&me].full => why(FetchError::StoreFull("full".into())),
                    Some(value) => Event::Fetched { object, value },
                };
                self.tell(me, 0, event);
            }
            Effect::Locate { objects, .. } => {
                let answers = objects.iter().map(|id| self.locate(*id)).collect();
                self.tell(me, 0, Event::Located { asked: objects, answers });
            }
            Effect::Send { shard, batch } => {
                let mark = batch.first_seq + batch.items.len() as u64 - 1;
                let ack = StreamAck { mark, revision: 9, outcomes: Vec::new() };
                self.tell(me, 0, Event::Acked { shard, ack, moved: Vec::new() });
            }
            _ => {}
        }
    }

    fn locate(&self, id: ObjectId) -> Located {
        let holders: Vec<Holder> = self
            .holders()
            .into_iter()
            .map(|incarnation| Holder { incarnation, ..Holder::default() })
            .collect();
        let lost = Failure::new(FailureKind::FailureObjectLost, "every copy is gone");
        let answer = match holders.is_empty() {
            _ if self.begins => located::Answer::Unknown(true),
            true => located::Answer::Failed(lost),
            false => located::Answer::Here(Here { holders, output: None }),
        };
        Located { object: object_bytes(id), answer: Some(answer) }
    }

    /// One of all that can happen next happens; false when nothing can.
    fn happens(&mut self, dice: &mut Random) -> bool {
        let mut open = Vec::new();
        for (id, node) in &self.nodes {
            let heard = node.inbox.iter().filter(|(_, events)| !events.is_empty());
            open.extend(heard.map(|(from, _)| (*id, Some(*from))));
            open.extend((!node.views.is_empty()).then_some((*id, None)));
        }
        if open.is_empty() {
            return false;
        }
        let (at, from) = open[dice.below(open.len() as u64) as usize];
        let node = self.nodes.get_mut(&at).expect("just seen");
        let event = match from {
            Some(from) => node.inbox.get_mut(&from).and_then(VecDeque::pop_front),
            None => node.views.pop_front().map(Event::View),
        };
        self.step(at, event.expect("just seen"));
        true
    }

    /// Everything that is under way comes to its end, with what waits for a time to pass.
    fn settle(&mut self, dice: &mut Random) {
        for _ in 0..20 {
            while self.happens(dice) {}
            self.now = self.now + COPY_AGAIN;
            let all: Vec<u64> = self.nodes.keys().copied().collect();
            all.into_iter().for_each(|node| self.step(node, Event::Tick));
        }
        assert!(!self.happens(dice), "it never comes to rest");
    }

    fn put(&mut self, at: u64, by_driver: bool, value: Value, replicas: u32) {
        let (client, object, contains) = (DRIVER, object(), Vec::new());
        self.step(at, Event::Put { client, object, job: JOB, value, by_driver, contains, replicas });
    }

    fn holders(&self) -> BTreeSet<u64> {
        let has = |(_, node): &(&u64, &Node)| node.core.value_of(object()).is_some();
        self.nodes.iter().filter(has).map(|(id, _)| *id).collect()
    }

    /// Over all nodes: objects that are seen to, those with too few nodes, copies that are awaited.
    fn census(&self) -> (u64, u64, u64) {
        let add = |a: (u64, u64, u64), b: (u64, u64, u64)| (a.0 + b.0, a.1 + b.1, a.2 + b.2);
        self.nodes.values().map(|node| node.core.census().copies).fold((0, 0, 0), add)
    }
}

#[test]
fn as_many_copies_as_are_asked_for() {
    for (nodes, want, by_driver, has) in [
        (5, 1, true, 1),
        (5, 1, false, 1),
        (5, 3, false, 3),
        (5, 4, true, 4),
        (3, 9, false, 3),
        (1, 2, true, 1),
    ] {
        let mut world = World::new(nodes);
        world.put(1, by_driver, LARGE, want);
        world.settle(&mut Random::new(1));
        assert_eq!(world.holders().len(), has, "{want} of {nodes}");
        assert_eq!(world.census(), (1, u64::from(has < want as usize), 0), "{want} of {nodes}");
        assert_eq!(world.fetches, has as u64 - 1);
    }
}

#[test]
fn without_a_number_a_drivers_put_is_there_twice_and_a_tasks_once() {
    let mut world = World::new(4);
    world.put(1, true, LARGE, 0);
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (2, (1, 0, 0)));
    let mut world = World::new(4);
    world.put(1, false, LARGE, 0);
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (1, (0, 0, 0)));
}

#[test]
fn a_copy_that_does_not_come_is_tried_again_also_when_nobody_knows_the_put_yet() {
    let mut world = World::new(2);
    world.begins = true;
    world.put(1, true, LARGE, 0);
    while world.happens(&mut Random::new(1)) {}
    assert_eq!((world.holders().len(), world.census().2), (1, 1), "one is awaited");
    world.begins = false;
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (2, (1, 0, 0)));
}

#[test]
fn small_values_of_tasks_are_copied_and_those_of_drivers_are_in_the_store() {
    for (by_driver, has) in [(true, 1), (false, 3)] {
        let mut world = World::new(4);
        world.put(1, by_driver, Value::Inline(Bytes::from_static(b"small")), 3);
        world.settle(&mut Random::new(1));
        assert_eq!(world.holders().len(), has);
    }
}

#[test]
fn copies_are_made_up_for_when_nodes_die_and_when_they_join() {
    let mut world = World::new(2);
    world.put(2, false, LARGE, 3);
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (2, (1, 1, 0)), "there is one too few");
    world.joins();
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (3, (1, 0, 0)));
    world.joins();
    world.settle(&mut Random::new(1));
    assert_eq!(world.holders().len(), 3, "three are enough");
    // Whoever put it, and whoever sees to it: one after the other, all that had it in the beginning.
    for dead in 1..=3 {
        world.dies(dead);
        world.joins();
        world.settle(&mut Random::new(1));
        assert_eq!((world.holders().len(), world.census()), (3, (1, 0, 0)), "after the death of {dead}");
    }
}

#[test]
fn copies_go_when_nobody_needs_them() {
    let mut world = World::new(4);
    world.put(2, true, LARGE, 3);
    world.settle(&mut Random::new(1));
    world.step(2, Event::Dropped { client: DRIVER, objects: vec![object()] });
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (0, (0, 0, 0)));
    world.dies(1);
    world.joins();
    world.settle(&mut Random::new(1));
    assert_eq!(world.holders().len(), 0, "nobody makes up for what is gone");
}

#[test]
fn copies_go_with_their_job() {
    let mut world = World::new(3);
    world.put(1, false, LARGE, 3);
    world.settle(&mut Random::new(1));
    (1..=3).for_each(|node| world.step(node, Event::JobEnded(JOB)));
    assert_eq!((world.holders().len(), world.census()), (0, (0, 0, 0)));
}

#[test]
fn no_copy_is_dropped_for_room_and_a_node_without_room_tries_again() {
    let mut world = World::new(3);
    let full = world.nodes.get_mut(&3).expect("there");
    full.full = true;
    world.put(1, false, LARGE, 3);
    while world.happens(&mut Random::new(1)) {}
    assert_eq!((world.holders().len(), world.census()), (2, (1, 0, 1)), "one is awaited");
    assert!(world.nodes.values_mut().all(|node| node.core.take_spare().is_empty()));
    world.nodes.get_mut(&3).expect("there").full = false;
    world.settle(&mut Random::new(1));
    assert_eq!((world.holders().len(), world.census()), (3, (1, 0, 0)));
    assert!(world.nodes.values_mut().all(|node| node.core.take_spare().is_empty()));
}

#[test]
fn a_damaged_copy_is_brought_anew() {
    let mut world = World::new(3);
    world.put(1, false, LARGE, 2);
    world.settle(&mut Random::new(1));
    let before = world.holders();
    for node in before.iter().copied() {
        world.step(node, Event::CopyLost { object: object() });
        world.settle(&mut Random::new(1));
        assert_eq!((world.holders(), world.census()), (before.clone(), (1, 0, 0)));
    }
}

#[test]
fn who_was_to_have_a_copy_does_not_make_the_value_again_for_itself() {
    let mut world = World::new(1);
    let output = mobula_proto::Output { crc: 5, size: 1 << 20 };
    let (holder, want) = (Incarnation(9), 2);
    let ask = Event::Replicate { object: object(), job: JOB, holder, output, want, at: vec![holder] };
    world.step(1, ask);
    let node = &mut world.nodes.get_mut(&1).expect("there").core;
    let (mut effects, mut now) = (Vec::new(), world.now);
    let unreachable = Event::FetchFailed { object: object(), from: holder, why: FetchError::Unreachable };
    node.step([unreachable], now, &mut effects);
    now = now + Duration::from_secs(1);
    node.step([Event::Tick], now, &mut effects);
    assert!(matches!(effects[..], [Effect::Locate { shard: ShardId(0), .. }]), "{effects:?}");
    effects.clear();
    let answer = Located { object: object_bytes(object()), answer: Some(located::Answer::Lost(1)) };
    node.step([Event::Located { asked: vec![object()], answers: vec![answer] }], now, &mut effects);
    assert!(effects.is_empty(), "it proposes no attempt: {effects:?}");
    assert_eq!((node.census().objects, node.census().copies), ((0, 0), (0, 0, 0)));
}

/// A small value may come with a task that takes it, before it is brought or before it is asked for.
#[test]
fn a_copy_that_comes_with_a_task_counts_and_is_let_go() {
    for asked_first in [true, false] {
        let mut world = World::new(2);
        let output = mobula_proto::Output { crc: 5, size: 5 };
        let (holder, want, at) = (Incarnation(1), 2, vec![Incarnation(1), Incarnation(2)]);
        let ask = Event::Replicate { object: object(), job: JOB, holder, output, want, at };
        let unreachable = Event::FetchFailed { object: object(), from: holder, why: FetchError::Unreachable };
        let arg = Arg { arg: Some(arg::Arg::Object(object_bytes(object()))) };
        let task = TaskId::new(JOB, TaskId::root(JOB), 0, 600);
        let spec = TaskSpec { id: task_bytes(task), job: JOB.0, args: vec![arg], ..TaskSpec::default() };
        let hint = ArgHint {
            object: object_bytes(object()),
            inline: Bytes::from_static(b"small"),
            has_inline: true,
            ..ArgHint::default()
        };
        let assign = Assign { spec: Some(spec), attempt: 1, hints: vec![hint] };
        let assigned = Event::Assigned { from: Incarnation(1), assign };
        let events = match asked_first {
            true => [Some(ask), Some(unreachable), Some(assigned)],
            false => [Some(assigned), Some(ask), None],
        };
        let mut effects = Vec::new();
        let node = &mut world.nodes.get_mut(&2).expect("there").core;
        node.step(events.into_iter().flatten(), world.now, &mut effects);
        let told = |e: &Effect| matches!(e, Effect::Held { object: id } if *id == object());
        assert!(effects.iter().any(told), "its home hears of it: {effects:?}");
        assert_eq!(node.census().copies.2, 0, "it is here");
        let gone = [
            Event::Cancel { from: None, tasks: vec![task], recursive: false },
            Event::Freed { objects: vec![object()] },
        ];
        node.step(gone, world.now, &mut effects);
        assert_eq!(
            (node.value_of(object()), node.census().copies),
            (None, (0, 0, 0)),
            "first: {asked_first}"
        );
    }
}

/// Should its node die before the records of what lies inside have come, the task has to run again: a copy that
/// survived would hide that.
#[test]
fn what_contains_references_is_copied_once_its_task_is_durable() {
    let mut world = World::new(3);
    let parent = TaskId::new(JOB, TaskId::root(JOB), 0, 0);
    let spec = |id: TaskId, parent: TaskId| TaskSpec {
        id: task_bytes(id),
        job: JOB.0,
        parent: task_bytes(parent),
        function: 1,
        cpu_milli: 1000,
        max_retries: 3,
        ..TaskSpec::default()
    };
    let node = &mut world.nodes.get_mut(&1).expect("there").core;
    let (mut effects, now, worker) = (Vec::new(), world.now, 5);
    let copied = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Replicate { .. }));
    node.step([Event::WorkerUp { worker, job: JOB }], now, &mut effects);
    node.step(
        [Event::Submit { client: DRIVER, specs: vec![spec(parent, TaskId::root(JOB))] }],
        now,
        &mut effects,
    );
    let child = TaskId::new(JOB, parent, 0, 0);
    node.step([Event::Submit { client: worker, specs: vec![spec(child, parent)] }], now, &mut effects);
    let (object, contains, value) = (object(), vec![child.output(0)], LARGE);
    let put = Event::Put { client: worker, object, job: JOB, value, by_driver: false, contains, replicas: 3 };
    node.step([put], now, &mut effects);
    let value = Ok(Value::Inline(Bytes::from_static(b"done")));
    let outcome = TaskOutcome {
        elements: Default::default(),
        task: parent,
        attempt: 1,
        value,
        contains: vec![],
        ran_ns: 1,
    };
    node.step([Event::Finished { worker, outcomes: vec![outcome] }], now, &mut effects);
    assert!(!copied(&effects), "what it submitted is not committed: {effects:?}");
    // All that is sent is acknowledged, until there is nothing more.
    while !effects.is_empty() {
        let sent: Vec<Effect> = std::mem::take(&mut effects);
        if copied(&sent) {
            return;
        }
        for effect in sent {
            if let Effect::Send { shard, batch } = effect {
                let mark = batch.first_seq + batch.items.len() as u64 - 1;
                let ack = StreamAck { mark, revision: 9, outcomes: Vec::new() };
                node.step([Event::Acked { shard, ack, moved: Vec::new() }], now, &mut effects);
            }
        }
    }
    panic!("it is never copied");
}

#[test]
fn nonsense_of_a_peer_is_bounded() {
    let mut world = World::new(1);
    let output = mobula_proto::Output::default();
    let at = (2..100_000).map(Incarnation).collect();
    let (holder, want) = (Incarnation(2), u32::MAX);
    world.step(1, Event::Replicate { object: object(), job: JOB, holder, output, want, at });
    let text = format!("{:?}", world.nodes[&1].core.why_known(9));
    assert!(text.len() < 100_000, "{}", text.len());
}

/// Nodes die and join at any moment, and hear of each other, of deaths and of copies in any order. As long as one copy
/// is left there are enough in the end, one node sees to them, and there are few more than were asked for.
#[test]
fn whatever_happens_there_are_enough_in_the_end() {
    let (mut survived, mut most) = (0, 0);
    for seed in 0..1000 {
        let mut dice = Random::new(seed);
        let want = 2 + dice.below(3) as u32;
        let mut world = World::new(2 + dice.below(5));
        let first = 1 + dice.below(world.nodes.len() as u64);
        world.put(first, false, LARGE, want);
        for _ in 0..dice.below(120) {
            match dice.below(16) {
                0 if world.nodes.len() > 1 => {
                    let all: Vec<u64> = world.nodes.keys().copied().collect();
                    world.dies(all[dice.below(all.len() as u64) as usize]);
                }
                1 if world.next < 16 => world.joins(),
                2 => {
                    let all: Vec<u64> = world.holders().into_iter().collect();
                    if all.len() > 1 {
                        let at = all[dice.below(all.len() as u64) as usize];
                        world.step(at, Event::CopyLost { object: object() });
                    }
                }
                _ => drop(world.happens(&mut dice)),
            }
        }
        world.settle(&mut dice);
        let (has, enough) = (world.holders().len(), (want as usize).min(world.nodes.len()));
        if has == 0 {
            continue;
        }
        survived += 1;
        most = most.max(has - enough.min(has));
        assert!(has >= enough, "seed {seed}: {has} of {want} with {} nodes", world.nodes.len());
        let (seen_to, short, awaited) = world.census();
        assert_eq!((seen_to, short, awaited), (1, u64::from(enough < want as usize), 0), "seed {seed}");
    }
    assert!(survived > 500, "only {survived} stories say anything");
    assert!(most <= 3, "{most} too many");
}
