//! R13: *no home says that copies may be dropped of what the driver refers to.* But when a record was pruned with
//! its keeper, and a replayed parent on the driver's node has submitted the task again, the home cannot know of
//! either before the new record comes: what it says costs an execution then, and loses nothing.

use super::{Found, object as objects_to};
use crate::core::world::World;
use bytes::Bytes;
use mobula_base::{ObjectId, TaskId};

/// Looks at what homes let go.
#[derive(Default)]
pub struct Drops {
    pub(super) found: Found,
}

impl World {
    /// A shard's leader says to a node that it may drop its copies of these.
    pub fn judge_drops(&mut self, shard: usize, node: u64, drop: &[Bytes]) {
        for object in drop.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            if self.driver.refers_to(object) && !self.is_on_its_way(shard, object.task) {
                objects_to(&mut self.judges.drops.found, || {
                    format!("shard {shard} lets {node} drop {object}, to which the driver refers")
                });
            }
        }
    }

    /// Whether a task has lost its record and been submitted again on the driver's node, whose new record has
    /// not come yet.
    fn is_on_its_way(&self, shard: usize, task: TaskId) -> bool {
        let Some(life) = self.machines[0].life.as_deref() else { return false };
        let is_gone = matches!(self.shards[shard].state.tasks.get(task), Ok(None));
        is_gone && self.judges.order.comes_anew(task, life.incarnation.0)
    }
}
