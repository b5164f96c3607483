//! R7, S15: *attempt n > 1 starts only after its compare-and-set is committed, and once; a task without
//! retries starts at most once.* What was granted of a record that has gone with its keeper may still begin, once:
//! who has it need not have heard of the death.

use super::{Found, object};
use crate::core::sometimes::Sometimes;
use mobula_base::ids::RUN_LEN;
use mobula_base::{Instant, RunId, TaskId};
use mobula_gcs::core::ShardState;
use mobula_proto::item_outcome::Outcome;
use mobula_proto::stream_item::Item;
use mobula_proto::{StreamAck, StreamBatch, TaskSpec, task_id};
use std::collections::{BTreeMap, BTreeSet};

/// Follows grants and starts.
#[derive(Default)]
pub struct Once {
    pub(super) found: Found,
    granted: BTreeMap<(TaskId, u32), u64>,
    starts: BTreeMap<(TaskId, u32), (u32, u64)>,
    never_again: BTreeMap<TaskId, u32>,
    /// Of earlier records: how many attempts of that number were granted and had not begun when it came anew.
    left: BTreeMap<(TaskId, u32), u32>,
}

impl Once {
    /// A worker is given a task.
    pub fn given(&mut self, spec: &TaskSpec, _attempt: u32) {
        if let (0, Ok(task)) = (spec.max_retries, task_id(&spec.id)) {
            self.never_again.entry(task).or_default();
        }
    }

    /// A batch is about to be applied: a task that comes anew, after its record was pruned, begins anew.
    pub fn before(&mut self, state: &ShardState, batch: &StreamBatch) {
        for item in &batch.items {
            let tasks = match &item.item {
                Some(Item::Submit(spec)) => task_id(&spec.id).ok().map(|task| (task, task)),
                Some(Item::Run(specs)) => <[u8; 16]>::try_from(&specs.run[..]).ok().map(|run| {
                    let run = RunId(u128::from_be_bytes(run));
                    (TaskId { run, place: 0 }, TaskId { run, place: RUN_LEN as u16 - 1 })
                }),
                _ => continue,
            };
            let Some((first, last)) = tasks else { continue };
            let granted = self.granted.range((first, 0)..=(last, u32::MAX)).map(|((task, _), _)| *task);
            let anew: BTreeSet<TaskId> =
                granted.filter(|task| matches!(state.tasks.get(*task), Ok(None))).collect();
            anew.into_iter().for_each(|task| self.is_new(task));
        }
    }

    /// An attempt starts.
    pub fn started(&mut self, task: TaskId, attempt: u32, node: u64, now: Instant) {
        let (of, begun) = ((task, attempt), self.starts.contains_key(&(task, attempt)));
        if attempt > 1 && (begun || !self.granted.contains_key(&of)) && self.begins_what_was_left(of) {
            return;
        }
        let (count, first) = self.starts.entry((task, attempt)).or_insert((0, node));
        *count += 1;
        let (count, first) = (*count, *first);
        if attempt > 1 && !self.granted.contains_key(&(task, attempt)) {
            object(&mut self.found, || {
                format!("at {now:?} attempt {attempt} of {task} starts on {node} ungranted")
            });
        }
        if attempt > 1 && count > 1 {
            object(&mut self.found, || {
                format!("at {now:?} attempt {attempt} of {task} starts again on {node}, first on {first}")
            });
        }
        // A grant because the value was lost is another matter: it ran, and runs again.
        if let Some(starts) = self.never_again.get_mut(&task) {
            *starts += 1;
            if attempt == 1 && count > 1 {
                object(&mut self.found, || {
                    format!(
                        "at {now:?} {task}, which has no retries, starts again on {node}, first on {first}"
                    )
                });
            }
        }
    }

    /// Whether an attempt of that number was granted of an earlier record, and has not begun yet.
    fn begins_what_was_left(&mut self, of: (TaskId, u32)) -> bool {
        let Some(left) = self.left.get_mut(&of) else { return false };
        *left -= 1;
        if *left == 0 {
            self.left.remove(&of);
        }
        true
    }

    /// A record is new. Had there been one before, it was pruned with all that was granted of it: then whoever
    /// held that is dead, and its task begins anew.
    fn is_new(&mut self, task: TaskId) {
        let beyond_first = (task, 2)..=(task, u32::MAX);
        let old: Vec<u32> = self.granted.range(beyond_first).map(|((_, attempt), _)| *attempt).collect();
        for attempt in old {
            self.granted.remove(&(task, attempt));
            if self.starts.remove(&(task, attempt)).is_none() {
                *self.left.entry((task, attempt)).or_default() += 1;
            }
        }
    }

    fn submitted(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let said = super::said(ack);
        let mut seq = batch.first_seq;
        for item in &batch.items {
            match &item.item {
                Some(Item::Submit(spec)) if !said.contains(&seq) => {
                    task_id(&spec.id).into_iter().for_each(|task| self.is_new(task));
                }
                Some(Item::Run(run)) => {
                    let count = (run.digests.len() / 8) as u64;
                    let id = <[u8; 16]>::try_from(&run.run[..]).map(u128::from_be_bytes);
                    for at in (0..count).filter(|at| !said.contains(&(seq + at))) {
                        let place = (u64::from(run.first) + at) as u16;
                        id.iter().for_each(|id| self.is_new(TaskId { run: RunId(*id), place }));
                    }
                }
                _ => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
    }

    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck, sometimes: &mut Sometimes) {
        self.submitted(batch, ack);
        for outcome in &ack.outcomes {
            match &outcome.outcome {
                Some(Outcome::Granted(view)) => {
                    let Ok(task) = task_id(&view.task) else { continue };
                    sometimes.hit("attempt granted");
                    if let Some(other) = self.granted.insert((task, view.attempt), batch.incarnation) {
                        object(&mut self.found, || {
                            format!("attempt {} of {task} is granted twice, first to {other}", view.attempt)
                        });
                    }
                }
                Some(Outcome::Refused(_)) => sometimes.hit("attempt refused"),
                Some(Outcome::Known(_)) => sometimes.hit("submit known already"),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{ItemOutcome, NextAttempt, StreamItem, TaskView, task_bytes};

    const TASK: TaskId = TaskId { run: RunId(1), place: 0 };

    fn applies(once: &mut Once, item: Item, said: Option<Outcome>) {
        let items = vec![StreamItem { item: Some(item) }];
        let outcomes = said.map(|said| ItemOutcome { seq: 1, outcome: Some(said) }).into_iter().collect();
        let ack = StreamAck { outcomes, ..StreamAck::default() };
        once.applied(&StreamBatch { incarnation: 1, first_seq: 1, items }, &ack, &mut Sometimes::default());
    }

    fn comes(once: &mut Once) {
        applies(once, Item::Submit(TaskSpec { id: task_bytes(TASK), ..TaskSpec::default() }), None);
    }

    fn granted(once: &mut Once) {
        let view = TaskView { task: task_bytes(TASK), attempt: 2, ..TaskView::default() };
        let next = NextAttempt { task: task_bytes(TASK), from: 1, ..NextAttempt::default() };
        applies(once, Item::Next(next), Some(Outcome::Granted(view)));
    }

    #[test]
    fn what_was_granted_of_an_earlier_record_may_begin_late_and_once() {
        let mut once = Once::default();
        comes(&mut once);
        granted(&mut once);
        // Its keeper is declared dead while it stands still; a replayed parent submits the task anew.
        comes(&mut once);
        once.started(TASK, 2, 13, Instant::default());
        assert_eq!(once.found, None);
        // The new one has a second attempt, too.
        granted(&mut once);
        once.started(TASK, 2, 8, Instant::default());
        assert_eq!(once.found, None);
        once.started(TASK, 2, 8, Instant::default());
        assert!(once.found.is_some(), "each grant is for one start");
    }

    #[test]
    fn what_was_begun_of_an_earlier_record_is_no_grant_of_the_next() {
        let mut once = Once::default();
        comes(&mut once);
        granted(&mut once);
        once.started(TASK, 2, 13, Instant::default());
        comes(&mut once);
        once.started(TASK, 2, 8, Instant::default());
        assert!(once.found.is_some());
    }
}
