//! What the leader of shard 0 does next about placement groups.
//!
//! Functions of the table ([`crate::core::groups`]) and of what the nodes have said, asked again after every
//! step. Nothing else is remembered that matters: whoever leads next goes on from the table, and hears the
//! nodes again. So a coordinator may die at any step, and a message be lost, late or doubled.
//!
//! Places are looked for where the table has room, first among what is free at once. Nodes bring the rest about:
//! what is to be reserved there goes before tasks that have not begun. One attempt waits for that no longer than
//! [`PATIENCE`]: tasks that hold what it needs may themselves wait for what it keeps back.
//!
//! Read [`plan`] (which bundle where), this file, [`driver`] (the doing).

pub mod driver;
mod explain;
pub mod plan;
#[cfg(test)]
mod tests;

use crate::core::groups::{Group, Groups, Stage, shortened};
use mobula_base::{Resources, mutant};
use mobula_proto as proto;
use proto::GroupStrategy;
use proto::group_command::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// So long an attempt may wait for tasks that have begun.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// So long a group waits after an attempt that was given up; twice as long after the next.
pub const PAUSE: Duration = Duration::from_secs(1);
/// It doubles so often at most: what a claim keeps back in vain must not be most of what there is, most of the time.
const DOUBLINGS_MAX: u32 = 5;
/// Groups for which places are looked for in one look.
pub const PLANS_MAX: usize = 16;

/// What a live node has said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// What people call it.
    pub name: String,
    /// What it offers.
    pub total: Resources,
    /// What was neither reserved nor in use when it was heard last.
    pub free: Resources,
    /// What it has reserved and the table has not committed: group, bundle, attempt.
    pub held: BTreeSet<(u64, u32, u64)>,
    /// Whether it was heard in this term.
    pub heard: bool,
    /// Whether it can reserve.
    pub reserves: bool,
}

impl Offer {
    fn counts(&self) -> bool {
        self.heard && self.reserves
    }
}

/// When attempts began, as this leader saw it. A leader that forgets all of it is only slower to give up.
#[derive(Debug, Default)]
pub struct Pace {
    began: BTreeMap<u64, (u64, Duration)>,
    /// Until when, and after how many attempts.
    rests: BTreeMap<u64, (Duration, u32)>,
    /// For which no place was found, and what the table and the nodes were then.
    vain: BTreeMap<u64, u64>,
}

/// The next step, if one is due. `inputs` is another number whenever the table, the nodes, or what they offer
/// in all have changed.
pub fn next_step(
    groups: &Groups,
    nodes: &BTreeMap<u64, Offer>,
    inputs: u64,
    pace: &mut Pace,
    now: Duration,
) -> Option<Op> {
    pace.forget_but(groups);
    let mut in_order: Vec<(&u64, &Group)> = groups.all().iter().collect();
    in_order.sort_by_key(|(id, group)| (group.since, **id));
    let mut plans = 0;
    for (id, group) in in_order {
        let step = match group.stage() {
            Stage::Placed => {
                pace.rests.remove(id);
                None
            }
            Stage::Reserves(attempt) => reserving(*id, group, attempt, nodes, pace, now),
            Stage::Waits if pace.rests.get(id).is_some_and(|(until, _)| now < *until) => None,
            Stage::Waits if plans >= PLANS_MAX || pace.vain.get(id) == Some(&inputs) => None,
            Stage::Waits => {
                plans += 1;
                pace.vain.insert(*id, inputs);
                place(*id, group, groups, nodes)
            }
        };
        if step.is_some() {
            return step;
        }
    }
    None
}

impl Pace {
    /// A step was not taken, as far as is known: what follows from the same is looked for again.
    pub fn look_again(&mut self) {
        self.vain.clear();
    }

    fn forget_but(&mut self, groups: &Groups) {
        let there = |id: &u64| groups.all().contains_key(id);
        self.began.retain(|id, _| there(id));
        self.rests.retain(|id, _| there(id));
        self.vain.retain(|id, _| there(id));
    }
}

/// An attempt is under way: it ends when all that it needs is reserved, or after a while.
fn reserving(
    id: u64,
    group: &Group,
    attempt: u64,
    nodes: &BTreeMap<u64, Offer>,
    pace: &mut Pace,
    now: Duration,
) -> Option<Op> {
    let open = group.places.iter().zip(0..).filter(|(place, _)| place.attempt == attempt && !place.placed);
    let held = |place: &crate::core::groups::Place, bundle: u32| {
        nodes.get(&place.node).is_some_and(|node| node.held.contains(&(id, bundle, attempt)))
    };
    let (mut all, mut some) = (true, false);
    for (place, bundle) in open {
        let held = held(place, bundle);
        (all, some) = (all && held, some || held);
    }
    if all || some && mutant!("P3") {
        return Some(Op::Commit(proto::CommitGroup { group: id, attempt }));
    }
    let began = pace.began.entry(id).or_insert((attempt, now));
    if began.0 != attempt {
        *began = (attempt, now);
    }
    if now.saturating_sub(began.1) < PATIENCE {
        return None;
    }
    let failed = pace.rests.get(&id).map_or(0, |(_, failed)| *failed);
    pace.rests.insert(id, (now + PAUSE * (1 << failed), (failed + 1).min(DOUBLINGS_MAX)));
    // Where nothing has changed since, what is free may have.
    pace.vain.remove(&id);
    Some(Op::GiveUp(proto::GiveUpGroup { group: id, attempt }))
}

/// Looks for places, or says why there are none.
fn place(id: u64, group: &Group, groups: &Groups, nodes: &BTreeMap<u64, Offer>) -> Option<Op> {
    let rooms: BTreeMap<u64, Resources> = nodes
        .iter()
        .filter(|(_, node)| node.counts())
        .map(|(number, node)| (*number, minus(&node.total, &groups.assigned(*number))))
        .collect();
    let free = rooms.iter().map(|(number, room)| (*number, least(room, &nodes[number].free))).collect();
    let open: Vec<(u32, Resources)> = group
        .bundles()
        .filter(|(_, _, at)| at.node == 0)
        .map(|(number, demand, _)| (number, demand))
        .collect();
    let taken: Vec<u64> = group.places.iter().map(|place| place.node).filter(|node| *node != 0).collect();
    let strategy = group.wanted.strategy();
    let found =
        plan::plan(strategy, &open, &taken, &free).or_else(|| plan::plan(strategy, &open, &taken, &rooms));
    if let Some(places) = found {
        let places = places.into_iter().map(|(bundle, node)| proto::BundlePlace { bundle, node });
        return Some(Op::Assign(proto::AssignGroup {
            group: id,
            after: group.attempt,
            places: places.collect(),
        }));
    }
    // Who has not been heard may have what is missing.
    if nodes.values().any(|node| !node.heard) {
        return None;
    }
    let why = shortened(&explain::why(group, &open, &taken, nodes, &rooms));
    (why != group.why).then_some(Op::Note(proto::NoteGroup { group: id, since: group.since, why }))
}

/// What is left; nothing where less is there.
fn minus(have: &Resources, less: &Resources) -> Resources {
    let named = have.named.iter().map(|(name, milli)| (name.clone(), milli.saturating_sub(less.of(name))));
    Resources::new(have.cpu_milli.saturating_sub(less.cpu_milli), named)
}

/// Of each the smaller amount.
fn least(one: &Resources, other: &Resources) -> Resources {
    let named = one.named.iter().map(|(name, milli)| (name.clone(), (*milli).min(other.of(name))));
    Resources::new(one.cpu_milli.min(other.cpu_milli), named)
}

/// What a strategy is called, for people.
pub fn say(strategy: GroupStrategy) -> &'static str {
    match strategy {
        GroupStrategy::GroupPack => "pack",
        GroupStrategy::GroupSpread => "spread",
        GroupStrategy::GroupStrictPack => "strict pack",
        GroupStrategy::GroupStrictSpread => "strict spread",
        GroupStrategy::GroupUnspecified => "no strategy",
    }
}
