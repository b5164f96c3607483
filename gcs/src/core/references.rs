//! What nodes say about references: names, releases, and which copies they may drop (decision 14).

use super::ShardState;
use super::places::Places;
use super::prune::only;
use super::puts::Stored;
use super::refs::Edge;
use super::run::{Run, TaskRecord};
use super::stream::{failed, run_id};
use super::tasks::Changing;
use bytes::Bytes;
use mobula_base::ids::RUN_LEN;
use mobula_base::{ObjectId, RunId, mutant};
use mobula_proto as proto;
use prost::Message;
use proto::FailureKind;
use proto::item_outcome::Outcome;
use std::io;

/// So many idle copies are judged in one report.
pub const MAX_IDLE: usize = 1024;

impl ShardState {
    /// References are counted from here on: what was sent says that every head can.
    pub(super) fn count_from_here(&mut self) {
        if !self.counting.on {
            // Nodes count a job from its start or not at all.
            (self.counting.on, self.counting.uncounted) = (true, self.jobs());
        }
    }

    /// The leader has found that the shard counts, or that something waits; what waits is worked off at
    /// the end of every entry.
    pub(super) fn sweep(&mut self, sweep: &proto::Sweep) {
        self.count_from_here();
        if self.counting.owned.is_empty() {
            self.counting.owned = proto::slot_set(&sweep.owned).unwrap_or_default();
        }
    }

    /// A run to change, made for `job` when there is none; what is remembered of an earlier one of that
    /// name is true of it.
    pub(super) fn run_of(&mut self, id: RunId, job: u64) -> io::Result<Changing<'_>> {
        let past = if self.counting.on { self.counting.bygone.take(id) } else { None };
        let mut run = self.tasks.get_or_make(id, job, self.counting.counts(job))?;
        if let Some(past) = past {
            run.remember(past);
        }
        Ok(run)
    }

    /// An edge, a hold or both.
    pub(super) fn name(&mut self, who: u64, name: &proto::Name) -> io::Result<Option<Outcome>> {
        self.count_from_here();
        let by = ObjectId::from_bytes(&name.by);
        let object = id_of(&name.object).filter(|_| by.is_some() || name.by.is_empty());
        let Some(object) = object else { return Ok(Some(malformed())) };
        if let Some(refused) = self.is_over_for(name.job) {
            return Ok(Some(refused));
        }
        if let Some(by) = by {
            self.begin_edge(object, by, name.contains, who, name.job)?;
        }
        if name.hold {
            self.hold(object, who, name.job)?;
        }
        Ok(None)
    }

    pub(super) fn begin_edge(
        &mut self,
        object: ObjectId,
        by: ObjectId,
        contains: bool,
        who: u64,
        job: u64,
    ) -> io::Result<()> {
        if let Some(put) = self.put_named(object, job) {
            put.needed.name(by, contains, who);
        } else {
            self.run_of(object.task.run, job)?.name(object.task.place, object.slot, by, contains, who);
        }
        // Should it die, its record may never come.
        self.counting.concerns.add(who, object.task.run, job);
        Ok(())
    }

    /// As an edge that is told again by another shard.
    pub(super) fn name_if_there(&mut self, object: ObjectId, by: ObjectId) -> io::Result<()> {
        if let Some(put) = self.puts.get_mut(&object) {
            put.needed.name(by, false, 0);
        } else if let Some(mut run) = self.tasks.get_mut(object.task.run)? {
            run.name(object.task.place, object.slot, by, false, 0);
        }
        Ok(())
    }

    /// `who` holds an object from here on.
    pub(super) fn hold(&mut self, object: ObjectId, who: u64, job: u64) -> io::Result<()> {
        if let Some(put) = self.put_named(object, job) {
            put.needed.hold(who);
        } else {
            self.run_of(object.task.run, job)?.hold(object.task.place, object.slot, who);
        }
        self.counting.concerns.add(who, object.task.run, job);
        Ok(())
    }

    /// A record of `who` that was to have an edge never came. An edge that somebody else has spoken of since, or whose
    /// record is here by now, is another's.
    pub(super) fn unname(&mut self, who: u64, unname: &proto::Unname) -> io::Result<Option<Outcome>> {
        self.count_from_here();
        let Some((object, by)) = id_of(&unname.object).zip(ObjectId::from_bytes(&unname.by)) else {
            return Ok(Some(malformed()));
        };
        let is_its = self.edge_of(object, by)?.is_some_and(|edge| edge.sender == who);
        let stays = !is_its || self.is_mine(by.task.run) && self.is_meant(object, by)?;
        if !stays || mutant!("W52") {
            self.end_edge_here(object, by)?;
        }
        Ok(None)
    }

    fn edge_of(&self, object: ObjectId, by: ObjectId) -> io::Result<Option<Edge>> {
        if let Some(put) = self.puts.get(&object) {
            return Ok(put.needed.edge(by));
        }
        Ok(self.tasks.look(object.task.run, |run| run.edge(object.task.place, object.slot, by))?.flatten())
    }

    /// `who` holds an object no longer. Copies stay if somebody else needs one.
    pub(super) fn release(&mut self, who: u64, release: &proto::Release) -> io::Result<Option<Outcome>> {
        self.count_from_here();
        let Some(object) = id_of(&release.object) else { return Ok(Some(malformed())) };
        if let Some(put) = self.puts.get_mut(&object) {
            put.needed.let_go(who);
            let is_over = put.is_over();
            if is_over {
                self.counting.waiting.objects.insert(object);
            }
            // What is still to come is held by whoever put it.
            return Ok(kept(!is_over || put.stored == Stored::Coming && !mutant!("R8c")));
        }
        let (id, slot) = (object.task, object.slot);
        let Some(mut run) = self.tasks.get_mut(id.run)? else {
            return Ok(kept(!self.counting.bygone.has(object)));
        };
        if !run.counts() {
            return Ok(kept(true));
        }
        run.let_go(id.place, slot, who);
        let concerns = run.concerns(who);
        let need = run.need(id.place, slot, &self.fenced);
        let is_to_come = !run.present().contains(id.place) && !run.was_pruned(id.place);
        // What a task that has not ended has put is made again only by its next attempt; and this one may wait for
        // whoever is named, and needs it.
        let is_awaited = object.is_put() && !run.has_ended(id.place) && !mutant!("R8f");
        let is_lasting = || is_awaited || !can_be_made_again(&run, id.place);
        let is_needed = need.held || need.contained || need.named && is_lasting();
        let stays = is_needed || is_to_come;
        drop(run);
        if !concerns {
            self.counting.concerns.remove(who, id.run);
        }
        self.review(id.run, &only(id.place))?;
        Ok(kept(stays))
    }

    /// Many at once. Says which are kept, by their sequence numbers.
    pub(super) fn release_run(
        &mut self,
        who: u64,
        release: &proto::RunRelease,
        first_seq: u64,
    ) -> io::Result<Vec<proto::ItemOutcome>> {
        self.count_from_here();
        let say = |seq, outcome| proto::ItemOutcome { seq, outcome };
        let Some((id, places)) = run_id(&release.run).zip(Places::from_bytes(&release.places)) else {
            return Ok(vec![say(first_seq, Some(malformed()))]);
        };
        let seq_of = |place| first_seq + places.rank(place) as u64;
        let all_but = |gone: &Places| {
            let places = places.without(gone);
            places.iter().map(|place| say(seq_of(place), kept(true))).collect()
        };
        let Some(mut run) = self.tasks.get_mut(id)? else {
            return Ok(all_but(&self.counting.bygone.of(id)));
        };
        if !run.counts() {
            return Ok(places.iter().map(|place| say(seq_of(place), kept(true))).collect());
        }
        run.let_go_of_many(&places, who);
        let concerns = run.concerns(who);
        // Records that are to come hold, too.
        let to_come = places.without(run.present()).without(&run.past());
        let mut staying = run.held_by_submitters(&places, &self.fenced).union(&to_come);
        for place in run.with_entries(&places) {
            let need = run.need(place, 0, &self.fenced);
            if need.held || need.contained || need.named && !can_be_made_again(&run, place) {
                staying.insert(place);
            }
        }
        drop(run);
        if !concerns {
            self.counting.concerns.remove(who, id);
        }
        self.review(id, &places)?;
        Ok(staying.iter().map(|place| say(seq_of(place), kept(true))).collect())
    }

    /// Which of the copies that a node has no use for it may drop. Those that it may not, and those that
    /// are too many for one report, are to be asked again.
    pub fn to_drop(&self, idle: &[Bytes]) -> Vec<Bytes> {
        let idle: Vec<ObjectId> =
            idle.iter().take(MAX_IDLE).filter_map(|id| ObjectId::from_bytes(id)).collect();
        // A run may have to be read from the disk: once for all that are asked of it.
        let of_run = idle.chunk_by(|a, b| a.task.run == b.task.run);
        // What cannot be read is not known, and stays.
        let may_drop = |objects: &[ObjectId]| self.may_drop_of(objects).unwrap_or_default();
        of_run.flat_map(may_drop).map(proto::object_bytes).collect()
    }

    /// Whether nodes that have no use for their copies of an object may drop them, for certain: nobody
    /// holds or contains it, and it can be made again or nobody names it either.
    ///
    /// What has no record is not for certain: the record may be under way, and then dropping the copy costs a
    /// second execution. Only what is known to have been pruned is, for as long as that is remembered
    /// ([`super::counting::MAX_BYGONE`]). A copy that stays too long goes with its job.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn may_drop(&self, object: ObjectId) -> io::Result<bool> {
        Ok(!self.may_drop_of(&[object])?.is_empty())
    }

    /// Those of some objects of one run.
    fn may_drop_of(&self, objects: &[ObjectId]) -> io::Result<Vec<ObjectId>> {
        let Some(id) = objects.first().map(|object| object.task.run) else { return Ok(Vec::new()) };
        if !self.counting.on || self.slots.moved(id.slot()).is_some() {
            return Ok(Vec::new());
        }
        let judge = |run: &Run, object: &ObjectId| {
            let (place, slot) = (object.task.place, object.slot);
            let need = run.need(place, slot, &self.fenced);
            // Nearly all are held: the record is read only of those that are not.
            if !run.counts() || (need.held || need.contained) && !mutant!("R13") {
                return false;
            }
            let is_pruned = run.was_pruned(place) && !need.named;
            is_pruned || run.has_ended(place) && (!need.named || can_be_made_again(run, place))
        };
        let no_puts = objects.iter().copied().filter(|object| !self.puts.contains_key(object));
        let objects: Vec<ObjectId> = no_puts.collect();
        let of_known = |run: &Run| objects.iter().copied().filter(|object| judge(run, object)).collect();
        let known: Option<Vec<ObjectId>> = self.tasks.look(id, of_known)?;
        let bygone = |object: &ObjectId| self.counting.bygone.has(*object);
        Ok(known.unwrap_or_else(|| objects.iter().copied().filter(bygone).collect()))
    }
}

/// Whether the task at `place` may run again.
fn can_be_made_again(run: &Run, place: u16) -> bool {
    let read = |record: TaskRecord| Repeatable::decode(record.spec).unwrap_or_default();
    run.record(place).is_some_and(|record| read(record).max_retries > 0)
}

/// What decides of a record whether its task may run again: the rest is passed over when it is read.
#[derive(Clone, PartialEq, Message)]
struct Repeatable {
    #[prost(uint32, tag = "8")]
    max_retries: u32,
}

fn id_of(bytes: &[u8]) -> Option<ObjectId> {
    ObjectId::from_bytes(bytes).filter(|id| u64::from(id.task.place) < RUN_LEN)
}

fn kept(kept: bool) -> Option<Outcome> {
    kept.then_some(Outcome::Kept(true))
}

fn malformed() -> Outcome {
    failed(FailureKind::FailureBadArguments, "malformed reference")
}
