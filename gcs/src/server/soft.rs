//! Soft state of a shard's leader: what nodes report of their copies. What follows from it is decided in
//! [`crate::core::holdings`].

use super::{Service, not_leader};
use crate::core::holdings::Holdings;
use bytes::Bytes;
use mobula_proto as proto;
use proto::holding_reply::Result as Held;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The holdings and word of their changes.
pub struct Soft {
    /// Where its times are counted from.
    zero: Instant,
    holdings: Mutex<Holdings>,
    /// Until when this head had better not lead: it cannot hear a member.
    avoid_until: Mutex<Option<Instant>>,
    changed: watch::Sender<u64>,
}

impl Default for Soft {
    fn default() -> Self {
        Soft {
            zero: Instant::now(),
            holdings: Mutex::default(),
            avoid_until: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Soft {
    /// The holdings, of whatever term they are.
    pub fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().expect("nothing panics under this lock")
    }

    /// The time, as the holdings count it.
    pub fn now(&self) -> Duration {
        self.zero.elapsed()
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
    /// Which of the copies that a node has no use for it may drop.
    pub(super) fn to_drop(&self, report: &proto::HoldingRequest, result: &Held) -> Vec<Bytes> {
        let is_taken = matches!(result, Held::AcceptedTerm(_)) && !report.idle.is_empty();
        match self.shard(report.cluster, report.shard) {
            Ok((_, group)) if is_taken => group.replica.with(|state| state.to_drop(&report.idle)),
            _ => Vec::new(),
        }
    }

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
        let answer = {
            let mut holdings = soft.holdings();
            group.replica.with(|state| holdings.hear(report, leadership.term, state, soft.now()))
        };
        if let Held::AcceptedTerm(_) = answer {
            soft.changed.send_modify(|version| *version += 1);
        }
        answer
    }
}
