//! Soft state of a shard's leader: who holds which copies, for one term, from the nodes' reports.

use super::{Service, not_leader};
use mobula_base::ObjectId;
use mobula_proto as proto;
use proto::holding_reply::Result as Held;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The holdings of one term, since slots came to the shard last.
#[derive(Default)]
pub struct Holdings {
    term: u64,
    /// Epoch of the map since when the shard has its slots (R9): reports by an older one leave something
    /// out.
    adopted: u64,
    reported: BTreeSet<u64>,
    /// Up to which version of the view each has acted on deaths.
    confirmed: BTreeMap<u64, u64>,
    /// When each last said anything.
    heard: BTreeMap<u64, Instant>,
    copies: BTreeMap<ObjectId, BTreeSet<u64>>,
    held: BTreeMap<u64, BTreeSet<ObjectId>>,
    /// Copies that a done-record promises and that are no more.
    gone: BTreeSet<(ObjectId, u64)>,
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

    /// Whether `node` said that it no longer has `object`.
    pub fn is_gone(&self, object: ObjectId, node: u64) -> bool {
        self.gone.contains(&(object, node))
    }

    /// Whether all of `live` are done: nothing that is not here can be with one of them, and none hears
    /// somebody who is dead since `last_death` (R9).
    pub fn settled<'a>(&self, mut live: impl Iterator<Item = &'a u64>, last_death: u64) -> bool {
        live.all(|node| self.is_done(*node, last_death))
    }

    /// Whether a node has reported in full in this term, and has confirmed all deaths.
    fn is_done(&self, node: u64, last_death: u64) -> bool {
        self.reported.contains(&node) && self.confirmed.get(&node).is_some_and(|to| *to >= last_death)
    }

    /// Who is done, see [`Holdings::settled`].
    pub fn done(&self, last_death: u64) -> BTreeSet<u64> {
        self.reported.iter().copied().filter(|node| self.is_done(*node, last_death)).collect()
    }

    /// When each that is on its way to reporting last said anything, as the time since `zero`. Who has
    /// reported and still does not confirm makes no progress, whatever else it says.
    pub fn heard(&self, zero: Instant) -> BTreeMap<u64, Duration> {
        let open = self.heard.iter().filter(|(node, _)| !self.reported.contains(node));
        open.map(|(node, at)| (*node, at.saturating_duration_since(zero))).collect()
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
        self.gone.retain(|(_, node)| !dead.contains(node));
        self.heard.retain(|node, _| !dead.contains(node));
        self.confirmed.retain(|node, _| !dead.contains(node));
    }

    /// Takes a report; false when the node must first report in full.
    fn take(&mut self, report: &proto::HoldingRequest) -> bool {
        let node = report.incarnation;
        self.heard.insert(node, Instant::now());
        let confirmed = self.confirmed.entry(node).or_default();
        *confirmed = report.deaths.unwrap_or(u64::MAX).max(*confirmed);
        if report.full {
            self.forget(node);
            self.reported.insert(node);
        } else if !self.reported.contains(&node) {
            return false;
        }
        for object in report.remove.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            if let Some(held) = self.held.get_mut(&node) {
                held.remove(&object);
            }
            self.drop_copy(object, node);
            self.gone.insert((object, node));
        }
        for object in report.add.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            self.held.entry(node).or_default().insert(object);
            self.copies.entry(object).or_default().insert(node);
            self.gone.remove(&(object, node));
        }
        true
    }
}

/// The holdings and word of their changes.
pub struct Soft {
    holdings: Mutex<Holdings>,
    /// Until when this head had better not lead: it cannot hear a member.
    avoid_until: Mutex<Option<Instant>>,
    changed: watch::Sender<u64>,
}

impl Default for Soft {
    fn default() -> Self {
        Soft { holdings: Mutex::default(), avoid_until: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Soft {
    /// The holdings, of whatever term they are.
    pub fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().expect("nothing panics under this lock")
    }

    /// This head had better not lead the shard before `until`.
    pub fn avoid(&self, until: Instant) {
        *self.avoid_until.lock().expect("nothing panics under this lock") = Some(until);
    }

    /// Whether this head had better not lead the shard.
    pub fn avoids(&self) -> bool {
        let until = *self.avoid_until.lock().expect("nothing panics under this lock");
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Word of every change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Service {
    pub(super) fn held(&self, report: &proto::HoldingRequest) -> Held {
        let (running, group) = match self.shard(report.cluster, report.shard) {
            Ok(found) => found,
            Err(_) if self.starting() => return Held::NotLeader(not_leader(None)),
            Err(why) => return Held::Refused(why),
        };
        let leadership = group.leadership();
        if !leadership.here {
            return Held::NotLeader(not_leader(leadership.leader));
        }
        let (fenced, adopted) =
            group.replica.with(|state| (state.is_fenced(report.incarnation), state.slots.adopted()));
        if fenced || running.members().dead.contains(&report.incarnation) {
            self.0.meters.rejected();
            return Held::Fenced(true);
        }
        let soft = &running.soft[report.shard as usize];
        {
            let mut holdings = soft.holdings();
            holdings.enter(leadership.term, adopted);
            if report.full && report.map < adopted {
                // The map it needs may not be there yet: that is no silence of its own.
                holdings.heard.insert(report.incarnation, Instant::now());
                return Held::Moved(adopted);
            }
            if report.term != leadership.term || !holdings.take(report) {
                return Held::ReportInFull(leadership.term);
            }
        }
        soft.changed.send_modify(|version| *version += 1);
        Held::AcceptedTerm(leadership.term)
    }
}
