//! Who needs what of a run, and how records leave it (decision 14).
//!
//! The hold that a record implies is a bit per place; only what goes beyond it has an entry. Records that
//! are pruned leave their bit at once and their bytes when half of the run's have become useless, so that a
//! run is copied seldom.

use super::{Chunk, DoneSet, RUN_OVERHEAD, Run, Standing, State};
use crate::core::format::NeededDump;
use crate::core::places::Places;
use crate::core::refs::{Edge, Needed};
use bytes::{BufMut, BytesMut};
use mobula_base::ids::RUN_LEN;
use mobula_base::{ObjectId, RunId, TaskId};
use std::collections::BTreeSet;

/// How an object of a run stands with those who might need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// A node holds it.
    pub held: bool,
    /// A value contains it.
    pub contained: bool,
    /// A record names it.
    pub named: bool,
}

impl Run {
    /// `who` holds an object of the run.
    pub fn hold(&mut self, place: u16, slot: u32, who: u64) {
        let is_implied = slot == 0 && self.is_submitter(place, who) && !self.released.contains(place);
        if !is_implied {
            self.change_needed(place, slot, |needed| needed.hold(who));
        }
    }

    /// `who` holds an object of the run no longer. With its first return value the submitter lets go of
    /// whatever its record implies.
    pub fn let_go(&mut self, place: u16, slot: u32, who: u64) {
        if slot == 0 && self.is_submitter(place, who) {
            self.released.insert(place);
        }
        if self.needed.contains_key(&(place, slot)) {
            self.change_needed(place, slot, |needed| needed.let_go(who));
        }
    }

    /// As [`Run::let_go`] for the first return values at all of `places`.
    pub fn let_go_of_many(&mut self, places: &Places, who: u64) {
        let own = self.chunks_of(places).filter(|(chunk, _)| chunk.keeper == who);
        self.released = own.fold(self.released, |released, (_, of)| released.union(&of));
        let held: Vec<u16> =
            self.first_values(places).filter(|(_, n)| n.is_held_by(who)).map(|e| e.0).collect();
        for place in held {
            self.change_needed(place, 0, |needed| needed.let_go(who));
        }
    }

    /// An edge to an object of the run.
    pub fn name(&mut self, place: u16, slot: u32, by: ObjectId, contains: bool, sender: u64) {
        self.change_needed(place, slot, |needed| needed.name(by, contains, sender));
    }

    /// As [`Needed::take_orphans`], of all its objects.
    pub fn take_orphans(&mut self, id: RunId, fenced: &BTreeSet<u64>) -> Vec<(ObjectId, ObjectId, u64)> {
        let mut all = Vec::new();
        for ((place, slot), needed) in &mut self.needed {
            let object = ObjectId { task: TaskId { run: id, place: *place }, slot: *slot };
            let orphans = needed.take_orphans(|who| fenced.contains(&who));
            all.extend(orphans.into_iter().map(|(by, dead)| (object, by, dead)));
        }
        all
    }

    /// As [`Needed::unname_orphan`].
    pub fn unname_orphan(&mut self, place: u16, slot: u32, by: ObjectId) {
        if self.needed.contains_key(&(place, slot)) {
            self.change_needed(place, slot, |needed| needed.unname_orphan(by));
        }
    }

    /// The edge of an object from `by`.
    pub fn edge(&self, place: u16, slot: u32, by: ObjectId) -> Option<Edge> {
        self.needed.get(&(place, slot))?.edge(by)
    }

    /// An edge less.
    pub fn unname(&mut self, place: u16, slot: u32, by: ObjectId) {
        if self.needed.contains_key(&(place, slot)) {
            self.change_needed(place, slot, |needed| needed.unname(by));
        }
    }

    /// All holds of those who are gone have ended.
    pub fn bury(&mut self, fenced: &BTreeSet<u64>) {
        for chunk in self.chunks.iter().filter(|chunk| fenced.contains(&chunk.keeper)) {
            self.released = self.released.union(&chunk.places().intersect(&self.present));
        }
        for needed in self.needed.values_mut() {
            needed.bury(|who| fenced.contains(&who));
        }
        self.needed.retain(|_, needed| !needed.is_empty());
        self.weigh();
    }

    fn change_needed(&mut self, place: u16, slot: u32, change: impl FnOnce(&mut Needed)) {
        let needed = self.needed.entry((place, slot)).or_insert_with(|| {
            self.weight += Needed::default().weight();
            Needed::default()
        });
        self.weight -= needed.weight();
        change(needed);
        self.weight += needed.weight();
        if needed.is_empty() {
            self.weight -= needed.weight();
            self.needed.remove(&(place, slot));
        }
    }

    /// Takes one entry of a dump.
    pub(super) fn bring_needed(&mut self, dump: &NeededDump) -> Option<()> {
        let (needed, place) = (Needed::load(dump)?, u16::try_from(dump.place).ok()?);
        self.weight += needed.weight();
        self.needed.insert((place, dump.slot), needed).is_none().then_some(())
    }

    fn is_submitter(&self, place: u16, who: u64) -> bool {
        self.present.contains(place) && self.chunk(place).is_some_and(|chunk| chunk.keeper == who)
    }

    fn first_values<'a>(&'a self, places: &'a Places) -> impl Iterator<Item = (u16, &'a Needed)> + 'a {
        let firsts = self.needed.iter().filter(|((place, slot), _)| *slot == 0 && places.contains(*place));
        firsts.map(|((place, _), needed)| (*place, needed))
    }

    /// Who needs an object of the run.
    pub fn need(&self, place: u16, slot: u32, fenced: &BTreeSet<u64>) -> Need {
        let mut need = self.needed.get(&(place, slot)).map_or(Need::default(), |needed| Need {
            held: needed.is_held(),
            contained: needed.is_contained(),
            named: needed.is_named(),
        });
        // What the record implies is about all that the task returns.
        need.held |= slot < mobula_base::ids::FIRST_PUT_SLOT && self.is_held_by_submitter(place, fenced);
        need
    }

    /// Who holds anything of it beyond what records imply.
    pub fn explicit_holders(&self) -> impl Iterator<Item = u64> + '_ {
        self.needed.values().flat_map(Needed::holders)
    }

    /// Places among these whose first value has an entry.
    pub fn with_entries(&self, places: &Places) -> Vec<u16> {
        self.first_values(places).map(|(place, _)| place).collect()
    }

    /// Places among these that whoever submitted them still holds.
    pub fn held_by_submitters(&self, places: &Places, fenced: &BTreeSet<u64>) -> Places {
        let mut held = Places::default();
        for (_, of) in self.chunks_of(places).filter(|(chunk, _)| !fenced.contains(&chunk.keeper)) {
            held = held.union(&of.without(&self.released));
        }
        held
    }

    /// Whether the task at `place` has a record, and has ended.
    pub fn has_ended(&self, place: u16) -> bool {
        self.ended.contains(place)
    }

    fn is_held_by_submitter(&self, place: u16, fenced: &BTreeSet<u64>) -> bool {
        self.present.contains(place)
            && !self.released.contains(place)
            && self.chunk(place).is_some_and(|chunk| !fenced.contains(&chunk.keeper))
    }

    /// Whether `who` holds anything of it, answers for a task of it, or submitted one that has not ended; or
    /// may have spoken of edges.
    pub fn concerns(&self, who: u64) -> bool {
        let is_kept =
            |(place, standing): (&u16, &Standing)| standing.keeper == who && !self.ended.contains(*place);
        let settled = self.released.intersect(&self.ended);
        let holds = |chunk: &Chunk| {
            chunk.keeper == who && !chunk.places().intersect(&self.present).is_within(&settled)
        };
        self.chunks.iter().rev().any(holds)
            || self.needed.values().any(|needed| needed.has_edges() || needed.is_held_by(who))
            || self.different.iter().any(is_kept)
    }

    /// All whom it concerns.
    pub fn concerned(&self) -> BTreeSet<u64> {
        let submitters = self.chunks.iter().map(|chunk| chunk.keeper);
        let holders = self.needed.values().flat_map(|needed| needed.holders().chain(needed.senders()));
        let keepers = self.different.values().map(|standing| standing.keeper);
        let all: BTreeSet<u64> = submitters.chain(holders).chain(keepers).collect();
        all.into_iter().filter(|who| self.concerns(*who)).collect()
    }

    /// Places among these whose record has ended, or was given up, and that nobody needs; or that has not
    /// ended, and neither who submitted it nor who answers for it lives. `id` is this run's.
    pub fn over(&self, id: RunId, among: &Places, fenced: &BTreeSet<u64>) -> Places {
        let mut over = Places::default();
        if !self.counts {
            return over;
        }
        for (chunk, mut of) in self.chunks_of(among) {
            if fenced.contains(&chunk.keeper) {
                let end = chunk.first + chunk.count;
                let kept = self.different.range(chunk.first..end);
                let kept = kept.filter(|(_, s)| s.state == State::Pending && !fenced.contains(&s.keeper));
                kept.filter(|(_, s)| s.keeper != 0).for_each(|(place, _)| of.remove(*place));
            } else {
                of = of.intersect(&self.released).intersect(&self.ended.union(&self.abandoned(&of)));
            }
            over = over.union(&of);
        }
        if !self.needed.is_empty() {
            for place in over.iter().collect::<Vec<u16>>() {
                // What a task has put lies in its own value, say: that edge goes with its record.
                let own = TaskId { run: id, place }.output(0);
                if self.needed_at(place).any(|(_, needed)| !needed.is_only_by(own)) {
                    over.remove(place);
                }
            }
        }
        over
    }

    /// Those of `places` that have not ended and that nobody sees to.
    fn abandoned(&self, places: &Places) -> Places {
        let mut abandoned = Places::default();
        let given_up = self.different.iter().filter(|(_, s)| s.keeper == 0 && s.state == State::Pending);
        for (place, _) in given_up.filter(|(place, _)| places.contains(**place)) {
            abandoned.insert(*place);
        }
        abandoned
    }

    /// Who needs the objects of a place beyond the hold of its record, by slot: for whoever asks why it stays.
    pub fn needed_of(&self, place: u16) -> impl Iterator<Item = (u32, &Needed)> {
        self.needed_at(place)
    }

    fn needed_at(&self, place: u16) -> impl Iterator<Item = (u32, &Needed)> {
        let all = self.needed.range((place, 0)..=(place, u32::MAX));
        all.map(|((_, slot), needed)| (*slot, needed))
    }

    /// The chunks with records at some of `places`, and which.
    fn chunks_of(&self, places: &Places) -> impl Iterator<Item = (&Chunk, Places)> {
        let mut left = places.intersect(&self.present);
        std::iter::from_fn(move || {
            let chunk = self.chunk(left.first()?)?;
            let of = chunk.places().intersect(&left);
            left = left.without(&of);
            Some((chunk, of))
        })
    }

    /// Those of `places` that name and contain nothing, and need not stay until the job ends.
    pub fn plain(&self, places: &Places) -> Places {
        let mut plain = Places::default();
        for (_, of) in self.chunks_of(places).filter(|(chunk, _)| chunk.plain) {
            plain = plain.union(&of);
        }
        if !self.different.is_empty() {
            for place in plain.iter().collect::<Vec<u16>>() {
                if self.different.get(&place).is_some_and(|standing| !standing.contains().is_empty()) {
                    plain.remove(place);
                }
            }
        }
        plain
    }

    /// Takes records out. `id` is this run's.
    pub fn prune(&mut self, id: RunId, places: &Places) {
        self.present = self.present.without(places);
        self.ended = self.ended.without(places);
        self.released = self.released.without(places);
        self.pruned = self.pruned.union(places);
        for place in places.iter() {
            if let Some(old) = self.different.remove(&place) {
                self.weight -= old.weight();
            }
            // Nobody is left who could say that this edge has ended.
            let own = TaskId { run: id, place }.output(0);
            let slots: Vec<u32> = self.needed_at(place).map(|(slot, _)| slot).collect();
            slots.into_iter().for_each(|slot| self.unname(place, slot, own));
        }
        if self.present.len() * 2 <= self.kept as usize {
            self.shed();
        }
    }

    /// Whether a record was at `place` and is no more.
    pub fn was_pruned(&self, place: u16) -> bool {
        self.pruned.contains(place)
    }

    /// Those of `places` where a record was and is no more.
    pub fn pruned_of(&self, places: &Places) -> Places {
        self.pruned.intersect(places)
    }

    /// All places that had a record.
    pub fn past(&self) -> Places {
        self.pruned
    }

    /// Which places had a record, in a run that was gone: beside those of which that is known.
    pub fn remember(&mut self, pruned: Places) {
        self.pruned = self.pruned.union(&pruned).without(&self.present);
    }

    /// Whether there is neither a record nor anybody who needs one.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty() && self.needed.is_empty()
    }

    /// Lets the bytes of pruned records go.
    pub(super) fn shed(&mut self) {
        let present = self.present;
        self.chunks = self.chunks.iter().flat_map(|chunk| chunk.carve(&present)).collect();
        self.dones = self.dones.iter().filter_map(|done| done.carve(&present)).collect();
        self.kept = self.chunks.iter().map(|chunk| u32::from(chunk.count)).sum();
        self.weigh();
    }

    fn weigh(&mut self) {
        self.weight = RUN_OVERHEAD
            + self.chunks.iter().map(|chunk| chunk.weight() + size_of::<Chunk>()).sum::<usize>()
            + self.dones.iter().map(|done| done.outputs.len() + size_of::<DoneSet>()).sum::<usize>()
            + self.different.values().map(Standing::weight).sum::<usize>()
            + self.needed.values().map(Needed::weight).sum::<usize>();
    }
}

impl Chunk {
    /// What is left of it, in pieces without holes.
    fn carve(&self, present: &Places) -> Vec<Chunk> {
        let left = self.places().intersect(present);
        if left.len() == usize::from(self.count) {
            return vec![self.clone()];
        }
        let (mut pieces, mut places) = (Vec::new(), left.iter().peekable());
        while let Some(first) = places.next() {
            let mut last = first;
            while let Some(next) = places.next_if(|next| *next == last + 1) {
                last = next;
            }
            pieces.push(self.piece(first, last));
        }
        pieces
    }

    fn piece(&self, first: u16, last: u16) -> Chunk {
        let (mut digests, mut ends, mut specs) = (BytesMut::new(), BytesMut::new(), BytesMut::new());
        for place in first..=last {
            let (digest, spec) = self.record(place).unwrap_or_default();
            digests.put_u64_le(digest);
            specs.put_slice(&spec);
            ends.put_u32_le(specs.len() as u32);
        }
        let body = super::Body::packed(&digests, &ends, &specs);
        Chunk { first, count: last - first + 1, body, ..*self }
    }
}

impl DoneSet {
    /// What is left of it.
    fn carve(&self, present: &Places) -> Option<DoneSet> {
        let left = self.places.intersect(present);
        if left == self.places {
            return Some(self.clone());
        }
        let mut outputs = BytesMut::with_capacity(left.len() * super::OUTPUT_LEN);
        for place in left.iter() {
            let output = self.output(place);
            outputs.put_u32_le(output.crc);
            outputs.put_u64_le(output.size);
        }
        let done =
            DoneSet { places: left, outputs: outputs.freeze(), holders: self.holders.clone(), ..*self };
        (!left.is_empty()).then_some(done)
    }
}

/// All places of a run.
pub fn all_places() -> Places {
    Places::range(0, RUN_LEN as usize).expect("a whole run")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::prune::only;

    #[test]
    fn a_run_that_comes_back_with_its_slot_knows_all_that_it_has_lost() {
        let mut run = Run::new(7, true);
        // What came with the slot, and what is remembered of the time before it left.
        run.remember(only(8));
        run.remember(only(1));
        assert!(run.was_pruned(8) && run.was_pruned(1) && !run.was_pruned(2));
    }
}
