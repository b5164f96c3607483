//! Replaying the segments: what every shard's log was.

use super::frame::{Header, Kind};
use super::item::LogIdentity;
use super::record::{self, EntryBatch, SegmentHeader, ShardPoint};
use super::segments;
use crate::error::Error;
use crate::raft::types::{Entry, LogId, Vote};
use bytes::Bytes;
use mobula_base::disk::Disk;
use prost::Message;
use std::collections::BTreeMap;
use std::io;

/// One shard's log as it was found.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The last durable vote.
    pub vote: Option<Vote>,
    /// Entries up to here are in a snapshot.
    pub purged: Option<LogId>,
    /// Entries up to here were known to be committed.
    pub committed: Option<LogId>,
    /// Entries above the purge point.
    pub entries: BTreeMap<u64, Entry>,
}

/// What all segments hold together.
#[derive(Default)]
pub(super) struct Replay {
    pub shards: BTreeMap<u32, Recovered>,
    /// Per segment and shard: one past the highest index it holds.
    pub ends: BTreeMap<u64, BTreeMap<u32, u64>>,
    /// Number of the last segment that stays.
    pub last: u64,
}

/// Reads everything, cuts a torn tail, and checks that no entry is missing.
pub(super) fn replay(disk: &dyn Disk, identity: &LogIdentity) -> Result<Replay, Error> {
    let numbers = segments::list(disk)?;
    let mut replay = Replay::default();
    for (place, number) in numbers.iter().enumerate() {
        let last = place + 1 == numbers.len();
        let file = segments::name(*number);
        let mut ends = BTreeMap::new();
        let scan = segments::scan(disk, *number, last, |header, payload| {
            replay.visit(header, payload, &mut ends).map_err(|error| Error::Corrupt {
                file: file.clone(),
                offset: header.offset,
                detail: error.to_string(),
            })
        })?;
        let Some(header) = scan.header else {
            // Only the last one can be without: it was torn while it was made, and holds nothing.
            let removed = disk.remove(&file).and_then(|()| disk.sync_dir(segments::DIR));
            removed.map_err(|error| Error::storage(&file, error))?;
            continue;
        };
        if (header.cluster, header.head) != (identity.cluster, identity.head) {
            return Err(Error::Corrupt {
                file,
                offset: 0,
                detail: format!("it belongs to head {} of cluster {:016x}", header.head, header.cluster),
            });
        }
        if scan.valid < scan.len {
            cut(disk, &file, scan.valid).map_err(|error| Error::storage(&file, error))?;
        }
        replay.ends.insert(*number, ends);
        replay.last = *number;
    }
    for (shard, recovered) in &replay.shards {
        check_whole(*shard, recovered)?;
    }
    Ok(replay)
}

fn cut(disk: &dyn Disk, file: &str, len: u64) -> io::Result<()> {
    let mut open = disk.open(file, false)?;
    open.set_len(len)?;
    open.sync()
}

/// A hole can only come from a segment that is missing.
fn check_whole(shard: u32, recovered: &Recovered) -> Result<(), Error> {
    let first = recovered.purged.as_ref().map_or(0, |id| id.index + 1);
    for (next, index) in (first..).zip(recovered.entries.keys()) {
        if *index != next {
            return Err(Error::Corrupt {
                file: segments::DIR.to_owned(),
                offset: 0,
                detail: format!("entries {next} to {} of shard {shard} are missing", index - 1),
            });
        }
    }
    Ok(())
}

impl Replay {
    fn visit(&mut self, header: Header, payload: &[u8], ends: &mut BTreeMap<u32, u64>) -> io::Result<()> {
        match header.kind {
            Kind::Mark => return Ok(()),
            Kind::Segment => {
                for point in SegmentHeader::decode(payload)?.shards {
                    self.shards.entry(point.shard).or_default().restate(&point)?;
                }
                return Ok(());
            }
            _ => {}
        }
        let shard = self.shards.entry(header.shard).or_default();
        match header.kind {
            Kind::Entries => {
                for stored in &EntryBatch::decode(payload)?.entries {
                    let entry = record::load_entry(stored)?;
                    let index = entry.log_id.index;
                    ends.insert(header.shard, index + 1);
                    if shard.purged.as_ref().is_none_or(|purged| purged.index < index) {
                        shard.entries.insert(index, entry);
                    }
                }
            }
            Kind::Vote => shard.vote = record::load_vote(payload)?,
            Kind::Truncate => {
                let end = u64::from_le_bytes(payload.try_into().map_err(io::Error::other)?);
                shard.entries.split_off(&end);
            }
            Kind::Purge => shard.purge(record::unpack(payload)?),
            Kind::Committed => shard.committed = record::unpack_option(payload)?,
            Kind::Segment | Kind::Mark => {}
        }
        Ok(())
    }
}

impl Recovered {
    fn restate(&mut self, point: &ShardPoint) -> io::Result<()> {
        self.vote = record::load_vote(&point.vote)?;
        if let Some(purged) = record::unpack_option(&point.purged)? {
            self.purge(purged);
        }
        self.entries.split_off(&point.end);
        Ok(())
    }

    fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = Some(upto);
    }

    /// Where this shard stands, for the header of the next segment.
    pub(super) fn point(&self, shard: u32) -> ShardPoint {
        let end = self.entries.last_key_value().map(|(index, _)| index + 1);
        ShardPoint {
            shard,
            vote: self.vote.as_ref().map_or_else(Bytes::new, record::pack),
            purged: self.purged.as_ref().map_or_else(Bytes::new, record::pack),
            end: end.or(self.purged.as_ref().map(|id| id.index + 1)).unwrap_or(0),
        }
    }
}
