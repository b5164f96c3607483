//! R4: *Done(P) is committed only when every record that P submitted is committed or elided.* Otherwise a child could vanish with
//! its keeper while nobody replays its parent. A node that was declared dead, and does not know, goes on with
//! attempts of records of its own, which never came: what it submits is for nobody.

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
    /// That node had been declared dead by then.
    by_dead: bool,
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
    /// Nodes that were declared dead.
    dead: BTreeSet<u64>,
}

impl Order {
    /// An attempt that runs on `node` submits a task, which that node keeps.
    pub fn submitted(&mut self, parent: TaskId, attempt: u32, child: TaskId, node: u64) {
        self.count += 1;
        let (at, by_dead) = (self.count, self.dead.contains(&node));
        self.children.entry((parent, attempt)).or_default().push(Child { task: child, node, at, by_dead });
        self.asked.insert((child, node), at);
    }

    /// A node is declared dead.
    pub fn node_died(&mut self, node: u64) {
        self.dead.insert(node);
    }

    /// A task came and went without a record.
    pub fn elided(&mut self, task: TaskId) {
        self.elided.insert(task);
    }

    /// Whether a task ever had a record.
    pub fn was_committed(&self, task: TaskId) -> bool {
        self.committed.contains(&task)
    }

    /// Whether a task ever had a record, or came and went without anybody else knowing.
    pub fn had_record(&self, task: TaskId) -> bool {
        self.committed.contains(&task) || self.elided.contains(&task)
    }

    /// Whether a task that had a record was submitted again on a node since, whose record of it has not come.
    pub fn comes_anew(&self, task: TaskId, node: u64) -> bool {
        let asked = self.asked.get(&(task, node));
        asked.is_some_and(|asked| self.since.get(&task).is_some_and(|since| since < asked))
    }

    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let said = super::said(ack);
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

    /// An attempt of the record that there is has ended. One of that number of an earlier record, or of one that
    /// never came, counts only if it ran where this one did: it may be the same.
    fn done(&mut self, parent: TaskId, attempt: u32, executor: u64) {
        let since = self.since.get(&parent).copied().unwrap_or(0);
        let children = self.children.get(&(parent, attempt)).into_iter().flatten();
        let counts = |child: &&Child| child.at > since && !child.by_dead || child.node == executor;
        for child in children.filter(counts) {
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
    fn what_is_submitted_again_comes_anew_until_its_record_does() {
        let mut order = begun_on_1(true);
        assert!(!order.comes_anew(PARENT, 1) && !order.comes_anew(PARENT, 2));
        // Its record was pruned with its keeper.
        order.submitted(TaskId { run: RunId(0), place: 0 }, 2, PARENT, 2);
        assert!(!order.comes_anew(PARENT, 1) && order.comes_anew(PARENT, 2));
        applies(&mut order, 2, record(PARENT));
        assert!(!order.comes_anew(PARENT, 2));
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
    fn what_a_node_that_is_dead_goes_on_with_is_of_nobody_else_s_record() {
        // Node 1, which keeps the task, is declared dead; a replayed parent submits the task anew on node 2.
        let grandparent = TaskId { run: RunId(0), place: 0 };
        let mut order = Order::default();
        order.submitted(grandparent, 1, PARENT, 1);
        order.node_died(1);
        order.submitted(grandparent, 1, PARENT, 2);
        applies(&mut order, 2, record(PARENT));
        // It has not heard of that, and runs what it keeps.
        order.submitted(PARENT, 1, CHILD, 1);
        applies(&mut order, 2, done(3));
        assert_eq!(order.found, None);
        applies(&mut order, 2, done(1));
        assert!(order.found.is_some(), "it is said to have made it");
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
