//! R2, R3, R7, R10, R12: *what a shard answers to an item of a batch follows from how its record stood: a known
//! record is known by its digest, a second value is compared, the fenced end nothing, an attempt goes to whoever
//! proposed it from the one before; and a batch that comes again is answered as it was.*

use super::{Found, object};
use mobula_base::{RunId, TaskId};
use mobula_gcs::core::ShardState;
use mobula_gcs::core::places::Places;
use mobula_gcs::core::run::{DoneSet, Run, State};
use mobula_proto::item_outcome::Outcome;
use mobula_proto::stream_item::Item;
use mobula_proto::{Done, NextAttempt, StreamAck, StreamBatch, object_id, task_bytes, task_id};
use std::collections::{BTreeMap, BTreeSet};

/// What an item must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// The record is known.
    Known,
    /// It is known, with other contents.
    Diverged,
    /// Something else was recorded.
    DivergedDone,
    /// The same was recorded: nothing need be said.
    Agrees,
    /// It does not count.
    Refused,
    /// It counts, if it may be repeated so often: then this attempt is granted.
    Attempt(u32),
}

impl Must {
    fn allows(self, outcome: Option<&Outcome>) -> bool {
        match (self, outcome) {
            (Must::Known, Some(Outcome::Known(_)))
            | (Must::Diverged, Some(Outcome::Diverged(_)))
            | (Must::DivergedDone, Some(Outcome::DivergedDone(_)))
            | (Must::Agrees, None)
            | (Must::Refused | Must::Attempt(_), Some(Outcome::Refused(_))) => true,
            (Must::Attempt(next), Some(Outcome::Granted(view))) => view.attempt == next,
            _ => false,
        }
    }
}

/// Follows what batches are answered.
#[derive(Default)]
pub struct Answers {
    pub(super) found: Found,
    /// What the batch that is being applied must be answered, as far as that is known.
    musts: Vec<(u64, TaskId, Must)>,
    /// Tasks that an item of it was about: how they stand by now is not known here.
    touched: BTreeSet<TaskId>,
    /// The last answer to each stream.
    last: BTreeMap<(u64, usize), StreamAck>,
}

impl Answers {
    /// A batch is about to be applied. `is_dead`: entries of this incarnation are rejected here.
    pub fn before(&mut self, state: &ShardState, batch: &StreamBatch, is_dead: impl Fn(u64) -> bool) {
        self.musts.clear();
        self.touched.clear();
        let (who, mut seq) = (batch.incarnation, batch.first_seq);
        for item in &batch.items {
            match &item.item {
                Some(Item::Submit(spec)) => {
                    if let Ok(task) = task_id(&spec.id) {
                        self.submit(state, seq, task, spec.digest);
                    }
                }
                Some(Item::Run(run)) => {
                    let Some(id) = run_of(&run.run) else { continue };
                    let digests = run.digests.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok());
                    for (at, digest) in digests.map(u64::from_le_bytes).enumerate() {
                        let task = TaskId { run: id, place: (run.first as usize + at) as u16 };
                        self.submit(state, seq + at as u64, task, digest);
                    }
                }
                Some(Item::Done(done)) => self.done(state, seq, who, done, &is_dead),
                Some(Item::RunDone(batch)) => {
                    let Some((done, run)) = DoneSet::new(batch).zip(run_of(&batch.run)) else { continue };
                    for (seq, place) in (seq..).zip(done.places.iter()) {
                        let task = task_bytes(TaskId { run, place });
                        let (attempt, executor) = (1, done.executor);
                        let outputs = vec![done.output(place)];
                        let single = Done { task, attempt, executor, outputs, ..Done::default() };
                        self.done(state, seq, who, &single, &is_dead);
                    }
                }
                Some(Item::Next(next)) => self.next(state, seq, who, next, &is_dead),
                Some(Item::Release(release)) => {
                    self.touched.extend(object_id(&release.object).map(|object| object.task));
                }
                Some(Item::Unname(unname)) => {
                    self.touched.extend(object_id(&unname.object).map(|object| object.task));
                }
                Some(Item::RunRelease(release)) => {
                    let run = run_of(&release.run).zip(Places::from_bytes(&release.places));
                    let tasks = run.iter().flat_map(|(run, places)| places.iter().map(|place| (*run, place)));
                    self.touched.extend(tasks.map(|(run, place)| TaskId { run, place }));
                }
                Some(Item::Put(_) | Item::Name(_)) | None => {}
            }
            seq += mobula_gcs::core::seqs_of(item);
        }
    }

    fn must(&mut self, seq: u64, task: TaskId, must: impl FnOnce() -> Option<Must>) {
        if self.touched.insert(task) {
            self.musts.extend(must().map(|must| (seq, task, must)));
        }
    }

    fn submit(&mut self, state: &ShardState, seq: u64, task: TaskId, digest: u64) {
        self.must(seq, task, || {
            let digest_of = |run: &Run| run.record(task.place).map(|record| record.digest);
            let known = state.tasks.look(task.run, digest_of).ok().flatten().flatten()?;
            Some(if known == digest { Must::Known } else { Must::Diverged })
        });
    }

    fn done(&mut self, state: &ShardState, seq: u64, who: u64, done: &Done, is_dead: &impl Fn(u64) -> bool) {
        let Ok(task) = task_id(&done.task) else { return };
        self.must(seq, task, || {
            let known = state.tasks.look(task.run, |run| run.standing(task.place)).ok()?.flatten();
            let Some(standing) = known else { return Some(Must::Refused) };
            let (attempt, keeper) = (standing.attempt, standing.keeper);
            match standing.state {
                // It made nothing that could differ.
                State::Done { .. } if done.failure.is_some() => Some(Must::Refused),
                State::Done { outputs, .. } => {
                    let differs = outputs[..] != done.outputs[..];
                    Some(if differs { Must::DivergedDone } else { Must::Agrees })
                }
                State::Pending if attempt != done.attempt || keeper != who || is_dead(done.executor) => {
                    Some(Must::Refused)
                }
                State::Pending if done.failure.is_some() => Some(Must::Agrees),
                State::Pending => {
                    let before = standing.before.map(|before| before.outputs).unwrap_or_default();
                    let differs = !before.is_empty() && before[..] != done.outputs[..];
                    Some(if differs { Must::DivergedDone } else { Must::Agrees })
                }
                State::Failed { .. } => None,
            }
        });
    }

    fn next(
        &mut self,
        state: &ShardState,
        seq: u64,
        who: u64,
        next: &NextAttempt,
        is_dead: &impl Fn(u64) -> bool,
    ) {
        let Ok(task) = task_id(&next.task) else { return };
        // A keeper that gives a task up gets no answer, and the record may go.
        if next.abandoned {
            self.touched.insert(task);
            return;
        }
        self.must(seq, task, || {
            let known = state.tasks.look(task.run, |run| run.standing(task.place)).ok()?.flatten();
            let Some(standing) = known else { return Some(Must::Refused) };
            let may = match standing.state {
                State::Pending => [0, who].contains(&standing.keeper) || is_dead(standing.keeper),
                State::Done { .. } => true,
                State::Failed { .. } => false,
            };
            Some(if may && standing.attempt == next.from {
                Must::Attempt(next.from + 1)
            } else {
                Must::Refused
            })
        });
    }

    /// It was applied: for the first time, or again.
    pub fn applied(&mut self, shard: usize, batch: &StreamBatch, ack: &StreamAck, fresh: bool) {
        let stream = (batch.incarnation, shard);
        if !fresh {
            let last = self.last.get(&stream).filter(|last| *last != ack && !batch.items.is_empty());
            if let Some(last) = last {
                let (who, first) = stream_text(batch);
                object(&mut self.found, || {
                    format!("shard {shard} answered batch {first} of {who} {last:?}, and then {ack:?}")
                });
            }
            return;
        }
        let said: BTreeMap<u64, &Outcome> =
            ack.outcomes.iter().filter_map(|said| Some((said.seq, said.outcome.as_ref()?))).collect();
        for (seq, task, must) in &self.musts {
            let outcome = said.get(seq).copied();
            if !must.allows(outcome) && !matches!(outcome, Some(Outcome::Moved(_))) {
                let who = batch.incarnation;
                object(&mut self.found, || {
                    format!(
                        "shard {shard} answers item {seq} of {who}, about {task}: {outcome:?}, not {must:?}"
                    )
                });
            }
        }
        self.last.insert(stream, ack.clone());
    }
}

fn stream_text(batch: &StreamBatch) -> (u64, u64) {
    (batch.incarnation, batch.first_seq)
}

fn run_of(bytes: &[u8]) -> Option<RunId> {
    Some(RunId(u128::from_be_bytes(bytes.try_into().ok()?)))
}
