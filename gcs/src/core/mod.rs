//! The tables of one shard: a pure function from commands to state and replies.
//!
//! Nothing here waits, looks at a clock or rolls dice. Every replica applies the same commands in
//! the same order and must answer the same. The one thing outside is the store of cold runs: what
//! comes out of it is what went in.
//!
//! Read it in this order: [`places`] and [`run`] (the records of one run), [`tasks`] (all of them),
//! [`pack`] (how a node's items become runs), `stream` (a node's traffic), `divergence` (a second value),
//! [`refs`], `references`, [`puts`], `prune`, [`outbox`] and [`counting`] (who needs what, and when it goes),
//! [`session`] (a client's requests), [`kv`] and [`watch`] (keys and the history of their changes), [`cluster`], [`heads`] and [`groups`]
//! (shard 0 only), [`slots`], [`slot_table`] and `moving` (which slots are whose, and how they move), [`events`], `format` and `dump` (snapshots). Not replicated, but
//! pure as well: [`holdings`] and [`locate`] (who has which copies, and what a leader says of it), [`beats`]
//! and [`silence`] (who says nothing).

#[cfg(test)]
mod again_tests;
pub mod beats;
pub mod cluster;
pub mod counting;
mod divergence;
mod dump;
pub mod events;
mod format;
pub mod groups;
#[cfg(test)]
mod groups_tests;
pub mod heads;
pub mod holdings;
pub mod kv;
pub mod locate;
#[cfg(test)]
mod locate_tests;
mod moving;
#[cfg(test)]
mod moving_tests;
pub mod outbox;
pub mod pack;
pub mod places;
mod prune;
pub mod puts;
mod references;
pub mod refs;
#[cfg(test)]
mod refs_model;
#[cfg(test)]
mod refs_tests;
pub mod run;
pub mod session;
pub mod silence;
pub mod slot_table;
pub mod slots;
mod stream;
pub mod tasks;
#[cfg(test)]
mod tests;
pub mod watch;

pub use moving::run_bytes;
pub use stream::seqs_of;

use crate::cold::{ColdStore, Manifest};
use crate::level::Formats;
use bytes::Bytes;
use cluster::Cluster;
use counting::Counting;
use kv::Kv;
use mobula_base::{ObjectId, ShardId, SlotMap, TaskId, mutant};
use mobula_proto as proto;
use prost::Message;
use proto::call::Op;
use proto::call_reply::Reply as Called;
use proto::command::Op as CommandOp;
use proto::{FailureKind, reply::Reply as Answer};
pub use puts::Put;
use run::State;
use session::{Admission, Sessions};
use slots::Owned;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use stream::Stream;
use tasks::Tasks;

/// More records than this and a shard refuses new tasks. They lie on the disk: this is about 40 GB.
pub const MAX_TASKS_PER_SHARD: u64 = 250_000_000;
/// Jobs that were forgotten are remembered by their numbers, so that a straggler does not bring one
/// back; the oldest go first.
pub const MAX_FORGOTTEN: usize = 10_000;

/// The answer to what is asked by a newer program than this.
const UNKNOWN: &str = "a request this build does not know";

/// All replicated state of one shard. A clone is a cheap, consistent view for a snapshot.
#[derive(Clone)]
pub struct ShardState {
    /// Which shard this is.
    pub shard: u32,
    /// Lineage.
    pub tasks: Tasks,
    /// What drivers `put`.
    pub puts: BTreeMap<ObjectId, Put>,
    /// Incarnations whose entries are rejected (R10).
    pub fenced: BTreeSet<u64>,
    /// Functions, named things, environments.
    pub kv: Kv,
    /// Which slots are its own.
    pub slots: Owned,
    /// Shard 0 only.
    pub cluster: Cluster,
    /// What counting references needs.
    pub counting: Counting,
    streams: BTreeMap<u64, Stream>,
    sessions: Sessions,
    /// Jobs that ended and were forgotten, the oldest first.
    forgotten: VecDeque<u64>,
    /// Asked for by the entry that was applied last.
    checkpoints: Vec<u64>,
    /// Work that the items of this entry are good for. Not part of the state.
    credit: usize,
    broken: Option<String>,
    /// What this program reads. Not part of the state.
    formats: Formats,
    /// A planted bug.
    differs: bool,
}

impl ShardState {
    /// An empty shard whose cold runs go to `cold`.
    pub fn new(shard: u32, cold: Arc<dyn ColdStore>) -> Self {
        ShardState {
            shard,
            tasks: Tasks::new(cold),
            puts: BTreeMap::new(),
            fenced: BTreeSet::new(),
            kv: Kv::default(),
            slots: Owned::default(),
            cluster: Cluster::default(),
            counting: Counting::default(),
            streams: BTreeMap::new(),
            sessions: Sessions::default(),
            forgotten: VecDeque::new(),
            checkpoints: Vec::new(),
            credit: 0,
            broken: None,
            formats: Formats::default(),
            differs: false,
        }
    }

    /// The files of cold runs as of now: with [`ShardState::snapshot`], all there is.
    pub fn manifest(&self) -> Manifest {
        self.tasks.cold().manifest()
    }

    /// Digests that the entry applied last asked for. Not part of the state.
    pub fn take_checkpoints(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.checkpoints)
    }

    /// Why this replica must stop: the cold store failed, so its answers would differ.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Applies the command at log index `index`.
    pub fn apply(&mut self, index: u64, command: &proto::Command) -> proto::Reply {
        let reply = self.apply_one(index, command);
        let budget = prune::WORK_PER_ENTRY + std::mem::take(&mut self.credit);
        if self.counting.on
            && let Err(error) = self.work(budget)
        {
            self.broken.get_or_insert(error.to_string());
        }
        if let Err(error) = self.tasks.cool_down() {
            self.broken.get_or_insert(error.to_string());
        }
        reply
    }

    fn apply_one(&mut self, index: u64, command: &proto::Command) -> proto::Reply {
        self.cluster.events.set_time(command.unix_ms);
        let answer = match &command.op {
            Some(CommandOp::Stream(batch)) => match self.apply_stream(index, batch) {
                Ok(answer) => Some(answer),
                Err(error) => {
                    self.broken.get_or_insert(error.to_string());
                    None
                }
            },
            Some(CommandOp::Call(call)) => Some(Answer::Call(self.apply_call(index, call))),
            Some(CommandOp::DeclareDead(death)) => {
                self.cluster.declare_dead(index, death.incarnation, &death.evidence, death.silent_ms);
                self.fence_the_dead();
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Fence(fence)) => {
                if !mutant!("R10b") {
                    self.fence(fence.incarnation);
                }
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Init(init)) => {
                self.cluster.init(index, init);
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Forget(forget)) => {
                self.forget(forget.job);
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Raise(raise)) => {
                self.cluster.raise(index, raise);
                let (level, program) = self.cluster.level();
                if let Err(error) = self.formats.check(level, &program) {
                    self.broken.get_or_insert(error.to_string());
                }
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Heads(_)) if self.shard != 0 => None,
            Some(CommandOp::Heads(command)) => Some(Answer::Heads(self.cluster.change_heads(index, command))),
            Some(CommandOp::Groups(_)) if self.shard != 0 || !self.cluster.has_groups() => None,
            Some(CommandOp::Groups(command)) => {
                self.cluster.change_groups(index, command);
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Slots(command)) => match self.change_slots(index, command) {
                Ok(answer) => Some(answer),
                Err(error) => {
                    self.broken.get_or_insert(error.to_string());
                    None
                }
            },
            Some(CommandOp::Sweep(sweep)) => {
                self.sweep(sweep);
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Unnames(told)) => match self.take_ends(told) {
                Ok(answer) => Some(answer),
                Err(error) => {
                    self.broken.get_or_insert(error.to_string());
                    None
                }
            },
            Some(CommandOp::Delivered(told)) => {
                if let Err(error) = self.note_delivered(told) {
                    self.broken.get_or_insert(error.to_string());
                }
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Event(event)) => {
                self.cluster.events.record(event);
                Some(Answer::Revision(index))
            }
            // What is remembered of it is not part of the state: see `Machine`.
            Some(CommandOp::Checkpoint(checkpoint)) => {
                self.checkpoints.push(checkpoint.id);
                Some(Answer::Revision(index))
            }
            Some(CommandOp::Batch(batch)) => Some(Answer::Batch(self.apply_batch(index, batch))),
            None => None,
        };
        proto::Reply { reply: answer }
    }

    /// Commands that share an entry, each with an encoded reply of its own.
    fn apply_batch(&mut self, index: u64, batch: &proto::CommandBatch) -> proto::ReplyBatch {
        let apply = |command: &Bytes| {
            let reply = match proto::Command::decode(command.clone()) {
                // A batch inside a batch is nobody's request.
                Ok(command) if !matches!(command.op, Some(CommandOp::Batch(_))) => {
                    self.apply_one(index, &command)
                }
                _ => proto::Reply::default(),
            };
            Bytes::from(reply.encode_to_vec())
        };
        proto::ReplyBatch { replies: batch.commands.iter().map(apply).collect() }
    }

    /// A job has ended: its records and puts go, and none comes back.
    fn forget(&mut self, job: u64) {
        if self.forgotten.contains(&job) {
            return;
        }
        self.tasks.forget(job);
        self.puts.retain(|_, put| put.job != job);
        self.counting.concerns.forget(job);
        self.counting.uncounted.remove(&job);
        self.forgotten.push_back(job);
        if self.forgotten.len() > MAX_FORGOTTEN {
            self.forgotten.pop_front();
        }
    }

    /// Jobs that have records or puts here.
    pub fn jobs(&self) -> BTreeSet<u64> {
        self.tasks.jobs().map(|(job, _)| job).chain(self.puts.values().map(|put| put.job)).collect()
    }

    /// On shard 0 a death and its fence are one entry.
    fn fence_the_dead(&mut self) {
        let missing = self.cluster.dead.difference(&self.fenced).copied().collect::<Vec<u64>>();
        missing.into_iter().for_each(|dead| self.fence(dead));
    }

    /// Entries of `dead` are rejected from here on, and what it holds is let go of (R10).
    fn fence(&mut self, dead: u64) {
        if !self.fenced.insert(dead) {
            return;
        }
        if !mutant!("R10a") {
            self.streams.remove(&dead);
        }
        self.bury(dead);
    }

    fn apply_call(&mut self, index: u64, call: &proto::Call) -> proto::CallReply {
        if let Some(Op::Open(_)) = call.op {
            return proto::CallReply { reply: Some(Called::Session(self.sessions.open())) };
        }
        match self.sessions.admit(call.session, call.seq) {
            Admission::Repeat(reply) => return reply,
            Admission::Expired => {
                return proto::CallReply { reply: Some(Called::SessionExpired(true)) };
            }
            Admission::Execute => {}
        }
        let reply = proto::CallReply { reply: Some(self.execute(index, call.op.as_ref())) };
        self.sessions.remember(call.session, call.seq, reply.clone());
        reply
    }

    fn execute(&mut self, index: u64, op: Option<&Op>) -> Called {
        let on_shard_zero = !matches!(op, Some(Op::KvPut(_) | Op::KvDelete(_)) | None);
        if on_shard_zero && self.shard != 0 {
            return wrong(if matches!(op, Some(Op::GroupCreate(_) | Op::GroupRemove(_))) {
                // As earlier releases, whose state this one's must equal: there such a request is none.
                UNKNOWN
            } else {
                "jobs and members are kept by shard 0 only"
            });
        }
        // Answered by the entry: under this number it is never executed, should the slot come back.
        let key = match op {
            Some(Op::KvPut(put)) => Some(&put.key),
            Some(Op::KvDelete(delete)) => Some(&delete.key),
            _ => None,
        };
        if let Some(epoch) = key.and_then(|key| self.slots.moved_key(key)) {
            return Called::Moved(epoch);
        }
        match op {
            Some(Op::KvPut(put)) if self.differs && index.is_multiple_of(64) => {
                self.kv.put(&proto::KvPut { value: Bytes::from_static(b"something else"), ..put.clone() })
            }
            Some(Op::KvPut(put)) => self.kv.put(put),
            Some(Op::KvDelete(delete)) => self.kv.delete(delete),
            Some(Op::JobStart(start)) => {
                self.cluster.job_start(index, start);
                Called::Revision(index)
            }
            Some(Op::JobEnd(end)) if self.cluster.job_end(index, end) => Called::Revision(index),
            Some(Op::JobEnd(_)) => wrong("no such job"),
            Some(Op::NodeJoin(join)) if self.cluster.slots_table.has_moves() && !join.follows_slots => wrong(
                "slots have moved in this cluster, which this release does not understand: upgrade the node",
            ),
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
            // Below that level as heads of earlier releases, which do not know of groups, answer it.
            Some(Op::GroupCreate(_) | Op::GroupRemove(_)) if !self.cluster.has_groups() => wrong(UNKNOWN),
            Some(Op::GroupCreate(wanted)) => match self.cluster.create_group(index, wanted) {
                Ok(since) => Called::Revision(since),
                Err(why) => wrong(&why),
            },
            Some(Op::GroupRemove(remove)) => match self.cluster.remove_group(index, remove) {
                Ok(()) => Called::Revision(index),
                Err(why) => wrong(&why),
            },
            Some(Op::Open(_)) | None => wrong(UNKNOWN),
        }
    }

    /// Whether entries of `incarnation` are rejected here.
    pub fn is_fenced(&self, incarnation: u64) -> bool {
        self.fenced.contains(&incarnation)
    }

    /// Whether whoever saw to a task is gone, or has given it up.
    pub(super) fn is_without_keeper(&self, standing: &run::Standing) -> bool {
        standing.keeper == 0 || self.is_fenced(standing.keeper)
    }

    /// How things stand with a task; state unknown when there is no record.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn view_of(&self, id: TaskId, with_spec: bool) -> io::Result<proto::TaskView> {
        let task = proto::task_bytes(id);
        let Some(record) = self.tasks.get(id)? else {
            return Ok(proto::TaskView { task, ..Default::default() });
        };
        let standing = record.standing;
        let spec = with_spec.then(|| proto::TaskSpec::decode(record.spec)).and_then(Result::ok);
        let mut view = proto::TaskView {
            task,
            attempt: standing.attempt,
            keeper: standing.keeper,
            keeper_fenced: self.is_without_keeper(&standing),
            revision: record.revision,
            digest: record.digest,
            spec,
            ..Default::default()
        };
        match standing.state {
            State::Pending => {
                view.state = proto::TaskState::TaskPending as i32;
                // So that its keeper can compare before it lets anybody see the value (G3).
                view.outputs = standing.before.map(|before| before.outputs.into()).unwrap_or_default();
            }
            State::Done { executor, outputs, .. } => {
                view.state = proto::TaskState::TaskDone as i32;
                view.executor = executor;
                view.outputs = outputs.into();
            }
            State::Failed { failure, .. } => {
                view.state = proto::TaskState::TaskFailed as i32;
                view.failure = Some(*failure);
            }
        }
        Ok(view)
    }

    /// Plants bugs: a repeated request executes again; another value is applied now and then.
    pub fn set_careless(&mut self, repeats: bool, differs: bool) {
        self.sessions.repeats = repeats;
        self.differs = differs;
    }

    /// What this program reads: at a level beyond it the replica stops.
    pub fn set_formats(&mut self, formats: Formats) {
        self.formats = formats;
    }

    /// Bytes of runs that may stay in memory.
    pub fn set_hot_limit(&mut self, bytes: usize) {
        self.tasks.set_hot_limit(bytes);
    }
}

/// The command that makes a shard of so many, whose slots have not moved, count references.
pub fn first_sweep(shard: u32, shards: u32) -> CommandOp {
    let owned = proto::slot_rows(&SlotMap::even(shards).slots_of(ShardId(shard)));
    CommandOp::Sweep(proto::Sweep { owned })
}

fn wrong(message: &str) -> Called {
    Called::Failure(proto::Failure::new(FailureKind::FailureBadArguments, message))
}
