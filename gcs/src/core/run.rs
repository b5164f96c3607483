//! One run: up to 512 consecutive submissions of one strand (R1), kept as they came.
//!
//! The run is the unit of replication, apply and index: what a batch brought is kept as slices of
//! its bytes, what most tasks have in common (first attempt, one value, one executor) is a bitmap,
//! and only a task that is different has an entry of its own. A record is put together when
//! somebody asks for it. Who needs what of it, and how records leave it, is in `needs`.

mod needs;

pub use needs::{Need, all_places};

use super::format::{ChunkDump, DoneDump, OverrideDump, RunDump};
use super::places::Places;
use super::refs::Needed;
use bytes::{BufMut, Bytes, BytesMut};
use mobula_base::{ObjectId, mutant};
use mobula_proto as proto;
use prost::Message;
use std::collections::BTreeMap;
use std::io;

/// Bytes of one output in a [`DoneSet`].
pub const OUTPUT_LEN: usize = 12;
/// A chunk of fewer records is copied, so that it does not keep its whole log entry in memory.
const COPY_BELOW: u16 = 64;

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
        /// Objects that have an edge from what it made, now or in an earlier attempt.
        contains: Box<[ObjectId]>,
    },
    /// It ended without a value, for good.
    Failed {
        /// Incarnation that ran its last attempt, and has what that had put; 0 if nobody has.
        executor: u64,
        /// Why.
        failure: Box<proto::Failure>,
    },
}

/// What the store knows of one task, put together on demand.
#[derive(Clone, Debug)]
pub struct TaskRecord {
    /// The encoded spec.
    pub spec: Bytes,
    /// Digest of the spec (R2).
    pub digest: u64,
    /// Log index of the first apply.
    pub revision: u64,
    /// What can change.
    pub standing: Standing,
}

/// The part of a record that can change.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Current attempt, from 1.
    pub attempt: u32,
    /// Incarnation that answers for the current attempt (R4).
    pub keeper: u64,
    /// Attempts that failed.
    pub failures: u32,
    /// Where it stands.
    pub state: State,
    /// What was recorded of earlier attempts, while this one has recorded nothing (R3).
    pub before: Option<Box<Before>>,
}

/// What earlier attempts of a task made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Before {
    /// What they returned.
    pub outputs: Box<[proto::Output]>,
    /// Objects that have an edge from it.
    pub contains: Box<[ObjectId]>,
}

impl Standing {
    /// Objects that have an edge from what it made, whenever.
    pub fn contains(&self) -> &[ObjectId] {
        match (&self.state, &self.before) {
            (State::Done { contains, .. }, _) => contains,
            (_, Some(before)) => &before.contains,
            (_, None) => &[],
        }
    }

    /// What was recorded of it so far, should another attempt begin.
    pub fn recorded(&self) -> Option<Box<Before>> {
        match &self.state {
            State::Done { outputs, contains, .. } => {
                Some(Box::new(Before { outputs: outputs.clone(), contains: contains.clone() }))
            }
            State::Pending | State::Failed { .. } => self.before.clone(),
        }
    }

    fn weight(&self) -> usize {
        DIFFERENT_OVERHEAD + size_of_val(self.contains())
    }
}

/// Records that came together, at consecutive places.
#[derive(Clone, Debug)]
pub struct Chunk {
    first: u16,
    count: u16,
    keeper: u64,
    revision: u64,
    /// None of its records names an object, and none must stay until its job ends.
    plain: bool,
    body: Body,
}

/// Three lists, for every record: its digest (u64 little-endian), where its spec ends (u32
/// little-endian), its spec.
#[derive(Clone, Debug)]
enum Body {
    /// One after the other, in one allocation of their own: for few records.
    Packed(Bytes),
    /// As they came, parts of a log entry.
    Apart(Box<[Bytes; 3]>),
}

impl Chunk {
    /// What a batch brought, with the places it takes; `None` when it is malformed.
    pub fn new(batch: &proto::RunSpecs, keeper: u64, revision: u64) -> Option<(Self, Places)> {
        let count = batch.digests.len() / 8;
        let places = Places::range(batch.first, count)?;
        let fits = count > 0 && batch.digests.len() == count * 8 && batch.ends.len() == count * 4;
        if !fits {
            return None;
        }
        let (first, count) = (batch.first as u16, count as u16);
        let body = if count < COPY_BELOW {
            Body::packed(&batch.digests, &batch.ends, &batch.specs)
        } else {
            Body::Apart(Box::new([batch.digests.clone(), batch.ends.clone(), batch.specs.clone()]))
        };
        let chunk = Chunk { first, count, keeper, revision, plain: batch.plain, body };
        let whole = chunk.end(usize::from(count) - 1)? == chunk.specs().len();
        whole.then_some((chunk, places))
    }

    /// One record.
    pub fn single(place: u16, digest: u64, spec: &[u8], keeper: u64, revision: u64, plain: bool) -> Self {
        let body = Body::packed(&digest.to_le_bytes(), &(spec.len() as u32).to_le_bytes(), spec);
        Chunk { first: place, count: 1, keeper, revision, plain, body }
    }

    fn places(&self) -> Places {
        Places::range(u32::from(self.first), usize::from(self.count)).expect("checked where it was made")
    }

    fn weight(&self) -> usize {
        match &self.body {
            Body::Packed(all) => all.len(),
            Body::Apart(parts) => parts.iter().map(Bytes::len).sum(),
        }
    }

    fn digests(&self) -> Bytes {
        match &self.body {
            Body::Packed(all) => all.slice(..usize::from(self.count) * 8),
            Body::Apart(parts) => parts[0].clone(),
        }
    }

    fn ends(&self) -> Bytes {
        let count = usize::from(self.count);
        match &self.body {
            Body::Packed(all) => all.slice(count * 8..count * 12),
            Body::Apart(parts) => parts[1].clone(),
        }
    }

    fn specs(&self) -> Bytes {
        match &self.body {
            Body::Packed(all) => all.slice(usize::from(self.count) * 12..),
            Body::Apart(parts) => parts[2].clone(),
        }
    }

    fn end(&self, at: usize) -> Option<usize> {
        let ends = match &self.body {
            Body::Packed(all) => all.get(usize::from(self.count) * 8..usize::from(self.count) * 12)?,
            Body::Apart(parts) => &parts[1],
        };
        let bytes = ends.get(at * 4..at * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
    }

    /// Digest and spec of the record at `place`.
    pub fn record(&self, place: u16) -> Option<(u64, Bytes)> {
        let at = usize::from(place.checked_sub(self.first)?);
        let digests = self.digests();
        let digest = digests.get(at * 8..at * 8 + 8)?;
        let start = if at == 0 { 0 } else { self.end(at - 1)? };
        let (range, specs) = (start..self.end(at)?, self.specs());
        // Ends that do not ascend are a sender's mistake; such a record has an empty spec.
        let spec = specs.get(range.clone()).map_or_else(Bytes::new, |_| specs.slice(range));
        Some((u64::from_le_bytes(digest.try_into().expect("eight bytes")), spec))
    }
}

impl Body {
    fn packed(digests: &[u8], ends: &[u8], specs: &[u8]) -> Self {
        let mut all = BytesMut::with_capacity(digests.len() + ends.len() + specs.len());
        for part in [digests, ends, specs] {
            all.put_slice(part);
        }
        Body::Packed(all.freeze())
    }
}

/// First attempts that one executor ended with one value each.
#[derive(Clone, Debug)]
pub struct DoneSet {
    /// Which.
    pub places: Places,
    /// Who ran them.
    pub executor: u64,
    /// Other incarnations that hold every output.
    pub holders: Box<[u64]>,
    /// crc u32 and size u64 each, little-endian, in the order of the places.
    pub outputs: Bytes,
}

impl DoneSet {
    /// What a batch brought; `None` when it is malformed.
    pub fn new(batch: &proto::RunDone) -> Option<Self> {
        let places = Places::from_bytes(&batch.places)?;
        let whole = batch.outputs.len() == places.len() * OUTPUT_LEN && !places.is_empty();
        whole.then(|| DoneSet {
            places,
            executor: batch.executor,
            holders: batch.holders.clone().into(),
            outputs: Bytes::copy_from_slice(&batch.outputs),
        })
    }

    /// The value of the task at `place`, which must be among the places.
    pub fn output(&self, place: u16) -> proto::Output {
        let at = self.places.rank(place) * OUTPUT_LEN;
        let word = |at: usize, len: usize| {
            let mut word = [0; 8];
            word[..len].copy_from_slice(&self.outputs[at..at + len]);
            u64::from_le_bytes(word)
        };
        proto::Output { crc: word(at, 4) as u32, size: word(at + 4, 8) }
    }

    fn state(&self, place: u16) -> State {
        let outputs = Box::new([self.output(place)]);
        let (holders, contains) = (self.holders.clone(), Box::default());
        State::Done { executor: self.executor, outputs, holders, contains }
    }
}

/// All records of a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The job that submitted it.
    pub job: u64,
    /// References to it are counted: it was made when all heads did so already.
    counts: bool,
    /// In the order of their places; they do not overlap.
    chunks: Vec<Chunk>,
    dones: Vec<DoneSet>,
    different: BTreeMap<u16, Standing>,
    present: Places,
    ended: Places,
    /// Places whose submitter holds its task's objects no longer.
    released: Places,
    /// Places that had a record which was pruned.
    pruned: Places,
    /// By place and slot: who needs an object beyond the hold of its submitter. No entry is empty.
    needed: BTreeMap<(u16, u32), Needed>,
    /// Records in `chunks`, those included that were pruned and are still there.
    kept: u32,
    weight: usize,
}

/// What a run costs beside its bytes: a guess.
const RUN_OVERHEAD: usize = 400;
/// What a task with an entry of its own costs: a guess.
const DIFFERENT_OVERHEAD: usize = 200;

impl Run {
    /// A run without records.
    pub fn new(job: u64, counts: bool) -> Self {
        Run { job, counts, weight: RUN_OVERHEAD, ..Run::default() }
    }

    /// Whether references to it are counted.
    pub fn counts(&self) -> bool {
        self.counts
    }

    /// Bytes of memory it takes, about.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Places that have a record.
    pub fn present(&self) -> &Places {
        &self.present
    }

    /// Adds records at `places`, none of which may have one.
    pub fn add(&mut self, mut chunk: Chunk, places: &Places) {
        debug_assert!(!self.present.meets(places), "the caller looks first");
        if self.pruned.meets(places) {
            self.shed();
            self.pruned = self.pruned.without(places);
        }
        chunk.plain &= self.counts;
        self.kept += u32::from(chunk.count);
        self.present = self.present.union(places);
        self.weight += chunk.weight() + size_of::<Chunk>();
        // Nearly always it is the next one; a search would touch memory all over the run.
        if self.chunks.last().is_none_or(|last| last.first < chunk.first) {
            return self.chunks.push(chunk);
        }
        let at = self.chunks.partition_point(|other| other.first < chunk.first);
        self.chunks.insert(at, chunk);
    }

    /// Whether all of `places` are first attempts under way that `keeper` answers for.
    pub fn all_first_attempts_of(&self, keeper: u64, places: &Places) -> bool {
        places.is_within(&self.present)
            && !places.meets(&self.ended)
            && self.chunks.iter().all(|chunk| chunk.keeper == keeper || !chunk.places().meets(places))
            && !self.different.keys().any(|place| places.contains(*place))
    }

    /// Ends many at once; the caller has asked [`Run::all_first_attempts_of`].
    pub fn end(&mut self, done: DoneSet) {
        self.ended = self.ended.union(&done.places.intersect(&self.present));
        self.weight += done.outputs.len() + size_of::<DoneSet>();
        self.dones.push(done);
    }

    /// How one task stands.
    pub fn standing(&self, place: u16) -> Option<Standing> {
        // The bits are at hand, the chunks are not.
        if !self.present.contains(place) {
            return None;
        }
        if let Some(standing) = self.different.get(&place) {
            return Some(standing.clone());
        }
        let chunk = self.chunk(place)?;
        let done = self.dones.iter().find(|done| done.places.contains(place));
        let state = done.map_or(State::Pending, |done| done.state(place));
        Some(Standing { attempt: 1, keeper: chunk.keeper, failures: 0, state, before: None })
    }

    /// Changes how one task stands; its record must be there.
    pub fn set(&mut self, place: u16, standing: Standing) {
        match standing.state {
            State::Pending => self.ended.remove(place),
            State::Done { .. } | State::Failed { .. } => self.ended.insert(place),
        }
        self.weight += standing.weight();
        if let Some(old) = self.different.insert(place, standing) {
            self.weight -= old.weight();
        }
    }

    /// The whole record of one task.
    pub fn record(&self, place: u16) -> Option<TaskRecord> {
        let standing = self.standing(place)?;
        let chunk = self.chunk(place)?;
        let (digest, spec) = chunk.record(place)?;
        Some(TaskRecord { spec, digest, revision: chunk.revision, standing })
    }

    fn chunk(&self, place: u16) -> Option<&Chunk> {
        let at = self.chunks.partition_point(|chunk| chunk.first <= place);
        let chunk = self.chunks.get(at.checked_sub(1)?)?;
        (place - chunk.first < chunk.count).then_some(chunk)
    }

    /// The canonical bytes: equal runs give equal bytes.
    pub fn encode(&self) -> Bytes {
        let chunk = |chunk: &Chunk| ChunkDump {
            first: chunk.first.into(),
            keeper: chunk.keeper,
            revision: chunk.revision,
            digests: chunk.digests(),
            ends: chunk.ends(),
            specs: chunk.specs(),
            plain: chunk.plain,
        };
        let done = |done: &DoneSet| DoneDump {
            places: Bytes::copy_from_slice(&done.places.to_bytes()),
            executor: done.executor,
            holders: done.holders.to_vec(),
            outputs: done.outputs.clone(),
        };
        let dump = RunDump {
            job: self.job,
            chunks: self.chunks.iter().map(chunk).collect(),
            dones: self.dones.iter().map(done).collect(),
            different: self.different.iter().map(|(place, standing)| standing.dump(*place)).collect(),
            counts: self.counts,
            released: self.released.to_short(),
            pruned: self.pruned.to_short(),
            needed: self.needed.iter().map(|((place, slot), needed)| needed.dump(*place, *slot)).collect(),
        };
        dump.encode_to_vec().into()
    }

    /// The inverse of [`Run::encode`]; keeps slices of `bytes`.
    ///
    /// # Errors
    /// The bytes are not a run.
    pub fn decode(bytes: Bytes) -> io::Result<Self> {
        Run::load(RunDump::decode(bytes)?)
    }

    pub(super) fn load(dump: RunDump) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("run: {what}"));
        let mut run = Run::new(dump.job, dump.counts);
        let places = |bytes: &[u8]| Places::from_short(bytes).ok_or_else(|| invalid("places"));
        let (released, pruned) = (places(&dump.released)?, places(&dump.pruned)?);
        for dumped in dump.chunks {
            let specs = proto::RunSpecs {
                first: dumped.first,
                digests: dumped.digests,
                ends: dumped.ends,
                specs: dumped.specs,
                plain: dumped.plain,
                ..Default::default()
            };
            let made = Chunk::new(&specs, dumped.keeper, dumped.revision);
            let (chunk, places) = made.ok_or_else(|| invalid("records"))?;
            if run.present.meets(&places) {
                return Err(invalid("a record that is there twice"));
            }
            run.add(chunk, &places);
        }
        run.present = run.present.without(&pruned);
        (run.released, run.pruned) = (released, pruned);
        for dumped in dump.dones {
            let done = proto::RunDone {
                places: dumped.places,
                executor: dumped.executor,
                outputs: dumped.outputs,
                holders: dumped.holders,
                ..Default::default()
            };
            run.end(DoneSet::new(&done).ok_or_else(|| invalid("values"))?);
        }
        for dumped in dump.different {
            let place = u16::try_from(dumped.place).ok().filter(|place| run.present.contains(*place));
            run.set(place.ok_or_else(|| invalid("place"))?, Standing::load(dumped));
        }
        for dumped in dump.needed {
            run.bring_needed(&dumped).ok_or_else(|| invalid("references"))?;
        }
        Ok(run)
    }
}

impl Standing {
    fn dump(&self, place: u16) -> OverrideDump {
        let (done, failed) = match &self.state {
            State::Pending => (None, None),
            State::Done { executor, outputs, holders, contains } => {
                let (outputs, holders) = (outputs.to_vec(), holders.to_vec());
                let contains = object_list(contains);
                (
                    Some(proto::Done {
                        executor: *executor,
                        outputs,
                        holders,
                        contains,
                        ..Default::default()
                    }),
                    None,
                )
            }
            State::Failed { failure, .. } => (None, Some((**failure).clone())),
        };
        let failed_at = if let State::Failed { executor, .. } = &self.state { *executor } else { 0 };
        let before = self.before.as_ref().map(|before| proto::Done {
            outputs: before.outputs.to_vec(),
            contains: object_list(&before.contains),
            ..Default::default()
        });
        let (attempt, keeper, failures) = (self.attempt, self.keeper, self.failures);
        OverrideDump { place: place.into(), attempt, keeper, failures, done, failed, before, failed_at }
    }

    fn load(dump: OverrideDump) -> Self {
        let state = match (dump.done, dump.failed) {
            (Some(done), _) => State::Done {
                executor: done.executor,
                contains: object_ids(&done.contains),
                outputs: done.outputs.into(),
                holders: done.holders.into(),
            },
            (None, Some(failure)) => State::Failed { executor: dump.failed_at, failure: Box::new(failure) },
            (None, None) => State::Pending,
        };
        let before = dump.before.map(|done| {
            Box::new(Before { contains: object_ids(&done.contains), outputs: done.outputs.into() })
        });
        let attempt = if mutant!("M06") { 1 } else { dump.attempt };
        Standing { attempt, keeper: dump.keeper, failures: dump.failures, state, before }
    }
}

/// Reads a list of objects, without those that are malformed or there twice.
pub fn object_ids(list: &[Bytes]) -> Box<[ObjectId]> {
    let mut ids: Vec<ObjectId> = list.iter().filter_map(|id| ObjectId::from_bytes(id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into()
}

fn object_list(ids: &[ObjectId]) -> Vec<Bytes> {
    ids.iter().map(|id| proto::object_bytes(*id)).collect()
}
