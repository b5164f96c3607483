//! Proposals of one shard on their way into the log: whatever has queued up while earlier entries
//! were under way becomes the next entry, so entries grow with the load and nobody waits for
//! company.

use super::group::{Leader, NotDone};
use super::types::{Proposal, Raft};
use crate::hook::{Plant, SharedHook};
use bytes::Bytes;
use mobula_proto as proto;
use openraft::errors::{ClientWriteError, RaftError};
use prost::Message;
use proto::command::Op;
use proto::reply::Reply;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Proposals that may wait; more are answered `busy`.
pub const QUEUE: usize = 4096;
/// Entries of one shard that are under way at once. What an entry costs is paid once for all that
/// share it, so the next one is gathered until this one is applied.
const ENTRIES_IN_FLIGHT: usize = 1;
/// Commands in one entry at most.
const BATCH_COMMANDS: usize = 1024;
/// Bytes of commands in one entry at most, unless a single one is larger.
const BATCH_BYTES: usize = 1 << 20;

type Told = oneshot::Sender<Result<Bytes, NotDone>>;

/// An encoded command and who wants its encoded reply.
struct Waiting {
    command: Bytes,
    told: Told,
}

/// The end of the queue that callers see.
pub struct Proposer(mpsc::Sender<Waiting>);

impl Proposer {
    /// Starts gathering for `raft`; ends when this is dropped.
    pub fn start(raft: Raft, hook: SharedHook) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(gather(raft, waiting, hook));
        Proposer(queue)
    }

    /// Queues a command; its reply comes when the command is applied.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, NotDone> {
        let (told, reply) = oneshot::channel();
        self.0.try_send(Waiting { command, told }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotDone::Busy(format!("{QUEUE} proposals wait already")),
            mpsc::error::TrySendError::Closed(_) => NotDone::Busy("this head is shutting down".into()),
        })?;
        // Dropped only with the task that writes the entry.
        reply.await.unwrap_or_else(|_| Err(NotDone::Unknown("this head is shutting down".into())))
    }
}

async fn gather(raft: Raft, mut waiting: mpsc::Receiver<Waiting>, hook: SharedHook) {
    let room = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT));
    let mut left = None;
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let first = match left.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut bytes = first.command.len();
        let mut batch = vec![first];
        while batch.len() < BATCH_COMMANDS
            && let Ok(next) = waiting.try_recv()
        {
            bytes += next.command.len();
            if bytes > BATCH_BYTES {
                left = Some(next);
                break;
            }
            batch.push(next);
        }
        let raft = raft.clone();
        let leaks = hook.has(Plant::LeakProposalSlot);
        tokio::spawn(async move {
            let done = write(&raft, batch).await;
            if leaks && !done {
                permit.forget();
            }
        });
    }
}

/// Writes one entry and tells everyone in it; whether it was committed.
async fn write(raft: &Raft, batch: Vec<Waiting>) -> bool {
    let (commands, told): (Vec<Bytes>, Vec<Told>) = batch.into_iter().map(|w| (w.command, w.told)).unzip();
    let answer = match &commands[..] {
        [single] => commit(raft, single.clone()).await,
        _ => {
            let op = Op::Batch(proto::CommandBatch { commands });
            commit(raft, proto::Command::from(op).encode_to_vec().into()).await
        }
    };
    let done = answer.is_ok();
    // Whoever has stopped waiting is not told.
    match answer {
        Ok(answer) if told.len() == 1 => told.into_iter().for_each(|told| _ = told.send(Ok(answer.clone()))),
        Ok(answer) => {
            let replies = match proto::Reply::decode(answer).map(|reply| reply.reply) {
                Ok(Some(Reply::Batch(batch))) => batch.replies,
                _ => Vec::new(),
            };
            for (told, reply) in told.into_iter().zip(replies) {
                told.send(Ok(reply)).ok();
            }
        }
        Err(error) => told.into_iter().for_each(|told| _ = told.send(Err(error.clone()))),
    }
    done
}

async fn commit(raft: &Raft, command: Bytes) -> Result<Bytes, NotDone> {
    match raft.client_write(Proposal(command)).await {
        Ok(done) => Ok(done.data.0),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            let known = to.leader_id.zip(to.leader_node);
            Err(NotDone::NotLeader(known.map(|(head, node)| Leader { head, address: node.addr })))
        }
        Err(error) => Err(NotDone::Unknown(error.to_string())),
    }
}
