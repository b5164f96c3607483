//! What this node keeps for bundles of placement groups: an exact ledger.
//!
//! The table of groups says what is to be reserved here (it comes with the views); a *claim* waits for room, then
//! it is *held*, and once the table has committed it tasks of its group run in it. What is held is given back when
//! the table says that it is not wanted any more, never before: whoever hears late that it was held still relies
//! on it. While a claim waits, no task begins that would take what it needs, but for re-executions (R16).

use crate::core::Core;
use crate::types::Effect;
use mobula_base::devices::Devices;
use mobula_base::resources::GPU;
use mobula_base::{GroupId, Resources, mutant};
use mobula_proto::{Claim, InGroup};
use std::collections::{BTreeMap, BTreeSet};

/// A bundle of a group, and the attempt by which it came here.
pub(crate) type Hold = (GroupId, u32, u64);

/// What is kept for a bundle, and what of it no task uses.
#[derive(Debug)]
struct Reservation {
    demand: Resources,
    free: Resources,
    devices: Devices,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Those that wait for room, in the order in which they came.
    waiting: Vec<(Hold, Resources)>,
    held: BTreeMap<Hold, Reservation>,
    /// Those of `held` that are committed.
    placed: BTreeSet<Hold>,
}

impl Ledger {
    fn of_group(&self, group: InGroup) -> impl Iterator<Item = (&Hold, &Reservation)> {
        let id = GroupId(group.group);
        let all = self.held.range((id, 0, 0)..=(id, u32::MAX, u64::MAX));
        let is_meant = move |hold: &Hold| group.bundle.is_none_or(|bundle| bundle == hold.1);
        all.filter(move |(hold, _)| is_meant(hold) && self.placed.contains(hold))
    }

    /// The bundle in which a task of a group could begin now.
    pub(crate) fn room_for(&self, group: InGroup, demand: &Resources) -> Option<Hold> {
        let fits = |kept: &Reservation| kept.free.fits(demand) && kept.devices.fits(demand.of(GPU));
        self.of_group(group).find(|(_, kept)| fits(kept)).map(|(hold, _)| *hold)
    }

    /// Whether a waiting claim needs some of what `demand` would take out of `free`.
    fn bars(&self, demand: &Resources, free: &Resources) -> bool {
        let short = |claimed: u64, free: u64, wanted: u64| {
            claimed > 0 && wanted > 0 && free < claimed.saturating_add(wanted)
        };
        self.waiting.iter().any(|(_, claim)| {
            let mut named = demand.named.iter();
            short(claim.cpu_milli, free.cpu_milli, demand.cpu_milli)
                || named.any(|(name, milli)| short(claim.of(name), free.of(name), *milli))
        })
    }

    /// What is free and what is reserved and unused, together.
    pub(crate) fn sum(&self, mut free: Resources, mut devices: Devices) -> (Resources, Devices) {
        for kept in self.held.values() {
            free.give(&kept.free);
            devices.join(&kept.devices);
        }
        (free, devices)
    }

    /// What each reservation has, for whoever checks it: in all, and unused.
    pub(crate) fn reservations(&self) -> impl Iterator<Item = (&Hold, &Resources, &Resources)> {
        self.held.iter().map(|(hold, kept)| (hold, &kept.demand, &kept.free))
    }
}

/// Where a lease takes from and gives back to: a reservation, or what is for all.
pub(crate) fn pool<'a>(
    free: &'a mut Resources,
    devices: &'a mut Devices,
    ledger: &'a mut Ledger,
    from: Option<Hold>,
) -> (&'a mut Resources, &'a mut Devices) {
    match from {
        None => (free, devices),
        Some(hold) => {
            let kept = ledger.held.get_mut(&hold).expect("a lease in a reservation ends with it");
            (&mut kept.free, &mut kept.devices)
        }
    }
}

impl Core {
    /// The table wants these reserved here, and says which of them are committed. Everything else is given back.
    pub(crate) fn settle_claims(&mut self, wanted: &BTreeMap<Hold, (Resources, bool)>) {
        let stale = |hold: &&Hold| !wanted.contains_key(hold) && !mutant!("P4");
        let over: Vec<Hold> = self.ledger.held.keys().filter(stale).copied().collect();
        over.into_iter().for_each(|hold| self.give_back(hold));
        self.ledger.waiting.retain(|(hold, _)| wanted.contains_key(hold));
        for (hold, (demand, placed)) in wanted {
            let known = self.ledger.held.contains_key(hold)
                || self.ledger.waiting.iter().any(|(waiting, _)| waiting == hold);
            if !known {
                self.ledger.waiting.push((*hold, demand.clone()));
            }
            if *placed {
                self.ledger.placed.insert(*hold);
            }
        }
        // Older attempts first: they were there before.
        self.ledger.waiting.sort_by_key(|((group, bundle, attempt), _)| (*attempt, *group, *bundle));
    }

    /// Reserves what waits and fits.
    pub(crate) fn grant_claims(&mut self) {
        if self.ledger.waiting.is_empty() {
            return;
        }
        let (free, devices, held) = (&mut self.free, &mut self.devices, &mut self.ledger.held);
        let before = held.len();
        self.ledger.waiting.retain(|(hold, demand)| {
            let fits = free.fits(demand) && devices.fits(demand.of(GPU));
            if fits {
                free.take(demand);
                let (demand, devices) = (demand.clone(), devices.carve(demand.of(GPU)));
                held.insert(*hold, Reservation { free: demand.clone(), demand, devices });
            }
            !fits
        });
        if self.ledger.held.len() > before {
            self.effects.push(Effect::TellClaims);
        }
    }

    /// A reservation ends: what is unused is for all again, and what tasks use will be when they end.
    fn give_back(&mut self, hold: Hold) {
        let Some(kept) = self.ledger.held.remove(&hold) else { return };
        self.ledger.placed.remove(&hold);
        self.free.give(&kept.free);
        self.devices.join(&kept.devices);
        for lease in self.workers.values_mut().filter_map(|worker| worker.lease.as_mut()) {
            if lease.from == Some(hold) {
                lease.from = None;
            }
        }
    }

    /// Whether a task of a class had better not begin here now: a claim waits for what it would take.
    pub(crate) fn is_barred(&self, class: usize) -> bool {
        let class = &self.classes[class];
        !self.ledger.waiting.is_empty()
            && class.group.is_none()
            && self.ledger.bars(&class.demand, &self.free)
    }

    /// What is to be reserved here for bundles that are not committed yet, and whether it is.
    pub fn claims(&self) -> Vec<Claim> {
        let claim = |&(group, bundle, attempt): &Hold, held| Claim { group: group.0, bundle, attempt, held };
        let held = self.ledger.held.keys().filter(|hold| !self.ledger.placed.contains(hold));
        let waiting = self.ledger.waiting.iter().map(|(hold, _)| claim(hold, false));
        held.map(|hold| claim(hold, true)).chain(waiting).collect()
    }

    /// What this node keeps for bundles, of which attempt.
    pub fn holds(&self) -> impl Iterator<Item = (GroupId, u32, u64)> + '_ {
        self.ledger.held.keys().copied()
    }
}
