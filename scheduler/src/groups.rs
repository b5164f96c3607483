//! Placement groups as this node knows them from the views, and tasks that run in them.
//!
//! A task names its group by id and by the revision that made it: a view that is as new and has no such group says
//! that it is gone, an older one says nothing, and the task waits. Inside a group a task goes where its bundle is;
//! of several that it may use, to the node where this one has the least under way.
//!
//! `watch`: who is told of it. `back`: what becomes of tasks beside groups whose room these have taken.

mod back;
mod watch;

pub use back::PLACE_AGAIN_AFTER;
pub use watch::WATCHES_MAX;

use crate::core::{Core, KeptState};
use crate::execute::Run;
use crate::placement::{Class, LOCALITY_MIN, Member};
use crate::reserve::Hold;
use crate::strategy;
use crate::types::ClientId;
use mobula_base::devices::Devices;
use mobula_base::resources::GPU;
use mobula_base::{GroupId, Incarnation, JobId, Resources, TaskId, mutant};
use mobula_proto::{ClusterView, Failure, FailureKind, GroupView, InGroup, Placement, TaskSpec};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A bundle and where it is.
#[derive(Debug)]
struct Bundle {
    demand: Resources,
    /// Where tasks may run in it.
    placed: Option<Incarnation>,
}

#[derive(Debug)]
struct Known {
    bundles: Vec<Bundle>,
    view: GroupView,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Of the view that this reflects.
    version: u64,
    known: BTreeMap<GroupId, Known>,
    watched: BTreeMap<ClientId, BTreeMap<GroupId, u64>>,
    /// Runs of this node that are in a group.
    pub(crate) runs: u64,
}

/// Whether a task of a group can go somewhere.
pub(crate) enum Standing {
    /// A bundle that takes it has its place.
    Open,
    /// It waits for that, or for word of the group.
    Waits,
    /// It never will.
    Never(Failure),
}

/// What a run keeps of its task's placement: its group. Everything else has been decided.
pub(crate) fn of_run(spec: &TaskSpec) -> Option<Placement> {
    let group = spec.placement()?.group?;
    Some(Placement { group: Some(group), ..Placement::default() })
}

/// Why a task's wishes do not go together, if they do not.
pub(crate) fn contradiction(spec: &TaskSpec) -> Option<&'static str> {
    let placement = spec.placement().filter(|placement| placement.group.is_some())?;
    let more = placement.spread || placement.node.is_some() || !placement.labels.is_empty();
    more.then_some(
        "a task in a placement group runs where its bundle is: it cannot be spread, or choose a node or labels, too",
    )
}

fn gone(group: InGroup) -> Failure {
    let message = format!(
        "placement group {:016x} is no more (it was removed, or its job has ended), so nothing runs in it",
        group.group
    );
    Failure::new(FailureKind::FailureGroupRemoved, message)
}

impl Groups {
    /// Whether a group is known to be no more.
    pub(crate) fn is_gone(&self, group: InGroup) -> bool {
        match self.known.get(&GroupId(group.group)) {
            Some(known) => known.view.since > group.since,
            None => self.version >= group.since,
        }
    }

    fn get(&self, group: InGroup) -> Option<&Known> {
        self.known.get(&GroupId(group.group)).filter(|known| known.view.since == group.since)
    }

    /// Bundles that a task of a group may use, and that are large enough.
    fn usable<'a>(&'a self, group: InGroup, demand: &'a Resources) -> impl Iterator<Item = &'a Bundle> {
        let bundles = self.get(group).map(|known| &known.bundles[..]).unwrap_or_default();
        let numbered =
            (0..).zip(bundles).filter(move |(n, _)| group.bundle.is_none_or(|bundle| bundle == *n));
        let has = |bundle: &Bundle| {
            let gpus = demand.of(GPU);
            bundle.demand.fits(demand) && (gpus < 1000 || Devices::is_amount(gpus))
        };
        numbered.map(|(_, bundle)| bundle).filter(move |bundle| has(bundle))
    }

    /// Whether tasks of a class can go somewhere.
    pub(crate) fn standing(&self, class: &Class, group: InGroup, job: JobId) -> Standing {
        if self.is_gone(group) {
            return Standing::Never(gone(group));
        }
        let Some(known) = self.get(group) else { return Standing::Waits };
        let bad = |message| Standing::Never(Failure::new(FailureKind::FailureBadArguments, message));
        if known.view.job != job.0 {
            return bad(format!("placement group {:016x} belongs to another job", group.group));
        }
        let count = known.bundles.len();
        if let Some(bundle) = group.bundle.filter(|bundle| *bundle as usize >= count) {
            return bad(format!(
                "there is no bundle {bundle}: placement group {:016x} has {count}, numbered from 0",
                group.group
            ));
        }
        let mut usable = self.usable(group, &class.demand).peekable();
        if usable.peek().is_none() {
            return Standing::Never(Failure::new(
                FailureKind::FailureInfeasible,
                known.too_small(class, group),
            ));
        }
        if usable.any(|bundle| bundle.placed.is_some()) { Standing::Open } else { Standing::Waits }
    }
}

impl Known {
    fn too_small(&self, class: &Class, group: InGroup) -> String {
        let which = match group.bundle {
            Some(bundle) => {
                format!("bundle {bundle} of its placement group has {}", self.bundles[bundle as usize].demand)
            }
            None => {
                let largest = self.bundles.iter().max_by_key(|bundle| bundle.demand.cpu_milli);
                let largest = largest.map(|bundle| bundle.demand.clone()).unwrap_or_default();
                format!("no bundle of its placement group has that (the largest has {largest})")
            }
        };
        format!("the task can never be placed: it asks for {}, and {which}; ask for less", class.demand)
    }
}

impl Core {
    /// A newer view: what is reserved here follows it, and who waits for a group is told.
    pub(crate) fn groups_seen(&mut self, view: &ClusterView) {
        if view.version < self.groups.version {
            return;
        }
        self.groups.version = view.version;
        if view.groups.is_empty() && self.groups.known.is_empty() {
            return self.tell_watchers(&[]);
        }
        let me = self.config.incarnation;
        let mut wanted: BTreeMap<Hold, (Resources, bool)> = BTreeMap::new();
        for member in self.members.values_mut().chain([&mut self.me]) {
            member.open = member.total.clone();
        }
        let mut known = BTreeMap::new();
        let mut changed = Vec::new();
        for group in &view.groups {
            let id = GroupId(group.group);
            let mut bundles = Vec::new();
            for (number, bundle) in (0..).zip(&group.bundles) {
                let demand = bundle.bundle.as_ref().map(|bundle| bundle.demand()).unwrap_or_default();
                let node = Incarnation(bundle.node);
                if node == me {
                    wanted.insert((id, number, bundle.attempt), (demand.clone(), bundle.placed));
                    self.me.keep_back(&demand);
                }
                if let Some(member) = self.members.get_mut(&node) {
                    member.keep_back(&demand);
                }
                bundles.push(Bundle { demand, placed: bundle.placed.then_some(node) });
            }
            let before = self.groups.known.get(&id);
            if before.is_none_or(|before| before.view != *group) {
                changed.push(id);
                let before = before.map(|before| before.view.why.clone());
                self.say_why(group, before.as_deref().unwrap_or(""), view);
            }
            known.insert(id, Known { bundles, view: group.clone() });
        }
        self.groups.known = known;
        self.settle_claims(&wanted);
        self.end_gone();
        self.tell_watchers(&changed);
    }

    /// Runs of groups that are no more end.
    fn end_gone(&mut self) {
        if self.groups.runs == 0 {
            return;
        }
        let of = |run: &Run| self.classes[run.class].group.filter(|group| self.groups.is_gone(*group));
        for task in self.runs.sorted_keys(|run| of(run).is_some()) {
            let group = self.runs.get(&task).and_then(|run| self.classes[run.class].group);
            group.into_iter().for_each(|group| self.stop_run(task, gone(group)));
        }
    }

    /// Why a run of a class is to end, if its group is no more.
    pub(crate) fn gone_class(&self, class: usize) -> Option<Failure> {
        self.classes[class].group.filter(|group| self.groups.is_gone(*group)).map(gone)
    }

    /// Whether a bundle that takes tasks of a class has its place.
    pub(crate) fn is_open(&self, class: &Class, group: InGroup) -> bool {
        self.groups.usable(group, &class.demand).any(|bundle| bundle.placed.is_some())
    }

    /// Whether all that the tasks of a class could use, wherever they may run, is kept for placement groups.
    pub(crate) fn is_kept_back(&self, index: usize) -> bool {
        let Class { demand, placement, group, .. } = &self.classes[index];
        let me = (&self.config.incarnation, &self.me);
        let all = [me].into_iter().chain(&self.members);
        let mut admitting =
            all.filter(|(node, member)| strategy::admits(demand, placement.as_ref(), **node, member));
        group.is_none() && admitting.all(|(_, member)| !member.open.fits(demand))
    }

    /// Places a kept task in its group; false when no node has room now.
    pub(crate) fn place_in_group(
        &mut self,
        class: usize,
        task: TaskId,
        group: InGroup,
        urgent: bool,
    ) -> bool {
        let Some(kept) = self.kept.get(&task) else { return true };
        match self.groups.standing(&self.classes[class], group, JobId(kept.spec.job)) {
            Standing::Never(failure) => {
                self.fail_kept(task, failure);
                true
            }
            Standing::Waits => false,
            Standing::Open => match self.pick_in_group(class, task, group, urgent) {
                Some(node) => {
                    self.hand_over(class, task, node);
                    true
                }
                None => false,
            },
        }
    }

    /// The node with a bundle that takes the task: where its arguments are, then here, then where there is least.
    fn pick_in_group(&self, index: usize, task: TaskId, group: InGroup, urgent: bool) -> Option<Incarnation> {
        let (me, class, kept) = (self.config.incarnation, &self.classes[index], self.kept.get(&task)?);
        debug_assert_eq!(kept.state, KeptState::Queued);
        let mut slots: BTreeMap<Incarnation, u64> = BTreeMap::new();
        for bundle in self.groups.usable(group, &class.demand) {
            let Some(node) = bundle.placed else { continue };
            let more = bundle.demand.times(&class.demand).unwrap_or(1);
            let sum = slots.entry(node).or_default();
            *sum = sum.saturating_add(more);
        }
        let bytes = self.bytes_by_node(&kept.spec);
        let most = bytes.values().copied().max().unwrap_or(0);
        let per_slot = self.depth(kept.spec.function) + 1;
        let rank = |(node, slots): (Incarnation, u64)| {
            let load = if node == me { self.group_runs(group) } else { self.sent(node, index) };
            let room = slots.saturating_mul(per_slot).max(1);
            let near = bytes.get(&node).copied().unwrap_or(0) + LOCALITY_MIN > most;
            let full = load.saturating_mul(1_000_000) / room;
            let (fits, turn) = (load < room, node > me);
            (urgent || fits).then_some((near, fits, fits && node == me, Reverse(full), turn, Reverse(node)))
        };
        let there = slots.into_iter().filter(|(node, _)| *node == me || self.members.contains_key(node));
        there.filter_map(rank).max().map(|(.., Reverse(node))| node)
    }

    fn sent(&self, node: Incarnation, class: usize) -> u64 {
        u64::from(self.placed_scarce.get(&(node, class)).copied().unwrap_or(0))
    }

    /// Runs of this node that use what tasks with this wish may use. One that waits inside has given its CPU back,
    /// and may wait for a task that is to come here; unless it holds something else.
    fn group_runs(&self, group: InGroup) -> u64 {
        let is_it = |run: &&Run| {
            self.classes[run.class].group.is_some_and(|other| {
                other.group == group.group && (group.bundle.is_none() || other.bundle == group.bundle)
            })
        };
        let waits = |run: &Run| {
            let worker = run.given.and_then(|worker| self.workers.get(&worker));
            let holds_more = !self.classes[run.class].demand.named.is_empty();
            worker.is_some_and(|worker| worker.blocked) && !holds_more && !mutant!("W31")
        };
        self.runs.values().filter(is_it).filter(|run| !waits(run)).count() as u64
    }

    /// A class of a group that is no more, of which nothing is left: another may have its place.
    pub(crate) fn vacant_class(&mut self) -> Option<usize> {
        let is_empty = |class: &Class| {
            let queues = [&class.urgent, &class.waiting, &class.runs_urgent, &class.runs];
            queues.into_iter().all(|queue| queue.is_empty()) && class.held.is_empty()
        };
        let vacant = (0..self.classes.len()).find(|index| {
            let class = &self.classes[*index];
            class.group.is_some_and(|group| self.groups.is_gone(group))
                && is_empty(class)
                && !self.runs.values().any(|run| run.class == *index)
                && !self.workers.values().any(|w| w.lease.as_ref().is_some_and(|lease| lease.class == *index))
        })?;
        self.placed_scarce.retain(|(_, class), _| *class != vacant);
        Some(vacant)
    }
}

impl Member {
    /// Some of what it offers is for bundles.
    fn keep_back(&mut self, demand: &Resources) {
        self.open.cpu_milli = self.open.cpu_milli.saturating_sub(demand.cpu_milli);
        for (name, milli) in &demand.named {
            if let Some(open) = self.open.named.get_mut(name) {
                *open = open.saturating_sub(*milli);
            }
        }
    }
}
