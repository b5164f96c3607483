//! S24: *a failure that the program does not ask for has a cause of a closed set, and it leads to a fault
//! that landed.* What a fault may have hit is not known to the task here, as it is in the core layer; but an
//! execution that is made up for is a granted attempt, and that is in the log.

use super::state::State;
use mobula::FailureKind;
use mobula_base::{Instant, ObjectId, TaskId};
use mobula_chaos::cause::explains;
use mobula_sim_tests::core::program::{Expected, Oracle};
use std::collections::{BTreeMap, BTreeSet};

/// Knows what may have gone wrong.
#[derive(Default)]
pub struct Cause {
    /// The first objection.
    pub found: Option<String>,
    attempts: BTreeMap<TaskId, u32>,
    /// Faults that may have killed what ran somewhere.
    deaths: u64,
    /// Tasks whose execution was killed by a fault before it ended.
    killed: BTreeSet<TaskId>,
}

impl Cause {
    /// An attempt of a task is granted.
    pub fn granted(&mut self, task: TaskId, attempt: u32) {
        let highest = self.attempts.entry(task).or_insert(1);
        *highest = attempt.max(*highest);
    }

    /// A fault landed that may have killed executions.
    pub fn death(&mut self) {
        self.deaths += 1;
    }

    /// This one was killed.
    pub fn killed(&mut self, task: TaskId) {
        self.killed.insert(task);
    }

    /// Whether a task may have used up its attempts.
    fn may_have_died(&self, oracle: &Oracle, task: TaskId) -> bool {
        let retries = oracle.tasks.get(&task).map_or(0, |known| known.retries);
        let attempt = self.attempts.get(&task).copied().unwrap_or(1);
        self.killed.contains(&task) && attempt > retries || self.deaths > 0 && attempt > retries
    }
}

impl State {
    /// A failure is told.
    pub fn failed(&mut self, object: ObjectId, kind: FailureKind, message: &str, now: Instant) {
        let task = object.task;
        let known = self.oracle.tasks.get(&task);
        let (retries, poison) = known.map_or((0, false), |known| (known.retries, known.poison));
        let explained = match kind {
            FailureKind::FailureWorkerDied => {
                self.sometimes.hit(if poison { "poison ended" } else { "retries exhausted" });
                self.cause.may_have_died(&self.oracle, task)
            }
            FailureKind::FailureMayHaveRun => {
                self.sometimes.hit("task may have run");
                retries == 0 && self.cause.may_have_died(&self.oracle, task)
            }
            FailureKind::FailureUserError | FailureKind::FailureDependency => {
                self.oracle.objects.get(&object) == Some(&Expected::Failure) || {
                    let died = |task| self.cause.may_have_died(&self.oracle, task);
                    explains(&self.oracle, task, &died)
                }
            }
            _ => false,
        };
        if !explained && self.cause.found.is_none() {
            let attempt = self.cause.attempts.get(&task).copied().unwrap_or(1);
            self.cause.found = Some(format!(
                "at {now:?} {object} failed without a cause ({retries} retries, attempt {attempt}, {} deaths): {kind:?}: \
                 {message}",
                self.cause.deaths
            ));
        }
    }
}
