//! Who the members of a shard are, seen and changed by its leader.

use super::group::Group;
use super::types::{LogId, Types};
use crate::membership::{Seen, Step};
use mobula_proto as proto;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::Precondition;
use openraft::{BasicNode, ChangeMembers, Instant};
use std::collections::BTreeMap;
use std::time::Duration;

/// A head that has acknowledged nothing for this long does not count as answering.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// A step of a change of the members is given up after this; the next look decides anew.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// A head this many entries behind is caught up: the rest arrives while it is made a voter.
const CLOSE: u64 = 64;

/// The members as of one entry of the log.
#[derive(Clone, Debug)]
pub struct View {
    /// What there is.
    pub seen: Seen,
    /// The entry that set the members: a change is made only on top of it.
    pub at: Option<LogId>,
    /// Whether they are committed, and not between two configurations.
    pub settled: bool,
}

impl Group {
    /// The members, as this replica has them.
    pub fn member_view(&self) -> View {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (stored, me) = (&metrics.membership_config, metrics.id);
        let membership = stored.membership();
        let nodes: BTreeMap<u64, String> =
            membership.nodes().map(|(head, node)| (*head, node.addr.clone())).collect();
        let last_log = metrics.last_log_index.unwrap_or(0);
        let heard = |head: &u64| {
            let at = metrics.heartbeat.as_ref().and_then(|heard| heard.get(head).cloned().flatten());
            at.is_some_and(|at| at.elapsed() < ANSWERS_WITHIN)
        };
        let close = |head: &u64| {
            let at = metrics.replication.as_ref().and_then(|at| at.get(head).cloned().flatten());
            at.is_some_and(|at| at.index + CLOSE >= last_log)
        };
        let answering = nodes.keys().filter(|head| **head == me || heard(head)).copied().collect();
        let caught_up = nodes.keys().filter(|head| **head == me || close(head)).copied().collect();
        let at = *stored.log_id();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let configs = membership.get_joint_config().clone();
        View {
            settled: configs.len() == 1 && at.is_some_and(|at| at.index <= applied),
            seen: Seen { me, configs, nodes, answering, caught_up },
            at,
        }
    }

    /// On the leader: how far each member is.
    pub fn replica_progress(&self) -> Vec<proto::ReplicaProgress> {
        let view = self.member_view();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = |head: &u64| match *head == metrics.id {
            true => metrics.last_log_index.unwrap_or(0),
            false => {
                let at = metrics.replication.as_ref().and_then(|at| at.get(head).cloned().flatten());
                at.map_or(0, |at| at.index)
            }
        };
        let progress = |head: &u64| proto::ReplicaProgress {
            head: *head,
            matched: matched(head),
            answers: view.seen.answering.contains(head),
        };
        view.seen.nodes.keys().map(progress).collect()
    }

    /// Takes a step on top of the entry `at`, and of no other.
    ///
    /// # Errors
    /// It was not taken, or nobody knows: look again.
    pub async fn take(&self, step: Step, at: Option<LogId>) -> Result<(), String> {
        let changes = match step {
            Step::Settled | Step::Wait(_) => return Ok(()),
            Step::HandOver(head) => {
                return self.hand_over(head, proto::EventCause::CauseMembership).await;
            }
            Step::Learn(heads) => ChangeMembers::AddNodes(
                heads.into_iter().map(|(head, address)| (head, BasicNode::new(address))).collect(),
            ),
            Step::Vote(voters) => ChangeMembers::ReplaceAllVoters(voters),
            Step::Forget(heads) => ChangeMembers::RemoveNodes(heads),
        };
        let only = Precondition::<Types>::LastMembershipLogId { last_membership_log_id: at };
        let change = self.raft.change_membership_if(changes, false, [only]);
        match tokio::time::timeout(STEP_DEADLINE, change).await {
            Ok(changed) => changed.map(|_| ()).map_err(|error| error.to_string()),
            Err(_) => Err(format!("not committed within {STEP_DEADLINE:?}")),
        }
    }
}
