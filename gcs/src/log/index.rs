//! Where a shard's entries are: the newest in memory, up to a bound, and all of them in segments.

use super::record::{self, EntryBatch, ShardPoint};
use crate::raft::types::{Entry, LogId, Vote};
use bytes::Bytes;
use mobula_base::mutant;
use openraft::EntryPayload;
use std::collections::VecDeque;
use std::io;

/// Newest entries of one shard that stay in memory, in bytes of commands.
pub const CACHE_BYTES: usize = 4 << 20;
/// What an entry takes beside its command, in bytes.
const ENTRY_BYTES: usize = 128;

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the segment.
    pub segment: u64,
    /// Where the frame starts, in bytes.
    pub offset: u64,
    /// Length of the frame, in bytes.
    pub len: u32,
}

/// Entries that were written together; those outside of `first..end` have become void.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The first index.
    pub first: u64,
    /// One past the last index.
    pub end: u64,
    /// Their frame.
    pub place: Place,
}

/// Where a stretch of entries can be had.
pub enum Found {
    /// In memory.
    Here(Vec<Entry>),
    /// On the disk, in so many frames.
    On(Vec<Block>),
    /// Nowhere: purged, or beyond the end.
    Nowhere,
}

/// One shard's log as it was found, and as it grows.
#[derive(Clone, Debug)]
pub struct ShardIndex {
    /// The last vote.
    pub vote: Option<Vote>,
    /// Entries up to here are in a snapshot.
    pub purged: Option<LogId>,
    /// Entries up to here were known to be committed.
    pub committed: Option<LogId>,
    /// The last entry, or the purge point.
    pub last: Option<LogId>,
    blocks: VecDeque<Block>,
    cache: VecDeque<Entry>,
    cached: usize,
    limit: usize,
    /// Everything below this index has its final place.
    placed: u64,
    cuts: u64,
}

impl Default for ShardIndex {
    fn default() -> Self {
        ShardIndex::with_cache(CACHE_BYTES)
    }
}

fn weight(entry: &Entry) -> usize {
    ENTRY_BYTES + if let EntryPayload::Normal(proposal) = &entry.payload { proposal.0.len() } else { 0 }
}

impl ShardIndex {
    /// An empty one that keeps about `limit` bytes of entries in memory.
    pub fn with_cache(limit: usize) -> Self {
        ShardIndex {
            vote: None,
            purged: None,
            committed: None,
            last: None,
            blocks: VecDeque::new(),
            cache: VecDeque::new(),
            cached: 0,
            limit,
            placed: 0,
            cuts: 0,
        }
    }

    /// One past the last index.
    pub fn end(&self) -> u64 {
        self.last.as_ref().map_or(0, |id| id.index + 1)
    }

    /// The first index that is not purged.
    pub fn start(&self) -> u64 {
        self.purged.as_ref().map_or(0, |id| id.index + 1)
    }

    /// Addresses that the newest entries name as members.
    pub fn members(&self) -> impl Iterator<Item = String> {
        let named = self.cache.iter().filter_map(|entry| match &entry.payload {
            EntryPayload::Membership(membership) => Some(membership.nodes()),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        });
        named.flatten().map(|(_, node)| node.addr.clone())
    }

    /// Bytes of entries in memory.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Adds an entry whose frame has no place yet.
    pub fn push(&mut self, entry: Entry) {
        // A snapshot may have taken the log beyond what the cache holds.
        if self.cache.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            self.cache.clear();
            self.cached = 0;
        }
        self.last = Some(entry.log_id);
        self.cached += weight(&entry);
        self.cache.push_back(entry);
    }

    /// A count of truncations, to be given back with the place of what is appended now.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// The entries `first..end`, appended when [`ShardIndex::cuts`] was `cuts`, are durable.
    pub fn place(&mut self, first: u64, end: u64, place: Place, cuts: u64) {
        let first = first.max(self.start());
        if first < end {
            self.blocks.push_back(Block { first, end, place });
        }
        if cuts == self.cuts || mutant!("M28") {
            self.placed = self.placed.max(end);
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        while self.cached > self.limit
            && self.cache.len() > 1
            && self.cache.front().is_some_and(|entry| entry.log_id.index < self.placed)
        {
            let gone = self.cache.pop_front();
            self.cached -= gone.as_ref().map_or(0, weight);
        }
    }

    /// Entries after `last` are void; their frames may not even be written.
    pub fn truncate(&mut self, last: Option<LogId>) {
        let end = last.as_ref().map_or(0, |id| id.index + 1);
        self.cuts += 1;
        self.placed = self.placed.min(end);
        self.last = last.or(self.purged);
        while self.cache.back().is_some_and(|entry| entry.log_id.index >= end) {
            let gone = self.cache.pop_back();
            self.cached -= gone.as_ref().map_or(0, weight);
        }
    }

    /// Frames before the truncation to `end` are written: they count up to there only.
    pub fn truncate_blocks(&mut self, end: u64) {
        while self.blocks.back().is_some_and(|block| block.first >= end) {
            self.blocks.pop_back();
        }
        if let Some(block) = self.blocks.back_mut() {
            block.end = block.end.min(end);
        }
    }

    /// Entries up to `upto` are in a snapshot.
    pub fn purge(&mut self, upto: LogId) {
        while self.cache.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            let gone = self.cache.pop_front();
            self.cached -= gone.as_ref().map_or(0, weight);
        }
        while self.blocks.front().is_some_and(|block| block.end <= upto.index + 1) {
            self.blocks.pop_front();
        }
        if let Some(block) = self.blocks.front_mut() {
            block.first = block.first.max(upto.index + 1);
        }
        if self.end() <= upto.index {
            self.last = Some(upto);
        }
        self.purged = Some(upto);
    }

    /// Entries from `start` on and below `end`, as many as are in one place and about `bytes` long.
    pub fn find(&self, start: u64, end: u64, bytes: usize) -> Found {
        let start = start.max(self.start());
        if start >= end.min(self.end()) {
            return Found::Nowhere;
        }
        let first = self.cache.front().map_or(u64::MAX, |entry| entry.log_id.index);
        if start < first {
            return Found::On(self.blocks(start, end.min(first).min(self.end()), bytes));
        }
        let mut taken = 0;
        let from = self.cache.range((start - first) as usize..);
        let entries = from.take_while(|entry| {
            let fits = taken < bytes && entry.log_id.index < end;
            taken += weight(entry);
            fits
        });
        Found::Here(entries.cloned().collect())
    }

    fn blocks(&self, start: u64, end: u64, bytes: usize) -> Vec<Block> {
        // The last block that begins there or before, and those that follow.
        let after = self.blocks.partition_point(|block| block.first <= start);
        let mut taken = 0;
        let blocks = self.blocks.range(after.saturating_sub(1)..).take_while(|block| {
            let fits = taken < bytes && block.first < end;
            taken += block.place.len as usize;
            fits
        });
        // A truncation may not have reached the blocks yet.
        let clip = |block: &Block| Block { first: block.first.max(start), end: block.end.min(end), ..*block };
        blocks.map(clip).filter(|block| block.first < block.end).collect()
    }

    /// While replaying: a frame of entries. One past the last of them.
    pub(super) fn replay(&mut self, batch: &EntryBatch, place: Place) -> io::Result<Option<u64>> {
        let (mut first, mut end) = (None, 0);
        for stored in &batch.entries {
            let entry = record::load_entry(stored)?;
            let index = entry.log_id.index;
            first.get_or_insert(index);
            end = index + 1;
            if index >= self.start() {
                self.push(entry);
            }
        }
        if let Some(first) = first {
            let cuts = self.cuts;
            self.place(first, end, place, cuts);
        }
        Ok(first.map(|_| end))
    }

    /// While replaying: what the header of a segment says.
    pub(super) fn restate(&mut self, point: &ShardPoint) -> io::Result<()> {
        self.vote = record::load_vote(&point.vote)?;
        if let Some(purged) = record::load_id_option(&point.purged)? {
            self.purge(purged);
        }
        self.replay_truncate(point.end);
        Ok(())
    }

    /// While replaying: entries from `end` on are void.
    pub(super) fn replay_truncate(&mut self, end: u64) {
        let Some(last) = self.last.filter(|last| end <= last.index) else { return };
        self.truncate((end > self.start()).then(|| LogId { index: end - 1, ..last }));
        self.truncate_blocks(end);
        // Whose the entry is that is last now: if it is not in memory, `unread_end` has it.
        self.last = self.cache.back().map(|entry| entry.log_id).or(self.last);
        self.placed = end;
    }

    /// The first index above the purge point that no block holds, if another does.
    pub(super) fn hole(&self) -> Option<(u64, u64)> {
        let mut next = self.start();
        for block in &self.blocks {
            if block.first > next {
                return Some((next, block.first - 1));
            }
            next = next.max(block.end);
        }
        None
    }

    /// The block that ends the log, when its entries are not in memory.
    pub(super) fn unread_end(&self) -> Option<Block> {
        self.cache.is_empty().then(|| self.blocks.back().copied()).flatten()
    }

    #[cfg(test)]
    pub(super) fn all_blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter()
    }

    /// Where this shard stands, for the header of the next segment.
    pub(super) fn point(&self, shard: u32) -> ShardPoint {
        ShardPoint {
            shard,
            vote: self.vote.as_ref().map_or_else(Bytes::new, record::pack),
            purged: self.purged.as_ref().map_or_else(Bytes::new, record::pack),
            end: self.end(),
        }
    }
}
