//! G3: *what is made of a value that its worker had made itself counts only if that value does* (decision 20). A task
//! that stands behind another in a worker's line is given before there is anything that could be compared.

use super::{Found, object as objects_to};
use mobula_base::{ObjectId, TaskId};
use std::collections::BTreeMap;

/// A worker: the life of its node, and its number there.
pub type Worker = (u64, u64);

/// Knows what workers made last of a task, and what of that counts.
#[derive(Default)]
pub struct Behind {
    pub(super) found: Found,
    /// Whether the last attempt of a task that a worker ended made a value that counts.
    counts: BTreeMap<(Worker, TaskId), bool>,
    /// What workers take that they have made themselves.
    takes: BTreeMap<(Worker, TaskId), Vec<ObjectId>>,
}

impl Behind {
    /// A worker begins a task with what it has made itself.
    pub fn begins(&mut self, worker: Worker, task: TaskId, made: Vec<ObjectId>) {
        match made.is_empty() {
            true => drop(self.takes.remove(&(worker, task))),
            false => drop(self.takes.insert((worker, task), made)),
        }
    }

    /// A node hears that one of its workers has ended an attempt; `counts`: with a value, and it still has that
    /// attempt down for this worker.
    pub fn finished(&mut self, worker: Worker, task: TaskId, counts: bool) {
        self.counts.insert((worker, task), counts);
        let made = self.takes.remove(&(worker, task)).unwrap_or_default();
        let vain = made.into_iter().find(|made| self.counts.get(&(worker, made.task)) != Some(&true));
        if let Some(made) = vain.filter(|_| counts) {
            objects_to(&mut self.found, || {
                format!("{worker:?} has made {task} of {made}, and that attempt of it does not count")
            });
        }
    }
}
