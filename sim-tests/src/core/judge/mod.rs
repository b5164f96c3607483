//! What must hold, a file each. Each looks at changes as they happen, and keeps the first thing that it
//! objects to.

pub mod answers;
pub mod behind;
mod buried;
pub mod cause;
pub mod closure;
mod copies;
pub mod cpu;
pub mod drops;
pub mod durable;
pub mod edges;
pub mod ended;
pub mod fenced;
pub mod hedges;
pub mod leak;
pub mod limits;
pub mod liveness;
pub mod lost;
pub mod once;
pub mod one;
pub mod order;
pub mod outrank;
pub mod placed;
pub mod redo;
pub mod running;
pub mod settled;
pub mod stream;
pub mod value;

use super::life::Life;
use super::program::Oracle;
use super::shard::Shard;
use super::sometimes::Sometimes;
use mobula_base::{Instant, ObjectId, TaskId};
use mobula_gcs::core::ShardState;
use mobula_gcs::core::locate::Members;
use mobula_proto::command::Op;
use mobula_proto::item_outcome::Outcome;
use mobula_proto::{Command, Failure, Reply, StreamAck};
use std::collections::BTreeSet;
use std::time::Duration;

/// Looks at whether all is over come so often.
pub const LOOK: Duration = Duration::from_millis(500);

/// What kind of objection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something wrong happened.
    Safety,
    /// Something that must happen did not.
    Liveness,
    /// The run did not do what it is for.
    Coverage,
    /// The simulator itself failed.
    Harness,
}

/// An objection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// Whose.
    pub judge: &'static str,
    /// The rule or property behind it.
    pub rule: &'static str,
    /// What kind.
    pub class: Class,
    /// In words.
    pub text: String,
}

/// What a judge found first.
pub type Found = Option<String>;

/// Keeps the first.
pub(crate) fn object(found: &mut Found, text: impl FnOnce() -> String) {
    if found.is_none() {
        *found = Some(text());
    }
}

/// Items that an answer has more to say of than that they were taken, by their numbers. A new record that came
/// early is new.
fn said(ack: &StreamAck) -> BTreeSet<u64> {
    let outcomes = ack.outcomes.iter();
    outcomes.filter(|said| !matches!(said.outcome, Some(Outcome::Early(_)))).map(|said| said.seq).collect()
}

/// All judges.
#[derive(Default)]
pub struct Judges {
    /// Gets return what the program makes.
    pub value: value::Value,
    /// What is read of a stream was made at once.
    pub one: one::One,
    /// Nothing is made of what does not count.
    pub behind: behind::Behind,
    /// No attempt starts without its grant.
    pub once: once::Once,
    /// The dead have no say.
    pub fenced: fenced::Fenced,
    /// CPUs are not promised twice.
    pub cpu: cpu::Cpu,
    /// Nothing runs again without need.
    pub redo: redo::Redo,
    /// What fails fails for a reason.
    pub cause: cause::Cause,
    /// Done comes after what was submitted.
    pub order: order::Order,
    /// Streams are applied once, in order.
    pub stream: stream::Stream,
    /// What is there is not called lost.
    pub lost: lost::Lost,
    /// What is referred to stays.
    pub closure: closure::Closure,
    /// What a shard answers follows from what it has.
    pub answers: answers::Answers,
    /// Who is said to have made something has.
    pub ended: ended::Ended,
    /// What tasks refer to stays.
    pub running: running::Running,
    /// Lost is not said too early.
    pub settled: settled::Settled,
    /// What the driver refers to is not dropped.
    pub drops: drops::Drops,
    /// Tasks begin once they are durable, where that is wanted.
    pub durable: durable::Durable,
    /// Tasks run only where they may.
    pub placed: placed::Placed,
    /// Re-executions come first.
    pub outrank: outrank::Outrank,
    /// Edges come before what follows from them.
    pub edges: edges::Edges,
    /// Only what may run twice does so at once.
    pub hedges: hedges::Hedges,
    /// Nothing is stopped before its time.
    pub limits: limits::Limits,
    /// Everything ends.
    pub liveness: liveness::Liveness,
    /// Nothing stays.
    pub leak: leak::Leak,
    /// Only what replicas apply is seen, not what nodes do, nor the tables before an entry: judges that need
    /// that are silent.
    sees_replicas_only: bool,
    harness: Found,
    diverged: Found,
    snapshot: Found,
}

impl Judges {
    /// For whoever shows them what replicas apply, and little else.
    pub fn of_replicas() -> Self {
        Judges { sees_replicas_only: true, ..Judges::default() }
    }

    /// The first objection of any judge.
    pub fn verdict(&self) -> Option<Objection> {
        use Class::{Harness, Liveness, Safety};
        let all: [(&Found, &'static str, &'static str, Class); 28] = [
            (&self.harness, "harness", "-", Harness),
            (&self.value.found, "value", "G3, S9", Safety),
            (&self.one.found, "one-value", "G3", Safety),
            (&self.behind.found, "behind", "G3", Safety),
            (&self.once.found, "once", "R7, S15", Safety),
            (&self.fenced.found, "fenced", "R10", Safety),
            (&self.cpu.found, "overcommit", "S21", Safety),
            (&self.durable.found, "durable", "R4", Safety),
            (&self.placed.found, "placed", "placement", Safety),
            (&self.redo.found, "redo", "S14", Safety),
            (&self.cause.found, "typed-cause", "S24", Safety),
            (&self.order.found, "done-order", "R4", Safety),
            (&self.stream.found, "stream", "R12", Safety),
            (&self.lost.found, "lost", "R9", Safety),
            (&self.closure.found, "closure", "R6, S11, S12", Safety),
            (&self.answers.found, "answers", "R2, R3, R7, R10, R12", Safety),
            (&self.ended.found, "ended", "R3, R7", Safety),
            (&self.running.found, "running", "R6, R8", Safety),
            (&self.settled.found, "settled", "R9", Safety),
            (&self.drops.found, "drops", "R13", Safety),
            (&self.outrank.found, "outrank", "R16", Safety),
            (&self.edges.found, "edges", "R5, R6", Safety),
            (&self.hedges.found, "hedges", "hedges", Safety),
            (&self.limits.found, "limits", "limits", Safety),
            (&self.snapshot, "snapshot", "S6, R14", Safety),
            (&self.diverged, "diverged", "R1, R2, G3", Safety),
            (&self.liveness.found, "liveness", "G5, R16", Liveness),
            (&self.leak.found, "leak", "G8, V4", Safety),
        ];
        let (found, judge, rule, class) = all.into_iter().find(|(found, ..)| found.is_some())?;
        found.clone().map(|text| Objection { judge, rule, class, text })
    }

    /// The simulator itself is wrong.
    pub fn harness(&mut self, text: String) {
        self.harness.get_or_insert(text);
    }

    /// A replica that starts from a snapshot is another than the one that wrote it.
    pub fn snapshot(&mut self, text: String) {
        self.snapshot.get_or_insert(text);
    }

    /// A task that makes the same each time does not diverge.
    pub fn diverged(&mut self, text: &str) {
        self.diverged.get_or_insert(text.to_owned());
    }

    /// An attempt starts on a node.
    pub fn started(
        &mut self,
        task: TaskId,
        attempt: u32,
        node: u64,
        now: Instant,
        sometimes: &mut Sometimes,
    ) {
        self.once.started(task, attempt, node, now);
        self.cause.began(task);
        self.redo.started(task, sometimes);
    }

    /// An attempt does not come through, and there may be another.
    pub fn tries_again(&mut self, task: TaskId) {
        self.cause.died(task);
        self.redo.died(task);
    }

    /// An attempt on a node is told to stop.
    pub fn stopped(&mut self, oracle: &Oracle, task: TaskId, node: u64, now: Instant) {
        // A stream that makes an item otherwise than before is stopped by whoever takes it.
        let diverged = self.cause.may_have_diverged(oracle, task);
        if !self.cause.was_cancelled(oracle, task) {
            if !diverged {
                self.limits.stopped(task, node, now);
            }
            self.tries_again(task);
        }
    }

    /// A failure is told.
    pub fn failed(
        &mut self,
        oracle: &Oracle,
        object: ObjectId,
        failure: &Failure,
        now: Instant,
        sometimes: &mut Sometimes,
    ) {
        self.cause.failed(oracle, object, failure, now, sometimes);
    }

    /// Shard 0 has other members.
    pub fn members(&mut self, members: &Members) {
        for node in self.fenced.members(members) {
            self.cause.node_died(node);
            self.order.node_died(node);
        }
    }

    /// A life has ended, with all that it held.
    pub fn life_ended(&mut self, life: &Life, shards: &[Shard]) {
        self.cpu.life_ended(life.incarnation.0);
        self.redo.life_ended(life, shards.len());
        for client in life.clients.values() {
            if let Some(run) = &client.run {
                self.cause.died(run.task);
            }
        }
    }

    /// An entry is about to be applied.
    pub fn before_apply(&mut self, shard: usize, state: &ShardState, command: &Command) {
        if let Some(Op::Stream(batch)) = &command.op {
            let Judges { fenced, answers, once, .. } = self;
            once.before(state, batch);
            fenced.before(shard, batch.incarnation);
            answers.before(state, batch, |who| fenced.is_fenced(shard, who));
        }
    }

    /// It has been applied.
    pub fn applied(
        &mut self,
        shard: usize,
        index: u64,
        command: &Command,
        reply: &Reply,
        sometimes: &mut Sometimes,
    ) {
        let batch = match &command.op {
            Some(Op::Stream(batch)) => batch,
            Some(Op::Fence(fence)) => return self.fenced.fence(shard, fence.incarnation),
            _ => return,
        };
        self.fenced.after(shard, index, batch, reply, sometimes);
        let fresh = self.stream.applied(shard, batch, reply, sometimes);
        let Some(mobula_proto::reply::Reply::Stream(ack)) = &reply.reply else { return };
        if fresh {
            self.once.applied(batch, ack, sometimes);
            self.order.applied(batch, ack);
        }
        if !self.sees_replicas_only {
            self.answers.applied(shard, batch, ack, fresh);
            if fresh {
                self.ended.applied(batch, ack);
                self.running.applied(batch, ack);
            }
        }
    }
}
