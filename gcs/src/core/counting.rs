//! What a shard that counts references keeps beside its runs and puts: whom each run concerns, what waits
//! to be pruned, what other shards are to be told, and which runs have gone.
//!
//! A shard counts from the first [`proto::Sweep`] on, or the first item about references: both say that
//! every head reads what that makes. What a job makes that had begun before stays until the job ends.

use super::format::{BygoneDump, ConcernDump, CountingDump, WaitingDump};
use super::outbox::Outbox;
use super::places::Places;
use bytes::{BufMut, Bytes, BytesMut};
use mobula_base::{ObjectId, RunId, SlotSet};
use mobula_proto as proto;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// So many runs that have gone entirely are remembered, the latest.
pub const MAX_BYGONE: usize = 1024;
/// And so many puts of drivers.
pub const MAX_BYGONE_PUTS: usize = 4096;

/// See the module.
#[derive(Clone, Default)]
pub struct Counting {
    /// Whether references are counted.
    pub(super) on: bool,
    /// Jobs that had begun before, and are not forgotten yet.
    pub(super) uncounted: BTreeSet<u64>,
    /// Slots of the shard in the first map; none: not known.
    pub(super) owned: SlotSet,
    pub(super) concerns: Concerns,
    pub(super) waiting: Waiting,
    /// What other shards are to be told.
    pub(super) outbox: Outbox,
    pub(super) bygone: Bygone,
}

impl Counting {
    /// Whether references are counted.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Whether references to what a job makes are counted.
    pub(super) fn counts(&self, job: u64) -> bool {
        self.on && !self.uncounted.contains(&job)
    }

    /// Whether anything waits for the next entry.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() && self.outbox.len() < super::outbox::MAX_OUTBOX
    }

    /// How much waits for that: objects, runs and nodes.
    pub fn waiting(&self) -> usize {
        let waiting = &self.waiting;
        waiting.objects.len() + waiting.runs.len() + waiting.arrived.len() + waiting.fenced.len()
    }

    /// What is remembered of runs and references beyond the records: nothing, once there are no records.
    pub fn leftover(&self) -> usize {
        self.waiting() + self.outbox.len() + self.concerns.by_who.len() + self.concerns.by_run.len()
    }

    /// What other shards are to be told.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// `None` while nothing is counted: dumps below level 3 have no such thing. Without the puts.
    pub(super) fn dump(&self) -> Option<CountingDump> {
        self.on.then(|| CountingDump {
            owned: proto::slot_rows(&self.owned),
            puts: Vec::new(),
            concerns: self.concerns.dump(),
            waiting: Some(self.waiting.dump()),
            outbox: Some(self.outbox.dump()),
            bygone: self.bygone.dump(),
            bygone_puts: self.bygone.dump_puts(),
            uncounted: self.uncounted.iter().copied().collect(),
        })
    }

    /// What [`Counting::dump`] gave.
    pub(super) fn restored(dump: Option<CountingDump>) -> Option<Self> {
        let Some(dump) = dump else { return Some(Counting::default()) };
        Some(Counting {
            on: true,
            owned: proto::slot_set(&dump.owned).ok()?,
            concerns: Concerns::restored(dump.concerns)?,
            waiting: Waiting::restored(&dump.waiting.unwrap_or_default())?,
            outbox: Outbox::restored(dump.outbox.unwrap_or_default())?,
            bygone: Bygone::restored(dump.bygone, &dump.bygone_puts)?,
            uncounted: dump.uncounted.into_iter().collect(),
        })
    }
}

/// Whom runs concern: who holds something in them or answers for something. May name one whom a run no
/// longer concerns, while there is the run.
#[derive(Clone, Default)]
pub(super) struct Concerns {
    by_who: BTreeSet<(u64, RunId)>,
    /// With the job of the run.
    by_run: BTreeMap<RunId, (u64, Vec<u64>)>,
}

impl Concerns {
    pub fn add(&mut self, who: u64, run: RunId, job: u64) {
        if self.by_who.insert((who, run)) {
            self.by_run.entry(run).or_insert((job, Vec::new())).1.push(who);
        }
    }

    pub fn remove(&mut self, who: u64, run: RunId) {
        if self.by_who.remove(&(who, run))
            && let Some((_, all)) = self.by_run.get_mut(&run)
        {
            all.retain(|other| *other != who);
            if all.is_empty() {
                self.by_run.remove(&run);
            }
        }
    }

    /// A run of somebody's, which concerns them no longer.
    pub fn pop(&mut self, who: u64) -> Option<RunId> {
        let first = self.by_who.range((who, RunId(0))..=(who, RunId(u128::MAX))).next();
        let run = first.copied()?.1;
        self.remove(who, run);
        Some(run)
    }

    pub fn has(&self, who: u64) -> bool {
        self.by_who.range((who, RunId(0))..=(who, RunId(u128::MAX))).next().is_some()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.by_who.is_empty() && self.by_run.is_empty()
    }

    /// A run has gone.
    pub fn forget_run(&mut self, run: RunId) {
        for who in self.by_run.remove(&run).map(|(_, all)| all).unwrap_or_default() {
            self.by_who.remove(&(who, run));
        }
    }

    /// A job is forgotten.
    pub fn forget(&mut self, job: u64) {
        self.by_run.retain(|_, (of, _)| *of != job);
        let by_run = &self.by_run;
        self.by_who.retain(|(_, run)| by_run.contains_key(run));
    }

    /// Slots have left.
    pub fn drop_slots(&mut self, slots: &SlotSet) {
        self.by_run.retain(|run, _| !slots.contains(run.slot()));
        self.by_who.retain(|(_, run)| !slots.contains(run.slot()));
    }

    fn dump(&self) -> Vec<ConcernDump> {
        let mut dumps: Vec<ConcernDump> = Vec::new();
        let mut runs = BytesMut::new();
        for (who, run) in &self.by_who {
            let job = self.by_run.get(run).map_or(0, |(job, _)| *job);
            runs.put_u128(run.0);
            match dumps.last_mut().filter(|last| last.incarnation == *who) {
                Some(last) => last.jobs.push(job),
                None => dumps.push(ConcernDump { incarnation: *who, jobs: vec![job], runs: Bytes::new() }),
            }
        }
        for dump in &mut dumps {
            dump.runs = runs.split_to(dump.jobs.len() * RUN_BYTES).freeze();
        }
        dumps
    }

    fn restored(dump: Vec<ConcernDump>) -> Option<Self> {
        let mut concerns = Concerns::default();
        for one in dump {
            for (run, job) in runs_of(&one.runs)?.zip(one.jobs) {
                concerns.add(one.incarnation, run, job);
            }
        }
        Some(concerns)
    }
}

/// What is to be looked at, for lack of time in the entry that gave rise to it.
#[derive(Clone, Default)]
pub(super) struct Waiting {
    /// Incarnations whose holds end.
    pub fenced: BTreeSet<u64>,
    /// Runs in which holds may have ended.
    pub runs: BTreeSet<RunId>,
    /// As `runs`, in slots that are on their way here.
    pub arrived: BTreeSet<RunId>,
    /// Puts, and first return values of tasks, that nobody may need any more.
    pub objects: BTreeSet<ObjectId>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.fenced.is_empty() && self.runs.is_empty() && self.objects.is_empty()
    }

    fn dump(&self) -> WaitingDump {
        WaitingDump {
            fenced: self.fenced.iter().copied().collect(),
            runs: run_list(&self.runs),
            objects: object_list(&self.objects),
            arrived: run_list(&self.arrived),
        }
    }

    fn restored(dump: &WaitingDump) -> Option<Self> {
        Some(Waiting {
            fenced: dump.fenced.iter().copied().collect(),
            runs: runs_of(&dump.runs)?.collect(),
            arrived: runs_of(&dump.arrived)?.collect(),
            objects: objects_of(&dump.objects)?,
        })
    }
}

/// Runs that were pruned to the last record, and the places that had one; and puts of drivers.
#[derive(Clone, Default)]
pub(super) struct Bygone {
    /// The oldest first.
    puts: VecDeque<ObjectId>,
    runs: BTreeMap<RunId, (u64, Places)>,
    order: BTreeMap<u64, RunId>,
    last: u64,
}

impl Bygone {
    pub fn add(&mut self, run: RunId, places: Places) {
        self.last += 1;
        if let Some((old, _)) = self.runs.insert(run, (self.last, places)) {
            self.order.remove(&old);
        }
        self.order.insert(self.last, run);
        if self.runs.len() > MAX_BYGONE
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.runs.remove(&oldest);
        }
    }

    /// Slots have left: whoever has them now knows better.
    pub fn drop_slots(&mut self, slots: &SlotSet) {
        self.runs.retain(|run, _| !slots.contains(run.slot()));
        self.order.retain(|_, run| !slots.contains(run.slot()));
        self.puts.retain(|put| !slots.contains(put.task.run.slot()));
    }

    pub fn take(&mut self, run: RunId) -> Option<Places> {
        let (at, places) = self.runs.remove(&run)?;
        self.order.remove(&at);
        Some(places)
    }

    pub fn add_put(&mut self, put: ObjectId) {
        if self.puts.len() == MAX_BYGONE_PUTS {
            self.puts.pop_front();
        }
        self.puts.push_back(put);
    }

    /// Which places of a run that is gone had records.
    pub fn of(&self, run: RunId) -> Places {
        self.runs.get(&run).map(|(_, places)| *places).unwrap_or_default()
    }

    /// Whether an object was known, and nobody needs it.
    pub fn has(&self, object: ObjectId) -> bool {
        let run = self.runs.get(&object.task.run);
        run.is_some_and(|(_, places)| places.contains(object.task.place)) || self.puts.contains(&object)
    }

    fn dump_puts(&self) -> Bytes {
        object_list(&self.puts)
    }

    fn dump(&self) -> Vec<BygoneDump> {
        let one = |run: &RunId| BygoneDump {
            run: run_list([run]),
            places: self.runs.get(run).map(|(_, places)| places.to_short()).unwrap_or_default(),
        };
        self.order.values().map(one).collect()
    }

    fn restored(dump: Vec<BygoneDump>, puts: &Bytes) -> Option<Self> {
        let mut bygone = Bygone { puts: objects_of(puts)?, ..Bygone::default() };
        for one in dump {
            bygone.add(runs_of(&one.run)?.next()?, Places::from_short(&one.places)?);
        }
        Some(bygone)
    }
}

fn object_list<'a>(objects: impl IntoIterator<Item = &'a ObjectId>) -> Bytes {
    let mut list = BytesMut::new();
    objects.into_iter().for_each(|id| list.put_slice(&id.to_bytes()));
    list.freeze()
}

fn objects_of<L: FromIterator<ObjectId>>(list: &Bytes) -> Option<L> {
    list.chunks(ObjectId::LEN).map(ObjectId::from_bytes).collect()
}

/// Bytes of a run's id.
const RUN_BYTES: usize = 16;

fn run_list<'a>(runs: impl IntoIterator<Item = &'a RunId>) -> Bytes {
    let mut list = BytesMut::new();
    runs.into_iter().for_each(|run| list.put_u128(run.0));
    list.freeze()
}

fn runs_of(list: &Bytes) -> Option<impl Iterator<Item = RunId>> {
    let one = |bytes: &[u8]| RunId(u128::from_be_bytes(bytes.try_into().expect("16 bytes")));
    let runs: Vec<RunId> = list.chunks_exact(RUN_BYTES).map(one).collect();
    list.len().is_multiple_of(RUN_BYTES).then(|| runs.into_iter())
}
