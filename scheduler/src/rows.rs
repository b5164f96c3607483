//! What this node knows of each task, object and worker, a row each: for lists that people read.

use crate::core::{Core, KeptState};
use crate::execute::Run;
use crate::objects::{Object, State};
use crate::trace::{Span, Totals};
use crate::types::{ClientId, Value};
use mobula_base::{Incarnation, Instant, JobId, ObjectId, TaskId, TaskPrefix};
use std::collections::BTreeMap;

/// Tasks that are counted by function: it is asked for every second by everybody who watches.
pub const COUNTED_MAX: usize = 100_000;

/// A task that this node keeps or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// The task.
    pub task: TaskId,
    /// Its job.
    pub job: JobId,
    /// Its function, as the job numbers them.
    pub function: u64,
    /// Where it stands: what `explain` says.
    pub state: &'static str,
    /// Which attempt.
    pub attempt: u32,
    /// This node keeps it; else it runs it for another.
    pub kept: bool,
    /// Where it was placed, if it was.
    pub node: Option<Incarnation>,
    /// The worker of this node that has it.
    pub worker: Option<ClientId>,
    /// The task that submitted it; zero: a driver did.
    pub parent: bytes::Bytes,
}

/// An object that this node knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRow {
    /// The object.
    pub object: ObjectId,
    /// Its job.
    pub job: JobId,
    /// Where it is, as this node knows: `inline`, `here`, `elsewhere`, `pending`, `locating`, `unknown`, `failed`.
    pub state: &'static str,
    /// Bytes, where that is known.
    pub size: u64,
    /// Nodes that have it, as this node knows, but this one.
    pub holders: Vec<Incarnation>,
    /// Programs of this node that refer to it.
    pub clients: u32,
    /// Tasks kept here that name it.
    pub tasks: u32,
    /// Attempts here that use its value.
    pub used: u32,
    /// Who waits for it here: tasks, attempts, programs.
    pub waiting: u32,
    /// Nobody here has a use for this copy.
    pub idle: bool,
}

/// A worker process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRow {
    /// Its link.
    pub worker: ClientId,
    /// The job that it works for.
    pub job: JobId,
    /// `idle`, `running`, `blocked`, `stalled`.
    pub state: &'static str,
    /// What it runs, which attempt, and since when.
    pub runs: Option<(TaskId, u32, u64, Instant)>,
    /// What stands behind that in its line.
    pub line: u32,
}

/// How many tasks of a job and function stand somewhere.
pub type Counts = BTreeMap<(JobId, u64, &'static str), u64>;

impl Core {
    /// Up to `limit` rows of the tasks that begin so and are to be told, sorted, and whether there are more. Looks
    /// at every task.
    pub fn task_rows(
        &self,
        prefix: TaskPrefix,
        limit: usize,
        tells: impl Fn(&TaskRow) -> bool,
    ) -> (Vec<TaskRow>, bool) {
        let mut tasks: Vec<TaskId> =
            self.kept.keys().chain(self.runs.keys()).filter(|task| prefix.begins(**task)).copied().collect();
        tasks.sort_unstable();
        tasks.dedup();
        limited(tasks.into_iter().filter_map(|task| self.task_row(task)).filter(tells), limit)
    }

    fn task_row(&self, task: TaskId) -> Option<TaskRow> {
        let (kept, run) = (self.kept.get(&task), self.runs.get(&task));
        let spec = kept.map(|kept| &kept.spec).or(run.map(|run| &run.spec))?;
        let node = match kept.map(|kept| kept.state) {
            Some(KeptState::Placed(node) | KeptState::Undurable(node)) => Some(node),
            Some(_) => None,
            None => Some(self.config.incarnation),
        };
        Some(TaskRow {
            task,
            job: JobId(spec.job),
            function: spec.function,
            state: self.state_of(task),
            attempt: kept.map(|kept| kept.attempt).or(run.map(|run| run.attempt)).unwrap_or(0),
            kept: kept.is_some(),
            node,
            worker: run.and_then(|run| run.given),
            parent: spec.parent.clone(),
        })
    }

    /// Where a task stands on this node, in a word.
    pub(crate) fn state_of(&self, task: TaskId) -> &'static str {
        let run = self.runs.get(&task);
        match (self.kept.get(&task).map(|kept| kept.state), run) {
            (Some(KeptState::AwaitCommit), _) => "await_commit",
            (Some(KeptState::AwaitAttempt), _) => "await_attempt",
            (Some(KeptState::AwaitDeps(_)), _) => "await_arguments",
            (Some(KeptState::Queued), _) => "queued",
            (Some(KeptState::Placed(node)), Some(run)) if node == self.config.incarnation => {
                self.state_of_run(task, run)
            }
            (Some(KeptState::Placed(_)), _) => "placed",
            (Some(KeptState::Undurable(_)), _) => "undurable",
            (Some(KeptState::Finishing), _) => "finishing",
            (None, Some(run)) => self.state_of_run(task, run),
            (None, None) => "unknown",
        }
    }

    fn state_of_run(&self, task: TaskId, run: &Run) -> &'static str {
        if run.missing > 0 {
            return "arriving";
        }
        let Some(worker) = run.given else { return "await_worker" };
        let Some(w) = self.workers.get(&worker) else { return "given" };
        match w.queue.iter().position(|other| *other == task) {
            Some(0) if w.blocked => "blocked",
            Some(0) if w.stalled => "stalled",
            Some(0) | None => "running",
            Some(_) => "given",
        }
    }

    /// How many tasks of each function are where, of up to [`COUNTED_MAX`] of them, and whether there are more. Those that
    /// end and linger count, too.
    pub fn task_counts(&self) -> (Counts, bool) {
        let mut counts = Counts::new();
        for (task, kept) in self.kept.iter().take(COUNTED_MAX) {
            let of = (JobId(kept.spec.job), kept.spec.function, self.state_of(*task));
            *counts.entry(of).or_default() += 1;
        }
        (counts, self.kept.len() > COUNTED_MAX)
    }

    /// Up to `limit` rows of the objects of tasks that begin so, sorted, and whether there are more. Looks at every
    /// object.
    pub fn object_rows(
        &self,
        prefix: TaskPrefix,
        limit: usize,
        tells: impl Fn(&ObjectRow) -> bool,
    ) -> (Vec<ObjectRow>, bool) {
        let mut objects: Vec<ObjectId> =
            self.objects.keys().filter(|id| prefix.begins(id.task)).copied().collect();
        objects.sort_unstable();
        let rows = objects.into_iter().filter_map(|id| Some(self.object_row(id, self.objects.get(&id)?)));
        limited(rows.filter(tells), limit)
    }

    fn object_row(&self, id: ObjectId, object: &Object) -> ObjectRow {
        let (state, size, holders) = match &object.state {
            State::Unknown => ("unknown", 0, &[][..]),
            State::Locating => ("locating", 0, &[][..]),
            State::Pending => ("pending", 0, &[][..]),
            State::Failed(_) => ("failed", 0, &[][..]),
            State::Elsewhere { holders, output } => ("elsewhere", output.size, &holders[..]),
            State::Here(Value::Inline(bytes)) => ("inline", bytes.len() as u64, &[][..]),
            State::Here(Value::Shared { len, .. }) => ("here", *len, &[][..]),
        };
        let (clients, tasks, used) = object.refs.counts();
        let waiting = object.tasks_waiting.len()
            + object.runs_waiting.len()
            + object.subscribers.len()
            + object.getters.len();
        ObjectRow {
            object: id,
            job: object.job,
            state,
            size,
            holders: holders.to_vec(),
            clients,
            tasks,
            used,
            waiting: waiting as u32,
            idle: self.idle.contains(&id),
        }
    }

    /// All worker processes.
    pub fn worker_rows(&self) -> Vec<WorkerRow> {
        let row = |(worker, w): (&ClientId, &crate::workers::Worker)| WorkerRow {
            worker: *worker,
            job: w.job,
            state: match (w.queue.is_empty(), w.blocked, w.stalled) {
                (_, true, _) => "blocked",
                (_, _, true) => "stalled",
                (false, ..) => "running",
                (true, ..) => "idle",
            },
            runs: w.queue.front().map(|task| {
                let of = self.runs.get(task).map(|run| (run.attempt, run.spec.function, run.began));
                let (attempt, function, began) = of.unwrap_or((0, 0, self.now));
                (*task, attempt, function, began)
            }),
            line: w.queue.len().saturating_sub(1) as u32,
        };
        self.workers.iter().map(row).collect()
    }

    /// The latest spans that ended at `since` or later, up to `limit`, and whether there were more.
    pub fn spans(&self, since: Instant, limit: usize) -> (Vec<Span>, bool) {
        self.trace.since(since, limit)
    }

    /// What workers have ended so far.
    pub fn totals(&self) -> Totals {
        self.trace.totals
    }
}

fn limited<T>(mut rows: impl Iterator<Item = T>, limit: usize) -> (Vec<T>, bool) {
    let told = rows.by_ref().take(limit).collect();
    (told, rows.next().is_some())
}
