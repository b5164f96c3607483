//! Everything a node holds, in memory, in files, or both; and who waits for room.
//!
//! Whoever wants room that there is not waits in one line, first come, first served. While somebody waits,
//! or more than [`MARK_PERCENT`] of the memory is used, what nobody looks at is written to files, that which
//! was used longest ago first; its memory is free once the file is durable. What links were told and do not
//! look at just now they are asked to give back. The head of the line alone is brought what it needs, so
//! that no two take room away from each other: that, and that nobody who looks at a value waits for room
//! meanwhile, is why the line always moves on while the disk takes files.
//!
//! Deterministic, like all that decides: [`Depot::turn`] says what should be done, and what has come of it
//! is told by [`Depot::written`] and [`Depot::read`].

mod serve;
mod spill;
#[cfg(test)]
mod tests;

use crate::Reader;
use crate::lru::Lru;
use crate::spill_file::{FileId, Header};
use crate::table::{Creator, Place, Store, StoreError};
use mobula_base::{JobId, ObjectId, TaskId, mutant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// More of the memory than this is not used without need: what comes next finds room at once.
pub const MARK_PERCENT: u64 = 80;
/// Files that are written at once.
pub const WRITES_MAX: usize = 2;
/// Objects that are read back at once.
pub const READS_MAX: usize = 4;
/// Requests that may wait for room; more are refused.
pub const WAITING_MAX: usize = 4096;
/// So many may be given what is in memory while the head of the line waits, and so keep it from room that it
/// needs; then they wait behind it, unless it waits for the disk.
pub const OVERTAKING_MAX: u32 = 256;
/// The creator of what is read back: no link has this number.
const RESTORER: Creator = u64::MAX;

/// By what an answer is known to whoever asked; chosen by the caller.
pub type Ticket = u64;

/// An object in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Which of its files.
    pub number: u64,
    /// Its length, bytes.
    pub len: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
    /// Its job.
    pub job: JobId,
    /// If its bytes are packed: how many there are in the file. None until it is written.
    pub packed: Option<u64>,
}

impl File {
    /// Its name.
    pub fn id(&self, object: ObjectId) -> FileId {
        FileId { object, number: self.number }
    }

    /// What stands in front of its bytes.
    pub fn header(&self, object: ObjectId) -> Header {
        Header { object, job: self.job, len: self.len, crc: self.crc, packed: self.packed }
    }

    /// Bytes that the object takes in the file.
    fn stored(&self) -> u64 {
        self.packed.unwrap_or(self.len)
    }
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In memory, whether it has a file or not.
    Memory(Place),
    /// In a file alone.
    File(File),
}

impl Kept {
    /// Its length and CRC-32.
    pub fn output(&self) -> (u64, u32) {
        match self {
            Kept::Memory(place) => (place.len, place.crc),
            Kept::File(file) => (file.len, file.crc),
        }
    }
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// There is no room yet for whoever asked for it; another answer comes.
    Waits { ticket: Ticket },
    /// The answer to a request for room: where, or why not.
    Room { ticket: Ticket, room: Result<u64, StoreError> },
    /// All that was asked for is in memory, pinned for its reader.
    Here { ticket: Ticket, places: Vec<Place> },
    /// One of the objects is not here any more, or it will never be in memory.
    Missing { ticket: Ticket, object: ObjectId },
    /// Objects that were asked for can never be in memory together.
    Refused { ticket: Ticket, error: StoreError },
    /// Write an object to its file, durably, and say so.
    Write { object: ObjectId, file: File, offset: u64 },
    /// Read an object back from its file to this offset, and say how that went.
    Read { object: ObjectId, file: File, offset: u64 },
    /// A file is not needed any more.
    Remove { file: FileId },
    /// The only copy here is damaged: it is gone.
    Lost { object: ObjectId },
    /// Ask a link to give back what it does not look at.
    Recall { link: Creator, objects: Vec<ObjectId> },
    /// The disk does not take files: call [`Depot::try_disk_again`] a little later.
    Pause,
}

/// Who waits, and for what.
#[derive(Clone, Debug)]
struct Want {
    ticket: Ticket,
    what: What,
    /// It has been told that it waits.
    told: bool,
}

#[derive(Clone, Debug)]
enum What {
    Room { object: ObjectId, len: u64, job: JobId, creator: Creator },
    Here { reader: Reader, objects: Vec<ObjectId> },
}

/// How far what the head of the line needs has been moved, so that it comes to lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moving {
    /// It has not.
    No,
    /// All of it leaves memory first.
    Out,
    /// It did, and is brought back. Should there be no room even so, something else has to change.
    Back,
}

/// Counts of what lies in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spilled {
    /// How many files.
    pub files: u64,
    /// Bytes of the objects in them.
    pub bytes: u64,
    /// What these take in the files, without headers.
    pub stored_bytes: u64,
    /// How often the disk did not take one.
    pub failures: u64,
}

/// How a file was written: to how many bytes its object was packed, if it was. Or that it was not: what matters
/// of it is whether to try again.
pub type Written = Result<Option<u64>, ()>;

/// Whether a file was read back.
pub type Outcome = Result<(), ()>;

/// What a node holds.
///
/// Invariants, asserted by `check_invariants`:
/// 1. What is sealed in memory stands in one of `dirty` (no file) and `clean` (it has one), once.
/// 2. What is being written or read back is in memory. What is written stays until the file is there.
/// 3. An object has one file at most.
/// 4. What was discarded and is still there is there for a task that was told of it and has not ended.
#[derive(Debug)]
pub struct Depot {
    memory: Store,
    /// Where there is no disk, whoever finds no room is refused.
    has_disk: bool,
    /// The disk did not take the last file.
    is_pausing: bool,
    files: BTreeMap<ObjectId, File>,
    file_bytes: u64,
    stored_bytes: u64,
    next_number: u64,
    dirty: Lru,
    clean: Lru,
    writing: BTreeMap<ObjectId, (File, Place)>,
    reading: BTreeMap<ObjectId, File>,
    /// Who was told that an object is there already, and will say that its task has made it. It stays until
    /// that task has ended.
    claims: BTreeSet<(ObjectId, Creator)>,
    /// What was discarded and is there for those alone.
    gone: BTreeSet<ObjectId>,
    waiting: VecDeque<Want>,
    /// Requests for room of what another process is writing.
    busy: Vec<Want>,
    /// What links have been asked to give back.
    recalled: BTreeSet<(Creator, ObjectId)>,
    /// Somebody was told a place since links were asked last.
    has_lent: bool,
    /// What the head of the line needs lies in the way of itself, and is moved.
    moving: Moving,
    /// How many were given something since the head of the line waits.
    overtaking: u32,
    failures: u64,
    /// Who was given what in [`Depot::want_here`], since the last turn.
    granted: Vec<(Ticket, Reader, Vec<ObjectId>)>,
    effects: Vec<Effect>,
}

impl Depot {
    /// An empty one over a region of `capacity` bytes. Without a disk nothing is spilled, and whoever finds
    /// no room is refused.
    pub fn new(capacity: u64, has_disk: bool) -> Self {
        Depot {
            memory: Store::new(capacity),
            has_disk,
            is_pausing: false,
            files: BTreeMap::new(),
            file_bytes: 0,
            stored_bytes: 0,
            next_number: 1,
            dirty: Lru::default(),
            clean: Lru::default(),
            writing: BTreeMap::new(),
            reading: BTreeMap::new(),
            claims: BTreeSet::new(),
            gone: BTreeSet::new(),
            waiting: VecDeque::new(),
            busy: Vec::new(),
            recalled: BTreeSet::new(),
            has_lent: false,
            moving: Moving::No,
            overtaking: 0,
            failures: 0,
            granted: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// There is a file of this number, whatever becomes of it.
    pub fn skip_number(&mut self, number: u64) {
        self.next_number = self.next_number.max(number.saturating_add(1));
    }

    /// A file that an earlier life left here, whole. Whether it is taken: one is enough.
    pub fn attach(&mut self, object: ObjectId, file: File) -> bool {
        self.skip_number(file.number);
        if self.files.contains_key(&object) || self.memory.job(object).is_some() {
            return false;
        }
        self.add_file(object, file);
        true
    }

    /// Asks for room for an object; its creator writes `len` bytes there, then seals.
    pub fn want_room(&mut self, ticket: Ticket, object: ObjectId, len: u64, job: JobId, creator: Creator) {
        self.line_up(Want { ticket, what: What::Room { object, len, job, creator }, told: false });
    }

    /// Asks for objects to be in memory, all at once, pinned for a reader.
    pub fn want_here(&mut self, ticket: Ticket, reader: Reader, objects: Vec<ObjectId>) {
        // Whatever is there needs no room.
        let is_fair = self.overtaking < OVERTAKING_MAX || self.is_pausing;
        if is_fair && objects.iter().all(|object| matches!(self.get(*object), Some(Kept::Memory(_)))) {
            self.overtaking += u32::from(!self.waiting.is_empty());
            let places = self.pin_all(reader, &objects);
            self.effects.push(Effect::Here { ticket, places });
            self.granted.push((ticket, reader, objects));
            return;
        }
        self.line_up(Want { ticket, what: What::Here { reader, objects }, told: false });
    }

    fn line_up(&mut self, want: Want) {
        let waiting = self.waiting.len() + self.busy.len();
        if waiting < WAITING_MAX {
            return self.waiting.push_back(want);
        }
        let (ticket, error) = (want.ticket, StoreError::Crowded { waiting });
        self.effects.push(match want.what {
            What::Room { .. } => Effect::Room { ticket, room: Err(error) },
            What::Here { .. } => Effect::Refused { ticket, error },
        });
    }

    /// Whoever asked by these tickets does not want it any more.
    pub fn cancel(&mut self, tickets: &BTreeSet<Ticket>) {
        self.waiting.retain(|want| !tickets.contains(&want.ticket));
        self.busy.retain(|want| !tickets.contains(&want.ticket));
        // It may have been given to them, and they have not heard of that yet.
        for (_, reader, objects) in self.granted.extract_if(.., |(ticket, ..)| tickets.contains(ticket)) {
            if !mutant!("W27") {
                objects.into_iter().for_each(|object| self.memory.unpin(object, reader));
            }
        }
        self.effects
            .retain(|effect| !matches!(effect, Effect::Here { ticket, .. } if tickets.contains(ticket)));
        self.moving = Moving::No;
    }

    /// Makes an object readable and immutable.
    ///
    /// # Errors
    /// `NotCreating` unless `creator` created it.
    pub fn seal(&mut self, object: ObjectId, crc: u32, creator: Creator) -> Result<Place, StoreError> {
        let place = self.memory.seal(object, crc, creator)?;
        self.dirty.touch(object);
        self.moving = Moving::No;
        Ok(place)
    }

    /// Forgets an object that its creator gave up.
    pub fn abort(&mut self, object: ObjectId, creator: Creator) {
        self.memory.abort(object, creator);
        self.moving = Moving::No;
    }

    /// An attempt made what it was told to be here already. Should that have been discarded meanwhile, it is
    /// put back. None: what is here is something else.
    pub fn seal_again(&mut self, object: ObjectId, crc: u32, creator: Creator) -> Option<Kept> {
        let is_same = |kept: &Kept| kept.output().1 == crc;
        if !self.gone.contains(&object) {
            return self.get(object).filter(is_same);
        }
        let is_claimed = self.claims.contains(&(object, creator)) && !mutant!("W15");
        let found = self.find(object).filter(is_same).filter(|_| is_claimed)?;
        self.gone.remove(&object);
        Some(found)
    }

    /// Where a sealed object is.
    pub fn get(&self, object: ObjectId) -> Option<Kept> {
        if self.gone.contains(&object) { None } else { self.find(object) }
    }

    /// The same, discarded or not.
    fn find(&self, object: ObjectId) -> Option<Kept> {
        let place = self.memory.get(object).map(Kept::Memory);
        place.or_else(|| self.files.get(&object).copied().map(Kept::File))
    }

    /// Somebody is told where an object is: what is in memory is pinned for it.
    pub fn lend(&mut self, object: ObjectId, reader: Reader) -> Option<Kept> {
        let kept = self.get(object)?;
        if let Kept::Memory(_) = kept {
            self.pin_all(reader, &[object]);
        }
        Some(kept)
    }

    fn pin_all(&mut self, reader: Reader, objects: &[ObjectId]) -> Vec<Place> {
        let mut places = Vec::with_capacity(objects.len());
        for object in objects {
            self.memory.pin(*object, reader);
            if let Reader::Link(link) = reader {
                self.recalled.remove(&(link, *object));
                self.has_lent = true;
            }
            let order = if self.clean.contains(*object) { &mut self.clean } else { &mut self.dirty };
            order.touch(*object);
            places.extend(self.memory.get(*object));
        }
        places
    }

    /// A reader looks no longer at a place that it was told.
    pub fn unpin(&mut self, object: ObjectId, reader: Reader) {
        self.memory.unpin(object, reader);
        if let Reader::Link(link) = reader {
            self.recalled.remove(&(link, object));
        }
        self.moving = Moving::No;
    }

    /// A task of a worker has taken its arguments: it looks at them no longer.
    pub fn args_taken(&mut self, worker: Creator, task: TaskId) {
        self.memory.task_ended(worker, task);
        self.moving = Moving::No;
    }

    /// A task of a worker has ended: it looks at nothing any more, and what it was told to be there already
    /// may go.
    pub fn task_ended(&mut self, worker: Creator, task: TaskId) {
        self.args_taken(worker, task);
        let of_task = self.claims.range((task.output(0), 0)..=(task.output(u32::MAX), Creator::MAX));
        let claimed: Vec<ObjectId> =
            of_task.filter(|(_, by)| *by == worker).map(|(object, _)| *object).collect();
        for object in claimed {
            self.unclaim(object, worker);
        }
    }

    fn unclaim(&mut self, object: ObjectId, by: Creator) {
        self.claims.remove(&(object, by));
        if self.gone.contains(&object) && !self.is_claimed(object) {
            self.discard_now(object);
        }
    }

    fn is_claimed(&self, object: ObjectId) -> bool {
        self.claims.range((object, 0)..=(object, Creator::MAX)).next().is_some()
    }

    /// Forgets an object, and its file. Whether it was here.
    pub fn discard(&mut self, object: ObjectId) -> bool {
        if self.get(object).is_none() {
            return false;
        }
        if self.is_claimed(object) {
            self.gone.insert(object);
        } else {
            self.discard_now(object);
        }
        true
    }

    fn discard_now(&mut self, object: ObjectId) {
        self.gone.remove(&object);
        self.memory.discard(object);
        self.drop_file(object);
        self.dirty.remove(object);
        self.clean.remove(object);
        self.moving = Moving::No;
    }

    /// Drops what a vanished process had begun, what it looked at and what it waited for.
    pub fn creator_gone(&mut self, gone: Creator) {
        self.memory.creator_gone(gone);
        let is_of = |want: &Want| match &want.what {
            What::Room { creator, .. } => *creator == gone,
            What::Here { reader, .. } => match reader {
                Reader::Link(link) | Reader::Task(link, _) => *link == gone,
                Reader::Transfer(_) | Reader::Spill => false,
            },
        };
        self.waiting.retain(|want| !is_of(want));
        self.busy.retain(|want| !is_of(want));
        self.recalled.retain(|(link, _)| *link != gone);
        let claimed: Vec<ObjectId> =
            self.claims.iter().filter(|(_, by)| *by == gone).map(|(object, _)| *object).collect();
        for object in claimed {
            self.unclaim(object, gone);
        }
        self.moving = Moving::No;
    }

    /// Frees everything of a job that ended, and refuses what waits for room for it.
    pub fn free_job(&mut self, job: JobId) {
        self.memory.free_job(job);
        let memory = &self.memory;
        self.dirty.retain(|object| memory.get(object).is_some());
        self.clean.retain(|object| memory.get(object).is_some());
        let files: Vec<ObjectId> = self.files.iter().filter(|(_, f)| f.job == job).map(|(o, _)| *o).collect();
        for object in files {
            self.drop_file(object);
        }
        let mut gone = std::mem::take(&mut self.gone);
        gone.retain(|object| self.find(*object).is_some());
        self.gone = gone;
        for want in self.busy.iter_mut().chain(&mut self.waiting) {
            if matches!(&want.what, What::Room { job: of, .. } if *of == job) {
                let room = Err(StoreError::JobEnded);
                self.effects.push(Effect::Room { ticket: want.ticket, room });
            }
        }
        let ended = |want: &Want| matches!(&want.what, What::Room { job: of, .. } if *of == job);
        self.waiting.retain(|want| !ended(want));
        self.busy.retain(|want| !ended(want));
        self.moving = Moving::No;
    }

    /// Whether something is at an offset of the memory: an object, or one that is gone while somebody looks at it.
    pub fn is_taken(&self, offset: u64) -> bool {
        self.memory.is_taken(offset)
    }

    /// Bytes of memory in use, and in all.
    pub fn usage(&self) -> (u64, u64) {
        self.memory.usage()
    }

    /// How many objects are sealed, and still being written, and gone but for those who look at them; takes
    /// as long as there are objects.
    pub fn count(&self) -> (u64, u64, u64) {
        self.memory.count()
    }

    /// What lies in files.
    pub fn spilled(&self) -> Spilled {
        Spilled {
            files: self.files.len() as u64,
            bytes: self.file_bytes,
            stored_bytes: self.stored_bytes,
            failures: self.failures,
        }
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u64 {
        (self.waiting.len() + self.busy.len()) as u64
    }

    /// Whether copies that nobody needs had better go.
    pub fn is_tight(&self) -> bool {
        !self.waiting.is_empty() || self.memory.usage().0 > self.mark()
    }

    fn mark(&self) -> u64 {
        self.memory.usage().1 / 100 * MARK_PERCENT
    }

    /// Panics when an invariant does not hold.
    pub fn check_invariants(&self) {
        self.memory.check_invariants();
        for object in self.dirty.iter() {
            assert!(self.memory.get(object).is_some(), "{object} is not in memory");
            assert!(!self.clean.contains(object) && !self.files.contains_key(&object), "{object} has a file");
        }
        for object in self.clean.iter() {
            assert!(self.memory.get(object).is_some(), "{object} is not in memory");
            assert!(self.files.contains_key(&object), "{object} has no file");
        }
        assert_eq!(
            (self.dirty.len() + self.clean.len()) as u64,
            self.memory.count().0,
            "sealed, not in order"
        );
        assert_eq!(self.files.values().map(|file| file.len).sum::<u64>(), self.file_bytes);
        assert_eq!(self.files.values().map(File::stored).sum::<u64>(), self.stored_bytes);
        for object in &self.gone {
            assert!(self.find(*object).is_some() && self.is_claimed(*object), "{object} is kept for nobody");
        }
        assert!(self.writing.len() <= WRITES_MAX && self.reading.len() <= READS_MAX);
        assert!(self.waiting.len() + self.busy.len() <= WAITING_MAX);
    }
}
