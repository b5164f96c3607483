//! Workers that take more memory than there is for them.
//!
//! The node measures what each worker has for itself, now and then; here is decided whose worker ends. A task that said how
//! much it may have ends with that failure when it has more. When the node as a whole has next to nothing left, one
//! worker after the other ends until it has, before the kernel ends any process it likes: the daemon, say.
//!
//! Whom that hits goes by what Ray's memory monitor does
//! (<https://docs.ray.io/en/latest/ray-core/scheduling/ray-oom-prevention.html>): tasks that may run again before those
//! that may not, and of those the one that began last, as it loses least. Different from there, tasks are not grouped by
//! who submitted them, and whoever has next to nothing is left alone: its end would free nothing.

use crate::cancel::Stop;
use crate::core::Core;
use crate::types::{ClientId, Effect};
use mobula_base::{Instant, JobId, TaskId};
use mobula_proto::{Failure, FailureKind, TaskSpec};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A worker with less memory of its own does not end for the sake of its node.
pub const WORTH_MIN: u64 = 64 << 20;
/// So long after a worker has ended for the sake of its node no other one does: what it had is counted a little longer.
pub const PAUSE: Duration = Duration::from_secs(1);

/// What a node measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Bytes that each worker has for itself: what it shares, as objects, is not among them.
    pub workers: Vec<(ClientId, u64)>,
    /// What is used, and how much may be: of the machine, and of whatever else bounds the node. Bytes.
    pub rooms: Vec<(u64, u64)>,
}

/// A worker, and the task that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The worker.
    pub worker: ClientId,
    /// Memory of its own.
    pub bytes: u64,
    /// How much its task may have.
    pub limit: Option<u64>,
    /// When it was seen at this task first.
    pub since: Instant,
    /// The task may run again.
    pub retriable: bool,
}

/// Why a worker is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its task has more than it may.
    OverLimit,
    /// Its node has nothing left.
    NodeFull,
}

/// Whose workers are to end. All that are over their limits; and if there are none and the node is full, one.
pub fn choose(candidates: &[Candidate], is_full: bool) -> Vec<(ClientId, Verdict)> {
    let over = candidates.iter().filter(|c| c.limit.is_some_and(|limit| c.bytes > limit));
    let over: Vec<_> = over.map(|c| (c.worker, Verdict::OverLimit)).collect();
    if !over.is_empty() || !is_full {
        return over;
    }
    let worth = candidates.iter().filter(|c| c.bytes >= WORTH_MIN);
    let first = worth.max_by_key(|c| (c.retriable, c.since, c.bytes, Reverse(c.worker)));
    first.map(|c| (c.worker, Verdict::NodeFull)).into_iter().collect()
}

/// What is known of workers and their memory.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// What each was seen at when it was measured last, and since when.
    seen: BTreeMap<ClientId, (TaskId, u32, Instant)>,
    /// Those that have been told to end and have not.
    ending: BTreeSet<ClientId>,
    /// When one was last told to for the sake of the node.
    relieved: Option<Instant>,
    /// How many have ended, over their limits, and for their node.
    ended: (u64, u64),
}

impl Watched {
    /// Workers that have ended, by what for.
    pub(crate) fn ended(&self) -> Vec<(&'static str, u64)> {
        vec![("task_limit", self.ended.0), ("node_full", self.ended.1)]
    }

    pub(crate) fn forget(&mut self, worker: ClientId) {
        self.seen.remove(&worker);
        self.ending.remove(&worker);
    }
}

/// How much memory an attempt may have.
fn memory_limit(spec: &TaskSpec) -> Option<u64> {
    spec.options.as_deref().map(|options| options.memory_limit).filter(|limit| *limit > 0)
}

fn mb(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

impl Core {
    /// The node has measured what its workers have.
    pub(crate) fn memory_measured(&mut self, measured: Measured) {
        let candidates = self.candidates(&measured.workers);
        let rests = self.memory.relieved.is_some_and(|at| self.now < at + PAUSE);
        let full = measured.rooms.iter().find(|(used, may)| used > may).copied();
        let is_relieved = rests || !self.memory.ending.is_empty();
        let verdicts = choose(&candidates, full.is_some() && !is_relieved);
        for (worker, verdict) in verdicts {
            let Some(candidate) = candidates.iter().find(|c| c.worker == worker) else { continue };
            let why = match verdict {
                Verdict::OverLimit => {
                    self.memory.ended.0 += 1;
                    over_limit(candidate)
                }
                Verdict::NodeFull => {
                    self.memory.relieved = Some(self.now);
                    self.memory.ended.1 += 1;
                    node_full(candidate, full.unwrap_or_default())
                }
            };
            self.end_for_memory(candidate, why);
        }
    }

    /// The workers that run something. One is judged by what it was seen at before, too: what has just begun may be
    /// taken for what ran before, as the worker's word of its end may be on its way.
    fn candidates(&mut self, workers: &[(ClientId, u64)]) -> Vec<Candidate> {
        let (mut seen, mut candidates) = (BTreeMap::new(), Vec::new());
        for (worker, bytes) in workers.iter().copied() {
            let Some(task) = self.workers.get(&worker).and_then(|w| w.queue.front()).copied() else {
                continue;
            };
            let Some(run) = self.runs.get(&task).filter(|run| run.given == Some(worker)) else { continue };
            let before =
                self.memory.seen.get(&worker).filter(|(was, n, _)| (*was, *n) == (task, run.attempt));
            let since = before.map_or(self.now, |(_, _, since)| *since);
            seen.insert(worker, (task, run.attempt, since));
            if before.is_some() && !self.memory.ending.contains(&worker) {
                let limit = memory_limit(&run.spec);
                let retriable = run.attempt <= run.spec.max_retries;
                candidates.push(Candidate { worker, bytes, limit, since, retriable });
            }
        }
        self.memory.seen = seen;
        candidates
    }

    /// A worker ends at once: asked to stop, its task would take more meanwhile.
    fn end_for_memory(&mut self, candidate: &Candidate, why: Failure) {
        let Some((task, attempt, _)) = self.memory.seen.get(&candidate.worker).copied() else { return };
        let job = self.workers.get(&candidate.worker).map_or(JobId::default(), |worker| worker.job);
        self.notice(job, "out-of-memory", why.message.clone(), Some(task), candidate.bytes);
        // What was told to stop before ends as it was told.
        self.stopping.entry(task).or_insert(Stop { attempt, told: true, why }).told = true;
        self.memory.ending.insert(candidate.worker);
        self.effects.push(Effect::Kill { worker: candidate.worker });
    }
}

fn over_limit(candidate: &Candidate) -> Failure {
    let (has, limit) = (mb(candidate.bytes), mb(candidate.limit.unwrap_or_default()));
    let message = format!(
        "the task's worker had {has} MB of memory, and the task may have {limit} MB: its worker was killed. Raise \
         `memory_limit_mb`, let the task take less at a time, or let it try again with `retry_on(RetryOn::OutOfMemory)`"
    );
    Failure::new(FailureKind::FailureOutOfMemory, message)
}

fn node_full(candidate: &Candidate, (used, may): (u64, u64)) -> Failure {
    let (has, used, may) = (mb(candidate.bytes), mb(used), mb(may));
    let message = format!(
        "its node ran short of memory ({used} MB in use, {may} MB may be), and of what could be ended the task, whose \
         worker had {has} MB, began last: its worker was killed. Say with `memory_mb` what the task needs, so that \
         fewer run at once, or add nodes"
    );
    Failure::new(FailureKind::FailureNodeOutOfMemory, message)
}
