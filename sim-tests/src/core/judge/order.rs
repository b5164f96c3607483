//! R4: *Done(P) is committed only when every record that P submitted is committed or elided.* Otherwise a child could vanish with
//! its keeper while nobody replays its parent.

use super::{Found, object};
use mobula_base::{RunId, TaskId};
use mobula_gcs::core::places::Places;
use mobula_proto::stream_item::Item;
use mobula_proto::{StreamAck, StreamBatch, task_id};
use std::collections::{BTreeMap, BTreeSet};

/// What an attempt submitted.
struct Child {
    task: TaskId,
    /// The node that the attempt ran on.
    node: u64,
    /// Submissions until then.
    at: u64,
}

/// Knows who submitted whom.
#[derive(Default)]
pub struct Order {
    pub(super) found: Found,
    children: BTreeMap<(TaskId, u32), Vec<Child>>,
    /// Submissions so far.
    count: u64,
    /// When a task was last submitted to a node.
    asked: BTreeMap<(TaskId, u64), u64>,
    /// When what the record of a task is of was submitted. Attempts before that were of a record that never
    /// came, or was pruned with a keeper that died: they are counted anew since.
    since: BTreeMap<TaskId, u64>,
    /// Had a record at some time.
    committed: BTreeSet<TaskId>,
    /// Came and went on one node, before anybody else could know of them.
    elided: BTreeSet<TaskId>,
}

impl Order {
    /// An attempt that runs on `node` submits a task, which that node keeps.
    pub fn submitted(&mut self, parent: TaskId, attempt: u32, child: TaskId, node: u64) {
        self.count += 1;
        let at = self.count;
        self.children.entry((parent, attempt)).or_default().push(Child { task: child, node, at });
        self.asked.insert((child, node), at);
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
                Some(Item::Submit(spec)) => {
                    if let Ok(task) = task_id(&spec.id) {
                        self.comes(task, batch.incarnation, !said.contains(&seq));
                    }
                }
                Some(Item::Run(run)) => {
                    let count = (run.digests.len() / 8) as u32;
                    if let Ok(id) = <[u8; 16]>::try_from(&run.run[..]).map(u128::from_be_bytes) {
                        for (seq, place) in (seq..).zip(run.first..run.first + count) {
                            let task = TaskId { run: RunId(id), place: place as u16 };
                            self.comes(task, batch.incarnation, !said.contains(&seq));
                        }
                    }
                }
                Some(Item::Done(done)) if !said.contains(&seq) => {
                    if let Ok(task) = task_id(&done.task) {
                        self.done(task, done.attempt, done.executor);
                    }
                }
                Some(Item::RunDone(done)) => {
                    let run = <[u8; 16]>::try_from(&done.run[..]).map(u128::from_be_bytes);
                    if let (Ok(run), Some(places)) = (run, Places::from_bytes(&done.places)) {
                        for (seq, place) in (seq..).zip(places.iter()) {
                            if !said.contains(&seq) {
                                self.done(TaskId { run: RunId(run), place }, 1, done.executor);
                            }
                        }
                    }
                }
                _ => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
    }

    /// The record of a task comes from a node; it `is_new` unless the shard had something to say of it.
    fn comes(&mut self, task: TaskId, node: u64, is_new: bool) {
        self.committed.insert(task);
        if is_new && let Some(at) = self.asked.get(&(task, node)) {
            self.since.insert(task, *at);
        }
    }

    /// An attempt of the record that there is has ended. One of that number of an earlier record counts only
    /// if it ran where this one did: it may be the same.
    fn done(&mut self, parent: TaskId, attempt: u32, executor: u64) {
        let since = self.since.get(&parent).copied().unwrap_or(0);
        let children = self.children.get(&(parent, attempt)).into_iter().flatten();
        for child in children.filter(|child| child.at > since || child.node == executor) {
            let child = child.task;
            if !self.committed.contains(&child) && !self.elided.contains(&child) {
                object(&mut self.found, || {
                    format!("{parent} attempt {attempt} is done, but its child {child} never had a record")
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{Done, StreamItem, TaskSpec, task_bytes};

    const PARENT: TaskId = TaskId { run: RunId(1), place: 0 };
    const CHILD: TaskId = TaskId { run: RunId(2), place: 0 };

    fn applies(order: &mut Order, node: u64, item: Item) {
        let items = vec![StreamItem { item: Some(item) }];
        order.applied(&StreamBatch { incarnation: node, first_seq: 1, items }, &StreamAck::default());
    }

    fn record(task: TaskId) -> Item {
        Item::Submit(TaskSpec { id: task_bytes(task), ..TaskSpec::default() })
    }

    fn done(executor: u64) -> Item {
        Item::Done(Done { task: task_bytes(PARENT), attempt: 1, executor, ..Done::default() })
    }

    /// Node 1 keeps and runs the parent, whose child never has a record; whether it had one itself.
    fn begun_on_1(had_record: bool) -> Order {
        let mut order = Order::default();
        order.submitted(TaskId { run: RunId(0), place: 0 }, 1, PARENT, 1);
        if had_record {
            applies(&mut order, 1, record(PARENT));
        }
        order.submitted(PARENT, 1, CHILD, 1);
        order
    }

    #[test]
    fn an_end_before_the_record_of_a_child_is_seen_whoever_is_said_to_have_made_it() {
        for executor in [1, 2] {
            let mut order = begun_on_1(true);
            applies(&mut order, 1, done(executor));
            assert!(order.found.is_some());
        }
        let mut order = begun_on_1(true);
        applies(&mut order, 1, record(CHILD));
        applies(&mut order, 1, done(1));
        assert_eq!(order.found, None);
    }

    #[test]
    fn a_record_that_comes_anew_does_not_answer_for_what_was_submitted_before_it() {
        for had_record in [true, false] {
            // Node 1 dies, and a replayed parent submits the task again on node 2, where it fails.
            let mut order = begun_on_1(had_record);
            order.submitted(TaskId { run: RunId(0), place: 0 }, 2, PARENT, 2);
            applies(&mut order, 2, record(PARENT));
            applies(&mut order, 2, done(2));
            assert_eq!(order.found, None);
            // An attempt that went on where it was, and what the new one submits, count as ever.
            applies(&mut order, 2, done(1));
            assert!(order.found.take().is_some());
            order.submitted(PARENT, 1, CHILD, 2);
            applies(&mut order, 2, done(2));
            assert!(order.found.is_some());
        }
    }
}
