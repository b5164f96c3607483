//! One shard on this head: propose, read, and who leads.

use super::machine::Replica;
use super::proposer::Proposer;
use super::reserve;
use super::types::{LogId, Raft};
use crate::clock::{stamped, unix_ms};
use crate::hook::{Plant, SharedHook};
use crate::log::LogWriter;
use crate::witness::Grounds;
use bytes::Bytes;
use mobula_proto::EventCause;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{Instant, ReadPolicy};
use std::time::Duration;

/// A proposal whose outcome is not known after this is answered `unknown`.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// A read that is not confirmed after this is answered `busy`.
pub const READ_DEADLINE: Duration = Duration::from_secs(1);

/// Why a proposal or read was not done here.
#[derive(Clone, Debug)]
pub enum NotDone {
    /// Another head leads, if any does.
    NotLeader(Option<Leader>),
    /// Too much is under way, or a majority cannot be reached.
    Busy(String),
    /// It may or may not happen.
    Unknown(String),
}

/// A head that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its id.
    pub head: u64,
    /// Its address.
    pub address: String,
}

/// Who leads, as this replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Current term.
    pub term: u64,
    /// Whether this head leads, and a majority has said so lately. A leader that is cut off would
    /// otherwise go on taking the heartbeats that its successor misses. Nothing that is committed
    /// or read depends on this.
    pub here: bool,
    /// The leader, if one is known.
    pub leader: Option<Leader>,
}

/// How far this replica is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Last index in the log, 0 for none.
    pub last_log: u64,
    /// Last applied index, 0 for none.
    pub applied: u64,
    /// Why the replica stopped, if it did.
    pub stopped: Option<String>,
    /// On a leader: heads whose log is (nearly) as long as ours.
    pub caught_up: Vec<u64>,
}

/// A follower this many entries behind may still be given leadership: it is caught up first.
const CLOSE: u64 = 64;

/// One shard's replica on this head.
pub struct Group {
    /// The shard.
    pub shard: u32,
    /// openraft's handle.
    pub raft: Raft,
    /// The tables.
    pub replica: Replica,
    /// Why its leader changes, as far as this replica knows.
    pub grounds: Grounds,
    proposer: Proposer,
    patience: Duration,
    hook: SharedHook,
    log: LogWriter,
}

impl Group {
    /// Wraps a running replica; without word from a majority for `patience` it does not call itself
    /// leader.
    pub fn new(
        shard: u32,
        raft: Raft,
        replica: Replica,
        patience: Duration,
        log: LogWriter,
        hook: &SharedHook,
    ) -> Self {
        let proposer = Proposer::start(raft.clone(), hook.clone());
        let grounds = Grounds::default();
        Group { shard, proposer, raft, replica, grounds, patience, log, hook: hook.clone() }
    }

    /// Who leads, as this replica sees it.
    pub fn leadership(&self) -> Leadership {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.membership();
        let leader = metrics.current_leader.map(|head| Leader {
            head,
            address: nodes.get_node(&head).map(|node| node.addr.clone()).unwrap_or_default(),
        });
        let alone = nodes.voter_ids().count() == 1;
        let followed = || metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < self.patience);
        let here = metrics.state.is_leader() && (alone || followed());
        let leader = leader.filter(|leader| here || leader.head != metrics.id);
        Leadership { term: metrics.current_term, here, leader }
    }

    /// The term in which this replica is, or believes to be, the leader.
    pub fn office(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader().then_some(metrics.current_term)
    }

    /// The latest leader that a majority has elected, as this replica knows, and its term.
    pub fn elected(&self) -> Option<(u64, u64)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.current_leader.map(|head| (metrics.vote.leader_id.term, head))
    }

    /// Hands the office over to `to`, which may or may not take it.
    ///
    /// # Errors
    /// This replica has stopped.
    pub async fn hand_over(&self, to: u64, cause: EventCause) -> Result<(), String> {
        if let Some(term) = self.office() {
            self.grounds.hand_over(term, to, cause);
        }
        self.raft.trigger().transfer_leader(to).await.map_err(|error| error.to_string())
    }

    /// Ids and addresses of all heads of this shard.
    pub fn heads(&self) -> Vec<Leader> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.membership();
        nodes.nodes().map(|(head, node)| Leader { head: *head, address: node.addr.clone() }).collect()
    }

    /// Ids and addresses of the heads whose votes count.
    pub fn voters(&self) -> Vec<Leader> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let address = |head| membership.get_node(&head).map(|node| node.addr.clone()).unwrap_or_default();
        membership.voter_ids().map(|head| Leader { head, address: address(head) }).collect()
    }

    /// How far this replica is.
    pub fn progress(&self) -> Progress {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last_log = metrics.last_log_index.unwrap_or(0);
        let close = |(head, at): (&u64, &Option<super::types::LogId>)| {
            at.as_ref().is_some_and(|at| at.index + CLOSE >= last_log).then_some(*head)
        };
        Progress {
            last_log,
            applied: metrics.last_applied.map_or(0, |id| id.index),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
            caught_up: metrics.replication.iter().flatten().filter_map(close).collect(),
        }
    }

    /// Index that the newest snapshot covers, 0 for none.
    pub fn snapshot_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().snapshot.map_or(0, |id| id.index)
    }

    /// Last index known to be committed, 0 for none.
    pub fn commit_index(&self) -> u64 {
        self.raft.metrics().borrow_watched().local_committed.map_or(0, |id| id.index)
    }

    /// On a leader: how many entries each head lacks.
    pub fn lags(&self) -> Vec<(u64, u64)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let at = |at: &Option<super::types::LogId>| at.as_ref().map_or(0, |at| at.index);
        metrics.replication.iter().flatten().map(|(head, id)| (*head, last.saturating_sub(at(id)))).collect()
    }

    /// On a leader: what each other head has made durable, and under which term.
    pub fn acknowledged(&self) -> Vec<(u64, u64, LogId)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (me, term) = (metrics.id, metrics.current_term);
        let others = metrics.replication.iter().flatten().filter(|(head, _)| **head != me);
        others.filter_map(|(head, last)| Some((*head, term, (*last)?))).collect()
    }

    /// On a leader: whether `head` has acknowledged something within `age`.
    pub fn acknowledged_within(&self, head: u64, age: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last =
            metrics.heartbeat.as_ref().and_then(|acknowledged| acknowledged.get(&head).cloned().flatten());
        last.is_some_and(|last| last.elapsed() < age)
    }

    /// Commits and applies an encoded command; the encoded reply.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, NotDone> {
        if self.log.full() && !reserve::admits(&command) {
            let head = self.raft.metrics().borrow_watched().id;
            return Err(NotDone::Busy(format!(
                "disk full on head {head}: free space there; until then it takes only what frees space"
            )));
        }
        let command = if self.shard == 0 { stamped(command, unix_ms()) } else { command };
        match tokio::time::timeout(PROPOSE_DEADLINE, self.proposer.propose(command)).await {
            Ok(done) => done,
            Err(_) => Err(NotDone::Unknown(format!("not committed within {PROPOSE_DEADLINE:?}"))),
        }
    }

    /// Returns once this replica has applied everything committed before the call (read-index).
    ///
    /// # Errors
    /// See [`NotDone`]; never unknown.
    pub async fn read_index(&self) -> Result<(), NotDone> {
        if self.hook.has(Plant::ReadWithoutIndex) && self.office().is_some() {
            return Ok(());
        }
        let confirm = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(READ_DEADLINE, confirm).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                let known = to.leader_id.zip(to.leader_node);
                Err(NotDone::NotLeader(known.map(|(head, node)| Leader { head, address: node.addr })))
            }
            Ok(Err(error)) => Err(NotDone::Busy(error.to_string())),
            Err(_) => Err(NotDone::Busy(format!("leadership not confirmed within {READ_DEADLINE:?}"))),
        }
    }
}
