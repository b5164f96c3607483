//! Records go when nobody needs them: what an entry has no time for waits for the next (decision 14).

use super::ShardState;
use super::places::Places;
use super::puts::Stored;
use super::run::all_places;
use mobula_base::{JobId, ObjectId, RunId, TaskId, mutant};
use mobula_proto as proto;
use prost::Message;
use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;

/// Work that each entry does for what waits, beside two pieces for each of its items: so nothing waits for
/// ever, and no entry takes long.
pub(super) const WORK_PER_ENTRY: usize = 64;
/// Work for each item of an entry: one item seldom gives rise to more than a release and an edge.
pub(super) const WORK_PER_ITEM: usize = 2;
/// Pieces of work that looking over a run counts for: it may have to be read from the disk.
const WORK_PER_RUN: usize = 8;

/// What a record names.
pub(super) fn named(spec: &proto::TaskSpec) -> BTreeSet<ObjectId> {
    let args = spec.args.iter().filter_map(|arg| match &arg.arg {
        Some(proto::arg::Arg::Object(object)) => Some(object),
        _ => None,
    });
    args.chain(&spec.nested).filter_map(|id| ObjectId::from_bytes(id)).collect()
}

/// Whether a record stays until its job ends: its task must not run twice, and would if its parent is
/// replayed. The driver is not.
pub(super) fn stays(spec: &proto::TaskSpec) -> bool {
    spec.max_retries == 0 && spec.parent[..] != TaskId::root(JobId(spec.job)).to_bytes()
}

/// Whether a record has no part in any of that.
pub fn is_plain(spec: &proto::TaskSpec) -> bool {
    let has_object = spec.args.iter().any(|arg| matches!(arg.arg, Some(proto::arg::Arg::Object(_))));
    !has_object && spec.nested.is_empty() && !stays(spec)
}

/// One place.
pub(super) fn only(place: u16) -> Places {
    Places::range(place.into(), 1).unwrap_or_default()
}

/// What the puts of a run lie between.
fn puts_of(id: RunId) -> RangeInclusive<ObjectId> {
    let [first, last] = [0, u16::MAX].map(|place| TaskId { run: id, place });
    ObjectId { task: first, slot: 0 }..=ObjectId { task: last, slot: u32::MAX }
}

impl ShardState {
    /// Prunes what can go at once of these places, and notes the rest.
    pub(super) fn review(&mut self, id: RunId, among: &Places) -> io::Result<()> {
        if !self.counting.on {
            return Ok(());
        }
        let Some(mut run) = self.tasks.get_mut(id)? else { return Ok(()) };
        let over = run.over(id, among, &self.fenced);
        let plain = run.plain(&over);
        if !plain.is_empty() {
            run.prune(id, &plain);
        }
        let is_empty = run.is_empty();
        drop(run);
        let rest = over.without(&plain);
        let rest = rest.iter().map(|place| TaskId { run: id, place }.output(0));
        self.counting.waiting.objects.extend(rest);
        if is_empty { self.drop_run(id) } else { Ok(()) }
    }

    /// A run without records that nobody needs goes.
    fn drop_run(&mut self, id: RunId) -> io::Result<()> {
        if let Some(past) = self.tasks.look(id, |run| run.past())? {
            self.tasks.remove(id)?;
            self.counting.concerns.forget_run(id);
            self.counting.bygone.add(id, past);
        }
        Ok(())
    }

    /// A put of a run has gone: with the last one of a run without records, as a driver's is, nobody is concerned.
    fn end_puts(&mut self, id: RunId) -> io::Result<()> {
        let mut left = self.puts.range(puts_of(id));
        if left.next().is_none() && self.tasks.look(id, |_| ())?.is_none() && !mutant!("W44") {
            self.counting.concerns.forget_run(id);
        }
        Ok(())
    }

    /// Those that are gone hold nothing in a run.
    fn look_over(&mut self, id: RunId) -> io::Result<()> {
        let mut orphans = Vec::new();
        for (object, put) in self.puts.range_mut(puts_of(id)) {
            let edges = put.needed.take_orphans(|who| self.fenced.contains(&who));
            orphans.extend(edges.into_iter().map(|(by, dead)| (*object, by, dead)));
            if put.needed.bury(|who| self.fenced.contains(&who)) && put.is_over() {
                self.counting.waiting.objects.insert(*object);
            }
        }
        if let Some(mut run) = self.tasks.get_mut(id)?
            && run.counts()
        {
            run.bury(&self.fenced);
            orphans.extend(run.take_orphans(id, &self.fenced));
        }
        self.review(id, &all_places())?;
        for (object, by, dead) in orphans {
            if !self.is_mine(by.task.run) {
                self.ask_for(object, by, dead);
            } else if !self.is_meant(object, by)? {
                self.end_orphan_here(object, by)?;
            }
        }
        Ok(())
    }

    /// Whether there is what an edge comes from: a record that names the object, or a value that contains
    /// it. Asked once whoever sent the edge is fenced here: what is not here will not come from there.
    pub(super) fn is_meant(&self, object: ObjectId, by: ObjectId) -> io::Result<bool> {
        if let Some(put) = self.puts.get(&by) {
            return Ok(put.contains.contains(&object));
        }
        let Some(record) = self.tasks.get(by.task)? else { return Ok(false) };
        let spec = proto::TaskSpec::decode(record.spec).unwrap_or_default();
        Ok(named(&spec).contains(&object) || record.standing.contains().contains(&object))
    }

    /// An edge to an object of this shard never had a record, unless somebody has spoken of it since.
    pub(super) fn end_orphan_here(&mut self, object: ObjectId, by: ObjectId) -> io::Result<()> {
        if let Some(put) = self.puts.get_mut(&object) {
            put.needed.unname_orphan(by);
        } else if let Some(mut run) = self.tasks.get_mut(object.task.run)? {
            run.unname_orphan(object.task.place, object.slot, by);
        }
        // With what follows, should it have been the last.
        self.look_again(object)
    }

    /// Where something of a slot that is not here must wait, or be forgotten.
    fn put_off(&mut self, run: RunId) -> bool {
        if self.slots.moved(run.slot()).is_none() {
            return false;
        }
        if self.slots.coming().is_some_and(|coming| coming.slots.contains(run.slot())) {
            self.counting.waiting.arrived.insert(run);
        }
        true
    }

    /// Works off what waits, as far as `budget` goes.
    pub(super) fn work(&mut self, mut budget: usize) -> io::Result<()> {
        if self.slots.coming().is_none() {
            let mut arrived = std::mem::take(&mut self.counting.waiting.arrived);
            self.counting.waiting.runs.append(&mut arrived);
        }
        while budget > 0 && self.counting.outbox.len() < super::outbox::MAX_OUTBOX {
            let waiting = &mut self.counting.waiting;
            let cost = if let Some(object) = waiting.objects.pop_first() {
                self.check(object)?
            } else if let Some(run) = waiting.runs.pop_first() {
                if !self.put_off(run) {
                    self.look_over(run)?;
                }
                WORK_PER_RUN
            } else if let Some(dead) = waiting.fenced.first().copied() {
                match self.counting.concerns.pop(dead) {
                    Some(run) => waiting.runs.insert(run),
                    None => waiting.fenced.remove(&dead),
                };
                0
            } else {
                break;
            };
            budget = budget.saturating_sub(cost);
        }
        Ok(())
    }

    /// Prunes a put or a task if nobody needs it; what that cost.
    fn check(&mut self, object: ObjectId) -> io::Result<usize> {
        if self.put_off(object.task.run) {
            return Ok(1);
        }
        let (targets, by) = match self.puts.get(&object) {
            Some(put) if !put.is_over() => return Ok(1),
            Some(put) => {
                // Of what never came nobody can say that it is over.
                if put.stored != Stored::Coming || mutant!("R8c") {
                    self.counting.bygone.add_put(object);
                }
                let targets = self.puts.remove(&object).map(|put| put.contains.to_vec());
                self.end_puts(object.task.run)?;
                (targets, object)
            }
            None => (self.prune(object.task)?, object.task.output(0)),
        };
        let targets = targets.unwrap_or_default();
        for target in &targets {
            if self.is_mine(target.task.run) {
                self.end_edge_here(*target, by)?;
            } else if !mutant!("R6b") {
                self.tell_end(*target, by);
            }
        }
        Ok(1 + targets.len())
    }

    /// Takes the record of a task out if it is over; what it named and contained.
    fn prune(&mut self, id: TaskId) -> io::Result<Option<Vec<ObjectId>>> {
        let Some(mut run) = self.tasks.get_mut(id.run)? else { return Ok(None) };
        let place = only(id.place);
        if run.over(id.run, &place, &self.fenced).is_empty() {
            return Ok(None);
        }
        let Some(record) = run.record(id.place) else { return Ok(None) };
        let spec = proto::TaskSpec::decode(record.spec).unwrap_or_default();
        if stays(&spec) {
            return Ok(None);
        }
        let mut targets = named(&spec);
        targets.extend(record.standing.contains());
        run.prune(id.run, &place);
        let is_empty = run.is_empty();
        drop(run);
        if is_empty {
            self.drop_run(id.run)?;
        }
        Ok(Some(targets.into_iter().collect()))
    }

    /// Whether what lies in the run's slot lies here for certain.
    pub(super) fn is_mine(&self, run: RunId) -> bool {
        match self.slots.epoch() {
            0 => self.counting.owned.contains(run.slot()),
            _ => self.slots.moved(run.slot()).is_none(),
        }
    }

    /// An edge to an object of this shard has ended.
    pub(super) fn end_edge_here(&mut self, object: ObjectId, by: ObjectId) -> io::Result<()> {
        if let Some(put) = self.puts.get_mut(&object) {
            put.needed.unname(by);
        } else if let Some(mut run) = self.tasks.get_mut(object.task.run)? {
            run.unname(object.task.place, object.slot, by);
        }
        self.look_again(object)
    }

    /// Somebody less may need an object.
    fn look_again(&mut self, object: ObjectId) -> io::Result<()> {
        match self.puts.get(&object) {
            Some(put) if put.is_over() => _ = self.counting.waiting.objects.insert(object),
            Some(_) => {}
            None => self.review(object.task.run, &only(object.task.place))?,
        }
        Ok(())
    }

    /// An incarnation is fenced: what it holds is let go of, by and by.
    pub(super) fn bury(&mut self, dead: u64) {
        if self.counting.concerns.has(dead) && !mutant!("R10c") {
            self.counting.waiting.fenced.insert(dead);
        }
    }
}
