//! Here, or which other node: local first, then locality and load.
//!
//! The view of the others costs no round trip: it is what this node has placed on them; what others have placed
//! there it does not know. A node takes a little more than it can run, so that arguments travel
//! while the tasks before are running; how much more depends on how long the function runs.

use crate::core::{Core, Kept, KeptState};
use crate::execute::Run;
use crate::objects::State;
use crate::recovery::Timer;
use crate::strategy;
use crate::submit::arg_objects;
use crate::types::{Effect, Value};
use mobula_base::{Incarnation, JobId, ObjectId, Resources, TaskId, mutant};
use mobula_proto::{
    ArgHint, Assign, Failure, FailureKind, InGroup, Placement, TaskSpec, object_bytes, task_bytes,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Tasks that one worker may have queued up, running included.
pub const DEPTH_MAX: u64 = 1024;
/// A worker's queue should hold about this much work, nanoseconds.
const QUEUE_NS: u64 = 500_000;
/// Bytes already on a node are worth a detour from this on.
pub(crate) const LOCALITY_MIN: u64 = 256 * 1024;
/// How long a task that fits no known node waits for one to join.
pub const INFEASIBLE_AFTER: Duration = Duration::from_secs(3);

/// Tasks with one and the same demand that may run in the same places.
#[derive(Debug)]
pub(crate) struct Class {
    pub demand: Resources,
    /// Where kept tasks of it may run; runs are where they are, and have no such wish.
    pub placement: Option<Placement>,
    /// The placement group that they run in, if they do; of runs, too.
    pub group: Option<InGroup>,
    /// No known node could ever take what waits here, and somebody has been told.
    pub is_stuck: bool,
    /// Kept tasks that wait for a node; re-executions first (R16).
    pub urgent: VecDeque<TaskId>,
    pub waiting: VecDeque<TaskId>,
    /// Those that wait for one node, which has their arguments.
    pub held: BTreeMap<Incarnation, VecDeque<TaskId>>,
    /// Runs of this node that wait for a worker.
    pub runs_urgent: VecDeque<TaskId>,
    pub runs: VecDeque<TaskId>,
}

/// Another node (or this one) as the membership has it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub name: String,
    pub total: Resources,
    /// Of this, what is not reserved for placement groups.
    pub open: Resources,
    pub labels: BTreeMap<String, String>,
}

/// Where a task goes.
enum Pick {
    /// There.
    Go(Incarnation),
    /// It waits for a node, so long at most.
    Wait(Incarnation, Duration),
    /// No node has room.
    Full,
}

impl Member {
    /// How many tasks with a demand run there at once, beside what is kept for placement groups.
    fn at_once(&self, demand: &Resources) -> u64 {
        if demand.named.is_empty() {
            return self.open.cpu_milli.max(1000) / 1000;
        }
        self.open.times(demand).unwrap_or(1).max(1)
    }
}

impl Core {
    pub(crate) fn class_of(&mut self, demand: &Resources, placement: Option<&Placement>) -> usize {
        let is_same = |c: &Class| c.demand == *demand && c.placement.as_ref() == placement;
        if let Some(index) = self.classes.iter().position(is_same) {
            return index;
        }
        let class = Class {
            demand: demand.clone(),
            placement: placement.cloned(),
            group: placement.and_then(|placement| placement.group),
            is_stuck: false,
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
            held: BTreeMap::new(),
            runs_urgent: VecDeque::new(),
            runs: VecDeque::new(),
        };
        if let Some(vacant) = self.vacant_class() {
            self.classes[vacant] = class;
            return vacant;
        }
        self.classes.push(class);
        self.classes.len() - 1
    }

    /// Puts a kept task with all its arguments in line for a node.
    pub(crate) fn queue(&mut self, task: TaskId) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        kept.state = KeptState::Queued;
        let urgent = kept.attempt > 1;
        let (demand, placement) = (kept.spec.demand(), kept.spec.placement().cloned());
        let class = self.class_of(&demand, placement.as_ref());
        let queue = if urgent { &mut self.classes[class].urgent } else { &mut self.classes[class].waiting };
        queue.push_back(task);
    }

    pub(crate) fn place_queued(&mut self) {
        for class in 0..self.classes.len() {
            // Re-executions are placed whatever the backlog: what fills it may be waiting for them.
            while let Some(task) = self.classes[class].urgent.pop_front() {
                if !self.place(class, task, !mutant!("R16b")) {
                    self.classes[class].urgent.push_front(task);
                    break;
                }
            }
            self.place_held(class);
            while let Some(task) = self.classes[class].waiting.pop_front() {
                if !self.place(class, task, false) {
                    self.classes[class].waiting.push_front(task);
                    break;
                }
            }
        }
    }

    /// Places one task, or finds out what it had better wait for; false when no node has room now.
    pub(crate) fn place(&mut self, class: usize, task: TaskId, urgent: bool) -> bool {
        let Some(kept) = self.kept.get(&task) else { return true };
        if kept.state != KeptState::Queued {
            return true;
        }
        if let Some(group) = self.classes[class].group {
            return self.place_in_group(class, task, group, urgent);
        }
        if !self.is_feasible(class) {
            self.stuck(class, task);
            return false;
        }
        let shunned = self.hedges.shunned(task);
        let pick = match self.pick(kept, class, urgent, shunned) {
            Pick::Full if shunned.is_some() => self.pick(kept, class, urgent, None),
            pick => pick,
        };
        let node = match pick {
            Pick::Go(node) => node,
            Pick::Wait(node, at_most) => {
                self.hold(class, task, node, at_most);
                return true;
            }
            Pick::Full => return false,
        };
        if shunned.is_some() && self.hedges.is_ahead(task, node, kept.attempt) {
            let attempt = kept.attempt;
            self.propose_next(task, attempt, false);
            return true;
        }
        if self.classes[class].placement.as_ref().is_some_and(|placement| placement.spread) {
            self.last_spread = node;
        }
        self.hand_over(class, task, node);
        true
    }

    /// A task goes to a node, this one or another.
    pub(crate) fn hand_over(&mut self, class: usize, task: TaskId, node: Incarnation) {
        let me = self.config.incarnation;
        let Some(kept) = self.kept.get_mut(&task) else { return };
        kept.state = KeptState::Placed(node);
        let (spec, attempt) = (kept.spec.clone(), kept.attempt);
        let streams = crate::items::window(&spec) > 0;
        if node == me {
            self.start_run(spec, attempt, me);
        } else {
            kept.shared = true;
            // What it names may be asked for there.
            self.streams.hurry();
            let Class { demand, group, .. } = &self.classes[class];
            if group.is_none() {
                *self.placed.entry(node).or_default() += 1;
            }
            if group.is_some() || !demand.named.is_empty() {
                *self.placed_scarce.entry((node, class)).or_default() += 1;
            }
            let assign = Assign { hints: self.hints(&spec), spec: Some(TaskSpec::clone(&spec)), attempt };
            self.effects.push(Effect::Assign { to: node, assign });
            if self.hedges.are_wanted() {
                self.goes_away(task, node);
            }
        }
        if streams {
            self.tell_taken(task);
        }
    }

    /// How many tasks of a function one CPU should have in line.
    pub(crate) fn depth(&self, function: u64) -> u64 {
        match self.placed_functions.get(&function) {
            Some(mean_ns) => (QUEUE_NS / (*mean_ns).max(1)).clamp(1, DEPTH_MAX),
            None => 1,
        }
    }

    pub(crate) fn observe(&mut self, function: u64, ran_ns: u64) {
        let mean = self.placed_functions.entry(function).or_insert(ran_ns);
        *mean = (*mean * 7 + ran_ns) / 8;
    }

    /// The best node with room among those where the task may run: the one that it would like best, then
    /// one that has (nearly) the most argument bytes, then this one (for a re-execution: if it begins soon here),
    /// then the emptiest. A task that is to be spread goes to the emptiest, the next of equals in turn. A
    /// re-execution goes even where there is no room, if there is none anywhere; `but` not there.
    fn pick(&self, kept: &Kept, index: usize, urgent: bool, but: Option<Incarnation>) -> Pick {
        let (me, class) = (self.config.incarnation, &self.classes[index]);
        let placement = class.placement.as_ref();
        let spread = placement.is_some_and(|placement| placement.spread);
        let liked = placement.and_then(|placement| placement.node.as_ref());
        let per_cpu = self.depth(kept.spec.function) + 1;
        let bytes = if spread { BTreeMap::new() } else { self.bytes_by_node(&kept.spec) };
        let most = bytes.values().copied().max().unwrap_or(0);
        let rank = |(node, member): (Incarnation, &Member)| {
            if Some(node) == but || !strategy::admits(&class.demand, placement, node, member) {
                return None;
            }
            // What it would need there is kept for placement groups.
            if !member.open.fits(&class.demand) {
                return None;
            }
            let (load, room) = self.load_and_room(index, node, member, per_cpu);
            let best = liked.is_some_and(|affinity| strategy::is_meant(affinity, node, member));
            let near = !spread && bytes.get(&node).copied().unwrap_or(0) + LOCALITY_MIN > most;
            let fits = load < room;
            // A re-execution makes up for a loss: it runs here if it begins soon, else rather where a CPU is idle.
            let here = node == me && fits && !(urgent && load >= room - room / per_cpu);
            let full = load * 1_000_000 / room;
            // Every node begins behind itself: else all would send what they have to the same few.
            let turn = node > if spread { self.last_spread } else { me };
            // The first of equals: the order of the members decides.
            let rank = (fits, best, near, here && !spread, Reverse(full), turn, Reverse(node));
            (urgent || fits).then_some(rank)
        };
        let here = rank((me, &self.me));
        // Nothing is better than this, and there may be a thousand others to look at.
        if !spread && liked.is_none() && matches!(here, Some((true, _, true, true, ..))) {
            return Pick::Go(me);
        }
        let others = self.members.iter().filter(|(node, _)| **node != me);
        let best = here.into_iter().chain(others.filter_map(|(node, member)| rank((*node, member)))).max();
        let Some((_, liked, near, .., Reverse(node))) = best else { return Pick::Full };
        if !(liked || near || urgent || kept.waited)
            && let Some((home, at_most)) = self.worth_waiting_for(kept, index, &bytes, node)
        {
            return Pick::Wait(home, at_most);
        }
        Pick::Go(node)
    }

    /// How much a node has to do of what counts for a class, and how much it takes.
    fn load_and_room(&self, index: usize, node: Incarnation, member: &Member, per_cpu: u64) -> (u64, u64) {
        let (load, at_once) = self.busy(index, node, member);
        let room = at_once * per_cpu;
        if load < room || node != self.config.incarnation {
            return (load, room);
        }
        (load.saturating_sub(self.starved(&self.classes[index].demand)), room)
    }

    /// Argument bytes on each node; empty when they are too few to matter.
    pub(crate) fn bytes_by_node(&self, spec: &TaskSpec) -> BTreeMap<Incarnation, u64> {
        let mut bytes = BTreeMap::new();
        for object in arg_objects(spec) {
            match self.objects.get(&object).map(|o| &o.state) {
                Some(State::Here(Value::Shared { len, .. })) => {
                    *bytes.entry(self.config.incarnation).or_default() += *len;
                }
                Some(State::Elsewhere { holders, output }) => {
                    for holder in holders {
                        *bytes.entry(*holder).or_default() += output.size;
                    }
                }
                Some(State::Here(Value::Inline(_)) | State::Unknown | State::Locating | State::Pending)
                | Some(State::Failed(_))
                | None => {}
            }
        }
        bytes
    }

    /// What this node knows of the arguments, so that the executor need not ask.
    fn hints(&self, spec: &TaskSpec) -> Vec<ArgHint> {
        arg_objects(spec)
            .map(|object| {
                let mut hint = ArgHint { object: object_bytes(object), ..Default::default() };
                match self.objects.get(&object).map(|o| &o.state).filter(|_| self.may_leave(object)) {
                    Some(State::Here(Value::Inline(bytes))) => {
                        hint.inline = bytes.clone();
                        hint.has_inline = true;
                    }
                    Some(State::Here(value @ Value::Shared { .. })) => {
                        hint.holders = vec![self.config.incarnation.0];
                        hint.output = Some(value.output(self.config.crc));
                    }
                    Some(State::Elsewhere { holders, output }) => {
                        hint.holders = holders.iter().map(|h| h.0).collect();
                        hint.output = Some(*output);
                    }
                    Some(State::Unknown | State::Locating | State::Pending | State::Failed(_)) | None => {}
                }
                hint
            })
            .collect()
    }

    /// Whether the value of an object may leave this node: not while the records of what lies inside may
    /// still be lost with it (R4). Whoever needs it elsewhere hears of it from its home. Where references are not
    /// counted, what lies inside is not remembered.
    fn may_leave(&self, id: ObjectId) -> bool {
        let is_put = id.is_put() && id.element().is_none();
        is_put || !self.kept.get(&id.task).is_some_and(|kept| self.may_be_lost(kept)) || mutant!("R4d")
    }

    /// Whether records of what lies in a value may still be lost with it. Apart from whoever places tasks, which it makes
    /// dearer where it is inlined.
    #[inline(never)]
    fn may_be_lost(&self, kept: &Kept) -> bool {
        matches!(kept.state, KeptState::Undurable(_))
            && (!kept.contains.is_empty() || !self.counts(JobId(kept.spec.job)))
    }

    /// How many tasks this node has given to another, and not heard the end of.
    pub fn placed_on(&self, node: Incarnation) -> u32 {
        self.placed.get(&node).copied().unwrap_or(0)
    }

    /// A task that was placed on another node is there no more.
    pub(crate) fn unplace(&mut self, task: TaskId, node: Incarnation) {
        let spec = self.kept.get(&task).map(|kept| &kept.spec);
        let in_group = |spec: &TaskSpec| spec.placement().is_some_and(|placement| placement.group.is_some());
        let in_group = spec.is_some_and(|spec| in_group(spec));
        if let Some(n) = self.placed.get_mut(&node).filter(|_| !in_group) {
            *n = n.saturating_sub(1);
            self.waiting.bound(node, *n);
        }
        let Some(spec) = spec.filter(|spec| in_group || !spec.resources.is_empty()) else { return };
        let (demand, placement) = (spec.demand(), spec.placement().cloned());
        let class = self.class_of(&demand, placement.as_ref());
        if let Some(n) = self.placed_scarce.get_mut(&(node, class)) {
            *n = n.saturating_sub(1);
        }
    }

    /// How much a node has to do of what counts for a class, and how many of its tasks run there at once: of
    /// something that is named there may be much less than CPUs.
    pub(crate) fn busy(&self, index: usize, node: Incarnation, member: &Member) -> (u64, u64) {
        let me = node == self.config.incarnation;
        let class = &self.classes[index];
        if class.demand.named.is_empty() {
            let apart = u64::from(self.blocked_runs) + self.groups.runs;
            let here = (self.runs.len() as u64).saturating_sub(apart);
            let there = || u64::from(self.awake_at(node));
            return (if me { here } else { there() }, member.at_once(&class.demand));
        }
        let alike = |other: &Class| other.demand == class.demand && other.group.is_none();
        let there = || u64::from(self.placed_scarce.get(&(node, index)).copied().unwrap_or(0));
        let here = || self.runs.values().filter(|run| alike(&self.classes[run.class])).count() as u64;
        (if me { here() } else { there() }, member.at_once(&class.demand))
    }

    /// Runs of this node that wait for arguments which nobody has any more, of what counts for a demand: they take
    /// no room from what may be needed to make those again (R16).
    fn starved(&self, demand: &Resources) -> u64 {
        let counts = |run: &&Run| {
            let class = &self.classes[run.class];
            class.group.is_none() && (demand.named.is_empty() || class.demand == *demand)
        };
        let runs = self.arriving.iter().filter_map(|task| self.runs.get(task)).filter(counts);
        runs.filter(|run| arg_objects(&run.spec).any(|id| self.is_gone(id)) && !mutant!("W22")).count() as u64
    }

    fn is_gone(&self, id: ObjectId) -> bool {
        let state = self.objects.get(&id).map(|object| &object.state);
        matches!(state, None | Some(State::Unknown | State::Locating | State::Pending))
    }

    /// Whether some node that is known could ever run the tasks of a class.
    pub(crate) fn is_feasible(&self, class: usize) -> bool {
        let Class { demand, placement, group, .. } = &self.classes[class];
        if let Some(group) = group {
            return self.is_open(&self.classes[class], *group);
        }
        let admits = |node, member| strategy::admits(demand, placement.as_ref(), node, member);
        admits(self.config.incarnation, &self.me)
            || self.members.iter().any(|(node, member)| admits(*node, member))
    }

    /// No node could ever run the tasks of a class: says so at once, and waits a little for one that can.
    fn stuck(&mut self, class: usize, task: TaskId) {
        if std::mem::replace(&mut self.classes[class].is_stuck, true) {
            return;
        }
        self.set_timer(INFEASIBLE_AFTER, Timer::Infeasible(class));
        if let Some(kept) = self.kept.get(&task) {
            let job = JobId(kept.spec.job);
            self.notice(job, "infeasible", self.why_never(class), Some(task), 0);
        }
    }

    pub(crate) fn why_never(&self, class: usize) -> String {
        let Class { demand, placement, .. } = &self.classes[class];
        let me = (!self.members.contains_key(&self.config.incarnation)).then_some(&self.me);
        strategy::never(demand, placement.as_ref(), me.into_iter().chain(self.members.values()))
    }

    /// The tasks of a class have waited for a node that could ever take them.
    pub(crate) fn infeasible(&mut self, class: usize) {
        self.classes[class].is_stuck = false;
        if self.is_feasible(class) {
            return;
        }
        let failure = Failure::new(FailureKind::FailureInfeasible, self.why_never(class));
        let queues = &mut self.classes[class];
        let waiting: Vec<TaskId> = queues.urgent.drain(..).chain(queues.waiting.drain(..)).collect();
        for task in waiting {
            if self.kept.get(&task).is_some_and(|kept| kept.state == KeptState::Queued) {
                self.fail_kept(task, failure.clone());
            }
        }
    }

    /// Gives the task of a job that ended, or of a dead keeper, no further thought.
    pub(crate) fn drop_kept(&mut self, task: TaskId) {
        if let Some(KeptState::Placed(node) | KeptState::Undurable(node)) =
            self.kept.get(&task).map(|kept| kept.state)
        {
            self.unplace(task, node);
        }
        self.kept_no_longer(task);
        if !mutant!("W42") {
            self.ends_rebuild(task, "it is kept here no longer", 0);
        }
        self.forget_kept(task);
        // Whoever referred to its value may have gone while it was kept.
        self.to_tidy.push_back(task.output(0));
    }

    pub(crate) fn set_kept_state(&mut self, task: TaskId, state: KeptState) {
        if let Some(kept) = self.kept.get_mut(&task) {
            kept.state = state;
        }
    }

    pub(crate) fn notice(&mut self, job: JobId, kind: &str, text: String, task: Option<TaskId>, bytes: u64) {
        let notice = mobula_proto::Notice {
            kind: kind.to_owned(),
            text,
            task: task.map(task_bytes).unwrap_or_default(),
            bytes,
            incarnation: self.config.incarnation.0,
        };
        self.effects.push(Effect::Notice { job, notice });
    }
}
