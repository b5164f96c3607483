//! R4: *Done(P) is committed only when every record that P submitted is.* Otherwise a child could vanish with
//! its keeper while nobody replays its parent.

use super::{Found, object};
use crate::core::shard::Shard;
use mobula_base::{RunId, TaskId};
use mobula_gcs::core::places::Places;
use mobula_proto::stream_item::Item;
use mobula_proto::{StreamAck, StreamBatch, task_id};
use std::collections::{BTreeMap, BTreeSet};

/// Knows who submitted whom.
#[derive(Default)]
pub struct Order {
    pub(super) found: Found,
    children: BTreeMap<(TaskId, u32), Vec<TaskId>>,
}

impl Order {
    /// An attempt submits a task.
    pub fn submitted(&mut self, parent: TaskId, attempt: u32, child: TaskId) {
        self.children.entry((parent, attempt)).or_default().push(child);
    }

    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck, shards: &[Shard]) {
        let said: BTreeSet<u64> = ack.outcomes.iter().map(|outcome| outcome.seq).collect();
        let mut seq = batch.first_seq;
        for item in &batch.items {
            match &item.item {
                Some(Item::Done(done)) if done.failure.is_none() && !said.contains(&seq) => {
                    if let Ok(task) = task_id(&done.task) {
                        self.done(task, done.attempt, shards);
                    }
                }
                Some(Item::RunDone(done)) => {
                    let run = <[u8; 16]>::try_from(&done.run[..]).map(u128::from_be_bytes);
                    if let (Ok(run), Some(places)) = (run, Places::from_bytes(&done.places)) {
                        for (seq, place) in (seq..).zip(places.iter()) {
                            if !said.contains(&seq) {
                                self.done(TaskId { run: RunId(run), place }, 1, shards);
                            }
                        }
                    }
                }
                _ => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
    }

    fn done(&mut self, parent: TaskId, attempt: u32, shards: &[Shard]) {
        for child in self.children.get(&(parent, attempt)).into_iter().flatten() {
            let home = child.run.shard(shards.len() as u32).0 as usize;
            if !matches!(shards[home].state.tasks.get(*child), Ok(Some(_))) {
                object(&mut self.found, || {
                    format!("{parent} attempt {attempt} is done, but its child {child} has no record")
                });
            }
        }
    }
}
