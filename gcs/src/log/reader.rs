//! Reading entries back that have left memory.

use super::frame::{self, Kind};
use super::index::Block;
use super::record::{self, EntryBatch};
use super::segments;
use crate::error::Error;
use crate::raft::types::Entry;
use mobula_base::disk::{Disk, DiskFile};
use prost::Message;
use std::cell::RefCell;

/// Reads frames; keeps the segment open that it read last.
pub struct Reader<'a> {
    disk: &'a dyn Disk,
    open: RefCell<Option<(u64, Box<dyn DiskFile>)>>,
}

impl<'a> Reader<'a> {
    /// A reader of the segments on `disk`.
    pub fn new(disk: &'a dyn Disk) -> Self {
        Reader { disk, open: RefCell::new(None) }
    }

    /// The entries of a block of `shard` that still count.
    ///
    /// # Errors
    /// The disk failed, or gave back other bytes than it was given.
    pub fn read(&self, block: &Block, shard: u32) -> Result<Vec<Entry>, Error> {
        let (number, offset) = (block.place.segment, block.place.offset);
        let file = segments::name(number);
        let storage = |error| Error::storage(&file, error);
        let mut open = self.open.borrow_mut();
        if open.as_ref().is_none_or(|(open, _)| *open != number) {
            *open = Some((number, self.disk.open(&file, false).map_err(storage)?));
        }
        let (_, handle) = open.as_mut().expect("opened just now");
        let bytes = handle.read_at(offset, block.place.len as usize).map_err(storage)?;
        let damaged = |detail: String| Error::Corrupt { file: file.clone(), offset, detail };
        let (header, payload) = frame::decode_at(&bytes, offset, number)
            .ok_or_else(|| damaged("checksum of a frame that was read back".into()))?;
        if (header.kind, header.shard) != (Kind::Entries, shard) {
            return Err(damaged(format!("no entries of shard {shard}")));
        }
        let batch = EntryBatch::decode(payload).map_err(|error| damaged(error.to_string()))?;
        let entries = batch.entries.iter().map(record::load_entry);
        let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|error| damaged(error.to_string()))?;
        Ok(entries.into_iter().filter(|e| (block.first..block.end).contains(&e.log_id.index)).collect())
    }
}
