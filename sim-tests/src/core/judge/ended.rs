//! R3, R7: *what is recorded as the end of an attempt was made by that attempt, on the node that is named.* When a
//! record was pruned with its keeper and comes anew, its attempts count from 1 again, and an attempt of the old one
//! may still run: it ends whatever the new one assigns to its node, under the new one's lower numbers.

use super::{Found, object};
use mobula_base::{RunId, TaskId};
use mobula_gcs::core::places::Places;
use mobula_proto::item_outcome::Outcome;
use mobula_proto::stream_item::Item;
use mobula_proto::{StreamAck, StreamBatch, task_id};
use std::collections::{BTreeMap, BTreeSet};

/// Knows which attempts have come to their end where.
#[derive(Default)]
pub struct Ended {
    pub(super) found: Found,
    finished: BTreeMap<(TaskId, u64), BTreeSet<u32>>,
    /// Who was told that its done-record does not count: if it has the value, it says so in its own name.
    refused: BTreeSet<(TaskId, u64)>,
    /// Tasks that had a record, and whether it has come anew.
    records: BTreeMap<TaskId, bool>,
    /// What an earlier attempt of these makes may count as that of a later one, which runs beside it (decision 29).
    hedged: BTreeSet<TaskId>,
}

impl Ended {
    /// A worker of a node says that an attempt has ended.
    pub fn finished(&mut self, task: TaskId, attempt: u32, node: u64) {
        self.finished.entry((task, node)).or_default().insert(attempt);
    }

    /// The next attempt of a task is asked for while one runs.
    pub fn hedged(&mut self, task: TaskId) {
        self.hedged.insert(task);
    }

    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let (who, mut seq) = (batch.incarnation, batch.first_seq);
        let refused = |said: &&mobula_proto::ItemOutcome| matches!(said.outcome, Some(Outcome::Refused(_)));
        let refused: BTreeSet<u64> = ack.outcomes.iter().filter(refused).map(|said| said.seq).collect();
        let said = super::said(ack);
        for item in &batch.items {
            match &item.item {
                Some(Item::Submit(spec)) if !said.contains(&seq) => {
                    task_id(&spec.id).into_iter().for_each(|task| self.comes(task));
                }
                Some(Item::Run(specs)) => {
                    let run = <[u8; 16]>::try_from(&specs.run[..]).map(u128::from_be_bytes);
                    let places = (specs.first..).take(specs.digests.len() / 8);
                    let new = (seq..).zip(places).filter(|(seq, _)| !said.contains(seq));
                    if let Ok(run) = run {
                        let task = |place: u32| TaskId { run: RunId(run), place: place as u16 };
                        new.for_each(|(_, place)| self.comes(task(place)));
                    }
                }
                Some(Item::Done(done)) => {
                    let Ok(task) = task_id(&done.task) else { continue };
                    match (refused.contains(&seq), &done.failure) {
                        (true, _) => _ = self.refused.insert((task, who)),
                        (false, None) => self.ends(who, task, done.attempt, done.executor),
                        (false, Some(_)) => {}
                    }
                }
                Some(Item::RunDone(done)) => {
                    let run = <[u8; 16]>::try_from(&done.run[..]).map(u128::from_be_bytes);
                    let (Ok(run), Some(places)) = (run, Places::from_bytes(&done.places)) else { continue };
                    for (seq, place) in (seq..).zip(places.iter()) {
                        let task = TaskId { run: RunId(run), place };
                        match refused.contains(&seq) {
                            true => _ = self.refused.insert((task, who)),
                            false => self.ends(who, task, 1, done.executor),
                        }
                    }
                }
                _ => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
    }

    /// A record is new.
    fn comes(&mut self, task: TaskId) {
        self.records.entry(task).and_modify(|anew| *anew = true).or_insert(false);
    }

    fn ends(&mut self, who: u64, task: TaskId, attempt: u32, executor: u64) {
        let there = self.finished.get(&(task, executor));
        // One of an earlier record goes by a higher number (W13).
        let of_earlier = |attempts: &BTreeSet<u32>| {
            self.records.get(&task) == Some(&true) && attempts.range(attempt..).next().is_some()
        };
        let of_hedge = |attempts: &BTreeSet<u32>| {
            self.hedged.contains(&task) && attempts.range(..=attempt).next().is_some()
        };
        // A record that is new stands for a value that was made here before (R4).
        let made = there.is_some_and(|attempts| {
            attempts.contains(&attempt) || attempt == 1 || of_earlier(attempts) || of_hedge(attempts)
        });
        let has_it = executor == who && self.refused.contains(&(task, who));
        if !made && !has_it {
            object(&mut self.found, || {
                format!(
                    "{who} says that {executor} ended attempt {attempt} of {task}, which ended {there:?} there"
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{Done, StreamItem, TaskSpec, task_bytes};

    const TASK: TaskId = TaskId { run: RunId(1), place: 0 };
    const EXECUTOR: u64 = 8;

    /// What the judge says when a record has come so often, attempt `ran` has ended, and `attempt` is recorded.
    fn objects(records: u32, ran: u32, attempt: u32) -> bool {
        let mut ended = Ended::default();
        let applies = |ended: &mut Ended, item: Item| {
            let items = vec![StreamItem { item: Some(item) }];
            ended.applied(&StreamBatch { incarnation: 1, first_seq: 1, items }, &StreamAck::default());
        };
        for _ in 0..records {
            applies(&mut ended, Item::Submit(TaskSpec { id: task_bytes(TASK), ..TaskSpec::default() }));
        }
        ended.finished(TASK, ran, EXECUTOR);
        let done = Done { task: task_bytes(TASK), attempt, executor: EXECUTOR, ..Done::default() };
        applies(&mut ended, Item::Done(done));
        ended.found.is_some()
    }

    #[test]
    fn an_attempt_of_an_earlier_record_ends_those_of_lower_numbers_of_the_one_that_came_anew() {
        assert!(!objects(1, 2, 2));
        assert!(objects(1, 3, 2), "nothing came anew");
        assert!(!objects(2, 3, 2));
        assert!(objects(2, 2, 3), "a late result is not that of the next attempt");
    }
}
