//! The tables of one shard: a pure function from commands to state and replies.
//!
//! Nothing here waits, looks at a clock or rolls dice. Every replica applies the same commands in
//! the same order and must answer the same. The one thing outside is the store of cold specs,
//! which is a cache: what comes out is what went in.
//!
//! Read it in this order: [`record`] (one task), `stream` (a node's traffic), [`session`] (a
//! client's requests), [`cluster`] (shard 0 only), `format` and `dump` (snapshots).

pub mod cluster;
mod dump;
mod format;
pub mod record;
pub mod session;
mod stream;
#[cfg(test)]
mod tests;

use crate::spec_store::SpecStore;
use bytes::Bytes;
use cluster::Cluster;
use mobula_base::{ObjectId, TaskId};
use mobula_proto as proto;
use proto::call::Op;
use proto::call_reply::Reply as Called;
use proto::command::Op as CommandOp;
use proto::{FailureKind, reply::Reply as Answer};
use record::{State, TaskRecord, Tasks};
use session::{Admission, Session, Sessions};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use stream::Stream;

/// More records than this and a shard refuses new tasks.
pub const MAX_TASKS_PER_SHARD: u64 = 4_000_000;
/// Specs of ended tasks that a shard keeps in memory; older ones go to the spec store.
pub const HOT_SPEC_BYTES: usize = 32 << 20;

/// A value of the key-value table.
#[derive(Clone, Debug, PartialEq)]
pub struct KvValue {
    /// The bytes.
    pub value: Bytes,
    /// Log index of the write.
    pub revision: u64,
}

/// All replicated state of one shard. A clone is a cheap, consistent view for a snapshot.
#[derive(Clone)]
pub struct ShardState {
    /// Which shard this is.
    pub shard: u32,
    /// Lineage.
    pub tasks: Tasks,
    /// Small values that drivers `put`.
    pub puts: BTreeMap<ObjectId, Bytes>,
    /// Incarnations whose entries are rejected (R10).
    pub fenced: BTreeSet<u64>,
    /// Functions, named things, environments.
    pub kv: BTreeMap<Bytes, KvValue>,
    /// Shard 0 only.
    pub cluster: Cluster,
    streams: BTreeMap<u64, Stream>,
    sessions: Sessions,
    specs: Arc<dyn SpecStore>,
    hot: VecDeque<(TaskId, usize)>,
    hot_bytes: usize,
    hot_limit: usize,
    broken: Option<String>,
}

impl ShardState {
    /// An empty shard whose cold specs go to `specs`.
    pub fn new(shard: u32, specs: Arc<dyn SpecStore>) -> Self {
        ShardState {
            shard,
            tasks: Tasks::default(),
            puts: BTreeMap::new(),
            fenced: BTreeSet::new(),
            kv: BTreeMap::new(),
            cluster: Cluster::default(),
            streams: BTreeMap::new(),
            sessions: Sessions::default(),
            specs,
            hot: VecDeque::new(),
            hot_bytes: 0,
            hot_limit: HOT_SPEC_BYTES,
            broken: None,
        }
    }

    /// Why this replica must stop: the spec store failed, so its answers would differ.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Applies the command at log index `index`.
    pub fn apply(&mut self, index: u64, command: &proto::Command) -> proto::Reply {
        let answer = match &command.op {
            Some(CommandOp::Stream(batch)) => Some(self.apply_stream(index, batch)),
            Some(CommandOp::Call(call)) => Some(Answer::Call(self.apply_call(index, call))),
            Some(CommandOp::DeclareDead(death)) => {
                self.cluster.declare_dead(index, death.incarnation, &death.evidence, death.silent_ms);
                self.fence_the_dead();
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Fence(fence)) => {
                self.fenced.insert(fence.incarnation);
                self.streams.remove(&fence.incarnation);
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Init(init)) => {
                self.cluster.init(index, init);
                Some(Answer::Revision(index))
            }
            None => None,
        };
        self.cool_down();
        proto::Reply { reply: answer }
    }

    /// On shard 0 a death and its fence are one entry.
    fn fence_the_dead(&mut self) {
        for dead in &self.cluster.dead {
            if self.fenced.insert(*dead) {
                self.streams.remove(dead);
            }
        }
    }

    fn apply_call(&mut self, index: u64, call: &proto::Call) -> proto::CallReply {
        match self.sessions.admit(call.session, call.seq) {
            Admission::Repeat(reply) => return reply,
            Admission::Expired => {
                return proto::CallReply { reply: Some(Called::SessionExpired(true)) };
            }
            Admission::Execute => {}
        }
        let reply = proto::CallReply { reply: Some(self.execute(index, call.op.as_ref())) };
        let entry = Session { last_seq: call.seq, reply: reply.clone(), used: index };
        self.sessions.remember(call.session, entry);
        reply
    }

    fn execute(&mut self, index: u64, op: Option<&Op>) -> Called {
        let on_shard_zero = !matches!(op, Some(Op::KvPut(_) | Op::KvDelete(_)) | None);
        if on_shard_zero && self.shard != 0 {
            return wrong("jobs and members are kept by shard 0 only");
        }
        match op {
            Some(Op::KvPut(put)) if put.only_if_absent && self.kv.contains_key(&put.key) => {
                Called::AlreadyThere(true)
            }
            Some(Op::KvPut(put)) => {
                // Copied, so that a small value does not keep its whole log entry in memory.
                let entry = KvValue { value: Bytes::copy_from_slice(&put.value), revision: index };
                self.kv.insert(Bytes::copy_from_slice(&put.key), entry);
                Called::Revision(index)
            }
            Some(Op::KvDelete(delete)) => {
                self.kv.remove(&delete.key);
                Called::Revision(index)
            }
            Some(Op::JobStart(start)) => {
                self.cluster.job_start(index, start);
                Called::Revision(index)
            }
            Some(Op::JobEnd(end)) if self.cluster.job_end(index, end) => Called::Revision(index),
            Some(Op::JobEnd(_)) => wrong("no such job"),
            Some(Op::NodeJoin(join)) => {
                let incarnation = self.cluster.join(index, join);
                self.fence_the_dead();
                Called::Incarnation(incarnation)
            }
            Some(Op::NodeLeave(leave)) => {
                self.cluster.leave(index, leave.incarnation);
                self.fence_the_dead();
                Called::Revision(index)
            }
            None => wrong("a request this build does not know"),
        }
    }

    /// Whether entries of `incarnation` are rejected here.
    pub fn is_fenced(&self, incarnation: u64) -> bool {
        self.fenced.contains(&incarnation)
    }

    /// How things stand with a task; state unknown when there is no record.
    pub fn view_of(&self, id: TaskId, with_spec: bool) -> proto::TaskView {
        let task = proto::task_bytes(id);
        let Some(record) = self.tasks.get(id) else {
            return proto::TaskView { task, ..Default::default() };
        };
        let mut view = proto::TaskView {
            task,
            attempt: record.attempt,
            keeper: record.keeper,
            keeper_fenced: self.is_fenced(record.keeper),
            revision: record.revision,
            digest: record.digest,
            spec: with_spec.then(|| self.spec_of(id, record)).flatten(),
            ..Default::default()
        };
        match &record.state {
            State::Pending => view.state = proto::TaskState::TaskPending as i32,
            State::Done { executor, outputs, .. } => {
                view.state = proto::TaskState::TaskDone as i32;
                view.executor = *executor;
                view.outputs = outputs.to_vec();
            }
            State::Failed(failure) => {
                view.state = proto::TaskState::TaskFailed as i32;
                view.failure = Some((**failure).clone());
            }
        }
        view
    }

    fn spec_of(&self, id: TaskId, record: &TaskRecord) -> Option<proto::TaskSpec> {
        let bytes = match &record.spec {
            Some(hot) => hot.clone(),
            None => self.specs.get(id).ok()??,
        };
        prost::Message::decode(bytes).ok()
    }

    /// Notes that the spec of an ended task may go cold.
    fn ended(&mut self, id: TaskId) {
        let len = self.tasks.get(id).and_then(|r| r.spec.as_ref()).map_or(0, Bytes::len);
        self.hot.push_back((id, len));
        self.hot_bytes += len;
    }

    /// Moves the specs that ended first out of memory, in one batch, when there are too many.
    fn cool_down(&mut self) {
        if self.hot_bytes <= self.hot_limit {
            return;
        }
        let mut batch = Vec::new();
        while self.hot_bytes > self.hot_limit / 4 * 3 {
            let Some((id, len)) = self.hot.pop_front() else { break };
            self.hot_bytes -= len;
            let Some(record) = self.tasks.get_mut(id) else { continue };
            if record.state != State::Pending
                && let Some(spec) = record.spec.take()
            {
                batch.push((id, spec));
            }
        }
        if let Err(error) = self.specs.put_batch(&batch) {
            self.broken = Some(format!("the store of cold specs failed: {error}"));
        }
    }

    #[cfg(test)]
    pub(crate) fn set_hot_limit(&mut self, bytes: usize) {
        self.hot_limit = bytes;
    }
}

fn wrong(message: &str) -> Called {
    Called::Failure(proto::Failure::new(FailureKind::FailureBadArguments, message))
}
