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

/// A member that has not reported this long into a term counts as silent (R9).
pub const SILENT_AFTER: Duration = Duration::from_secs(2);

/// The holdings of one term.
#[derive(Default)]
pub struct Holdings {
    term: u64,
    since: Option<Instant>,
    reported: BTreeSet<u64>,
    copies: BTreeMap<ObjectId, BTreeSet<u64>>,
    held: BTreeMap<u64, BTreeSet<ObjectId>>,
    /// Copies that a done-record promises and that are no more.
    gone: BTreeSet<(ObjectId, u64)>,
}

impl Holdings {
    /// Forgets everything when a new term has begun.
    pub fn enter(&mut self, term: u64) {
        if self.term != term || self.since.is_none() {
            *self = Holdings { term, since: Some(Instant::now()), ..Holdings::default() };
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

    /// Whether all of `live` have reported, or have had their time.
    pub fn settled<'a>(&self, mut live: impl Iterator<Item = &'a u64>) -> bool {
        self.silent_in().is_zero() || live.all(|node| self.reported.contains(node))
    }

    /// How long until whoever has not reported counts as silent.
    pub fn silent_in(&self) -> Duration {
        self.since
            .map_or(SILENT_AFTER, |since| (since + SILENT_AFTER).saturating_duration_since(Instant::now()))
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
    }

    /// Takes a report; false when the node must first report in full.
    fn take(&mut self, report: &proto::HoldingRequest) -> bool {
        let node = report.incarnation;
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
    changed: watch::Sender<u64>,
}

impl Default for Soft {
    fn default() -> Self {
        Soft { holdings: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Soft {
    /// The holdings, of whatever term they are.
    pub fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().expect("nothing panics under this lock")
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
        let fenced = group.replica.with(|state| state.is_fenced(report.incarnation));
        if fenced || running.members().dead.contains(&report.incarnation) {
            self.0.meters.rejected();
            return Held::Fenced(true);
        }
        let soft = &running.soft[report.shard as usize];
        {
            let mut holdings = soft.holdings();
            holdings.enter(leadership.term);
            if report.term != leadership.term || !holdings.take(report) {
                return Held::ReportInFull(leadership.term);
            }
        }
        soft.changed.send_modify(|version| *version += 1);
        Held::AcceptedTerm(leadership.term)
    }
}
