//! R6, R8: *what a task refers to while it runs stays: it has a record, or is on its way to one.* Looked at every
//! three seconds, and for what a task returns when it ends. Of tasks that count: the attempt is the current one,
//! its node is not fenced anywhere. A task whose parent was replayed submits again what may be gone meanwhile.
//! And a task whose record went with its keeper submits others until its worker is through with it: what it has put
//! has no record to belong to; also when the record has come anew meanwhile, elsewhere, and ended.

use super::Found;
use super::closure::Records;
use crate::core::world::World;
use mobula_base::{ObjectId, RunId, TaskId};
use mobula_gcs::core::places::Places;
use mobula_gcs::core::run::{Run, State};
use mobula_proto::item_outcome::Outcome;
use mobula_proto::stream_item::Item;
use mobula_proto::{StreamAck, StreamBatch, TaskState, task_id};
use std::collections::BTreeMap;
use std::iter::successors;

/// Looks at what tasks refer to.
#[derive(Default)]
pub struct Running {
    pub(super) found: Found,
    /// Who answers for each task that has not ended, or did so last.
    keepers: BTreeMap<TaskId, u64>,
    /// Records that came and ends that were recorded so far.
    count: u64,
    /// When the record of each task came.
    came: BTreeMap<TaskId, u64>,
    /// When the end of each task was recorded, of those that have ended.
    ended: BTreeMap<TaskId, u64>,
}

impl Running {
    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let said = super::said(ack);
        let (who, mut seq) = (batch.incarnation, batch.first_seq);
        for item in &batch.items {
            match &item.item {
                Some(Item::Submit(spec)) if !said.contains(&seq) => {
                    task_id(&spec.id).into_iter().for_each(|task| self.comes(task, who));
                }
                Some(Item::Run(specs)) => {
                    let places = (specs.first..).take(specs.digests.len() / 8);
                    let new = (seq..).zip(places).filter(|(seq, _)| !said.contains(seq));
                    if let Some(run) = run_of(&specs.run) {
                        let task = |place: u32| TaskId { run, place: place as u16 };
                        new.for_each(|(_, place)| self.comes(task(place), who));
                    }
                }
                Some(Item::Done(done)) if !said.contains(&seq) => self.ends(&done.task),
                Some(Item::RunDone(done)) => {
                    if let Some((run, places)) = run_of(&done.run).zip(Places::from_bytes(&done.places)) {
                        for (_, place) in (seq..).zip(places.iter()).filter(|(seq, _)| !said.contains(seq)) {
                            self.ends_task(TaskId { run, place });
                        }
                    }
                }
                _ => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
        for outcome in &ack.outcomes {
            match &outcome.outcome {
                Some(Outcome::Granted(view)) => {
                    if let Ok(task) = task_id(&view.task) {
                        self.keepers.insert(task, who);
                        self.ended.remove(&task);
                    }
                }
                // With another value, or because it has no attempt left.
                Some(Outcome::DivergedDone(view)) => self.ends(&view.task),
                Some(Outcome::Refused(view)) if view.state() == TaskState::TaskFailed => {
                    self.ends(&view.task);
                }
                _ => {}
            }
        }
    }

    fn ends(&mut self, task: &[u8]) {
        if let Ok(task) = task_id(task) {
            self.ends_task(task);
        }
    }

    fn ends_task(&mut self, task: TaskId) {
        self.count += 1;
        self.keepers.remove(&task);
        self.ended.insert(task, self.count);
    }

    /// A record is new.
    fn comes(&mut self, task: TaskId, who: u64) {
        self.count += 1;
        self.keepers.insert(task, who);
        self.came.insert(task, self.count);
        self.ended.remove(&task);
    }

    /// Whether the record of a task came after the end of the one `above` it. That end waits for the records of all
    /// that the attempts which count have submitted (R4): it was none of them.
    fn came_after_end(&self, task: TaskId, above: TaskId) -> bool {
        self.ended.get(&above).zip(self.came.get(&task)).is_some_and(|(ended, came)| ended < came)
    }
}

fn run_of(bytes: &[u8]) -> Option<RunId> {
    Some(RunId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

impl World {
    /// Looks at all tasks that run.
    pub fn judge_running(&mut self) {
        if !self.options.counts || self.judges.running.found.is_some() {
            return;
        }
        let mut gone = None;
        let mut records = Records::of(self);
        for machine in &self.machines {
            let Some(life) = machine.life.as_deref() else { continue };
            let who = life.incarnation.0;
            if self.judges.fenced.is_dead_somewhere(who) {
                continue;
            }
            let runs = life.clients.values().filter_map(|client| client.run.as_ref());
            for run in runs.filter(|run| !run.replay && self.is_current(run.task, run.attempt)) {
                let lost = run.locals.all.iter().find(|object| records.stands(**object, false).is_none());
                let lost = lost.filter(|_| !self.comes_from_nobody(run.task));
                gone = gone.or(lost.map(|object| (*object, run.task, who)));
            }
        }
        if let Some((object, task, node)) = gone {
            self.has_gone(object, task, node);
        }
    }

    /// A task that ends on a node returns references.
    pub fn judge_returned(
        &mut self,
        task: TaskId,
        attempt: u32,
        replay: bool,
        node: u64,
        inside: &[ObjectId],
    ) {
        let counts = self.options.counts && !replay && self.is_current(task, attempt);
        if !counts || self.judges.fenced.is_dead_somewhere(node) {
            return;
        }
        let mut records = Records::of(self);
        let lost = inside.iter().find(|object| records.stands(**object, false).is_none());
        if let Some(object) = lost.filter(|_| !self.comes_from_nobody(task)) {
            self.has_gone(*object, task, node);
        }
    }

    /// Whether a task was submitted, be it through others, by one whose record went before its end, since its keeper
    /// had died and nobody needed it. When that comes anew, all counts again, but for what an attempt of the old one
    /// still submits when the new one has ended and gone.
    fn comes_from_nobody(&self, task: TaskId) -> bool {
        let parent_of = |task: &TaskId| {
            let mut tasks = self.oracle.tasks.iter();
            tasks.find(|(_, known)| known.children.contains(task)).map(|(parent, _)| *parent)
        };
        let is_nobodys = |(task, above): (TaskId, TaskId)| {
            let home = above.run.shard(self.shards.len() as u32).0 as usize;
            let is_gone = matches!(self.shards[home].state.tasks.get(above), Ok(None));
            let keeper = self.judges.running.keepers.get(&above);
            let died = keeper.is_some_and(|keeper| self.judges.fenced.is_dead_somewhere(*keeper));
            is_gone && (died || self.judges.running.came_after_end(task, above))
        };
        let pair_of = |task: TaskId| parent_of(&task).map(|parent| (task, parent));
        successors(pair_of(task), |(_, above)| pair_of(*above)).any(is_nobodys)
    }

    fn has_gone(&mut self, object: ObjectId, task: TaskId, node: u64) {
        let text = format!("at {:?} {task} on {node} refers to {object}, whose record is gone", self.now());
        self.judges.running.found.get_or_insert(text);
    }

    /// Whether an attempt is the one that counts.
    fn is_current(&self, task: TaskId, attempt: u32) -> bool {
        let home = task.run.shard(self.shards.len() as u32).0 as usize;
        let standing = |run: &Run| run.standing(task.place);
        let standing = self.shards[home].state.tasks.look(task.run, standing).ok().flatten().flatten();
        standing.is_some_and(|known| known.attempt == attempt && known.state == State::Pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{Done, ItemOutcome, NextAttempt, StreamItem, TaskSpec, TaskView, task_bytes};

    const TASK: TaskId = TaskId { run: RunId(1), place: 0 };

    /// Who answers for the task after an item of `who`, which is answered `said`.
    fn keeper(running: &mut Running, who: u64, item: Item, said: Option<Outcome>) -> Option<u64> {
        let items = vec![StreamItem { item: Some(item) }];
        let outcomes = said.map(|said| ItemOutcome { seq: 1, outcome: Some(said) }).into_iter().collect();
        let ack = StreamAck { outcomes, ..StreamAck::default() };
        running.applied(&StreamBatch { incarnation: who, first_seq: 1, items }, &ack);
        running.keepers.get(&TASK).copied()
    }

    #[test]
    fn who_answers_for_a_task_is_known_until_its_end_is_recorded() {
        let submit = || Item::Submit(TaskSpec { id: task_bytes(TASK), ..TaskSpec::default() });
        let next = || Item::Next(NextAttempt { task: task_bytes(TASK), ..NextAttempt::default() });
        let done = || Item::Done(Done { task: task_bytes(TASK), ..Done::default() });
        let view = |state: TaskState| {
            let (task, state) = (task_bytes(TASK), state as i32);
            TaskView { task, state, ..TaskView::default() }
        };
        let (known, granted) = (Outcome::Known(view(TaskState::TaskPending)), view(TaskState::TaskPending));
        let running = &mut Running::default();
        assert_eq!(keeper(running, 1, submit(), None), Some(1));
        assert_eq!(keeper(running, 2, submit(), Some(known)), Some(1));
        assert_eq!(keeper(running, 2, next(), Some(Outcome::Granted(granted))), Some(2));
        // What has gone meanwhile has not ended.
        assert_eq!(keeper(running, 2, done(), Some(Outcome::Refused(view(TaskState::TaskUnknown)))), Some(2));
        assert_eq!(keeper(running, 3, submit(), None), Some(3));
        assert_eq!(keeper(running, 3, done(), None), None);
        assert_eq!(keeper(running, 4, submit(), None), Some(4));
        assert_eq!(keeper(running, 4, next(), Some(Outcome::Refused(view(TaskState::TaskFailed)))), None);
    }

    #[test]
    fn what_comes_after_the_end_of_its_parent_was_submitted_by_an_attempt_that_does_not_count() {
        let child = TaskId { run: RunId(2), place: 0 };
        let submit = |task| Item::Submit(TaskSpec { id: task_bytes(task), ..TaskSpec::default() });
        let done = || Item::Done(Done { task: task_bytes(TASK), ..Done::default() });
        let running = &mut Running::default();
        keeper(running, 1, submit(TASK), None);
        keeper(running, 2, submit(child), None);
        keeper(running, 1, done(), None);
        assert!(!running.came_after_end(child, TASK));
        // Its record has been pruned with that of its parent, of which an older attempt still runs.
        keeper(running, 7, submit(child), None);
        assert!(running.came_after_end(child, TASK));
        // When the parent runs again, and counts, so does what it submits.
        let view = TaskView { task: task_bytes(TASK), attempt: 2, ..TaskView::default() };
        let next = Item::Next(NextAttempt { task: task_bytes(TASK), ..NextAttempt::default() });
        keeper(running, 1, next, Some(Outcome::Granted(view)));
        assert!(!running.came_after_end(child, TASK));
    }
}
