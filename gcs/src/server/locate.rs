//! `Locate`: where an object is, who makes it, or that it is lost.
//!
//! Answered from the leader's tables and soft state without a read-index: "here" is proven by the
//! fetch, "lost" by the compare-and-set that follows (R13). "Lost" is only said once the shard is
//! settled (R9).

use super::soft::Holdings;
use super::{Members, Service, not_leader};
use crate::core::ShardState;
use crate::core::run::State;
use mobula_base::ObjectId;
use mobula_proto as proto;
use proto::locate_reply::Result as Where;
use proto::located::Answer;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// No call is parked longer than this.
const MAX_WAIT: Duration = Duration::from_millis(2000);
/// More objects than this are not looked up in one call.
const MAX_OBJECTS: usize = 100_000;

/// What an answer is made of.
struct Facts<'a> {
    state: &'a ShardState,
    holdings: &'a Holdings,
    members: &'a Members,
    settled: bool,
    asker: u64,
}

impl Facts<'_> {
    fn gone(&self, node: u64) -> bool {
        node == 0 || self.members.dead.contains(&node) || self.state.is_fenced(node)
    }

    fn here(&self, nodes: impl Iterator<Item = u64>, output: Option<proto::Output>) -> Option<Answer> {
        let nodes: BTreeSet<u64> = nodes.filter(|node| !self.gone(*node)).collect();
        if nodes.is_empty() {
            return None;
        }
        let holder = |incarnation: u64| proto::Holder {
            incarnation,
            address: self.members.live.get(&incarnation).cloned().unwrap_or_default(),
        };
        Some(Answer::Here(proto::Here { holders: nodes.into_iter().map(holder).collect(), output }))
    }

    /// Lost, as far as anyone can say yet.
    fn lost(&self, attempt: u32) -> Answer {
        if self.settled { Answer::Lost(attempt) } else { Answer::Making(0) }
    }

    fn answer(&self, object: ObjectId) -> Answer {
        if let Some(epoch) = self.state.slots.moved(object.task.run.slot()) {
            return Answer::Moved(epoch);
        }
        if let Some(value) = self.state.puts.get(&object) {
            return Answer::Value(value.value.clone());
        }
        let copies = self.holdings.holders(object);
        let record = match self.state.tasks.get(object.task) {
            Ok(Some(record)) => record.standing,
            Ok(None) => return self.here(copies, None).unwrap_or(Answer::Unknown(true)),
            // Nothing is known: neither that it is there nor that it is lost.
            Err(error) => {
                tracing::error!(%error, "cold lineage cannot be read");
                return Answer::Making(0);
            }
        };
        match &record.state {
            State::Failed(failure) => Answer::Failed((**failure).clone()),
            State::Done { executor, outputs, holders } => {
                // A done-record describes what was returned. What the task put lies with its executor,
                // too; other holders of a `put` are soft state only.
                let promised: &[u64] = if object.is_put() { &[] } else { holders };
                let promised = promised.iter().copied().chain(Some(*executor));
                let promised = promised.filter(|node| !self.holdings.is_gone(object, *node));
                let output = outputs.get(object.slot as usize).copied();
                if !object.is_put() && output.is_none() {
                    let message = format!("task {} has {} return values", object.task, outputs.len());
                    return Answer::Failed(proto::Failure::new(
                        proto::FailureKind::FailureUnknownObject,
                        message,
                    ));
                }
                self.here(promised.chain(copies), output).unwrap_or_else(|| self.lost(record.attempt))
            }
            State::Pending => {
                if let Some(here) = object.is_put().then(|| self.here(copies, None)).flatten() {
                    return here;
                }
                if self.gone(record.keeper) {
                    self.lost(record.attempt)
                } else if record.keeper == self.asker {
                    Answer::Lost(record.attempt)
                } else {
                    Answer::Making(record.keeper)
                }
            }
        }
    }
}

impl Service {
    pub(super) async fn located(&self, request: proto::LocateRequest) -> Where {
        let (running, group) = match self.shard(request.cluster, request.shard) {
            Ok(found) => found,
            Err(_) if self.starting() => return Where::NotLeader(not_leader(None)),
            Err(why) => return Where::Refused(why),
        };
        if request.objects.len() > MAX_OBJECTS {
            return Where::Refused(format!("more than {MAX_OBJECTS} objects in one call"));
        }
        let soft = &running.soft[request.shard as usize];
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
        let (mut applied, mut root) = (group.replica.applied(), running.root().replica.applied());
        let mut changed = soft.changed();
        loop {
            let leadership = group.leadership();
            if !leadership.here {
                return Where::NotLeader(not_leader(leadership.leader));
            }
            // Seen before looking, so that no change is missed.
            applied.borrow_and_update();
            root.borrow_and_update();
            changed.borrow_and_update();
            let members = running.members();
            let answers = {
                let mut holdings = soft.holdings();
                group.replica.with(|state| {
                    holdings.enter(leadership.term, state.slots.adopted());
                    let settled = holdings.settled(members.live.keys(), members.last_death);
                    let facts = Facts {
                        state,
                        holdings: &holdings,
                        members: &members,
                        settled,
                        asker: request.asker,
                    };
                    let locate = |id: &bytes::Bytes| proto::Located {
                        object: id.clone(),
                        answer: Some(
                            ObjectId::from_bytes(id).map_or(Answer::Unknown(true), |id| facts.answer(id)),
                        ),
                    };
                    request.objects.iter().map(locate).collect::<Vec<proto::Located>>()
                })
            };
            let waiting = |located: &proto::Located| {
                matches!(located.answer, Some(Answer::Making(_) | Answer::Unknown(_)))
            };
            if Instant::now() >= deadline || !answers.iter().all(waiting) || answers.is_empty() {
                return Where::Located(proto::LocatedList { answers, term: leadership.term });
            }
            // An error means that the head is shutting down; the deadline ends the call then.
            tokio::select! {
                biased;
                Ok(()) = applied.changed() => {}
                Ok(()) = changed.changed() => {}
                Ok(()) = root.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}
