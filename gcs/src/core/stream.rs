//! A node's traffic: one sequenced stream per incarnation, applied in order and once (R12).

use super::record::{State, TaskRecord};
use super::{Answer, MAX_TASKS_PER_SHARD, ShardState};
use bytes::Bytes;
use mobula_base::ids::RUN_LEN;
use mobula_base::{ObjectId, TaskId};
use mobula_proto as proto;
use prost::Message;
use proto::FailureKind;
use proto::item_outcome::Outcome;
use proto::stream_item::Item;
use std::sync::Arc;

/// How far one incarnation's stream has come, and the answer to its last batch.
#[derive(Clone, Default)]
pub(super) struct Stream {
    pub mark: u64,
    pub last_first: u64,
    pub last_len: u64,
    pub last_ack: Arc<proto::StreamAck>,
}

impl ShardState {
    pub(super) fn apply_stream(&mut self, index: u64, batch: &proto::StreamBatch) -> Answer {
        let (who, len) = (batch.incarnation, batch.items.len() as u64);
        if self.is_fenced(who) {
            return Answer::Fenced(true);
        }
        if let Some(stream) = self.streams.get(&who)
            && (stream.last_first, stream.last_len) == (batch.first_seq, len)
        {
            return Answer::Stream((*stream.last_ack).clone());
        }
        let mark = self.streams.get(&who).map_or(0, |stream| stream.mark);
        if batch.first_seq != mark + 1 {
            return Answer::ExpectedSeq(mark + 1);
        }
        if len == 0 {
            return Answer::Stream(proto::StreamAck { mark, revision: index, outcomes: Vec::new() });
        }
        let mut outcomes = Vec::new();
        for (seq, item) in (batch.first_seq..).zip(&batch.items) {
            let outcome = match &item.item {
                Some(Item::Submit(spec)) => self.submit(index, who, spec),
                Some(Item::Done(done)) => self.done(who, done),
                Some(Item::Next(next)) => self.next_attempt(who, next),
                Some(Item::Put(put)) => self.put(put),
                None => None,
            };
            outcomes.extend(outcome.map(|outcome| proto::ItemOutcome { seq, outcome: Some(outcome) }));
        }
        let ack = proto::StreamAck { mark: mark + len, revision: index, outcomes };
        let last_ack = Arc::new(ack.clone());
        let stream = Stream { mark: mark + len, last_first: batch.first_seq, last_len: len, last_ack };
        self.streams.insert(who, stream);
        Answer::Stream(ack)
    }

    fn submit(&mut self, index: u64, who: u64, spec: &proto::TaskSpec) -> Option<Outcome> {
        let Some(id) = TaskId::from_bytes(&spec.id).filter(|id| u64::from(id.place) < RUN_LEN) else {
            return Some(failed(FailureKind::FailureBadArguments, "malformed task id"));
        };
        if let Some(record) = self.tasks.get(id) {
            let same = record.digest == spec.digest;
            let view = self.view_of(id, false);
            return Some(if same { Outcome::Known(view) } else { Outcome::Diverged(view) });
        }
        if self.tasks.len() >= MAX_TASKS_PER_SHARD {
            let message = format!(
                "shard {} already keeps {MAX_TASKS_PER_SHARD} task records: end jobs that are no longer \
                 needed, or start the cluster with more shards",
                self.shard
            );
            return Some(failed(FailureKind::FailureLineageFull, &message));
        }
        self.tasks.insert(
            id,
            TaskRecord {
                spec: Some(Bytes::from(spec.encode_to_vec())),
                digest: spec.digest,
                revision: index,
                attempt: 1,
                keeper: who,
                failures: 0,
                max_retries: spec.max_retries,
                state: State::Pending,
            },
        );
        None
    }

    /// The current attempt's first `Done` stands; every other is only compared (R3).
    fn done(&mut self, who: u64, done: &proto::Done) -> Option<Outcome> {
        let id = TaskId::from_bytes(&done.task)?;
        let executor_fenced = self.is_fenced(done.executor);
        let Some(record) = self.tasks.get_mut(id) else {
            return Some(Outcome::Refused(self.view_of(id, false)));
        };
        match &record.state {
            State::Done { outputs, .. } => {
                let differs = done.failure.is_some() || outputs[..] != done.outputs[..];
                differs.then(|| Outcome::DivergedDone(self.view_of(id, false)))
            }
            State::Pending if record.attempt == done.attempt && record.keeper == who && !executor_fenced => {
                record.state = match &done.failure {
                    Some(failure) => State::Failed(Box::new(failure.clone())),
                    None => State::Done {
                        executor: done.executor,
                        outputs: done.outputs.clone().into(),
                        holders: done.holders.clone().into(),
                    },
                };
                self.ended(id);
                None
            }
            State::Failed(known)
                if record.attempt == done.attempt && done.failure.as_ref() == Some(known) =>
            {
                None
            }
            State::Pending | State::Failed(_) => Some(Outcome::Refused(self.view_of(id, false))),
        }
    }

    /// Compare-and-set on the attempt: one keeper wins (R7).
    fn next_attempt(&mut self, who: u64, next: &proto::NextAttempt) -> Option<Outcome> {
        let id = TaskId::from_bytes(&next.task)?;
        let keeper_fenced = self.tasks.get(id).is_some_and(|record| self.is_fenced(record.keeper));
        let Some(record) = self.tasks.get_mut(id) else {
            return Some(Outcome::Refused(self.view_of(id, false)));
        };
        let may = match record.state {
            State::Pending => record.keeper == who || keeper_fenced,
            // Whether the outputs are lost is soft state; a needless grant only costs work.
            State::Done { .. } => true,
            State::Failed(_) => false,
        };
        if !may || record.attempt != next.from {
            return Some(Outcome::Refused(self.view_of(id, false)));
        }
        record.failures += u32::from(next.failed);
        if next.failed && record.failures > record.max_retries {
            let failure = if record.max_retries == 0 {
                proto::Failure::new(
                    FailureKind::FailureMayHaveRun,
                    "the executor died and the task may not be retried: it may or may not have run",
                )
            } else {
                let message = format!(
                    "the executor died in each of {} attempts; {} retries were allowed",
                    record.failures, record.max_retries
                );
                proto::Failure::new(FailureKind::FailureWorkerDied, message)
            };
            record.state = State::Failed(Box::new(failure));
            self.ended(id);
            return Some(Outcome::Refused(self.view_of(id, false)));
        }
        record.attempt += 1;
        record.keeper = who;
        record.state = State::Pending;
        if record.spec.is_none() {
            self.warm_up(id);
        }
        Some(Outcome::Granted(self.view_of(id, true)))
    }

    /// Brings a cold spec back into memory; a store that lost it stops the replica.
    fn warm_up(&mut self, id: TaskId) {
        match self.specs.get(id) {
            Ok(Some(spec)) => {
                if let Some(record) = self.tasks.get_mut(id) {
                    record.spec = Some(spec);
                }
            }
            Ok(None) => self.broken = Some(format!("the store of cold specs lost task {id}")),
            Err(error) => self.broken = Some(format!("the store of cold specs failed: {error}")),
        }
    }

    fn put(&mut self, put: &proto::SmallPut) -> Option<Outcome> {
        let Some(object) = ObjectId::from_bytes(&put.object) else {
            return Some(failed(FailureKind::FailureBadArguments, "malformed object id"));
        };
        self.puts.entry(object).or_insert_with(|| Bytes::copy_from_slice(&put.value));
        None
    }
}

fn failed(kind: FailureKind, message: &str) -> Outcome {
    Outcome::Failed(proto::Failure::new(kind, message))
}
