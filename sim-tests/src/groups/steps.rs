//! What happens, as the dice will have it.

use super::world::{CPUS, DRIVER, JOB, NODES, Task, World};
use bytes::Bytes;
use mobula_base::{Instant, TaskId};
use mobula_gcs::core::beats::Beats;
use mobula_gcs::groups::{Pace, next_step};
use mobula_proto::command::Op;
use mobula_proto::{
    Bundle, Claims, DeclareDead, Failure, FailureKind, GroupCommand, GroupCreate, GroupRemove,
    HeartbeatRequest, InGroup, JobEnd, NamedResource, Placement, TaskOptions, TaskSpec, call, call_reply,
    group_command, task_bytes, task_id,
};
use mobula_scheduler::{Event, TaskOutcome, Value};
use std::time::Duration;

/// Entries that a new leader has not applied at most.
const HISTORY_MAX: usize = 6;

impl World {
    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, some: &[T]) -> Option<T> {
        if some.is_empty() { None } else { Some(some[self.below(some.len())]) }
    }

    /// One step with whatever may go wrong.
    pub fn step(&mut self) {
        let what = self.below(100);
        self.note("step", what as u64);
        match what {
            0..5 => self.create(),
            5..7 => self.remove(),
            7..17 => self.submit(),
            17..27 => self.look(),
            27..37 => self.commit(),
            37..39 => self.leader_dies(),
            39..51 => self.beat(),
            51..63 => self.heartbeat_comes(),
            63..71 => self.tell_view(),
            71..79 => self.view_comes(),
            79..87 => self.message_comes(),
            87..94 => self.worker_does(),
            94..95 => self.node_dies(),
            95..96 => self.death_is_known(),
            96..97 => self.node_comes(),
            _ => self.time_passes(),
        }
    }

    fn create(&mut self) {
        let strategy = 1 + self.below(4) as i32;
        let bundles = (0..1 + self.below(3)).map(|_| {
            let gpus = [0, 0, 0, 1000, 2000][self.below(5)];
            let resources = vec![NamedResource { name: "gpu".into(), milli: gpus }];
            Bundle { cpu_milli: 500 * (1 + self.below(5) as u32), resources }
        });
        let (bundles, group) = (bundles.collect(), self.next_group);
        self.next_group += 1;
        let wanted = GroupCreate { group, job: JOB.0, name: String::new(), strategy, bundles };
        let call_reply::Reply::Revision(since) = self.call(call::Op::GroupCreate(wanted)) else {
            panic!("a group is not taken")
        };
        self.made.push((group, since));
        self.tally.groups += 1;
    }

    fn remove(&mut self) {
        let there: Vec<u64> = self.shard.cluster.groups.all().keys().copied().collect();
        if let Some(group) = self.one_of(&there).filter(|_| there.len() > 2) {
            self.call(call::Op::GroupRemove(GroupRemove { group, job: JOB.0 }));
        }
    }

    /// The driver submits a task, beside all groups or in one that is or was.
    fn submit(&mut self) {
        let made = self.made.clone();
        let last = made.len().saturating_sub(8);
        let group = self.one_of(&made[last..]).filter(|_| self.random.below(4) > 0);
        let cpu_milli = [0, 500, 500, 1000, 1000, 2500][self.below(6)];
        let gpus = [0, 0, 0, 0, 0, 500, 1000][self.below(7)];
        let bundle = [None, None, None, Some(0), Some(1), Some(2)][self.below(6)];
        let group = group.map(|(group, since)| InGroup { group, since, bundle });
        let options = group.map(|group| {
            let placement = Some(Placement { group: Some(group), ..Placement::default() });
            Box::new(TaskOptions { placement, ..TaskOptions::default() })
        });
        let task = TaskId::new(JOB, TaskId::root(JOB), 0, self.submitted);
        self.submitted += 1;
        let resources = vec![NamedResource { name: "gpu".into(), milli: gpus }];
        let spec = TaskSpec {
            id: task_bytes(task),
            job: JOB.0,
            parent: task_bytes(TaskId::root(JOB)),
            function: 1 + u64::from(cpu_milli),
            cpu_milli,
            resources: if gpus > 0 { resources } else { Vec::new() },
            max_retries: 50,
            digest: 9,
            options,
            ..TaskSpec::default()
        };
        self.tasks.insert(task, Task { spec: spec.clone(), ended: None });
        self.event(1, Event::Submit { client: DRIVER, specs: vec![spec] });
    }

    /// The leader looks at what it knows, and proposes.
    fn look(&mut self) {
        // One that has just been elected may not have applied all that is in its log.
        if self.behind.is_some() && self.below(2) == 0 {
            self.behind = None;
        }
        let cluster = self.behind.as_ref().unwrap_or(&self.shard.cluster);
        let offers = self.beats.offers(cluster);
        let heard = offers.values().filter(|offer| offer.heard).count() as u64;
        let inputs = cluster.version << 16 | heard;
        let now = self.now.since(Instant::default());
        if let Some(op) = next_step(&cluster.groups, &offers, inputs, &mut self.pace, now) {
            self.proposed.push_back(op);
        }
    }

    /// What was proposed first is committed.
    fn commit(&mut self) {
        let Some(op) = self.proposed.pop_front() else { return };
        let before = self.shard.cluster.groups.clone();
        self.history.push_back(self.shard.cluster.clone());
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        let told = op.clone();
        self.apply(Op::Groups(GroupCommand { op: Some(op) }));
        if self.shard.cluster.groups != before {
            match told {
                group_command::Op::Commit(_) => self.tally.committed += 1,
                group_command::Op::GiveUp(_) => self.tally.given_up += 1,
                group_command::Op::Assign(_) | group_command::Op::Note(_) => {}
            }
        }
        self.note("version", self.shard.cluster.version);
    }

    /// Another head leads. It knows what is committed; of what was proposed some is, and some never was.
    fn leader_dies(&mut self) {
        (self.beats, self.pace) = (Beats::default(), Pace::default());
        let keep = self.below(self.proposed.len() + 1);
        self.proposed.truncate(keep);
        let back = self.below(2 * HISTORY_MAX);
        self.behind = self.history.iter().rev().nth(back).cloned();
        self.tally.leaders += 1;
    }

    fn heartbeat_of(&self, node: u64) -> Option<HeartbeatRequest> {
        let core = &self.nodes.get(&node).filter(|at| !at.is_dead)?.core;
        let free = core.free_resources();
        let named =
            free.named.iter().map(|(name, milli)| NamedResource { name: name.clone(), milli: *milli });
        let claims = Some(Claims { claims: core.claims(), free: named.collect() });
        let cpu_milli_free = free.cpu_milli as u32;
        Some(HeartbeatRequest { incarnation: node, cpu_milli_free, claims, ..HeartbeatRequest::default() })
    }

    fn beat(&mut self) {
        let living = self.living();
        let beat = self.one_of(&living).and_then(|node| self.heartbeat_of(node));
        self.heartbeats.extend(beat);
    }

    /// One of those that are on their way comes, also again, or never, or after later ones.
    fn heartbeat_comes(&mut self) {
        if self.heartbeats.is_empty() {
            return;
        }
        let at = self.below(self.heartbeats.len());
        let fate = self.below(10);
        self.tally.messages += u64::from(fate < 3);
        if fate > 1 {
            let beat = self.heartbeats[at].clone();
            self.hear(&beat);
        }
        if fate != 2 {
            self.heartbeats.remove(at);
        }
    }

    fn hear(&mut self, beat: &HeartbeatRequest) {
        // As the server does: the dead are not heard.
        if self.shard.cluster.live().any(|member| member.incarnation == beat.incarnation) {
            self.beats.hear(beat, self.now.since(Instant::default()));
        }
    }

    fn tell_view(&mut self) {
        let living = self.living();
        if let Some(node) = self.one_of(&living) {
            let view = self.view();
            self.views.push((node, view));
        }
    }

    fn view_comes(&mut self) {
        if self.views.is_empty() {
            return;
        }
        let (at, fate) = (self.below(self.views.len()), self.below(10));
        self.tally.messages += u64::from(fate < 3);
        if fate > 1 {
            let (node, view) = self.views[at].clone();
            self.sees(node, view);
        }
        if fate != 2 {
            self.views.remove(at);
        }
    }

    fn message_comes(&mut self) {
        let lines: Vec<(u64, u64)> = self.messages.keys().copied().collect();
        let Some((from, to)) = self.one_of(&lines) else { return };
        let line = self.messages.get_mut(&(from, to)).expect("there");
        let event = line.pop_front();
        if line.is_empty() {
            self.messages.remove(&(from, to));
        }
        // Nobody hears what comes from one that is known to be dead (R10).
        let is_known = self.shard.cluster.dead.contains(&from);
        if let Some(event) = event.filter(|_| !is_known) {
            self.event(to, event);
        }
    }

    /// A worker ends what it runs, dies, or waits in it.
    fn worker_does(&mut self) {
        let busy: Vec<(u64, u64)> = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.is_dead)
            .flat_map(|(number, node)| node.workers.iter().map(move |(worker, w)| (*number, *worker, w)))
            .filter(|(_, _, w)| !w.queue.is_empty())
            .map(|(number, worker, _)| (number, worker))
            .collect();
        let Some((node, worker)) = self.one_of(&busy) else { return };
        let what = self.below(10);
        let at = self.nodes.get_mut(&node).expect("there");
        let w = at.workers.get_mut(&worker).expect("there");
        match what {
            0 => {
                at.workers.remove(&worker);
                self.event(node, Event::WorkerGone { worker });
            }
            1 | 2 if !w.blocked => {
                w.blocked = true;
                let returned = w.queue.drain(1..).filter_map(|(spec, _)| task_id(&spec.id).ok()).collect();
                self.event(node, Event::Blocked { worker, returned });
            }
            _ => self.ends(node, worker),
        }
    }

    fn ends(&mut self, node: u64, worker: u64) {
        let w = self.nodes.get_mut(&node).expect("there").workers.get_mut(&worker).expect("there");
        if std::mem::take(&mut w.blocked) {
            self.event(node, Event::Unblocked { worker });
        }
        let Some(w) = self.nodes.get_mut(&node).and_then(|at| at.workers.get_mut(&worker)) else { return };
        let Some((spec, attempt)) = w.queue.pop_front() else { return };
        let task = task_id(&spec.id).expect("valid");
        let value = Ok(Value::Inline(Bytes::from_static(b"value")));
        let outcome = TaskOutcome {
            elements: Default::default(),
            task,
            attempt,
            value,
            contains: Vec::new(),
            ran_ns: 1_000_000,
        };
        self.event(node, Event::Finished { worker, outcomes: vec![outcome] });
    }

    fn node_dies(&mut self) {
        let living = self.living();
        // The driver's goes on, and not all others go at once.
        let Some(node) = self.one_of(&living[1..]).filter(|_| living.len() > NODES - 2) else { return };
        self.nodes.get_mut(&node).expect("there").is_dead = true;
        self.tally.deaths += 1;
    }

    fn death_is_known(&mut self) {
        let dead = self.nodes.iter().find(|(_, node)| node.is_dead).map(|(number, _)| *number);
        let Some(incarnation) = dead else { return };
        for (id, group) in self.shard.cluster.groups.all() {
            let there = group.places.iter().filter(|place| place.node == incarnation).count() as u64;
            self.tally.lost += there;
            if there > 0 {
                self.struck.insert(*id);
            }
        }
        self.apply(Op::DeclareDead(DeclareDead { incarnation, evidence: "silent".into(), silent_ms: 1 }));
        self.nodes.remove(&incarnation);
        self.messages.retain(|(_, to), _| *to != incarnation);
        self.views.retain(|(to, _)| *to != incarnation);
    }

    fn node_comes(&mut self) {
        if self.nodes.len() < NODES {
            self.join();
        }
    }

    fn time_passes(&mut self) {
        let ms = [1, 10, 100, 1_000, 6_000][self.below(5)];
        self.now = self.now + Duration::from_millis(ms);
        for node in self.living() {
            self.event(node, Event::Tick);
        }
    }

    // ------------------------------------------------------------ when all goes well

    /// Nothing goes wrong any more, for as long as anything moves.
    pub fn settle(&mut self) {
        while self.nodes.values().any(|node| node.is_dead) {
            self.death_is_known();
        }
        while self.nodes.len() < NODES {
            self.join();
        }
        for _ in 0..400 {
            self.round();
        }
    }

    fn round(&mut self) {
        self.now = self.now + Duration::from_millis(250);
        self.heartbeats.clear();
        self.views.clear();
        for node in self.living() {
            self.event(node, Event::Tick);
            if let Some(beat) = self.heartbeat_of(node) {
                self.hear(&beat);
            }
        }
        self.look();
        while !self.proposed.is_empty() {
            self.commit();
            self.check();
        }
        self.all_see();
        while !self.messages.is_empty() {
            self.message_comes();
        }
        let workers = |(number, node): (&u64, &super::world::Node)| {
            node.workers.keys().map(|worker| (*number, *worker)).collect::<Vec<_>>()
        };
        let all: Vec<(u64, u64)> = self.nodes.iter().flat_map(workers).collect();
        all.into_iter().for_each(|(node, worker)| {
            if self.nodes[&node].workers.contains_key(&worker) {
                self.ends(node, worker);
            }
        });
        self.check();
    }

    /// Half of the groups are removed, the others go with their job.
    pub fn end(&mut self) {
        let there: Vec<u64> = self.shard.cluster.groups.all().keys().copied().collect();
        for group in there.iter().step_by(2) {
            self.call(call::Op::GroupRemove(GroupRemove { group: *group, job: JOB.0 }));
        }
        (0..50).for_each(|_| self.round());
        self.call(call::Op::JobEnd(JobEnd { job: JOB.0, succeeded: true }));
        (0..10).for_each(|_| self.round());
    }
}

/// Why a task cannot run in a bundle of this world, whatever happens.
pub fn too_large(spec: &TaskSpec, bundles: &[Bundle], group: InGroup) -> Option<Failure> {
    let fits = |bundle: &Bundle| bundle.demand().fits(&spec.demand());
    let usable = (0..).zip(bundles).filter(|(number, _)| group.bundle.is_none_or(|bundle| bundle == *number));
    let none = usable.map(|(_, bundle)| bundle).all(|bundle| !fits(bundle));
    debug_assert!(u64::from(spec.cpu_milli) <= CPUS * 1000);
    none.then(|| Failure::new(FailureKind::FailureInfeasible, "no bundle is that large"))
}
