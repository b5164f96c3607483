//! A node's traffic: one sequenced stream per incarnation, applied in order and once (R12).

use super::divergence;
use super::places::Places;
use super::prune::{WORK_PER_ITEM, is_plain, only};
use super::run::{Chunk, DoneSet, Standing, State};
use super::tasks::Changing;
use super::{Answer, MAX_TASKS_PER_SHARD, ShardState};
use mobula_base::ids::RUN_LEN;
use mobula_base::{ObjectId, RunId, TaskId, mutant};
use mobula_proto as proto;
use prost::Message;
use proto::FailureKind;
use proto::item_outcome::Outcome;
use proto::stream_item::Item;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// How far one incarnation's stream has come, and the answer to its last batch.
#[derive(Clone, Default)]
pub(super) struct Stream {
    pub mark: u64,
    pub last_first: u64,
    pub last_len: u64,
    pub last_ack: Arc<proto::StreamAck>,
}

/// How many sequence numbers an item takes.
pub fn seqs_of(item: &proto::StreamItem) -> u64 {
    match &item.item {
        Some(Item::Run(run)) => (run.digests.len() / 8) as u64,
        Some(
            Item::RunDone(proto::RunDone { places, .. }) | Item::RunRelease(proto::RunRelease { places, .. }),
        ) => Places::from_bytes(places).map_or(0, |places| places.len() as u64),
        _ => 1,
    }
}

/// What items of a batch had to say, by their sequence numbers.
type Outcomes = Vec<proto::ItemOutcome>;

fn say(outcomes: &mut Outcomes, seq: u64, outcome: Option<Outcome>) {
    outcomes.extend(outcome.map(|outcome| proto::ItemOutcome { seq, outcome: Some(outcome) }));
}

impl ShardState {
    pub(super) fn apply_stream(&mut self, index: u64, batch: &proto::StreamBatch) -> io::Result<Answer> {
        let (who, len) = (batch.incarnation, batch.items.iter().map(seqs_of).sum::<u64>());
        if self.is_fenced(who) && !mutant!("R10a") {
            return Ok(Answer::Fenced(true));
        }
        if let Some(stream) = self.streams.get(&who).filter(|_| !mutant!("R12a"))
            && (stream.last_first, stream.last_len) == (batch.first_seq, len)
        {
            return Ok(Answer::Stream((*stream.last_ack).clone()));
        }
        let mark = self.streams.get(&who).map_or(0, |stream| stream.mark);
        let again = mutant!("R12a") && batch.first_seq + len == mark + 1;
        if batch.first_seq != mark + 1 && !again {
            return Ok(Answer::ExpectedSeq(mark + 1));
        }
        if len == 0 {
            return Ok(Answer::Stream(proto::StreamAck { mark, revision: index, outcomes: Vec::new() }));
        }
        let (mut outcomes, mut seq) = (Outcomes::new(), batch.first_seq);
        for item in &batch.items {
            if let Some(epoch) = self.slots.moved_item(item) {
                let seqs = seq..seq + seqs_of(item);
                seqs.clone().for_each(|seq| say(&mut outcomes, seq, Some(Outcome::Moved(epoch))));
                seq = seqs.end;
                continue;
            }
            let outcome = match &item.item {
                Some(Item::Submit(spec)) => self.submit(index, who, spec)?,
                Some(Item::Done(done)) => self.done(who, done)?,
                Some(Item::Next(next)) => self.next_attempt(who, next)?,
                Some(Item::Put(put)) => self.put(who, put),
                Some(Item::Name(name)) => self.name(who, name)?,
                Some(Item::Unname(unname)) => self.unname(who, unname)?,
                Some(Item::Release(release)) => self.release(who, release)?,
                Some(Item::RunRelease(release)) => {
                    outcomes.extend(self.release_run(who, release, seq)?);
                    None
                }
                Some(Item::Run(run)) => self.submit_run(index, who, run, seq, &mut outcomes)?,
                Some(Item::RunDone(done)) => self.done_run(who, done, seq, &mut outcomes)?,
                None => None,
            };
            say(&mut outcomes, seq, outcome);
            seq += seqs_of(item);
        }
        let mark = if again { mark - len } else { mark };
        self.credit += batch.items.len() * WORK_PER_ITEM;
        let ack = proto::StreamAck { mark: mark + len, revision: index, outcomes };
        let last_ack = Arc::new(ack.clone());
        let stream = Stream { mark: mark + len, last_first: batch.first_seq, last_len: len, last_ack };
        self.streams.insert(who, stream);
        Ok(Answer::Stream(ack))
    }

    /// Many records of one run: at once when all are new, else one after the other.
    fn submit_run(
        &mut self,
        index: u64,
        who: u64,
        batch: &proto::RunSpecs,
        first_seq: u64,
        outcomes: &mut Outcomes,
    ) -> io::Result<Option<Outcome>> {
        let made = Chunk::new(batch, who, index).zip(run_id(&batch.run));
        let Some(((chunk, places), run)) = made else {
            return Ok(Some(failed(FailureKind::FailureBadArguments, "malformed run of records")));
        };
        // A shard that is full still answers what it knows: as for single records.
        if self.no_room_for(places.len() as u64, batch.job).is_none() {
            let mut known = self.run_of(run, batch.job)?;
            if !known.present().meets(&places) {
                let again = known.pruned_of(&places);
                known.add(chunk.clone(), &places);
                drop(known);
                self.has_come(who, run, batch.job, &chunk, &places);
                self.name_again(who, run, batch.job, &chunk, &again)?;
                if !self.counting.outbox.is_empty() || !again.is_empty() {
                    for (seq, place) in (first_seq..).zip(places.iter()) {
                        say(outcomes, seq, self.early(TaskId { run, place }, &chunk, again.contains(place)));
                    }
                }
                return Ok(None);
            }
        }
        for (seq, place) in (first_seq..).zip(places.iter()) {
            let Some((digest, spec)) = chunk.record(place) else { continue };
            let single = Chunk::single(place, digest, &spec, who, index, batch.plain);
            let outcome = self.submit_one(who, TaskId { run, place }, batch.job, digest, &single)?;
            say(outcomes, seq, outcome);
        }
        Ok(None)
    }

    fn submit(&mut self, index: u64, who: u64, spec: &proto::TaskSpec) -> io::Result<Option<Outcome>> {
        let Some(id) = TaskId::from_bytes(&spec.id).filter(|id| u64::from(id.place) < RUN_LEN) else {
            return Ok(Some(failed(FailureKind::FailureBadArguments, "malformed task id")));
        };
        let chunk = Chunk::single(id.place, spec.digest, &spec.encode_to_vec(), who, index, is_plain(spec));
        self.submit_one(who, id, spec.job, spec.digest, &chunk)
    }

    /// Records have come from `who`, who holds what they make.
    fn has_come(&mut self, who: u64, run: RunId, job: u64, chunk: &Chunk, places: &Places) {
        if !self.counting.on {
            return;
        }
        self.counting.concerns.add(who, run, job);
        if !self.counting.outbox.is_empty() {
            for place in places.iter() {
                let (_, spec) = chunk.record(place).unwrap_or_default();
                self.renew(TaskId { run, place }, &spec);
            }
        }
    }

    /// Whether edges of an earlier record of a new one's name have yet to end elsewhere. They would take those
    /// along that its first attempt told: it is to begin when they have gone.
    fn is_early(&self, id: TaskId) -> bool {
        self.counting.outbox.is_ending(id) && !mutant!("R6e")
    }

    /// Records that come again name what lies here, should an earlier one of that name have gone, and its edges
    /// with it, after the edges of this one were told.
    fn name_again(
        &mut self,
        who: u64,
        run: RunId,
        job: u64,
        chunk: &Chunk,
        again: &Places,
    ) -> io::Result<()> {
        if !self.counting.on || mutant!("W50") {
            return Ok(());
        }
        for place in again.iter() {
            let by = TaskId { run, place }.output(0);
            let mut here = named_by(chunk, place);
            here.retain(|object| self.is_mine(object.task.run));
            for object in here {
                self.begin_edge(object, by, false, who, job)?;
            }
        }
        Ok(())
    }

    /// What is said of a new record, which may come again. Of one that does, an end may have been delivered after
    /// its edges elsewhere were told anew, and before it came: nobody can tell whether, so they are told once more.
    fn early(&self, id: TaskId, chunk: &Chunk, again: bool) -> Option<Outcome> {
        let names_elsewhere =
            || named_by(chunk, id.place).iter().any(|object| !self.is_mine(object.task.run));
        (self.is_early(id) || again && !mutant!("W48") && names_elsewhere()).then_some(Outcome::Early(true))
    }

    fn submit_one(
        &mut self,
        who: u64,
        id: TaskId,
        job: u64,
        digest: u64,
        chunk: &Chunk,
    ) -> io::Result<Option<Outcome>> {
        let digest_of = |run: &Changing<'_>| run.record(id.place).map(|record| record.digest);
        let known = self.tasks.get_mut(id.run)?.as_ref().and_then(digest_of);
        if let Some(known) = known {
            if self.counting.on {
                // Who submits it again holds it, too.
                self.hold(id.output(0), who, job)?;
            }
            let view = proto::TaskView { early: self.is_early(id), ..self.view_of(id, false)? };
            return Ok(Some(if known == digest || mutant!("R2") {
                Outcome::Known(view)
            } else {
                Outcome::Diverged(view)
            }));
        }
        if let Some(refused) = self.no_room_for(1, job) {
            return Ok(Some(refused));
        }
        let place = only(id.place);
        let mut run = self.run_of(id.run, job)?;
        let again = run.pruned_of(&place);
        run.add(chunk.clone(), &place);
        drop(run);
        self.has_come(who, id.run, job, chunk, &place);
        self.name_again(who, id.run, job, chunk, &again)?;
        Ok(self.early(id, chunk, !again.is_empty()))
    }

    /// Why nothing of a job that was forgotten is taken.
    pub(super) fn is_over_for(&self, job: u64) -> Option<Outcome> {
        let why = "its job has ended and was forgotten";
        self.forgotten.contains(&job).then(|| failed(FailureKind::FailureCancelled, why))
    }

    /// Why records of a job are not taken.
    fn no_room_for(&self, records: u64, job: u64) -> Option<Outcome> {
        if let Some(refused) = self.is_over_for(job) {
            return Some(refused);
        }
        (self.tasks.len() + records > MAX_TASKS_PER_SHARD).then(|| {
            let message = format!(
                "shard {} already keeps {} task records of at most {MAX_TASKS_PER_SHARD}: end jobs that are no \
                 longer needed, or start the cluster with more shards",
                self.shard,
                self.tasks.len()
            );
            failed(FailureKind::FailureLineageFull, &message)
        })
    }

    /// Many ends of one run: at once when all are first attempts under way of this keeper, else one
    /// after the other.
    fn done_run(
        &mut self,
        who: u64,
        batch: &proto::RunDone,
        first_seq: u64,
        outcomes: &mut Outcomes,
    ) -> io::Result<Option<Outcome>> {
        let Some((done, run)) = DoneSet::new(batch).zip(run_id(&batch.run)) else {
            return Ok(Some(failed(FailureKind::FailureBadArguments, "malformed run of done-records")));
        };
        let places = done.places;
        if self.end_first_attempts(who, run, &done)? {
            self.review(run, &places)?;
            return Ok(None);
        }
        for (seq, place) in (first_seq..).zip(done.places.iter()) {
            let single = proto::Done {
                task: proto::task_bytes(TaskId { run, place }),
                attempt: 1,
                executor: done.executor,
                outputs: vec![done.output(place)],
                failure: None,
                holders: batch.holders.clone(),
                contains: Vec::new(),
            };
            let outcome = self.done(who, &single)?;
            say(outcomes, seq, outcome);
        }
        Ok(None)
    }

    /// Whether all were first attempts under way of this keeper; they have ended then.
    fn end_first_attempts(&mut self, who: u64, run: RunId, done: &DoneSet) -> io::Result<bool> {
        if self.is_fenced(done.executor) && !mutant!("M08") {
            return Ok(false);
        }
        let Some(mut known) = self.tasks.get_mut(run)? else { return Ok(false) };
        let alike = known.all_first_attempts_of(who, &done.places);
        if !alike {
            return Ok(false);
        }
        known.end(done.clone());
        let concerns = known.concerns(who);
        drop(known);
        if !concerns {
            self.counting.concerns.remove(who, run);
        }
        Ok(true)
    }

    /// The current attempt's first `Done` stands; every other is only compared (R3).
    fn done(&mut self, who: u64, done: &proto::Done) -> io::Result<Option<Outcome>> {
        let Some(id) = TaskId::from_bytes(&done.task) else { return Ok(None) };
        let refused = |state: &Self| Ok(Some(Outcome::Refused(state.view_of(id, false)?)));
        let Some(record) = self.tasks.get(id)? else { return refused(self) };
        let standing = record.standing;
        match &standing.state {
            // An attempt that does not count, and failed, made nothing that could be compared: its node may have
            // had no room. There is a value, as its keeper is to know.
            State::Done { .. } if done.failure.is_some() && !mutant!("R3b") => refused(self),
            State::Done { outputs, .. } => {
                let differs = outputs[..] != done.outputs[..] && !mutant!("R3");
                Ok(if differs { Some(Outcome::DivergedDone(self.view_of(id, false)?)) } else { None })
            }
            State::Pending
                if standing.attempt == done.attempt
                    && standing.keeper == who
                    && (!self.is_fenced(done.executor) || mutant!("M08")) =>
            {
                // What was recorded before is compared with what is now (G3).
                let old = self.view_of(id, false)?;
                let (ended, diverged) = divergence::ended(standing, done, &record.spec);
                if let Some(mut run) = self.tasks.get_mut(id.run)? {
                    run.set(id.place, ended);
                    let concerns = run.concerns(who);
                    drop(run);
                    if !concerns {
                        self.counting.concerns.remove(who, id.run);
                    }
                }
                self.review(id.run, &only(id.place))?;
                Ok(diverged.then_some(Outcome::DivergedDone(old)))
            }
            State::Failed { failure: known, .. }
                if standing.attempt == done.attempt && done.failure.as_ref() == Some(&**known) =>
            {
                Ok(None)
            }
            State::Pending | State::Failed { .. } => refused(self),
        }
    }

    /// A pending task has no keeper from here on: it goes if nobody needs it, and may be taken over.
    fn abandon(&mut self, who: u64, id: TaskId, standing: Standing, is_kept: bool) -> io::Result<()> {
        if let Some(mut run) = self.tasks.get_mut(id.run)?.filter(|_| is_kept) {
            run.set(id.place, Standing { keeper: 0, ..standing });
            let concerns = run.concerns(who);
            drop(run);
            if !concerns {
                self.counting.concerns.remove(who, id.run);
            }
        }
        self.review(id.run, &only(id.place))
    }

    /// Compare-and-set on the attempt: one keeper wins (R7).
    fn next_attempt(&mut self, who: u64, next: &proto::NextAttempt) -> io::Result<Option<Outcome>> {
        let Some(id) = TaskId::from_bytes(&next.task) else { return Ok(None) };
        let refused = |state: &Self| Ok(Some(Outcome::Refused(state.view_of(id, false)?)));
        let Some(record) = self.tasks.get(id)? else { return refused(self) };
        let mut standing = record.standing;
        if next.abandoned {
            let is_kept = standing.state == State::Pending && standing.keeper == who;
            return self.abandon(who, id, standing, is_kept).map(|()| None);
        }
        let may = match standing.state {
            State::Pending => standing.keeper == who || self.is_without_keeper(&standing),
            // Whether the outputs are lost is soft state; a needless grant only costs work.
            State::Done { .. } => true,
            State::Failed { .. } => false,
        };
        if (!may || standing.attempt != next.from) && !mutant!("R7b") {
            return refused(self);
        }
        if self.tasks.look(id.run, |run| run.counts())? == Some(true) {
            standing.before = super::divergence::recorded(&standing, next);
        }
        standing.failures += u32::from(next.failed && !mutant!("R7c"));
        let max_retries = proto::TaskSpec::decode(record.spec).unwrap_or_default().max_retries;
        let over =
            next.failed && standing.failures > max_retries - u32::from(mutant!("R7e") && max_retries > 1);
        if over {
            let failure = match &next.failure {
                Some(failure) => its_own(failure, standing.failures, max_retries),
                None => out_of_attempts(standing.failures, max_retries),
            };
            standing.state = State::Failed { executor: next.executor, failure: Box::new(failure) };
        } else {
            standing.attempt += 1;
            standing.keeper = who;
            standing.state = State::Pending;
        }
        let mut job = 0;
        if let Some(mut run) = self.tasks.get_mut(id.run)? {
            run.set(id.place, standing);
            job = run.job;
        }
        if over {
            let outcome = refused(self);
            self.review(id.run, &only(id.place))?;
            return outcome;
        }
        if self.counting.on {
            self.counting.concerns.add(who, id.run, job);
        }
        Ok(Some(Outcome::Granted(self.view_of(id, true)?)))
    }
}

fn named_by(chunk: &Chunk, place: u16) -> BTreeSet<ObjectId> {
    let (_, spec) = chunk.record(place).unwrap_or_default();
    super::prune::named(&proto::TaskSpec::decode(&*spec).unwrap_or_default())
}

pub(super) fn run_id(bytes: &[u8]) -> Option<RunId> {
    Some(RunId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

/// The failure of a task's last attempt, which others went before.
fn its_own(failure: &proto::Failure, failures: u32, max_retries: u32) -> proto::Failure {
    let mut failure = failure.clone();
    failure.causes.push(format!("{failures} attempts failed; {max_retries} retries were allowed"));
    failure
}

fn out_of_attempts(failures: u32, max_retries: u32) -> proto::Failure {
    if max_retries == 0 {
        proto::Failure::new(
            FailureKind::FailureMayHaveRun,
            "the executor died and the task may not be retried: it may or may not have run",
        )
    } else {
        let message =
            format!("the executor died in each of {failures} attempts; {max_retries} retries were allowed");
        proto::Failure::new(FailureKind::FailureWorkerDied, message)
    }
}

pub(super) fn failed(kind: FailureKind, message: &str) -> Outcome {
    Outcome::Failed(proto::Failure::new(kind, message))
}
