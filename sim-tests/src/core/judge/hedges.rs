//! Hedges (decision 29): *an attempt begins beside another only of a task that says it is pure and may be repeated, and
//! no node begins more of them than its job allows of those that came back to it.*

use super::{Found, object};
use crate::core::program::Oracle;
use crate::core::sometimes::Sometimes;
use mobula_base::TaskId;
use std::collections::BTreeMap;

/// Counts hedges.
#[derive(Default)]
pub struct Hedges {
    pub(super) found: Found,
    /// Of each life of a node: how many pure tasks came back to it, and how many it has hedged.
    counts: BTreeMap<u64, (u64, u64)>,
    /// Who was given a task that was hedged, until something comes back of it.
    first: BTreeMap<TaskId, u64>,
}

impl Hedges {
    /// A node hears from another what a task came to.
    pub fn came_back(
        &mut self,
        oracle: &Oracle,
        node: u64,
        from: u64,
        task: TaskId,
        sometimes: &mut Sometimes,
    ) {
        if oracle.is_pure(task) {
            self.counts.entry(node).or_default().0 += 1;
        }
        if let Some(first) = self.first.remove(&task) {
            sometimes.hit(if first == from { "straggler came first" } else { "hedge came first" });
        }
    }

    /// A node asks for the next attempt of a task that takes too long at `slow`.
    pub fn hedged(&mut self, oracle: &Oracle, node: u64, slow: u64, task: TaskId, permille: u32) {
        if !oracle.is_pure(task) {
            object(&mut self.found, || format!("{node} hedges {task}, which may not run twice at once"));
        }
        let (came_back, hedged) = self.counts.entry(node).or_default();
        *hedged += 1;
        if *hedged * 1000 > u64::from(permille) * *came_back {
            object(&mut self.found, || {
                format!(
                    "{node} has hedged {hedged} tasks, and {came_back} came back: {permille} of 1000 may be"
                )
            });
        }
        self.first.insert(task, slow);
    }
}
