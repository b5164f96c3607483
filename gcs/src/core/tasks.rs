//! The table of tasks: runs in memory while they are hot, in the cold store afterwards.
//!
//! Which runs are where is no part of the state: replicas may differ in it, and answer the same.

use super::run::{Run, TaskRecord};
use crate::cold::{ColdRun, ColdStore};
use bytes::Bytes;
use mobula_base::ids::hash64;
use mobula_base::{RunId, TaskId, mutant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::Arc;

/// Runs of a shard that are kept in memory; older ones go to the cold store. In bytes.
pub const HOT_BYTES: usize = 4 << 20;

/// A run in memory and when it was last touched.
#[derive(Clone)]
struct Hot {
    run: Arc<Run>,
    touched: u64,
    /// The cold store has held a copy of it.
    was_cold: bool,
}

/// What a job has in this shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobSum {
    /// Records, hot and cold.
    pub tasks: u64,
    /// Runs in the cold store.
    pub cold_runs: u64,
    /// Sum of the hashes of those runs.
    pub cold_digest: u64,
    /// Runs in memory. Not part of the state.
    pub hot_runs: u64,
}

impl JobSum {
    fn is_empty(&self) -> bool {
        self.tasks == 0 && self.cold_runs == 0 && self.hot_runs == 0
    }
}

/// All records of a shard. A clone is a view that does not change; it costs time in proportion to
/// the number of hot runs.
#[derive(Clone)]
pub struct Tasks {
    hot: BTreeMap<RunId, Hot>,
    cold: Arc<dyn ColdStore>,
    jobs: BTreeMap<u64, JobSum>,
    len: u64,
    cold_runs: u64,
    hot_bytes: usize,
    hot_limit: usize,
    touches: u64,
    /// Runs in the order of their touches; a touch that is not a run's last counts nothing.
    order: VecDeque<(u64, RunId)>,
}

impl Tasks {
    /// An empty table whose cold runs go to `cold`.
    pub fn new(cold: Arc<dyn ColdStore>) -> Self {
        Tasks {
            hot: BTreeMap::new(),
            cold,
            jobs: BTreeMap::new(),
            len: 0,
            cold_runs: 0,
            hot_bytes: 0,
            hot_limit: HOT_BYTES,
            touches: 0,
            order: VecDeque::new(),
        }
    }

    /// Number of records, hot and cold.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of hot runs, about.
    pub fn hot_bytes(&self) -> usize {
        self.hot_bytes
    }

    /// Jobs that have records here, and what they have.
    pub fn jobs(&self) -> impl Iterator<Item = (u64, JobSum)> + '_ {
        self.jobs.iter().map(|(job, sum)| (*job, *sum))
    }

    /// Where cold runs are.
    pub fn cold(&self) -> &Arc<dyn ColdStore> {
        &self.cold
    }

    /// The record of `id`.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn get(&self, id: TaskId) -> io::Result<Option<TaskRecord>> {
        Ok(self.look(id.run, |run| run.record(id.place))?.flatten())
    }

    /// Looks at the run `id`.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn look<T>(&self, id: RunId, look: impl FnOnce(&Run) -> T) -> io::Result<Option<T>> {
        Ok(self.run(id)?.map(|run| look(&run)))
    }

    /// The run `id` as it is now; whoever looks at many of its records asks once.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn run(&self, id: RunId) -> io::Result<Option<Arc<Run>>> {
        if let Some(hot) = self.hot.get(&id) {
            return Ok(Some(hot.run.clone()));
        }
        if self.cold_runs == 0 {
            return Ok(None);
        }
        self.cold.get(id)?.map(|bytes| Run::decode(bytes).map(Arc::new)).transpose()
    }

    /// The run `id`, in memory, to change; `None` when it has no record.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn get_mut(&mut self, id: RunId) -> io::Result<Option<Changing<'_>>> {
        if !self.warm_up(id)? {
            return Ok(None);
        }
        Ok(Some(self.changing(id)))
    }

    /// The run `id`, in memory, to change; made for `job` when it has no record yet, with or without
    /// counting references.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub fn get_or_make(&mut self, id: RunId, job: u64, counts: bool) -> io::Result<Changing<'_>> {
        if !self.warm_up(id)? {
            self.place(id, Run::new(job, counts), false);
        }
        Ok(self.changing(id))
    }

    fn changing(&mut self, id: RunId) -> Changing<'_> {
        self.touches += 1;
        let touched = self.touches;
        self.order.push_back((touched, id));
        let hot = self.hot.get_mut(&id).expect("it was warmed up");
        hot.touched = touched;
        let run = Arc::make_mut(&mut hot.run);
        let before = (run.weight(), run.present().len() as u64);
        let job = self.jobs.entry(run.job).or_default();
        Changing { run, before, hot_bytes: &mut self.hot_bytes, len: &mut self.len, job }
    }

    fn place(&mut self, id: RunId, run: Run, was_cold: bool) {
        self.hot_bytes += run.weight();
        self.jobs.entry(run.job).or_default().hot_runs += 1;
        self.hot.insert(id, Hot { run: Arc::new(run), touched: 0, was_cold });
    }

    /// Brings a run into memory; whether there is one.
    fn warm_up(&mut self, id: RunId) -> io::Result<bool> {
        if self.hot.contains_key(&id) {
            return Ok(true);
        }
        if self.cold_runs == 0 {
            return Ok(false);
        }
        let Some(bytes) = self.cold.take(id)? else { return Ok(false) };
        let digest = hash64(&[&bytes]);
        let run = Run::decode(bytes)?;
        let sum = self.jobs.entry(run.job).or_default();
        sum.cold_runs -= 1;
        sum.cold_digest = sum.cold_digest.wrapping_sub(digest);
        self.cold_runs -= 1;
        self.place(id, run, true);
        Ok(true)
    }

    /// Moves the runs that were not touched for longest out of memory when there are too many.
    ///
    /// # Errors
    /// The cold store failed.
    pub fn cool_down(&mut self) -> io::Result<()> {
        if self.hot_bytes <= self.hot_limit {
            self.tidy();
            return Ok(());
        }
        let mut batch = Vec::new();
        while self.hot_bytes > self.hot_limit / 4 * 3 {
            let Some((touched, id)) = self.order.pop_front() else { break };
            if self.hot.get(&id).is_none_or(|hot| hot.touched != touched) {
                continue;
            }
            let Some(hot) = self.hot.remove(&id) else { continue };
            self.hot_bytes -= hot.run.weight();
            let (job, bytes) = (hot.run.job, hot.run.encode());
            let sum = self.jobs.entry(job).or_default();
            sum.hot_runs -= 1;
            sum.cold_runs += 1;
            sum.cold_digest = sum.cold_digest.wrapping_add(hash64(&[&bytes]));
            self.cold_runs += 1;
            batch.push(ColdRun { run: id, job, bytes });
        }
        self.cold.put(batch)
    }

    /// Forgets touches that are not their run's last, when they are most of what is remembered.
    fn tidy(&mut self) {
        if self.order.len() > 1024 + 4 * self.hot.len() {
            let hot = &self.hot;
            self.order.retain(|(touched, id)| hot.get(id).is_some_and(|hot| hot.touched == *touched));
        }
    }

    /// Forgets every record of a job; how many they were.
    pub fn forget(&mut self, job: u64) -> u64 {
        // In any case: it may have marks of runs that went elsewhere.
        self.cold.forget(job);
        let Some(sum) = self.jobs.remove(&job).filter(|_| !mutant!("G8")) else { return 0 };
        let (hot_bytes, hot) = (&mut self.hot_bytes, &mut self.hot);
        hot.retain(|_, hot| {
            let stays = hot.run.job != job;
            *hot_bytes -= if stays { 0 } else { hot.run.weight() };
            stays
        });
        self.cold_runs -= sum.cold_runs;
        self.len -= sum.tasks;
        sum.tasks
    }

    /// Takes in a run of a slot that comes here; it replaces what there is of it.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub(super) fn bring(&mut self, id: RunId, run: Run) -> io::Result<()> {
        self.remove(id)?;
        let (job, tasks) = (run.job, run.present().len() as u64);
        // Older files may hold a copy from when the slot was here before.
        self.place(id, run, true);
        self.jobs.entry(job).or_default().tasks += tasks;
        self.len += tasks;
        self.changing(id);
        Ok(())
    }

    /// Forgets a run.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub(super) fn remove(&mut self, id: RunId) -> io::Result<()> {
        if !self.warm_up(id)? {
            return Ok(());
        }
        let Some(Hot { run, was_cold, .. }) = self.hot.remove(&id) else { return Ok(()) };
        let tasks = run.present().len() as u64;
        self.hot_bytes -= run.weight();
        self.len -= tasks;
        let sum = self.jobs.entry(run.job).or_default();
        sum.tasks -= tasks;
        sum.hot_runs -= 1;
        if sum.is_empty() {
            self.jobs.remove(&run.job);
        }
        if !was_cold {
            return Ok(());
        }
        // A file may hold an older copy, which whoever starts from it would find.
        self.cold.put(vec![ColdRun { run: id, job: run.job, bytes: Bytes::new() }])
    }

    /// Runs that may be here, hot or cold, after `after`, in the order of their ids; and the last that
    /// was looked at, unless it was the last of all. Looks at `limit` cold ones.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub(super) fn ids_after(
        &self,
        after: Option<RunId>,
        limit: usize,
    ) -> io::Result<(Vec<RunId>, Option<RunId>)> {
        let cold = if self.cold_runs == 0 { Vec::new() } else { self.cold.after(after, limit)? };
        let until = if cold.len() == limit { cold.last().copied() } else { None };
        let above = after.map_or(Bound::Unbounded, Bound::Excluded);
        let hot = self.hot.range((above, until.map_or(Bound::Unbounded, Bound::Included)));
        let ids: BTreeSet<RunId> = hot.map(|(id, _)| *id).chain(cold).collect();
        Ok((ids.into_iter().collect(), until))
    }

    /// The canonical bytes of a run, hot or cold.
    ///
    /// # Errors
    /// The cold store cannot be read.
    pub(super) fn encoded(&self, id: RunId) -> io::Result<Option<Bytes>> {
        match self.hot.get(&id) {
            Some(hot) => Ok(Some(hot.run.encode())),
            None if self.cold_runs == 0 => Ok(None),
            None => self.cold.get(id),
        }
    }

    /// Hot runs in the order of their ids.
    pub fn hot(&self) -> impl Iterator<Item = (RunId, &Run)> {
        self.hot.iter().map(|(id, hot)| (*id, &*hot.run))
    }

    /// A hash of all records, hot and cold: equal on replicas that applied the same commands. Costs
    /// time in proportion to what is hot.
    pub fn digest(&self) -> u64 {
        let cold = self.jobs.values().map(|sum| sum.cold_digest);
        let hot = self.hot.values().map(|hot| hash64(&[&hot.run.encode()]));
        let parts = self.len.to_le_bytes();
        cold.chain(hot).fold(hash64(&[&parts]), u64::wrapping_add)
    }

    /// Takes a run of a snapshot into memory.
    pub(super) fn restore_hot(&mut self, id: RunId, run: Run) -> io::Result<()> {
        // A copy that was warmed up again before the snapshot is out of date.
        let was_cold = self.cold.take(id)?.is_some();
        self.place(id, run, was_cold);
        self.changing(id);
        Ok(())
    }

    /// Takes the sums of a snapshot, once all its hot runs are in memory.
    pub(super) fn restore_jobs(&mut self, mut jobs: BTreeMap<u64, JobSum>) {
        for hot in self.hot.values() {
            jobs.entry(hot.run.job).or_default().hot_runs += 1;
        }
        self.len = jobs.values().map(|sum| sum.tasks).sum();
        self.cold_runs = jobs.values().map(|sum| sum.cold_runs).sum();
        self.jobs = jobs;
    }

    /// Sets how much may stay in memory, in bytes.
    pub fn set_hot_limit(&mut self, bytes: usize) {
        self.hot_limit = bytes;
    }

    pub(super) fn hot_limit(&self) -> usize {
        self.hot_limit
    }
}

/// A run that is being changed; the table's sums follow when this is dropped.
pub struct Changing<'a> {
    run: &'a mut Run,
    before: (usize, u64),
    hot_bytes: &'a mut usize,
    len: &'a mut u64,
    job: &'a mut JobSum,
}

impl std::ops::Deref for Changing<'_> {
    type Target = Run;
    fn deref(&self) -> &Run {
        self.run
    }
}

impl std::ops::DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Run {
        self.run
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let (before, now) = (self.before.1, self.run.present().len() as u64);
        *self.hot_bytes = *self.hot_bytes + self.run.weight() - self.before.0;
        *self.len = *self.len + now - before;
        self.job.tasks = self.job.tasks + now - before;
    }
}
