//! R13: *no home says that copies may be dropped of what the driver refers to.* But when a record was pruned with
//! its keeper, and a replayed parent on the driver's node has submitted the task again, the home cannot know of
//! either before the new record comes: what it says costs an execution then, and loses nothing.

use super::{Found, object as objects_to};
use crate::core::program::JOB;
use crate::core::world::World;
use bytes::Bytes;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::item_outcome::Outcome;
use mobula_proto::stream_item::Item;
use mobula_proto::{ItemOutcome, StreamAck, StreamBatch};
use std::collections::BTreeSet;

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

    /// A batch was applied: edges come in their order, and what a node lets go of stays while the driver refers to it.
    pub fn judge_references(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let Some(life) = self.machines[0].life.as_deref().filter(|_| self.options.counts) else { return };
        let driver = life.incarnation.0;
        self.judges.edges.applied(&self.oracle, driver, batch);
        let stays = |outcome: &ItemOutcome| !matches!(outcome.outcome, Some(Outcome::Kept(false)) | None);
        let kept: BTreeSet<u64> =
            ack.outcomes.iter().filter(|said| stays(said)).map(|said| said.seq).collect();
        let mut seq = batch.first_seq;
        for item in &batch.items {
            if let Some(Item::Release(release)) = &item.item
                && batch.incarnation != driver
                && !kept.contains(&seq)
                && let Some(object) = ObjectId::from_bytes(&release.object)
                && object.task == TaskId::root(JOB)
                && self.driver.refers_to(object)
            {
                objects_to(&mut self.judges.drops.found, || {
                    format!(
                        "{} lets go of {object} for everybody, to which the driver refers",
                        batch.incarnation
                    )
                });
            }
            seq += mobula_gcs::core::seqs_of(item);
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
