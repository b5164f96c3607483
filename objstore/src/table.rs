//! Which objects this node holds in its arena, and in what state.

use crate::arena::Arena;
use crate::pins::{Pins, Reader};
use mobula_base::{JobId, ObjectId, TaskId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Who creates an object: a link of the daemon, or the daemon itself (0) for transfers.
pub type Creator = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Creating(Creator),
    Sealed { crc: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: u64,
    len: u64,
    job: JobId,
    state: State,
}

/// A sealed object's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset in the region, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub len: u64,
    /// CRC-32 of the bytes.
    pub crc: u32,
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// It can never hold this object.
    TooLarge { len: u64, capacity: u64 },
    /// No room now: what is there is referred to, or looked at.
    Full { len: u64, used: u64, capacity: u64 },
    /// The object is there already, sealed.
    Exists(Place),
    /// Another creator is writing it.
    Busy,
    /// This creator has not created it.
    NotCreating,
    /// More requests for room wait than may.
    Crowded { waiting: usize },
    /// Its job has ended.
    JobEnded,
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::TooLarge { len, capacity } => write!(
                f,
                "an object of {len} bytes can never fit a store of {capacity} bytes; start the node with a larger --store"
            ),
            StoreError::Full { len, used, capacity } => write!(
                f,
                "the object store is full: {len} bytes asked, {used} of {capacity} used; objects stay for as long as \
                 they are referred to, so drop references or start the node with a larger --store"
            ),
            StoreError::Exists(_) => write!(f, "the object exists already"),
            StoreError::Busy => write!(f, "another process is writing this object"),
            StoreError::NotCreating => write!(f, "the object was not created by this process"),
            StoreError::Crowded { waiting } => write!(
                f,
                "the object store is full and {waiting} requests wait for room already; submit less at once or start \
                 the node with a larger --store"
            ),
            StoreError::JobEnded => write!(f, "the job has ended"),
        }
    }
}
impl std::error::Error for StoreError {}

/// The object table of one node.
///
/// Invariants, asserted by `check_invariants`:
/// 1. A sealed object never changes its place, length or checksum.
/// 2. Every entry owns one live allocation of the arena; no other allocation exists but those of `doomed`
///    and `leaving`.
/// 3. An unsealed entry is readable by nobody and goes when its creator goes.
/// 4. A place that is pinned is an entry's or leaving; it is not freed before its last pin goes.
#[derive(Debug)]
pub struct Store {
    arena: Arena,
    entries: HashMap<ObjectId, Entry>,
    by_job: BTreeMap<JobId, BTreeSet<ObjectId>>,
    /// Room (offset, length) that creators may still be writing to although the job has ended.
    doomed: BTreeMap<(Creator, ObjectId), (u64, u64)>,
    pins: Pins,
    /// Places (by offset) of objects that are gone while somebody still looks at them.
    leaving: BTreeMap<u64, Leaving>,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    len: u64,
    /// None when its job has ended.
    job: Option<JobId>,
    crc: u32,
}

impl Store {
    /// An empty store over a region of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Store {
            arena: Arena::new(capacity),
            entries: HashMap::new(),
            by_job: BTreeMap::new(),
            doomed: BTreeMap::new(),
            pins: Pins::default(),
            leaving: BTreeMap::new(),
        }
    }

    /// Makes room for an object; its creator writes `len` bytes at the returned offset, then seals.
    ///
    /// # Errors
    /// See [`StoreError`]; `Exists` and `Busy` make creation idempotent.
    pub fn create(
        &mut self,
        object: ObjectId,
        len: u64,
        job: JobId,
        creator: Creator,
    ) -> Result<u64, StoreError> {
        if self.doomed.contains_key(&(creator, object)) {
            if creator == 0 {
                return Err(StoreError::Busy);
            }
            self.free_doomed(creator, object);
        }
        match self.entries.get(&object) {
            Some(Entry { offset, len, state: State::Sealed { crc }, .. }) => {
                return Err(StoreError::Exists(Place { offset: *offset, len: *len, crc: *crc }));
            }
            // The same creator starts over: its earlier try is void.
            Some(Entry { state: State::Creating(by), .. }) if *by == creator && creator != 0 => {
                self.remove(object)
            }
            Some(Entry { state: State::Creating(_), .. }) => return Err(StoreError::Busy),
            None => {}
        }
        if len > self.arena.capacity() {
            return Err(StoreError::TooLarge { len, capacity: self.arena.capacity() });
        }
        let Some(offset) = self.arena.allocate(len) else {
            return Err(StoreError::Full {
                len,
                used: self.arena.used_bytes(),
                capacity: self.arena.capacity(),
            });
        };
        self.entries.insert(object, Entry { offset, len, job, state: State::Creating(creator) });
        self.by_job.entry(job).or_default().insert(object);
        Ok(offset)
    }

    /// Makes an object readable and immutable.
    ///
    /// # Errors
    /// `NotCreating` unless `creator` created it.
    pub fn seal(&mut self, object: ObjectId, crc: u32, creator: Creator) -> Result<Place, StoreError> {
        self.free_doomed(creator, object);
        let entry = self.entries.get_mut(&object).ok_or(StoreError::NotCreating)?;
        if entry.state != State::Creating(creator) {
            return Err(StoreError::NotCreating);
        }
        entry.state = State::Sealed { crc };
        Ok(Place { offset: entry.offset, len: entry.len, crc })
    }

    /// An attempt made what it was told to be here already (`Exists`). Should that have gone meanwhile, it is
    /// put back from where the attempt's task still looks at it. None: what is here is something else.
    pub fn seal_again(&mut self, object: ObjectId, crc: u32, creator: Creator) -> Option<Place> {
        if self.entries.contains_key(&object) {
            return self.get(object).filter(|place| place.crc == crc);
        }
        let mut told = self.pins.told(Reader::Task(creator, object.task), object);
        let gone = |offset: &u64| self.leaving.get(offset).is_some_and(|l| l.crc == crc && l.job.is_some());
        let offset = told.find(gone)?;
        drop(told);
        let Leaving { len, job, crc } = self.leaving.remove(&offset)?;
        let job = job?;
        self.entries.insert(object, Entry { offset, len, job, state: State::Sealed { crc } });
        self.by_job.entry(job).or_default().insert(object);
        Some(Place { offset, len, crc })
    }

    /// Forgets an object that its creator gave up.
    pub fn abort(&mut self, object: ObjectId, creator: Creator) {
        self.free_doomed(creator, object);
        if self.entries.get(&object).is_some_and(|e| e.state == State::Creating(creator)) {
            self.remove(object);
        }
    }

    /// Where a sealed object is.
    pub fn get(&self, object: ObjectId) -> Option<Place> {
        match self.entries.get(&object) {
            Some(Entry { offset, len, state: State::Sealed { crc }, .. }) => {
                Some(Place { offset: *offset, len: *len, crc: *crc })
            }
            Some(Entry { state: State::Creating(_), .. }) | None => None,
        }
    }

    /// Somebody is told where a sealed object is: until it is told back, its bytes stay as they are.
    /// Whether the object is here.
    pub fn pin(&mut self, object: ObjectId, reader: Reader) -> bool {
        let Some(place) = self.get(object) else { return false };
        self.pins.add(reader, object, place.offset);
        true
    }

    /// Whether somebody looks at a sealed object: its memory cannot be used for anything else.
    pub fn is_looked_at(&self, object: ObjectId) -> bool {
        self.get(object).is_some_and(|place| self.pins.is_pinned(place.offset))
    }

    /// What links look at, and which.
    pub fn looked_at_by_links(&self) -> impl Iterator<Item = (Creator, ObjectId)> {
        self.pins.of_links()
    }

    /// The job of an object that is here, sealed or not.
    pub fn job(&self, object: ObjectId) -> Option<JobId> {
        self.entries.get(&object).map(|entry| entry.job)
    }

    /// A reader looks no longer at the place that it was told first of those it still looks at.
    pub fn unpin(&mut self, object: ObjectId, reader: Reader) {
        let free = self.pins.remove(reader, object);
        self.free_leaving(free);
    }

    /// A task of a worker has ended: it looks at nothing any more.
    pub fn task_ended(&mut self, worker: Creator, task: TaskId) {
        let free = self.pins.remove_reader(Reader::Task(worker, task));
        self.free_leaving(free);
    }

    /// Forgets a sealed object; its memory is free once nobody looks at it. Whether it was here.
    pub fn discard(&mut self, object: ObjectId) -> bool {
        let is_here = self.get(object).is_some();
        if is_here {
            self.remove(object);
        }
        is_here
    }

    fn free_leaving(&mut self, offsets: impl IntoIterator<Item = u64>) {
        for offset in offsets {
            if self.leaving.remove(&offset).is_some() {
                self.arena.free(offset);
            }
        }
    }

    /// Drops what a vanished process had begun, and what it looked at.
    pub fn creator_gone(&mut self, creator: Creator) {
        let free = self.pins.remove_link(creator);
        self.free_leaving(free);
        let mut begun: Vec<ObjectId> = self
            .entries
            .iter()
            .filter(|(_, e)| e.state == State::Creating(creator))
            .map(|(o, _)| *o)
            .collect();
        let doomed: Vec<ObjectId> =
            self.doomed.keys().filter(|(by, _)| *by == creator).map(|(_, o)| *o).collect();
        for object in doomed {
            self.free_doomed(creator, object);
        }
        // The order of a hash map must not decide what memory is used next.
        begun.sort_unstable();
        for object in begun {
            self.remove(object);
        }
    }

    /// Frees everything of a job that ended. What is still being written keeps its room until its
    /// creator seals it, gives it up or goes: nobody else may be given bytes that are written to. So does
    /// what somebody looks at.
    pub fn free_job(&mut self, job: JobId) {
        for object in self.by_job.remove(&job).unwrap_or_default() {
            let Some(entry) = self.entries.remove(&object) else { continue };
            match entry.state {
                State::Sealed { .. } => self.vacate(&entry, false),
                State::Creating(by) => drop(self.doomed.insert((by, object), (entry.offset, entry.len))),
            }
        }
    }

    /// The place of an entry that is no more.
    fn vacate(&mut self, entry: &Entry, has_job: bool) {
        let Entry { offset, len, job, state } = *entry;
        match state {
            State::Sealed { crc } if self.pins.is_pinned(offset) => {
                self.leaving.insert(offset, Leaving { len, job: has_job.then_some(job), crc });
            }
            State::Sealed { .. } | State::Creating(_) => self.arena.free(offset),
        }
    }

    fn free_doomed(&mut self, creator: Creator, object: ObjectId) {
        if let Some((offset, _)) = self.doomed.remove(&(creator, object)) {
            self.arena.free(offset);
        }
    }

    fn remove(&mut self, object: ObjectId) {
        if let Some(entry) = self.entries.remove(&object) {
            self.vacate(&entry, true);
            if let Some(objects) = self.by_job.get_mut(&entry.job) {
                objects.remove(&object);
                if objects.is_empty() {
                    self.by_job.remove(&entry.job);
                }
            }
        }
    }

    /// Whether something is at an offset: an object, or one that is gone while somebody looks at it.
    pub fn is_taken(&self, offset: u64) -> bool {
        self.arena.is_taken(offset)
    }

    /// Bytes in use, and in all.
    pub fn usage(&self) -> (u64, u64) {
        (self.arena.used_bytes(), self.arena.capacity())
    }

    /// How many objects are sealed, and still being written, and gone but for those who look at them; takes
    /// as long as there are objects.
    pub fn count(&self) -> (u64, u64, u64) {
        let sealed =
            self.entries.values().filter(|entry| matches!(entry.state, State::Sealed { .. })).count();
        (sealed as u64, (self.entries.len() - sealed) as u64, self.leaving.len() as u64)
    }

    /// Panics when an invariant does not hold.
    pub fn check_invariants(&self) {
        self.arena.check_invariants();
        self.pins.check_invariants();
        assert!(self.leaving.keys().all(|offset| self.pins.is_pinned(*offset)), "nobody looks, yet it stays");
        let others =
            self.doomed.values().map(|(_, len)| *len).chain(self.leaving.values().map(|leaving| leaving.len));
        let lens = self.entries.values().map(|e| e.len).chain(others);
        let bytes: u64 = lens.map(|len| len.max(1).div_ceil(crate::arena::ALIGN) * crate::arena::ALIGN).sum();
        assert_eq!(bytes, self.arena.used_bytes(), "allocations and entries differ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::TaskId;
    use proptest::prelude::*;

    fn object(n: u32) -> ObjectId {
        TaskId::root(JobId(1)).output(n)
    }

    #[test]
    fn what_goes_while_an_attempt_makes_it_again_is_put_back() {
        let (mut store, worker, other) = (Store::new(1 << 16), 7, 8);
        let id = object(1);
        store.create(id, 1000, JobId(1), other).expect("fits");
        let first = store.seal(id, 42, other).expect("created");
        assert_eq!(store.create(id, 1000, JobId(1), worker), Err(StoreError::Exists(first)));
        store.pin(id, Reader::Task(worker, id.task));
        store.discard(id);
        assert_eq!(store.get(id), None);
        assert_eq!(store.seal_again(id, 43, worker), None, "other bytes");
        assert_eq!(store.seal_again(id, 42, other), None, "who does not look at it");
        assert_eq!(store.seal_again(id, 42, worker), Some(first));
        assert_eq!(store.get(id), Some(first));
        store.check_invariants();
        // What goes with its job stays gone.
        store.free_job(JobId(1));
        assert_eq!(store.seal_again(id, 42, worker), None);
        store.task_ended(worker, id.task);
        assert_eq!(store.usage().0, 0);
        store.check_invariants();
    }

    #[test]
    fn a_dead_creator_leaves_nothing() {
        let mut store = Store::new(1 << 16);
        store.create(object(1), 1000, JobId(1), 7).expect("fits");
        store.create(object(2), 1000, JobId(1), 7).expect("fits");
        store.seal(object(2), 42, 7).expect("created");
        assert_eq!(store.count(), (1, 1, 0));
        assert_eq!(store.create(object(1), 1000, JobId(1), 8), Err(StoreError::Busy));
        store.creator_gone(7);
        assert_eq!(store.get(object(1)), None);
        assert_eq!(store.get(object(2)).map(|p| p.crc), Some(42), "sealed objects outlive their creator");
        assert_eq!(store.count(), (1, 0, 0));
        store.check_invariants();
        store.free_job(JobId(1));
        assert_eq!(store.usage().0, 0);
    }

    #[test]
    fn too_large_and_full_are_told_apart() {
        let mut store = Store::new(1024);
        assert!(matches!(store.create(object(1), 2000, JobId(1), 1), Err(StoreError::TooLarge { .. })));
        store.create(object(2), 1000, JobId(1), 1).expect("fits");
        assert!(matches!(store.create(object(3), 100, JobId(1), 1), Err(StoreError::Full { .. })));
    }

    #[test]
    fn what_somebody_looks_at_stays_as_it_is() {
        let (one, driver, worker) = (object(1), Reader::Link(7), Reader::Task(8, TaskId::root(JobId(1))));
        let mut store = Store::new(1 << 16);
        assert!(!store.pin(one, driver), "nothing there");
        let first = store.create(one, 1000, JobId(1), 7).expect("fits");
        assert!(!store.discard(one), "not sealed");
        store.seal(one, 42, 7).expect("created");
        assert!(store.pin(one, driver) && store.pin(one, driver) && store.pin(one, worker));
        assert!(store.discard(one));
        assert_eq!((store.get(one), store.usage().0, store.count()), (None, 1024, (0, 0, 1)));
        // It is made again, elsewhere; whoever looked at the first still does.
        let second = store.create(one, 1000, JobId(1), 8).expect("fits");
        assert_ne!(first, second);
        store.seal(one, 43, 8).expect("created");
        assert!(store.pin(one, driver));
        store.unpin(one, driver);
        store.unpin(one, driver);
        assert_eq!(store.usage().0, 2048, "the task still looks");
        store.creator_gone(9);
        store.task_ended(8, TaskId::root(JobId(1)));
        assert_eq!(store.usage().0, 1024, "the first is free");
        store.free_job(JobId(1));
        store.check_invariants();
        assert_eq!(store.usage().0, 1024, "the driver looks at the second");
        store.creator_gone(7);
        store.unpin(one, driver);
        store.check_invariants();
        assert_eq!(store.usage().0, 0);
    }

    proptest! {
        #[test]
        fn invariants_hold_under_any_calls(steps in prop::collection::vec((0u8..10, 0u32..6, 1u64..3), 1..120)) {
            let mut store = Store::new(8 * 1024);
            let mut sealed: HashMap<ObjectId, Place> = HashMap::new();
            let task = TaskId::root(JobId(9));
            for (what, n, who) in steps {
                let object = object(n);
                match what {
                    0 | 1 => drop(store.create(object, u64::from(n) * 700, JobId(who), who)),
                    2 => if let Ok(place) = store.seal(object, n, who) {
                        sealed.insert(object, place);
                    },
                    3 => store.creator_gone(who),
                    4 => drop(store.pin(object, Reader::Link(who))),
                    5 => drop(store.pin(object, Reader::Task(who, task))),
                    6 => store.unpin(object, Reader::Link(who)),
                    7 => store.task_ended(who, task),
                    8 => if store.discard(object) {
                        sealed.remove(&object);
                    },
                    _ => {
                        store.free_job(JobId(who));
                        sealed.retain(|o, _| store.get(*o).is_some());
                    }
                }
                store.check_invariants();
                for (object, place) in &sealed {
                    prop_assert_eq!(store.get(*object), Some(*place));
                }
            }
            for who in 1..3 {
                store.free_job(JobId(who));
                store.creator_gone(who);
            }
            store.check_invariants();
            prop_assert_eq!(store.usage().0, 0, "nothing leaks");
        }
    }
}
