//! The log of a head that cannot run, for making a new cluster of it.

use super::index::Found;
use super::item::LogIdentity;
use super::reader::Reader;
use super::recover;
use crate::error::Error;
use crate::raft::types::{Entry, LogId};
use mobula_base::disk::Disk;
use std::collections::BTreeMap;

/// Entries are read about this many bytes at a time.
const READ_BYTES: usize = 4 << 20;

/// What is left of one shard's log.
#[derive(Default)]
pub struct Left {
    /// Entries up to here were known to be committed.
    pub committed: Option<LogId>,
    /// Entries above the purge point.
    pub entries: BTreeMap<u64, Entry>,
}

/// What the segments of a head that does not run hold; a torn tail is sealed as at a start.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn look(disk: &dyn Disk, identity: &LogIdentity) -> Result<BTreeMap<u32, Left>, Error> {
    let reader = Reader::new(disk);
    let mut all = BTreeMap::new();
    for (shard, index) in recover::replay(disk, identity)?.shards {
        let mut left = Left { committed: index.committed, entries: BTreeMap::new() };
        let mut next = index.start();
        loop {
            let mut entries: Vec<Entry> = Vec::new();
            match index.find(next, u64::MAX, READ_BYTES) {
                Found::Here(here) => entries = here,
                Found::Nowhere => {}
                Found::On(blocks) => {
                    for block in &blocks {
                        entries.extend(reader.read(block, shard)?);
                    }
                }
            }
            let Some(last) = entries.last() else { break };
            next = last.log_id.index + 1;
            left.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        }
        all.insert(shard, left);
    }
    Ok(all)
}
