//! Tasks that end before they are done: cancelled, or out of their time.
//!
//! A task that does not run yet ends at once. One that runs is told, and its worker is killed when it has not
//! stopped after a grace. Either way its keeper records why, as it records any failure: a cancelled task stays
//! cancelled for whoever asks, also when its node dies meanwhile.

use crate::core::{Core, KeptState};
use crate::recovery::Timer;
use crate::types::{ClientId, Effect, Value};
use crate::workers::Worker;
use mobula_base::{Incarnation, TaskId, mutant};
use mobula_proto::{Failure, FailureKind, TaskSpec, task_bytes};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a task that is told to stop may take before its worker is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// An attempt on this node that is to end without a value.
#[derive(Debug)]
pub(crate) struct Stop {
    pub attempt: u32,
    /// Its worker has been told to stop it, or to end.
    pub told: bool,
    /// What it ends with, whatever it makes.
    pub why: Failure,
}

fn cancelled() -> Failure {
    Failure::new(FailureKind::FailureCancelled, "the task was cancelled")
}

/// How long an attempt may run.
pub(crate) fn time_limit(spec: &TaskSpec) -> Option<Duration> {
    let limit = spec.options.as_deref()?.timeout_ms;
    (limit > 0).then(|| Duration::from_millis(limit))
}

/// Whether a task runs again after this failure, which is not the death of its worker or node.
pub(crate) fn wants_retry(spec: &TaskSpec, failure: &Failure) -> bool {
    // What its node ran short of is none of its own.
    if failure.kind() == FailureKind::FailureNodeOutOfMemory {
        return spec.max_retries > 0;
    }
    let Some(retry) = spec.options.as_deref().and_then(|options| options.retry_on.as_ref()) else {
        return false;
    };
    let named =
        retry.containing.is_empty() || retry.containing.iter().any(|text| failure.message.contains(text));
    spec.max_retries > 0
        && match failure.kind() {
            FailureKind::FailureUserError => retry.errors && named,
            FailureKind::FailurePanic => retry.panics,
            FailureKind::FailureTimedOut => retry.timeouts,
            FailureKind::FailureOutOfMemory => retry.out_of_memory,
            _ => false,
        }
}

impl Core {
    /// Somebody on this node (or, `from` another node, somebody there) wants these tasks to end. Twice is as
    /// good as once, and what has ended stays as it is.
    pub(crate) fn cancel(&mut self, tasks: Vec<TaskId>, recursive: bool, from: Option<Incarnation>) {
        // Whoever keeps a task that this node does not know is found by asking all: few are cancelled that way.
        let strange: Vec<TaskId> =
            tasks.iter().filter(|task| !self.kept.contains_key(task)).copied().collect();
        if from.is_none() && !strange.is_empty() {
            let me = self.config.incarnation;
            for to in self.members.keys().copied().filter(|node| *node != me) {
                self.effects.push(Effect::Cancel { to, tasks: strange.clone(), recursive });
            }
        }
        let mut seen: BTreeSet<TaskId> = tasks.iter().copied().collect();
        let mut line = tasks;
        while let Some(task) = line.pop() {
            self.cancel_kept(task, recursive);
            self.stop_run(task, cancelled());
            if recursive {
                let parent = task_bytes(task);
                let children = self.kept.sorted_keys(|kept| kept.spec.parent == parent);
                line.extend(children.into_iter().filter(|child| seen.insert(*child)));
            }
        }
    }

    fn cancel_kept(&mut self, task: TaskId, recursive: bool) {
        let Some(kept) = self.kept.get(&task) else { return };
        match kept.state {
            // It has ended, and what it came to may have been used.
            KeptState::Undurable(_) | KeptState::Finishing => {}
            KeptState::AwaitDeps(_) | KeptState::Queued => {
                self.cancel_beside(task);
                self.fail_kept(task, cancelled());
            }
            // Its shard says first how the task stands.
            KeptState::AwaitCommit | KeptState::AwaitAttempt => {
                self.cancelled.insert(task);
                self.cancel_beside(task);
            }
            KeptState::Placed(node) => {
                // Should that node die, there is no other attempt.
                self.cancelled.insert(task);
                self.cancel_beside(task);
                if node != self.config.incarnation {
                    self.effects.push(Effect::Cancel { to: node, tasks: vec![task], recursive });
                }
            }
        }
    }

    fn cancel_beside(&mut self, task: TaskId) {
        if let Some(to) = self.hedges.shunned(task) {
            self.effects.push(Effect::Cancel { to, tasks: vec![task], recursive: false });
        }
    }

    /// Ends a kept task that was cancelled while it could not end yet; whether it did.
    pub(crate) fn end_cancelled(&mut self, task: TaskId) -> bool {
        let was = !self.cancelled.is_empty() && self.cancelled.remove(&task);
        if was {
            // A stream that was made otherwise than before was cancelled for that.
            let why = match self.verdict(task, Err(cancelled())) {
                Err(why) if !mutant!("W55") => why,
                Err(_) | Ok(_) => cancelled(),
            };
            self.fail_kept(task, why);
        }
        was
    }

    /// An attempt on this node is to end without a value. What waits ends now; what a worker has is asked to
    /// stop, and is nobody's any more when it ends.
    pub(crate) fn stop_run(&mut self, task: TaskId, why: Failure) {
        let Some(run) = self.runs.get(&task) else { return };
        let (Some(worker), attempt) = (run.given, run.attempt) else { return self.fail_run(task, why) };
        let stop = self.stopping.entry(task).or_insert(Stop { attempt, told: false, why });
        if std::mem::replace(&mut stop.told, true) {
            return;
        }
        self.effects.push(Effect::Stop { worker, task, attempt });
        self.set_timer(STOP_GRACE, Timer::Kill(task, attempt));
    }

    /// What an attempt on this node waits for will not come. One that stands behind that in the line of a worker may be
    /// running all the same: what was told to stop may have made its value before it heard of that. So it ends when
    /// its worker says so, and after the records of what it submits (R4).
    pub(crate) fn fail_waiting_run(&mut self, task: TaskId, why: Failure) {
        match self.runs.get(&task) {
            Some(run) if run.given.is_some() && !mutant!("W29") => {
                self.stopping.entry(task).or_insert(Stop { attempt: run.attempt, told: false, why });
            }
            _ => self.fail_run(task, why),
        }
    }

    /// The grace of a task that was told to stop is over.
    pub(crate) fn kill(&mut self, task: TaskId, attempt: u32) {
        if self.stopping.get(&task).is_none_or(|stop| stop.attempt != attempt) {
            // A later attempt has taken its place meanwhile.
            return self.kill_stray(task);
        }
        let Some(worker) = self.runs.get(&task).and_then(|run| run.given) else { return };
        let runs = self.workers.get(&worker).and_then(|w| w.queue.front()) == Some(&task);
        if runs {
            self.effects.push(Effect::Kill { worker });
        } else {
            // It is not the one that keeps the worker busy: its worker has not listened yet.
            self.set_timer(STOP_GRACE, Timer::Kill(task, attempt));
        }
    }

    /// The time of an attempt that does not count any more is over: it may never end by itself, and nobody waits
    /// for what it makes.
    fn kill_stray(&mut self, task: TaskId) {
        if !self.strays.contains(&task) || mutant!("W19") {
            return;
        }
        let given = self.runs.get(&task).and_then(|run| run.given);
        let mut workers = self.workers.iter();
        let has_it = |(id, w): &(&ClientId, &Worker)| given != Some(**id) && w.queue.front() == Some(&task);
        if let Some((worker, _)) = workers.find(has_it) {
            self.effects.push(Effect::Kill { worker: *worker });
        }
    }

    /// An attempt that was told to stop has ended, however: what it made is for nobody.
    pub(crate) fn stopped(&mut self, task: TaskId, value: Result<Value, Failure>) -> Result<Value, Failure> {
        let Some(Stop { why, .. }) = self.stopping.remove(&task) else { return value };
        if let Ok(Value::Shared { .. }) = value {
            self.effects.push(Effect::Discard { object: task.output(0) });
        }
        Err(why)
    }

    /// A worker goes on to the first of its tasks: from here on its time runs.
    pub(crate) fn watch_time(&mut self, worker: ClientId) {
        if self.timed == 0 {
            return;
        }
        let Some(task) = self.workers.get(&worker).and_then(|w| w.queue.front()).copied() else { return };
        let now = self.now;
        let Some(run) = self.runs.get_mut(&task).filter(|run| run.given == Some(worker)) else { return };
        if let Some(limit) = time_limit(&run.spec) {
            run.began = now;
            let attempt = run.attempt;
            self.set_timer(limit, Timer::TimeOut(task, attempt, worker));
        }
    }

    /// The time of an attempt is over, if it still runs.
    pub(crate) fn time_out(&mut self, task: TaskId, attempt: u32, worker: ClientId) {
        let Some(run) = self.runs.get(&task) else { return self.kill_stray(task) };
        if run.given != Some(worker) {
            return self.kill_stray(task);
        }
        let limit = time_limit(&run.spec).unwrap_or_default();
        let is_first = self.workers.get(&worker).and_then(|w| w.queue.front()) == Some(&task);
        // A record that came anew counts its attempts from 1 again: the time may be that of an earlier run.
        let is_over = self.now >= run.began + limit || mutant!("W18");
        if run.attempt != attempt || !is_first || !is_over {
            return;
        }
        let message = format!("the task ran longer than the {limit:?} that it may take (attempt {attempt})");
        self.stop_run(task, Failure::new(FailureKind::FailureTimedOut, message));
    }
}
