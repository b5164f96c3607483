//! S24: *a failure that the program does not ask for has a cause of a closed set, and its chain ends in a
//! fault that landed.* So without faults nothing fails that should not.

use super::{Found, object as objects_to};
use crate::core::program::{Expected, JOB, Oracle};
use crate::core::sometimes::Sometimes;
use mobula_base::{Instant, ObjectId, TaskId};
use mobula_proto::{Failure, FailureKind};
use std::collections::{BTreeMap, BTreeSet};

/// Knows what may have gone wrong.
#[derive(Default)]
pub struct Cause {
    pub(super) found: Found,
    died: BTreeMap<TaskId, u32>,
    assigned: BTreeMap<u64, Vec<TaskId>>,
    dead: BTreeSet<u64>,
    /// What the driver could not put, or may have lost since a file of it was damaged.
    no_puts: BTreeSet<ObjectId>,
    /// How often each began.
    began: BTreeMap<TaskId, u32>,
    /// Tasks that the driver cancelled, and whether with all that they submitted.
    cancelled: BTreeMap<TaskId, bool>,
    /// Some store was full.
    pub store_full: bool,
    /// The job has ended: what is not finished is cancelled.
    pub job_over: bool,
}

impl Cause {
    /// The driver cancels a task.
    pub fn cancelled(&mut self, task: TaskId, recursive: bool) {
        *self.cancelled.entry(task).or_default() |= recursive;
    }

    /// Whether a task was cancelled, itself or with the one that it descends from.
    pub(super) fn was_cancelled(&self, oracle: &Oracle, task: TaskId) -> bool {
        let mut line: Vec<TaskId> =
            self.cancelled.iter().filter(|(_, recursive)| **recursive).map(|(task, _)| *task).collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = line.pop() {
            if next == task {
                return true;
            }
            if seen.insert(next) {
                line.extend(oracle.tasks.get(&next).iter().flat_map(|known| &known.children));
            }
        }
        self.cancelled.contains_key(&task)
    }

    /// A task begins.
    pub fn began(&mut self, task: TaskId) {
        *self.began.entry(task).or_default() += 1;
    }

    /// Whether a task that makes other bytes each time ran more than once.
    pub(super) fn may_have_diverged(&self, oracle: &Oracle, task: TaskId) -> bool {
        let diverges = oracle.tasks.get(&task).is_some_and(|known| known.diverges);
        diverges && self.began.get(&task).copied().unwrap_or(0) > 1
    }

    /// An execution of a task died with its worker or node.
    pub fn died(&mut self, task: TaskId) {
        *self.died.entry(task).or_default() += 1;
    }

    /// A task is handed to another node: should that die, nobody knows how far it came.
    pub fn assigned(&mut self, task: TaskId, to: u64) {
        // Whoever hands it over may not have heard of the death.
        match self.dead.contains(&to) {
            true => self.died(task),
            false => self.assigned.entry(to).or_default().push(task),
        }
    }

    /// Whether a node is dead.
    pub fn has_dead(&self) -> bool {
        !self.dead.is_empty()
    }

    /// A node is dead.
    pub fn node_died(&mut self, node: u64) {
        self.dead.insert(node);
        for task in self.assigned.remove(&node).unwrap_or_default() {
            self.died(task);
        }
    }

    /// The driver could not put this.
    pub fn no_put(&mut self, object: ObjectId) {
        self.no_puts.insert(object);
    }

    /// A file of a value is damaged: what nothing makes again may be gone with the other copy.
    pub fn damaged(&mut self, object: ObjectId) {
        if object.task == TaskId::root(JOB) {
            self.no_puts.insert(object);
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
        if self.job_over {
            return;
        }
        let (kind, task) = (failure.kind(), object.task);
        let retries = oracle.tasks.get(&task).map_or(0, |known| known.retries);
        let died = self.died.get(&task).copied().unwrap_or(0);
        let explained = match kind {
            FailureKind::FailureWorkerDied => {
                sometimes.hit("retries exhausted");
                if oracle.tasks.get(&task).is_some_and(|known| known.poison) {
                    sometimes.hit("poison ended");
                }
                died > retries
            }
            FailureKind::FailureMayHaveRun => {
                sometimes.hit("task may have run");
                retries == 0 && died > 0
            }
            FailureKind::FailureStoreFull => self.store_full,
            FailureKind::FailureDiverged => {
                sometimes.hit("divergence refused");
                self.may_have_diverged(oracle, task)
            }
            FailureKind::FailureUserError | FailureKind::FailureDependency => {
                oracle.objects.get(&object) == Some(&Expected::Failure)
                    || self.may_be_gone(oracle, object)
                    || self.explains(oracle, task, &mut BTreeSet::new())
            }
            FailureKind::FailureObjectLost => self.no_puts.contains(&object),
            FailureKind::FailureCancelled => {
                sometimes.hit("task cancelled");
                self.was_cancelled(oracle, task)
            }
            // One that runs again then has had all the attempts that it may have.
            FailureKind::FailureTimedOut => {
                sometimes.hit("time over");
                let limit = oracle.tasks.get(&task).and_then(|known| known.limit);
                limit.is_some_and(|again| !again || died > retries || self.was_cancelled(oracle, task))
            }
            FailureKind::FailureUnspecified
            | FailureKind::FailurePanic
            | FailureKind::FailureFunctionNotRegistered
            | FailureKind::FailureBadArguments
            | FailureKind::FailureInfeasible
            | FailureKind::FailureUnknownObject
            | FailureKind::FailureWorkerMismatch
            | FailureKind::FailureLineageFull
            | FailureKind::FailureGroupRemoved
            | FailureKind::FailureNoRoom
            | FailureKind::FailureOutOfMemory
            | FailureKind::FailureNodeOutOfMemory => false,
        };
        if !explained {
            objects_to(&mut self.found, || {
                format!(
                    "at {now:?} {object} failed without a cause ({died} executions died, {retries} retries): {failure:?}"
                )
            });
        }
    }

    /// Whether something is what a task had put that then failed: nothing makes it again once the nodes that had it
    /// are dead.
    fn may_be_gone(&self, oracle: &Oracle, object: ObjectId) -> bool {
        let failed = oracle.objects.get(&object.task.output(0)) == Some(&Expected::Failure);
        object.is_put() && failed && !self.dead.is_empty()
    }

    /// Whether a task, or something it needs, may have failed.
    fn explains(&self, oracle: &Oracle, task: TaskId, seen: &mut BTreeSet<TaskId>) -> bool {
        if self.store_full {
            return true;
        }
        let Some(known) = oracle.tasks.get(&task).filter(|_| seen.insert(task)) else { return false };
        let died = self.died.get(&task).copied().unwrap_or(0) > known.retries;
        if died
            || known.limit.is_some()
            || known.fickle
            || self.may_have_diverged(oracle, task)
            || self.was_cancelled(oracle, task)
        {
            return true;
        }
        known.args.iter().chain(&known.uses).any(|arg| {
            oracle.objects.get(arg) == Some(&Expected::Failure)
                || self.no_puts.contains(arg)
                || self.may_be_gone(oracle, *arg)
                || self.explains(oracle, arg.task, seen)
        }) || known.children.iter().any(|child| self.explains(oracle, *child, seen))
    }
}
