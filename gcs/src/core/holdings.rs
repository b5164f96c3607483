//! Who holds which copies, for one term, from the nodes' reports (R9). Not replicated, and pure: time is
//! handed in, as what has passed since some start of the caller's.

use super::ShardState;
use super::run::State;
use mobula_base::{ObjectId, mutant};
use mobula_proto as proto;
use proto::holding_reply::Result as Held;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Copies that are remembered to be no more. One that is forgotten costs a reader a question in vain:
/// the node that was to have it then says so again.
const GONE_MAX: usize = 100_000;

/// What made a copy, as far as it is recorded; nothing is set of what needs no record of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Log index of the first apply of its record: one that was pruned and came anew counts its attempts
    /// from 1 again.
    pub revision: u64,
    /// The attempt.
    pub attempt: u32,
}

/// The holdings of one term, since slots came to the shard last.
#[derive(Clone, Default)]
pub struct Holdings {
    term: u64,
    /// Epoch of the map since when the shard has its slots (R9): reports by an older one leave something
    /// out.
    adopted: u64,
    reported: BTreeSet<u64>,
    /// Up to which version of the view each has acted on deaths.
    confirmed: BTreeMap<u64, u64>,
    /// When each last said anything.
    heard: BTreeMap<u64, Duration>,
    /// The number of the last report of each that was taken.
    last: BTreeMap<u64, u64>,
    copies: BTreeMap<ObjectId, BTreeSet<u64>>,
    held: BTreeMap<u64, BTreeSet<ObjectId>>,
    /// Copies that a done-record promises and that are no more, with the latest attempt that can have made
    /// them: what a later one makes is another copy, and so is what is made for another record.
    gone: BTreeMap<(ObjectId, u64), Made>,
}

impl Holdings {
    /// Forgets everything when a new term has begun, or slots have come.
    pub fn enter(&mut self, term: u64, adopted: u64) {
        if (self.term, self.adopted) != (term, adopted) {
            *self = Holdings { term, adopted, ..Holdings::default() };
        }
    }

    /// Who reported a copy of `object`.
    pub fn holders(&self, object: ObjectId) -> impl Iterator<Item = u64> {
        self.copies.get(&object).into_iter().flatten().copied()
    }

    /// Whether `node` said that it no longer has what was made as `object`.
    pub fn is_gone(&self, object: ObjectId, node: u64, made: Made) -> bool {
        self.gone.get(&(object, node)).is_some_and(|last| {
            let same_record = last.revision == made.revision || mutant!("R9e");
            (same_record && last.attempt >= made.attempt) || mutant!("R9c")
        })
    }

    /// Whether all of `live` are done: nothing that is not here can be with one of them, and none hears
    /// somebody who is dead since `last_death` (R9).
    pub fn settled<'a>(&self, mut live: impl Iterator<Item = &'a u64>, last_death: u64) -> bool {
        live.all(|node| self.is_done(*node, last_death))
    }

    /// Whether a node has reported in full in this term, and has confirmed all deaths.
    fn is_done(&self, node: u64, last_death: u64) -> bool {
        let confirmed = self.confirmed.get(&node).is_some_and(|to| *to >= last_death);
        self.reported.contains(&node) && (confirmed || mutant!("R9b"))
    }

    /// Who is done, see [`Holdings::settled`].
    pub fn done(&self, last_death: u64) -> BTreeSet<u64> {
        self.reported.iter().copied().filter(|node| self.is_done(*node, last_death)).collect()
    }

    /// When each that is on its way to reporting last said anything. Who has reported and still does not
    /// confirm makes no progress, whatever else it says.
    pub fn heard(&self) -> BTreeMap<u64, Duration> {
        let open = self.heard.iter().filter(|(node, _)| !self.reported.contains(node));
        open.map(|(node, at)| (*node, *at)).collect()
    }

    /// Forgets the copies of a node.
    fn forget(&mut self, node: u64) {
        for object in self.held.remove(&node).unwrap_or_default() {
            self.drop_copy(object, node);
        }
    }

    fn drop_copy(&mut self, object: ObjectId, node: u64) {
        if let Some(holders) = self.copies.get_mut(&object) {
            holders.remove(&node);
            if holders.is_empty() {
                self.copies.remove(&object);
            }
        }
    }

    /// Forgets the copies of nodes that are gone.
    pub fn forget_dead(&mut self, dead: &BTreeSet<u64>) {
        let gone: Vec<u64> = self.held.keys().filter(|node| dead.contains(node)).copied().collect();
        for node in gone {
            self.forget(node);
        }
        self.gone.retain(|(_, node), _| !dead.contains(node));
        self.heard.retain(|node, _| !dead.contains(node));
        self.confirmed.retain(|node, _| !dead.contains(node));
        self.last.retain(|node, _| !dead.contains(node));
    }

    /// Hears a report of a live node to the leader of `term`, whose tables are `state`, and answers it.
    pub fn hear(
        &mut self,
        report: &proto::HoldingRequest,
        term: u64,
        state: &ShardState,
        now: Duration,
    ) -> Held {
        let adopted = state.slots.adopted();
        self.enter(term, adopted);
        if report.full && report.map < adopted {
            // The map it needs may not be there yet: that is no silence of its own.
            self.heard.insert(report.incarnation, now);
            return Held::Moved(adopted);
        }
        if report.term != term || !self.take(report, state, now) {
            return Held::ReportInFull(term);
        }
        Held::AcceptedTerm(term)
    }

    /// Takes a report; false when the node must first report in full.
    fn take(&mut self, report: &proto::HoldingRequest, state: &ShardState, now: Duration) -> bool {
        let node = report.incarnation;
        self.heard.insert(node, now);
        let confirmed = self.confirmed.entry(node).or_default();
        *confirmed = report.deaths.unwrap_or(u64::MAX).max(*confirmed);
        // One that was overtaken would bring back what was, or take away what came since.
        let last = self.last.get(&node).copied().unwrap_or(0);
        if report.number > 0 && report.number <= last && !mutant!("R9g") {
            return true;
        }
        if report.full {
            self.forget(node);
            self.reported.insert(node);
        } else if !self.reported.contains(&node) {
            return false;
        }
        self.last.insert(node, report.number.max(last));
        let removed = report.remove.iter().filter_map(|id| ObjectId::from_bytes(id)).collect();
        for (object, made) in state.made_last(removed) {
            if let Some(held) = self.held.get_mut(&node) {
                held.remove(&object);
            }
            self.drop_copy(object, node);
            self.gone.insert((object, node), made);
            if self.gone.len() > GONE_MAX {
                self.gone.pop_first();
            }
        }
        for object in report.add.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            self.held.entry(node).or_default().insert(object);
            self.copies.entry(object).or_default().insert(node);
            self.gone.remove(&(object, node));
        }
        true
    }
}

impl ShardState {
    /// The latest that can have made a copy of each of these: of what is recorded, not of what is under way.
    /// Puts count as made by attempt 0 of no record.
    fn made_last(&self, objects: BTreeSet<ObjectId>) -> Vec<(ObjectId, Made)> {
        let objects: Vec<ObjectId> = objects.into_iter().collect();
        let mut all = Vec::with_capacity(objects.len());
        // In one look for each run: it may be cold.
        for of_run in objects.chunk_by(|a, b| a.task.run == b.task.run) {
            let made = |run: &super::run::Run, object: &ObjectId| {
                let Some(record) = run.record(object.task.place) else { return Made::default() };
                let attempt = match record.standing.state {
                    State::Pending => record.standing.attempt.saturating_sub(1),
                    State::Done { .. } | State::Failed { .. } => record.standing.attempt,
                };
                Made { revision: record.revision, attempt }
            };
            let look = |run: &super::run::Run| of_run.iter().map(|o| made(run, o)).collect::<Vec<Made>>();
            let all_made = self.tasks.look(of_run[0].task.run, look).ok().flatten();
            let all_made = all_made.unwrap_or_else(|| vec![Made::default(); of_run.len()]);
            all.extend(of_run.iter().copied().zip(all_made));
        }
        all
    }
}
