//! Appending to segments: one write and one sync per batch, rotation, and removal.

use super::frame::{self, Header, Kind};
use super::item::{LogIdentity, Record};
use super::record::{SegmentHeader, ShardPoint};
use super::recover::{self, Recovered};
use super::segments;
use crate::error::Error;
use bytes::{Bytes, BytesMut};
use mobula_base::disk::{Disk, DiskFile};
use prost::Message;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// A segment is closed once it is this long.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// With more segments than this, the shards whose entries hold the oldest are to be snapshotted.
pub const MAX_SEGMENTS: usize = 16;
/// Format version of the log.
const FORMAT: u32 = 1;

/// The open end of the log.
pub struct Files {
    disk: Arc<dyn Disk>,
    identity: LogIdentity,
    segment_bytes: u64,
    file: Box<dyn DiskFile>,
    number: u64,
    offset: u64,
    synced: u64,
    unsynced: bool,
    ends: BTreeMap<u64, BTreeMap<u32, u64>>,
    points: BTreeMap<u32, ShardPoint>,
    purged: BTreeMap<u32, u64>,
    committed: BTreeMap<u32, Bytes>,
    buffer: BytesMut,
}

impl Files {
    /// Recovers what is there and begins a new segment.
    ///
    /// # Errors
    /// Damage, or a disk that fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
        segment_bytes: u64,
    ) -> Result<(Self, BTreeMap<u32, Recovered>), Error> {
        disk.create_dir(segments::DIR).map_err(|error| Error::storage(segments::DIR, error))?;
        let replay = recover::replay(&*disk, &identity)?;
        let number = replay.last + 1;
        let file = disk.open(&segments::name(number), true);
        let file = file.map_err(|error| Error::storage(segments::name(number), error))?;
        let purged = |(shard, found): (&u32, &Recovered)| Some((*shard, found.purged.as_ref()?.index));
        let mut files = Files {
            disk,
            identity,
            segment_bytes,
            file,
            number,
            offset: 0,
            synced: 0,
            unsynced: false,
            ends: replay.ends,
            points: replay.shards.iter().map(|(shard, found)| (*shard, found.point(*shard))).collect(),
            purged: replay.shards.iter().filter_map(purged).collect(),
            committed: BTreeMap::new(),
            buffer: BytesMut::new(),
        };
        let begun = files.begin().and_then(|()| files.recycle());
        begun.map_err(|error| Error::storage(segments::name(number), error))?;
        Ok((files, replay.shards))
    }

    /// Starts the segment that has just been opened; durable when this returns.
    fn begin(&mut self) -> io::Result<()> {
        (self.offset, self.synced) = (0, 0);
        let header = SegmentHeader {
            format: FORMAT,
            cluster: self.identity.cluster,
            head: self.identity.head,
            generation: self.number,
            shards: self.points.values().cloned().collect(),
        };
        self.ends.insert(self.number, BTreeMap::new());
        self.file.set_len(0)?;
        self.push(Kind::Segment, 0, &header.encode_to_vec());
        self.flush(true)?;
        self.disk.sync_dir(segments::DIR)
    }

    fn push(&mut self, kind: Kind, shard: u32, payload: &[u8]) {
        let offset = self.offset + self.buffer.len() as u64;
        let header = Header { kind, shard, generation: self.number, offset, synced: self.synced };
        frame::encode(&header, payload, &mut self.buffer);
    }

    fn flush(&mut self, sync: bool) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_at(self.offset, &self.buffer)?;
            self.offset += self.buffer.len() as u64;
            self.buffer.clear();
            self.unsynced = true;
        }
        if sync && self.unsynced {
            self.file.sync()?;
            self.synced = self.offset;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Writes records with one write and, unless all could wait, one sync. How many syncs.
    ///
    /// # Errors
    /// The disk failed: nothing of the batch may be taken as written, nor anything later.
    pub fn commit(&mut self, records: &[Record]) -> io::Result<u64> {
        let before = self.number;
        if self.offset >= self.segment_bytes {
            self.flush(true)?;
            self.number += 1;
            self.file = self.disk.open(&segments::name(self.number), true)?;
            self.begin()?;
        }
        let (mut sync, mut purge) = (false, false);
        for record in records {
            match record {
                Record::Committed { shard, log_id } => {
                    self.committed.insert(*shard, log_id.clone());
                    continue;
                }
                Record::Entries { shard, end, payload } => {
                    self.push(Kind::Entries, *shard, payload);
                    self.point(*shard).end = *end;
                    let held = self.ends.entry(self.number).or_default().entry(*shard).or_default();
                    *held = (*held).max(*end);
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
                    purge = true;
                }
            }
            sync = true;
        }
        if sync {
            self.push_committed();
            self.flush(true)?;
        }
        if purge {
            self.recycle()?;
        }
        Ok(u64::from(sync) + 2 * (self.number - before))
    }

    fn push_committed(&mut self) {
        for (shard, log_id) in std::mem::take(&mut self.committed) {
            self.push(Kind::Committed, shard, &log_id);
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
        self.push(Kind::Mark, 0, &[]);
        self.flush(false)
    }

    /// Removes the oldest segments while all they hold is in snapshots. Snapshots are synced files
    /// before openraft purges, and the purge itself was synced just now.
    fn recycle(&mut self) -> io::Result<()> {
        let mut removed = false;
        while let Some((number, ends)) = self.ends.first_key_value() {
            let held =
                ends.iter().any(|(shard, end)| self.purged.get(shard).is_none_or(|index| index + 1 < *end));
            if held || *number == self.number {
                break;
            }
            self.disk.remove(&segments::name(*number))?;
            self.ends.pop_first();
            removed = true;
        }
        if removed { self.disk.sync_dir(segments::DIR) } else { Ok(()) }
    }

    /// Shards to snapshot because their entries keep too many segments alive.
    pub fn pinning(&self) -> Vec<u32> {
        if self.ends.len() <= MAX_SEGMENTS {
            return Vec::new();
        }
        let pins = |(shard, end): (&u32, &u64)| {
            self.purged.get(shard).is_none_or(|index| index + 1 < *end).then_some(*shard)
        };
        self.ends
            .first_key_value()
            .map(|(_, ends)| ends.iter().filter_map(pins).collect())
            .unwrap_or_default()
    }
}
