//! S14: *a task runs once, and again only for a loss that made its value unavailable.* What exceeds that is
//! counted and reported: a race may cost an execution, never a value.

use super::Found;
use crate::core::life::Life;
use crate::core::sometimes::Sometimes;
use mobula_base::{ShardId, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// Counts executions and losses.
#[derive(Default)]
pub struct Redo {
    pub(super) found: Found,
    runs: BTreeMap<TaskId, u32>,
    losses: BTreeMap<TaskId, u32>,
    rebuilds: BTreeMap<TaskId, u32>,
}

impl Redo {
    /// A task starts.
    pub fn started(&mut self, task: TaskId, _sometimes: &mut Sometimes) {
        *self.runs.entry(task).or_default() += 1;
    }

    /// A node makes it again.
    pub fn rebuilds(&mut self, task: Option<TaskId>, sometimes: &mut Sometimes) {
        let Some(task) = task else { return };
        let times = self.rebuilds.entry(task).or_default();
        *times += 1;
        sometimes.hit(if *times == 1 { "rebuilt" } else { "rebuilt twice" });
    }

    /// A node's life ends: all it held and ran is lost there.
    pub fn life_ended(&mut self, life: &Life, shards: usize) {
        let held = (0..shards as u32).flat_map(|shard| life.core.held(ShardId(shard)));
        let mut tasks: BTreeSet<TaskId> = held.map(|object| object.task).collect();
        tasks.extend(life.clients.values().filter_map(|client| client.run.as_ref()).map(|run| run.task));
        for task in tasks {
            *self.losses.entry(task).or_default() += 1;
        }
    }

    /// A worker died with it.
    pub fn died(&mut self, task: TaskId) {
        *self.losses.entry(task).or_default() += 1;
    }

    /// Executions in all, and those that no loss explains.
    pub fn excess(&self) -> (u64, u64) {
        let runs = self.runs.values().map(|runs| u64::from(*runs)).sum();
        let allowed = |task: &TaskId| 1 + self.losses.get(task).copied().unwrap_or(0);
        let over = |(task, runs): (&TaskId, &u32)| u64::from(runs.saturating_sub(allowed(task)));
        (runs, self.runs.iter().map(over).sum())
    }

    /// Tasks that ran.
    pub fn tasks(&self) -> u64 {
        self.runs.len() as u64
    }
}
