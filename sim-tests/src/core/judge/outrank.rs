//! R16: *a re-execution waits for no room: what fills the nodes may be waiting for it.*

use super::{Found, object};
use mobula_base::TaskId;
use std::collections::BTreeMap;

/// Looks at re-executions in line.
#[derive(Default)]
pub struct Outrank {
    pub(super) found: Found,
    waits: BTreeMap<u64, TaskId>,
}

impl Outrank {
    /// A node has taken a step; this re-execution still waits, although there are nodes that could run it.
    pub fn stepped(&mut self, node: u64, waiting: Option<TaskId>) {
        let Some(task) = waiting else {
            self.waits.remove(&node);
            return;
        };
        // What came into line at the end of a step is placed in the next.
        if self.waits.insert(node, task) == Some(task) {
            object(&mut self.found, || format!("{node} lets the re-execution of {task} wait for room"));
        }
    }
}
