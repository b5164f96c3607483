//! Deterministic identities (rule R1).
//!
//! Ids are hashes, not dice: a re-executed parent submits its children under the same ids, so a
//! retry is idempotent and a duplicate is recognised instead of prevented.

use crate::slots::slot_of_key;
use std::fmt;

/// How many consecutive submissions of one strand share a run.
pub const RUN_LEN: u64 = 512;

/// Fixed number of slots that runs hash to; slots are dealt to shards.
pub const SLOTS: u32 = 1024;

/// Slots of an object id from here on are `put`s of the task, below are its return values.
pub const FIRST_PUT_SLOT: u32 = 0x8000_0000;

/// Slots from here on are the items of the stream that a task returns (decision 27): puts of the task at places known
/// beforehand. Half a billion other puts lie below.
pub const FIRST_ITEM_SLOT: u32 = 0xA000_0000;
/// Items of one stream at most: its keeper remembers size and checksum of each until it ends.
pub const STREAM_ITEMS_MAX: u32 = 1 << 20;
/// So many items of a stream may be made before they are taken, at most.
pub const STREAM_WINDOW_MAX: u32 = 4096;

/// Slots from here on are the elements of what a task returns, if it was submitted so that each is an object of its
/// own (decision 26). They are like puts of the task, at places known beforehand.
pub const FIRST_ELEMENT_SLOT: u32 = 0xC000_0000;
/// Elements of one task at most.
pub const ELEMENTS_MAX: u32 = 32;

/// Hashes `parts` into 128 bits; every part is length-prefixed, so no two lists collide by
/// concatenation.
pub fn hash128(parts: &[&[u8]]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest128()
}

/// Hashes `parts` into 64 bits; same framing as [`hash128`].
pub fn hash64(parts: &[&[u8]]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number_id!(
    /// One shard of the control store: one Raft group.
    ShardId, u32, "shard-"
);
number_id!(
    /// One life of one node daemon. Numbers are given by shard 0 and never reused; 0 is nobody.
    Incarnation, u64, "inc-"
);

number_id!(
    /// A placement group; chosen by whoever makes it, so that making it is idempotent.
    GroupId, u64, "group-"
);

/// One program run against the cluster; chosen by its driver so that starting it is idempotent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{:016x}", self.0)
    }
}
impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A group of 512 consecutive submissions of one strand of one parent.
///
/// Aligned as its halves are: a 128-bit number alone would round an [`ObjectId`] up from 32 bytes to 48.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(Rust, packed(8))]
pub struct RunId(pub u128);

impl RunId {
    /// The run of submission `index` of `strand` inside `parent`.
    pub fn new(job: JobId, parent: TaskId, strand: u64, index: u64) -> Self {
        RunId(hash128(&[
            &job.0.to_le_bytes(),
            &if crate::mutant!("R1b") { TaskId::root(job) } else { parent }.to_bytes(),
            &strand.to_le_bytes(),
            &(index / RUN_LEN).to_le_bytes(),
        ]))
    }

    /// The slot this run hashes to.
    pub fn slot(self) -> u32 {
        // The low bits of xxh3 are as good as any others.
        (self.0 as u64 % u64::from(SLOTS)) as u32
    }

    /// The shard that owns this run when slots are dealt evenly to `shards` shards.
    pub fn shard(self, shards: u32) -> ShardId {
        shard_of_slot(self.slot(), shards)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run-{:032x}", { self.0 })
    }
}

/// The shard of a slot: contiguous ranges, so that ranges can be moved later.
pub fn shard_of_slot(slot: u32, shards: u32) -> ShardId {
    ShardId((u64::from(slot) * u64::from(shards) / u64::from(SLOTS)) as u32)
}

/// The shard of a key-value key.
pub fn shard_of_key(key: &[u8], shards: u32) -> ShardId {
    shard_of_slot(slot_of_key(key), shards)
}

/// A task: its run and its place in the run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TaskId {
    /// The run it was submitted in.
    pub run: RunId,
    /// Its place in the run, below 512.
    pub place: u16,
}

impl TaskId {
    /// Bytes on the wire.
    pub const LEN: usize = 18;

    /// The id of submission `index` of `strand` inside `parent` (R1).
    pub fn new(job: JobId, parent: TaskId, strand: u64, index: u64) -> Self {
        TaskId { run: RunId::new(job, parent, strand, index), place: (index % RUN_LEN) as u16 }
    }

    /// The stand-in task of a job's driver: the parent of everything the driver submits or puts.
    pub fn root(job: JobId) -> Self {
        TaskId { run: RunId(hash128(&[b"root", &job.0.to_le_bytes()])), place: 0 }
    }

    /// Return value `slot` of this task.
    pub fn output(self, slot: u32) -> ObjectId {
        ObjectId { task: self, slot }
    }

    /// Item `n` of the stream that this task returns.
    pub fn item(self, n: u32) -> ObjectId {
        self.output(FIRST_ITEM_SLOT + n)
    }

    /// Element `n` of what this task returns in parts.
    pub fn element(self, n: u32) -> ObjectId {
        self.output(FIRST_ELEMENT_SLOT + n)
    }

    /// Big-endian bytes: sorts as the id sorts.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..16].copy_from_slice(&self.run.0.to_be_bytes());
        out[16..].copy_from_slice(&self.place.to_be_bytes());
        out
    }

    /// The inverse of [`TaskId::to_bytes`]; `None` for a wrong length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let run = u128::from_be_bytes(bytes.get(..16)?.try_into().ok()?);
        let place = u16::from_be_bytes(bytes.get(16..)?.try_into().ok()?);
        Some(TaskId { run: RunId(run), place })
    }
}

/// The beginning of a task's id, as people type it: hexadecimal digits of its run, and after all 32 of them a dash
/// and the place. Nothing at all begins every id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskPrefix {
    first: u128,
    last: u128,
    place: Option<u16>,
}

impl TaskPrefix {
    /// Whether the id of a task begins so.
    pub fn begins(self, task: TaskId) -> bool {
        let run = task.run.0;
        (self.first..=self.last).contains(&run) && self.place.is_none_or(|place| place == task.place)
    }

    /// Whether it begins every id.
    pub fn is_empty(self) -> bool {
        self.first == 0 && self.last == u128::MAX
    }

    /// The task that it names, if it is a whole id.
    pub fn whole(self) -> Option<TaskId> {
        self.place.map(|place| TaskId { run: RunId(self.first), place })
    }
}

impl std::str::FromStr for TaskPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} does not begin the id of a task: that is up to {HEX} hexadecimal digits, and after all \
                 {HEX} of them a dash and a number below {RUN_LEN}"
            )
        };
        const HEX: usize = 32;
        let (digits, place) = match text.split_once('-') {
            Some((digits, place)) if digits.len() == HEX => {
                let place = place.parse().ok().filter(|place| u64::from(*place) < RUN_LEN);
                (digits, Some(place.ok_or_else(wrong)?))
            }
            Some(_) => return Err(wrong()),
            None => (text, None),
        };
        if digits.len() > HEX || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        if digits.is_empty() {
            return Ok(TaskPrefix { first: 0, last: u128::MAX, place });
        }
        let left = 4 * (HEX - digits.len()) as u32;
        let first = u128::from_str_radix(digits, 16).map_err(|_| wrong())? << left;
        Ok(TaskPrefix { first, last: first | ((1 << left) - 1), place })
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{:03}", { self.run.0 }, self.place)
    }
}
impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An immutable object. The task that makes it is read off its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectId {
    /// The producing task; for a `put`, the task that did it.
    pub task: TaskId,
    /// Return index, or [`FIRST_PUT_SLOT`] + number of the `put`, or [`FIRST_ELEMENT_SLOT`] + number of the element.
    pub slot: u32,
}

impl ObjectId {
    /// Bytes on the wire.
    pub const LEN: usize = 22;

    /// Whether this object was `put` rather than returned. Elements of what was returned in parts count as such.
    pub fn is_put(self) -> bool {
        self.slot >= FIRST_PUT_SLOT
    }

    /// Its number, if it is an item of a stream: a put of its task in every other respect.
    pub fn item(self) -> Option<u32> {
        self.slot.checked_sub(FIRST_ITEM_SLOT).filter(|_| self.slot < FIRST_ELEMENT_SLOT)
    }

    /// Its number, if it is an element of what its task returns in parts: it is made when that ends well.
    pub fn element(self) -> Option<u32> {
        self.slot.checked_sub(FIRST_ELEMENT_SLOT)
    }

    /// Big-endian bytes: sorts as the id sorts.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..TaskId::LEN].copy_from_slice(&self.task.to_bytes());
        out[TaskId::LEN..].copy_from_slice(&self.slot.to_be_bytes());
        out
    }

    /// The inverse of [`ObjectId::to_bytes`]; `None` for a wrong length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let task = TaskId::from_bytes(bytes.get(..TaskId::LEN)?)?;
        let slot = u32::from_be_bytes(bytes.get(TaskId::LEN..)?.try_into().ok()?);
        Some(ObjectId { task, slot })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:x}", self.task, self.slot)
    }
}
impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_named_by_the_beginning_of_its_id() {
        let task = TaskId::new(JobId(7), TaskId::root(JobId(7)), 3, 5);
        let id = task.to_string();
        let begins = |text: &str| text.parse::<TaskPrefix>().map(|prefix| prefix.begins(task));
        for len in 0..=32 {
            assert_eq!(begins(&id[..len]), Ok(true), "{len} digits");
        }
        assert_eq!(begins(&id), Ok(true));
        assert_eq!(id.parse::<TaskPrefix>().map(TaskPrefix::whole), Ok(Some(task)));
        assert_eq!(id[..9].parse::<TaskPrefix>().map(TaskPrefix::whole), Ok(None));
        assert_eq!(begins(&format!("{}-6", &id[..32])), Ok(false), "another of its run");
        let other = if id.starts_with('a') { "b" } else { "a" };
        assert_eq!(begins(other), Ok(false));
        for wrong in [
            "x",
            "-",
            "12-3",
            &format!("{id}0000"),
            &format!("{}-512", &id[..32]),
            &format!("{}0", &id[..32]),
        ] {
            assert!(begins(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_are_small() {
        assert_eq!((size_of::<TaskId>(), size_of::<ObjectId>()), (24, 32));
    }

    #[test]
    fn ids_survive_the_wire_and_reject_wrong_lengths() {
        let task = TaskId::new(JobId(7), TaskId::root(JobId(7)), 3, 1025);
        assert_eq!(task.place, 1);
        assert_eq!(TaskId::from_bytes(&task.to_bytes()), Some(task));
        let object = task.output(FIRST_PUT_SLOT + 2);
        assert_eq!(ObjectId::from_bytes(&object.to_bytes()), Some(object));
        assert!(object.is_put() && object.element().is_none() && object.item().is_none());
        let item = task.item(3);
        assert!(item.is_put() && item.element().is_none() && item.item() == Some(3));
        let element = task.element(3);
        assert!(element.is_put() && element.element() == Some(3) && element.item().is_none());
        assert_eq!(TaskId::from_bytes(&[0; 17]), None);
        assert_eq!(ObjectId::from_bytes(&[0; 23]), None);
    }

    #[test]
    fn a_run_is_one_shard_and_runs_spread() {
        let root = TaskId::root(JobId(1));
        let first = TaskId::new(JobId(1), root, 0, 0);
        let last = TaskId::new(JobId(1), root, 0, RUN_LEN - 1);
        assert_eq!(first.run, last.run);
        assert_ne!(first.run, TaskId::new(JobId(1), root, 0, RUN_LEN).run);
        assert_ne!(first.run, TaskId::new(JobId(1), root, 1, 0).run);
        let mut seen = [0u32; 4];
        for i in 0..400 {
            seen[RunId::new(JobId(1), root, 0, i * RUN_LEN).shard(4).0 as usize] += 1;
        }
        assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
    }
}
