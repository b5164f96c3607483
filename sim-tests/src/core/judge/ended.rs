//! R3, R7: *what is recorded as the end of an attempt was made by that attempt, on the node that is named.*

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
}

impl Ended {
    /// A worker of a node says that an attempt has ended.
    pub fn finished(&mut self, task: TaskId, attempt: u32, node: u64) {
        self.finished.entry((task, node)).or_default().insert(attempt);
    }

    /// A batch is applied.
    pub fn applied(&mut self, batch: &StreamBatch, ack: &StreamAck) {
        let (who, mut seq) = (batch.incarnation, batch.first_seq);
        let refused = |said: &&mobula_proto::ItemOutcome| matches!(said.outcome, Some(Outcome::Refused(_)));
        let refused: BTreeSet<u64> = ack.outcomes.iter().filter(refused).map(|said| said.seq).collect();
        for item in &batch.items {
            match &item.item {
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

    fn ends(&mut self, who: u64, task: TaskId, attempt: u32, executor: u64) {
        let there = self.finished.get(&(task, executor));
        // A record that is new stands for a value that was made here before (R4).
        let made = there.is_some_and(|attempts| attempts.contains(&attempt) || attempt == 1);
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
