//! R4: *Done(P) is committed only when every record that P submitted is committed or elided.* Otherwise a child could vanish with
//! its keeper while nobody replays its parent.

use super::{Found, object};
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
    /// Had a record at some time.
    committed: BTreeSet<TaskId>,
    /// Came and went on one node, before anybody else could know of them.
    elided: BTreeSet<TaskId>,
}

impl Order {
    /// An attempt submits a task.
    pub fn submitted(&mut self, parent: TaskId, attempt: u32, child: TaskId) {
        self.children.entry((parent, attempt)).or_default().push(child);
    }

    /// A task came and went without a record.
    pub fn elided(&mut self, task: TaskId) {
        self.elided.insert(task);
    }

    /// Whether a task ever had a record.
    pub fn was_committed(&self, task: TaskId) -> bool {
        self.committed.contains(&task)
    }

    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let said: BTreeSet<u64> = ack.outcomes.iter().map(|outcome| outcome.seq).collect();
        let mut seq = batch.first_seq;
        for item in &batch.items {
            match &item.item {
                Some(Item::Submit(spec)) => self.committed.extend(task_id(&spec.id)),
                Some(Item::Run(run)) => {
                    let count = (run.digests.len() / 8) as u32;
                    if let Ok(id) = <[u8; 16]>::try_from(&run.run[..]).map(u128::from_be_bytes) {
                        let task = |place: u32| TaskId { run: RunId(id), place: place as u16 };
                        self.committed.extend((run.first..run.first + count).map(task));
                    }
                }
                Some(Item::Done(done)) if !said.contains(&seq) => {
                    if let Ok(task) = task_id(&done.task) {
                        self.done(task, done.attempt);
                    }
                }
                Some(Item::RunDone(done)) => {
                    let run = <[u8; 16]>::try_from(&done.run[..]).map(u128::from_be_bytes);
                    if let (Ok(run), Some(places)) = (run, Places::from_bytes(&done.places)) {
                        for (seq, place) in (seq..).zip(places.iter()) {
                            if !said.contains(&seq) {
                                self.done(TaskId { run: RunId(run), place }, 1);
                            }
                        }
                    }
                }
                _ => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
    }

    fn done(&mut self, parent: TaskId, attempt: u32) {
        for child in self.children.get(&(parent, attempt)).into_iter().flatten() {
            if !self.committed.contains(child) && !self.elided.contains(child) {
                object(&mut self.found, || {
                    format!("{parent} attempt {attempt} is done, but its child {child} never had a record")
                });
            }
        }
    }
}
