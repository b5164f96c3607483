//! Appending to segments: one write and one sync per batch, rotation, and recycling.
//!
//! A segment is begun in a file that waited (`spares`) and ends with a seal. Its successor is begun
//! only when the seal is synced, and written to only when its name is: so all but the last segment
//! are whole, always.

use super::frame::{self, HEADER, Header, Kind};
use super::index::{Place, ShardIndex};
use super::item::{LogIdentity, Record};
use super::record::{SegmentHeader, ShardPoint};
use super::recover;
use super::segments;
use super::sizes::Sizes;
use super::spares::{Spare, Spares, is_full};
use crate::error::Error;
use crate::metrics::seconds;
use bytes::{Bytes, BytesMut};
use mobula_base::disk::{Disk, DiskFile, PAGE};
use prometheus_client::metrics::histogram::Histogram;
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Format version of the log. 1 had no seals and files as long as what they hold.
pub const FORMAT: u32 = 2;
/// Left free at the end of a segment: a mark and the seal.
const CLOSING: u64 = 2 * HEADER as u64;
/// Buffers that grew beyond this are given back, in bytes.
const KEEP_BUFFER: usize = 4 << 20;
/// The memory that caches what is synced is let go in pieces of so many bytes.
const FORGET_BYTES: u64 = 1 << 20;
/// A sync that takes longer than this holds up every shard, and is told.
const SLOW_SYNC: Duration = Duration::from_millis(100);
/// But no more often than this.
const SLOW_AGAIN: Duration = Duration::from_secs(10);

/// One segment on the disk.
pub(super) struct Held {
    /// Length of its file, in bytes.
    pub len: u64,
    /// Per shard: one past the highest index it holds.
    pub ends: BTreeMap<u32, u64>,
}

/// Why a batch was not written to its end.
#[derive(Debug)]
pub enum Failure {
    /// There is no room: what is not written can be tried again later.
    Full,
    /// The disk failed: nobody knows what is on it.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Broken(error)
    }
}

/// The open end of the log.
pub struct Files {
    disk: Arc<dyn Disk>,
    identity: LogIdentity,
    sizes: Sizes,
    spares: Spares,
    file: Box<dyn DiskFile>,
    number: u64,
    len: u64,
    offset: u64,
    synced: u64,
    /// Up to here the file's bytes need not be cached.
    forgotten: u64,
    unsynced: bool,
    held: BTreeMap<u64, Held>,
    points: BTreeMap<u32, ShardPoint>,
    purged: BTreeMap<u32, u64>,
    committed: BTreeMap<u32, Bytes>,
    buffer: BytesMut,
    syncs: u64,
    sync_seconds: Histogram,
    told_slow: Option<Instant>,
}

impl Files {
    /// Recovers what is there and begins a new segment.
    ///
    /// # Errors
    /// Damage, or a disk that fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
        sizes: Sizes,
    ) -> Result<(Self, BTreeMap<u32, ShardIndex>), Error> {
        let storage = |error| Error::storage(segments::DIR, error);
        disk.create_dir(segments::DIR).and_then(|()| disk.sync_dir("")).map_err(storage)?;
        let replay = recover::replay(&*disk, &identity)?;
        let spares = Spares::open(disk.clone(), sizes).map_err(storage)?;
        let points: BTreeMap<_, _> =
            replay.shards.iter().map(|(shard, found)| (*shard, found.point(*shard))).collect();
        let header = points.values().map(Message::encoded_len).sum::<usize>() as u64;
        let need = sizes.first.max(header + 4 * HEADER as u64 + 256);
        let number = replay.last + 1;
        let claimed = spares.take(need).and_then(|spare| claim(&*disk, &spare, number));
        let (len, file) = claimed.map_err(storage)?;
        let purged = |(shard, found): (&u32, &ShardIndex)| Some((*shard, found.purged.as_ref()?.index));
        let mut files = Files {
            disk,
            identity,
            sizes,
            spares,
            file,
            number,
            len,
            offset: 0,
            synced: 0,
            forgotten: 0,
            unsynced: false,
            held: replay.held,
            points,
            purged: replay.shards.iter().filter_map(purged).collect(),
            committed: BTreeMap::new(),
            buffer: BytesMut::new(),
            syncs: 0,
            sync_seconds: seconds(),
            told_slow: None,
        };
        let begun = files.begin().and_then(|()| files.recycle());
        begun.map_err(|error| Error::storage(segments::name(number), error))?;
        Ok((files, replay.shards))
    }

    /// Starts the segment that has just been opened; durable when this returns.
    fn begin(&mut self) -> io::Result<()> {
        (self.offset, self.synced, self.forgotten) = (0, 0, 0);
        let header = SegmentHeader {
            format: FORMAT,
            cluster: self.identity.cluster,
            head: self.identity.head,
            generation: self.number,
            shards: self.points.values().cloned().collect(),
        };
        self.held.insert(self.number, Held { len: self.len, ends: BTreeMap::new() });
        self.push(Kind::Segment, 0, &header.encode_to_vec());
        self.flush(true)?;
        // Only now may anything else go into it: a name that is lost in a power cut takes nothing
        // but a header with it.
        self.syncs += 1;
        self.disk.sync_dir(segments::DIR)
    }

    fn push(&mut self, kind: Kind, shard: u32, payload: &[u8]) {
        self.push_with(kind, shard, |buffer| buffer.extend_from_slice(payload));
    }

    fn push_with(&mut self, kind: Kind, shard: u32, payload: impl FnOnce(&mut BytesMut)) {
        let offset = self.offset + self.buffer.len() as u64;
        let header = Header { kind, shard, generation: self.number, offset, synced: self.synced };
        frame::encode_with(&header, payload, &mut self.buffer);
    }

    fn flush(&mut self, sync: bool) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let end = self.offset + self.buffer.len() as u64;
            // To the end of a page, so that its rest need not be read first: nothing lies there yet.
            let padded = end.next_multiple_of(PAGE).min(self.len).max(end);
            self.buffer.resize((padded - self.offset) as usize, 0);
            self.file.write_at(self.offset, &self.buffer)?;
            self.offset = end;
            self.buffer.clear();
            if self.buffer.capacity() > KEEP_BUFFER {
                self.buffer = BytesMut::new();
            }
            self.unsynced = true;
        }
        if sync && self.unsynced {
            let since = Instant::now();
            self.file.sync()?;
            self.observe(since.elapsed());
            self.syncs += 1;
            self.synced = self.offset;
            self.unsynced = false;
            self.forget();
        }
        Ok(())
    }

    fn observe(&mut self, took: Duration) {
        self.sync_seconds.observe(took.as_secs_f64());
        if took > SLOW_SYNC && self.told_slow.is_none_or(|told| told.elapsed() > SLOW_AGAIN) {
            self.told_slow = Some(Instant::now());
            let took_ms = took.as_millis() as u64;
            tracing::warn!(
                took_ms,
                "the disk is slow: writes wait for its sync (raft_fsync_seconds has all)"
            );
        }
    }

    /// Lets go of the memory that caches what is synced: what is read soon lies in [`ShardIndex`].
    fn forget(&mut self) {
        let whole = self.synced / PAGE * PAGE;
        if whole >= self.forgotten + FORGET_BYTES {
            self.file.forget(self.forgotten, whole - self.forgotten);
            self.forgotten = whole;
        }
    }

    /// Bytes that can still be pushed into this segment.
    fn room(&self) -> u64 {
        self.len.saturating_sub(self.offset + self.buffer.len() as u64 + CLOSING)
    }

    /// Writes records with one write and one sync per segment they go to. Where each is goes to
    /// `places`; after an error, those that have a place are durable.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn commit<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
        places: &mut Vec<Place>,
    ) -> Result<(), Failure> {
        if let Some(why) = self.spares.failed() {
            return Err(Failure::Broken(io::Error::other(why)));
        }
        let (mut batch, mut purge, mut outcome) = (Vec::new(), false, Ok(()));
        for record in records {
            let size = record.weight() as u64;
            if self.room() < size {
                match self.rotate(size) {
                    Ok(()) => places.append(&mut batch),
                    Err(Failure::Full) => {
                        outcome = Err(Failure::Full);
                        break;
                    }
                    Err(broken) => return Err(broken),
                }
            }
            let offset = self.offset + self.buffer.len() as u64;
            batch.push(Place { segment: self.number, offset, len: size as u32 });
            purge |= matches!(record, Record::Purge { .. });
            self.append(record);
        }
        self.push_committed();
        self.flush(true)?;
        places.append(&mut batch);
        if purge {
            self.recycle()?;
        }
        outcome
    }

    fn append(&mut self, record: &Record) {
        match record {
            Record::Entries { shard, end, batch } => {
                self.push_with(Kind::Entries, *shard, |buffer| {
                    batch.encode(buffer).expect("a buffer grows");
                });
                self.point(*shard).end = *end;
                let held = self.held.get_mut(&self.number).expect("the open segment is held");
                let last = held.ends.entry(*shard).or_default();
                *last = (*last).max(*end);
            }
            Record::Vote { shard, vote } => {
                self.push(Kind::Vote, *shard, vote);
                self.point(*shard).vote = vote.clone();
            }
            Record::Truncate { shard, end } => {
                self.push(Kind::Truncate, *shard, &end.to_le_bytes());
                self.point(*shard).end = *end;
            }
            Record::Purge { shard, index, log_id } => {
                self.push(Kind::Purge, *shard, log_id);
                let point = self.point(*shard);
                point.purged = log_id.clone();
                point.end = point.end.max(index + 1);
                self.purged.insert(*shard, *index);
            }
        }
    }

    /// Seals this segment and begins the next, with room for `need` more bytes.
    fn rotate(&mut self, need: u64) -> Result<(), Failure> {
        let header = self.points.values().map(Message::encoded_len).sum::<usize>() as u64;
        let need = need + header + CLOSING + 4 * HEADER as u64 + 256;
        let number = self.number + 1;
        let spare = match self.spares.take(need) {
            Err(error) if is_full(&error) => return Err(Failure::Full),
            taken => taken?,
        };
        self.push(Kind::Seal, 0, &[]);
        self.flush(true)?;
        (self.len, self.file) = claim(&*self.disk, &spare, number)?;
        self.number = number;
        self.spares.want((self.len * 4).clamp(self.sizes.first, self.sizes.segment));
        Ok(self.begin()?)
    }

    /// Notes what is committed, to be written with the next batch: worth writing, not worth a sync.
    pub fn note_committed(&mut self, committed: BTreeMap<u32, Bytes>) {
        self.committed.extend(committed);
    }

    fn push_committed(&mut self) {
        for (shard, log_id) in std::mem::take(&mut self.committed) {
            if self.room() >= (HEADER + log_id.len()) as u64 {
                self.push(Kind::Committed, shard, &log_id);
            }
        }
    }

    fn point(&mut self, shard: u32) -> &mut ShardPoint {
        self.points.entry(shard).or_insert_with(|| ShardPoint { shard, ..Default::default() })
    }

    /// Nothing came for a while: says what is synced, so that damage to it can be told (R14).
    ///
    /// # Errors
    /// The disk failed.
    pub fn idle(&mut self) -> io::Result<()> {
        self.push_committed();
        self.mark();
        self.flush(false)
    }

    /// Every commit leaves room for one.
    fn mark(&mut self) {
        let end = self.offset + self.buffer.len() as u64;
        if end + CLOSING <= self.len {
            self.push(Kind::Mark, 0, &[]);
        }
    }

    /// Lets the oldest segments go while all they hold is in snapshots. Snapshots are synced files
    /// before openraft purges, and the purge itself was synced just now.
    fn recycle(&mut self) -> io::Result<()> {
        let mut freed = Vec::new();
        while let Some((number, held)) = self.held.first_key_value() {
            let pins = held.ends.iter().any(|(shard, end)| self.pins(*shard, *end));
            if pins || *number == self.number {
                break;
            }
            freed.push((*number, held.len));
            self.held.pop_first();
        }
        if freed.is_empty() {
            return Ok(());
        }
        // Votes may now stand in this segment's header alone: damage to it must be told from a
        // torn one, also when nothing follows.
        self.mark();
        self.flush(true)?;
        for (number, len) in freed {
            self.spares.give(&segments::name(number), len)?;
        }
        self.syncs += 1;
        self.disk.sync_dir(segments::DIR)
    }

    fn pins(&self, shard: u32, end: u64) -> bool {
        self.purged.get(&shard).is_none_or(|index| index + 1 < end)
    }

    /// Shards to snapshot because their entries keep too much alive.
    pub fn pinning(&self) -> Vec<u32> {
        let bytes = self.bytes();
        // On a full disk every segment counts.
        let crowded = self.spares.full() && self.held.len() > 1;
        if bytes <= self.sizes.log && self.held.len() <= self.sizes.segments && !crowded {
            return Vec::new();
        }
        let pins = |(shard, end): (&u32, &u64)| self.pins(*shard, *end).then_some(*shard);
        self.held
            .first_key_value()
            .map(|(_, held)| held.ends.iter().filter_map(pins).collect())
            .unwrap_or_default()
    }

    /// Whether the disk is full, after another look where no thread looks.
    pub fn full(&self) -> bool {
        if self.spares.full() {
            self.spares.tend();
        }
        self.spares.full()
    }

    /// Numbers of the segments that are whole and will not change.
    pub fn sealed(&self) -> Vec<u64> {
        self.held.keys().copied().filter(|number| *number != self.number).collect()
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.held.len()
    }

    /// The newest of [`Files::sealed`].
    pub fn last_sealed(&self) -> Option<u64> {
        self.held.range(..self.number).next_back().map(|(number, _)| *number)
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.held.values().map(|held| held.len).sum()
    }

    /// How long syncs of segments took.
    pub fn sync_seconds(&self) -> Histogram {
        self.sync_seconds.clone()
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }
}

/// Gives a file that waited the name of segment `number`; the one before is sealed and synced.
fn claim(disk: &dyn Disk, spare: &Spare, number: u64) -> io::Result<(u64, Box<dyn DiskFile>)> {
    let name = segments::name(number);
    disk.rename(&spare.path, &name)?;
    Ok((spare.len, disk.open(&name, false)?))
}
