//! One task's record, and the table of records grouped by run.
//!
//! A run is copied on write: a snapshot clones the table in time proportional to the number of
//! runs, and goes on being encoded while new entries apply.

use bytes::Bytes;
use mobula_base::ids::RUN_LEN;
use mobula_base::{RunId, TaskId};
use mobula_proto as proto;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a task stands.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Its keeper sees to it.
    Pending,
    /// It produced values.
    Done {
        /// Incarnation that ran it.
        executor: u64,
        /// What it returned, by slot.
        outputs: Box<[proto::Output]>,
        /// Other incarnations that hold every output.
        holders: Box<[u64]>,
    },
    /// It ended without a value, for good.
    Failed(Box<proto::Failure>),
}

/// What the store knows of one task.
#[derive(Clone, Debug)]
pub struct TaskRecord {
    /// The encoded spec while it is hot; cold ones are in the spec store.
    pub spec: Option<Bytes>,
    /// Digest of the spec (R2).
    pub digest: u64,
    /// Log index of the first apply.
    pub revision: u64,
    /// Current attempt, from 1.
    pub attempt: u32,
    /// Incarnation that answers for the current attempt (R4).
    pub keeper: u64,
    /// Attempts that failed.
    pub failures: u32,
    /// Retries the submitter allows.
    pub max_retries: u32,
    /// Where it stands.
    pub state: State,
}

type Run = Vec<Option<Box<TaskRecord>>>;

/// All records of a shard, by run and place.
#[derive(Clone, Default)]
pub struct Tasks {
    runs: BTreeMap<RunId, Arc<Run>>,
    len: u64,
}

impl Tasks {
    /// Number of records.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The record of `id`.
    pub fn get(&self, id: TaskId) -> Option<&TaskRecord> {
        self.runs.get(&id.run)?.get(usize::from(id.place))?.as_deref()
    }

    /// The record of `id`, to change.
    pub fn get_mut(&mut self, id: TaskId) -> Option<&mut TaskRecord> {
        let run = self.runs.get_mut(&id.run)?;
        run.get(usize::from(id.place))?.as_ref()?;
        Arc::make_mut(run)[usize::from(id.place)].as_deref_mut()
    }

    /// Adds a record. The place must be below [`RUN_LEN`].
    pub fn insert(&mut self, id: TaskId, record: TaskRecord) {
        debug_assert!(u64::from(id.place) < RUN_LEN, "checked where ids come in");
        let run = Arc::make_mut(self.runs.entry(id.run).or_default());
        let place = usize::from(id.place);
        if run.len() <= place {
            run.resize_with(place + 1, || None);
        }
        if run[place].replace(Box::new(record)).is_none() {
            self.len += 1;
        }
    }

    /// All records in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (TaskId, &TaskRecord)> {
        self.runs.iter().flat_map(|(run, places)| {
            places.iter().enumerate().filter_map(move |(place, record)| {
                let record = record.as_deref()?;
                Some((TaskId { run: *run, place: place as u16 }, record))
            })
        })
    }
}
