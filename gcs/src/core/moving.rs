//! The content of slots that move: read in pieces where it was, taken in where it goes, forgotten where
//! it was.
//!
//! What lies in slots that have left does not change any more, so any replica that has applied the
//! release can read it, in any number of pieces and after any interruption: a piece names where it
//! begins, and is taken only by a shard that is there.

use super::format::PutDump;
use super::run::Run;
use super::slot_table;
use super::{Answer, Put, ShardState};
use crate::level;
use mobula_base::slots::slot_of_key;
use mobula_base::{ObjectId, RunId, SlotSet};
use mobula_proto as proto;
use prost::Message;
use proto::slot_command::Op;
use proto::{Event, EventCause, EventKind, MovedKey, MovedPut, MovedRun};
use proto::{SlotContent, SlotCursor, SlotOutcome};
use std::io;
use std::ops::Bound;

/// Entries of a table that are looked at in one step, and runs that are read: nothing is applied
/// meanwhile.
const LOOKS: usize = 4096;
/// Runs that are read in one step; cold ones lie on the disk.
const READS: usize = 64;

/// Tables in the order in which they are read.
const REST: u32 = 0;
const KEYS: u32 = 1;
const PUTS: u32 = 2;
const RUNS: u32 = 3;
const END: u32 = 4;

impl ShardState {
    pub(super) fn change_slots(&mut self, index: u64, command: &proto::SlotCommand) -> io::Result<Answer> {
        let slots = |rows| proto::slot_set(rows).unwrap_or_default();
        match &command.op {
            Some(Op::Start(start)) if self.shard == 0 => return Ok(self.start_move(index, start)),
            Some(Op::Switch(switch)) if self.shard == 0 => {
                if self.cluster.slots_table.switch(self.cluster.shards, switch.epoch) {
                    self.cluster.version = index;
                }
            }
            Some(Op::End(end)) if self.shard == 0 => {
                if let Some(plan) = self.cluster.slots_table.end(end.epoch) {
                    self.cluster.events.add(event(EventKind::EventSlotsMoved, &plan));
                }
            }
            Some(Op::Await(wait)) => self.slots.expect(wait.epoch, slots(&wait.slots), slots(&wait.owned)),
            Some(Op::Release(go)) => {
                if self.slots.release(go.epoch, slots(&go.slots), slots(&go.owned)) {
                    // Those who watch keys here look anew, and no longer find what has left.
                    self.kv.begin_anew(0);
                }
            }
            Some(Op::Content(piece)) if self.slots.wants(piece) => self.take_in(piece)?,
            Some(Op::Forget(forget)) => self.forget_slots(forget)?,
            Some(Op::Content(_) | Op::Start(_) | Op::Switch(_) | Op::End(_)) | None => {}
        }
        Ok(Answer::Slots(SlotOutcome::default()))
    }

    fn start_move(&mut self, index: u64, start: &proto::StartSlotPlan) -> Answer {
        let (level, _) = self.cluster.level();
        let started = if level < level::MOVES_SLOTS {
            Err("a head of an earlier release is a member: upgrade all heads first".to_owned())
        } else {
            self.cluster.slots_table.start(index, self.cluster.shards, start)
        };
        let outcome = started.unwrap_or_else(|refused| SlotOutcome { refused, ..Default::default() });
        if let Some(plan) = self.cluster.slots_table.plan().filter(|plan| plan.since == index) {
            self.cluster.events.add(event(EventKind::EventSlotMove, plan));
        }
        Answer::Slots(outcome)
    }

    fn take_in(&mut self, piece: &SlotContent) -> io::Result<()> {
        piece.fenced.iter().for_each(|dead| self.fence(*dead));
        piece.forgotten.iter().for_each(|job| self.forget(*job));
        for moved in &piece.keys {
            self.kv.bring(moved);
        }
        for moved in &piece.puts {
            if !self.forgotten.contains(&moved.job) {
                self.bring_put(moved)?;
            }
        }
        for moved in &piece.runs {
            let run = Run::decode(bytes::Bytes::copy_from_slice(&moved.content))?;
            if let Some(id) = run_id(&moved.run).filter(|_| !self.forgotten.contains(&run.job)) {
                if run.counts() {
                    self.count_from_here();
                    let concerned = run.concerned();
                    concerned.into_iter().for_each(|who| self.counting.concerns.add(who, id, run.job));
                    // Whoever is fenced here may not have been where it was.
                    self.counting.waiting.arrived.insert(id);
                }
                self.tasks.bring(id, run)?;
            }
        }
        self.slots.has_come(piece);
        if piece.last {
            // No revision is given twice, here or there, and those who watch look anew: what has come is
            // no change of theirs.
            self.kv.begin_anew(piece.revision);
        }
        Ok(())
    }

    fn bring_put(&mut self, moved: &MovedPut) -> io::Result<()> {
        let MovedPut { object, job, value, refs } = moved.clone();
        let put = if refs.is_empty() {
            Put::load_plain(&proto::SmallPut { object, job, value, ..Default::default() })
        } else {
            let mut dump = PutDump::decode(refs)?;
            if let Some(put) = &mut dump.put {
                put.value = value;
            }
            Put::load(&dump)
        };
        let Some((id, put)) = put else { return Ok(()) };
        if put.counts {
            self.count_from_here();
            let run = id.task.run;
            put.needed.holders().for_each(|who| self.counting.concerns.add(who, run, put.job));
            self.counting.waiting.arrived.insert(run);
        }
        self.puts.insert(id, put);
        Ok(())
    }

    fn forget_slots(&mut self, forget: &proto::ForgetSlots) -> io::Result<()> {
        let Some(slots) = self.slots.forget(forget.epoch, forget.last) else { return Ok(()) };
        for id in forget.runs.iter().filter_map(|id| run_id(id)).filter(|id| slots.contains(id.slot())) {
            self.tasks.remove(id)?;
        }
        if forget.last {
            self.kv.drop_slots(&slots);
            self.puts.retain(|id, _| !slots.contains(id.task.run.slot()));
            self.counting.concerns.drop_slots(&slots);
            self.counting.bygone.drop_slots(&slots);
        }
        Ok(())
    }

    /// The next piece of what lies in the slots that left for the map of `epoch`, about `max_bytes` of
    /// it; `None` when it is not here, or not any more. It may be empty and not the last.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn content(
        &self,
        epoch: u64,
        from: &SlotCursor,
        max_bytes: usize,
    ) -> io::Result<Option<SlotContent>> {
        let leaving = self.slots.leaving().filter(|leaving| leaving.epoch == epoch && !leaving.forgetting);
        let Some(slots) = leaving.map(|leaving| leaving.slots) else { return Ok(None) };
        let mut piece = SlotContent { epoch, from: Some(from.clone()), ..Default::default() };
        let mut room = max_bytes as isize;
        let next = match from.table {
            REST => {
                piece.fenced = self.fenced.iter().copied().collect();
                piece.forgotten = self.forgotten.iter().copied().collect();
                at(KEYS, Vec::new())
            }
            KEYS => self.read_keys(&slots, &from.key, &mut piece, &mut room),
            PUTS => self.read_puts(&slots, &from.key, &mut piece, &mut room),
            _ => self.read_runs(&slots, &from.key, &mut piece, &mut room)?,
        };
        if next.table == END {
            (piece.last, piece.revision) = (true, self.kv.history().last());
        }
        piece.next = Some(next);
        Ok(Some(piece))
    }

    fn read_keys(
        &self,
        slots: &SlotSet,
        after: &[u8],
        piece: &mut SlotContent,
        room: &mut isize,
    ) -> SlotCursor {
        let mut looked = 0;
        for (key, entry) in self.kv.after(after) {
            looked += 1;
            if slots.contains(slot_of_key(key)) {
                *room -= (key.len() + entry.value.len() + 16) as isize;
                let (key, value, revision) = (key.clone(), entry.value.clone(), entry.revision);
                piece.keys.push(MovedKey { key, value, revision });
            }
            // After the empty key it goes on: as a cursor it would mean the beginning.
            if (looked >= LOOKS || *room <= 0) && !key.is_empty() {
                return at(KEYS, key.to_vec());
            }
        }
        at(PUTS, Vec::new())
    }

    fn read_puts(
        &self,
        slots: &SlotSet,
        after: &[u8],
        piece: &mut SlotContent,
        room: &mut isize,
    ) -> SlotCursor {
        let after = ObjectId::from_bytes(after).map_or(Bound::Unbounded, Bound::Excluded);
        for (looked, (id, put)) in self.puts.range((after, Bound::Unbounded)).enumerate() {
            if slots.contains(id.task.run.slot()) {
                let moved = moved_put(*id, put);
                *room -= (moved.value.len() + moved.refs.len() + 40) as isize;
                piece.puts.push(moved);
            }
            if looked + 1 == LOOKS || *room <= 0 {
                return at(PUTS, id.to_bytes().to_vec());
            }
        }
        at(RUNS, Vec::new())
    }

    fn read_runs(
        &self,
        slots: &SlotSet,
        after: &[u8],
        piece: &mut SlotContent,
        room: &mut isize,
    ) -> io::Result<SlotCursor> {
        let (ids, until) = self.tasks.ids_after(run_id(after), LOOKS)?;
        let there = ids.into_iter().filter(|id| slots.contains(id.slot()));
        for (read, id) in there.enumerate() {
            if let Some(content) = self.tasks.encoded(id)? {
                *room -= (content.len() + 24) as isize;
                piece.runs.push(MovedRun { run: run_bytes(id).into(), content });
            }
            if read + 1 == READS || *room <= 0 {
                return Ok(at(RUNS, run_bytes(id)));
            }
        }
        Ok(until.map_or(at(END, Vec::new()), |until| at(RUNS, run_bytes(until))))
    }

    /// Runs of slots that left for the map of `epoch`, that are still here, after `after`; from where to
    /// go on, if there may be more.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn left_behind(&self, epoch: u64, after: Option<RunId>) -> io::Result<(Vec<RunId>, Option<RunId>)> {
        let leaving = self.slots.leaving().filter(|leaving| leaving.epoch == epoch);
        let Some(slots) = leaving.map(|leaving| leaving.slots) else { return Ok((Vec::new(), None)) };
        let (ids, until) = self.tasks.ids_after(after, LOOKS)?;
        let mut found: Vec<RunId> = ids.into_iter().filter(|id| slots.contains(id.slot())).collect();
        if found.len() > READS {
            found.truncate(READS);
            let last = found.last().copied();
            return Ok((found, last));
        }
        Ok((found, until))
    }
}

fn moved_put(id: ObjectId, put: &Put) -> MovedPut {
    let (object, job, value) = (proto::object_bytes(id), put.job, put.value());
    let refs = put.counts.then(|| {
        let mut dump = put.dump(id);
        // It travels once.
        if let Some(put) = &mut dump.put {
            put.value = bytes::Bytes::new();
        }
        dump.encode_to_vec().into()
    });
    MovedPut { object, job, value, refs: refs.unwrap_or_default() }
}

fn at(table: u32, key: Vec<u8>) -> SlotCursor {
    SlotCursor { table, key: key.into() }
}

fn run_id(bytes: &[u8]) -> Option<RunId> {
    Some(RunId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

/// The bytes of a run's id.
pub fn run_bytes(id: RunId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

fn event(kind: EventKind, plan: &proto::SlotPlan) -> Event {
    let (kind, cause) = (kind as i32, EventCause::CauseOperator as i32);
    Event { kind, cause, evidence: slot_table::say(plan), shard: plan.from, ..Default::default() }
}
