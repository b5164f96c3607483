//! Replaying the segments: what every shard's log was.

use super::files::Held;
use super::frame::{self, Header, Kind};
use super::index::{Place, ShardIndex};
use super::item::LogIdentity;
use super::reader::Reader;
use super::record::{self, EntryBatch, SegmentHeader};
use super::segments;
use crate::error::Error;
use mobula_base::disk::Disk;
use prost::Message;
use std::collections::BTreeMap;
use std::io;

/// What all segments hold together.
#[derive(Default)]
pub(super) struct Replay {
    pub shards: BTreeMap<u32, ShardIndex>,
    /// The segments, by their numbers.
    pub held: BTreeMap<u64, Held>,
    /// Number of the last segment that stays.
    pub last: u64,
}

/// Reads everything, seals a torn tail, and checks that no entry is missing.
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
        let Some(header) = &scan.header else {
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
        if last && !scan.sealed {
            segments::seal(disk, *number, &scan)?;
        }
        replay.held.insert(*number, Held { len: scan.len, ends });
        replay.last = *number;
    }
    let reader = Reader::new(disk);
    for (shard, found) in &mut replay.shards {
        if let Some((from, to)) = found.hole() {
            // A hole can only come from a segment that is missing.
            return Err(Error::Corrupt {
                file: segments::DIR.to_owned(),
                offset: 0,
                detail: format!("entries {from} to {to} of shard {shard} are missing"),
            });
        }
        if let Some(block) = found.unread_end() {
            let entries = reader.read(&block, *shard)?;
            found.last = entries.last().map(|entry| entry.log_id).or(found.purged);
        }
    }
    Ok(replay)
}

impl Replay {
    fn visit(&mut self, header: Header, payload: &[u8], ends: &mut BTreeMap<u32, u64>) -> io::Result<()> {
        match header.kind {
            Kind::Mark | Kind::Seal => return Ok(()),
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
                let batch = EntryBatch::decode(payload)?;
                let len = (frame::HEADER + payload.len()) as u32;
                let place = Place { segment: header.generation, offset: header.offset, len };
                if let Some(end) = shard.replay(&batch, place)? {
                    let last = ends.entry(header.shard).or_default();
                    *last = (*last).max(end);
                }
            }
            Kind::Vote => shard.vote = record::load_vote(payload)?,
            Kind::Truncate => {
                shard.replay_truncate(u64::from_le_bytes(payload.try_into().map_err(io::Error::other)?));
            }
            Kind::Purge => shard.purge(record::load_id(payload)?),
            Kind::Committed => shard.committed = record::load_id_option(payload)?,
            Kind::Segment | Kind::Mark | Kind::Seal => {}
        }
        Ok(())
    }
}
