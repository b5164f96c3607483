//! Who looks at which places of the region.
//!
//! A place that somebody looks at is not given to another object, whatever becomes of the object that
//! lies there.

use crate::table::Creator;
use mobula_base::{ObjectId, RunId, TaskId};
use std::collections::{BTreeMap, VecDeque};

/// Who looks at an object in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// A driver or worker that was told the place, until it tells it back.
    Link(Creator),
    /// A task that runs in a worker, until it ends.
    Task(Creator, TaskId),
    /// A transfer to another node, by its number.
    Transfer(u64),
    /// Whoever writes it to a file.
    Spill,
}

/// Invariant: `counts` has, for each offset, how often it stands in `told`; never 0.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// Offsets in the order in which they were told: an object that was made again may lie elsewhere.
    told: BTreeMap<(Reader, ObjectId), VecDeque<u64>>,
    counts: BTreeMap<u64, u32>,
}

const LEAST_TASK: TaskId = TaskId { run: RunId(0), place: 0 };
const LEAST: ObjectId = ObjectId { task: LEAST_TASK, slot: 0 };

impl Pins {
    pub fn add(&mut self, reader: Reader, object: ObjectId, offset: u64) {
        self.told.entry((reader, object)).or_default().push_back(offset);
        *self.counts.entry(offset).or_default() += 1;
    }

    /// What links look at, with the tasks that ran behind them left out.
    pub fn of_links(&self) -> impl Iterator<Item = (Creator, ObjectId)> {
        let from = (Reader::Link(0), LEAST);
        self.told.range(from..).map_while(|((reader, object), _)| match reader {
            Reader::Link(link) => Some((*link, *object)),
            Reader::Task(..) | Reader::Transfer(_) | Reader::Spill => None,
        })
    }

    pub fn is_pinned(&self, offset: u64) -> bool {
        self.counts.contains_key(&offset)
    }

    /// Where a reader looks at what it was told of an object, or did before it went.
    pub fn told(&self, reader: Reader, object: ObjectId) -> impl Iterator<Item = u64> {
        self.told.get(&(reader, object)).into_iter().flatten().copied()
    }

    /// Takes the oldest pin back: its offset if nobody looks there any more.
    pub fn remove(&mut self, reader: Reader, object: ObjectId) -> Option<u64> {
        let told = self.told.get_mut(&(reader, object))?;
        let offset = told.pop_front()?;
        if told.is_empty() {
            self.told.remove(&(reader, object));
        }
        self.uncount(offset)
    }

    /// Takes back all pins of a reader: the offsets where nobody looks any more.
    pub fn remove_reader(&mut self, reader: Reader) -> Vec<u64> {
        let of_it = self.told.range((reader, LEAST)..).map(|(key, _)| *key);
        let keys: Vec<_> = of_it.take_while(|(r, _)| *r == reader).collect();
        let mut free = Vec::new();
        for key in keys {
            for offset in self.told.remove(&key).unwrap_or_default() {
                free.extend(self.uncount(offset));
            }
        }
        free
    }

    /// Takes back all pins of a link and of the tasks that ran behind it.
    pub fn remove_link(&mut self, link: Creator) -> Vec<u64> {
        let mut free = self.remove_reader(Reader::Link(link));
        let from = (Reader::Task(link, LEAST_TASK), LEAST);
        let mut tasks: Vec<Reader> = self
            .told
            .range(from..)
            .map(|((reader, _), _)| *reader)
            .take_while(|reader| matches!(reader, Reader::Task(of, _) if *of == link))
            .collect();
        tasks.dedup();
        for task in tasks {
            free.extend(self.remove_reader(task));
        }
        free
    }

    fn uncount(&mut self, offset: u64) -> Option<u64> {
        let count = self.counts.get_mut(&offset).expect("counted when it was told");
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.counts.remove(&offset);
        Some(offset)
    }

    /// Panics when the invariant does not hold.
    pub fn check_invariants(&self) {
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for offset in self.told.values().flatten() {
            *counts.entry(*offset).or_default() += 1;
        }
        assert_eq!(counts, self.counts, "pins are miscounted");
    }
}
