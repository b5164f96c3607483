//! One shard's log as openraft sees it: entries above the purge point in memory, everything durable
//! through the shared writer.

use super::index::{Found, ShardIndex};
use super::item::Record;
use super::reader::Reader;
use super::record::{self, EntryBatch};
use super::writer::LogWriter;
use crate::error::Error;
use crate::hook::{Plant, SharedHook};
use crate::raft::types::{Entry, LogId, Types, Vote};
use crate::snapshot::on_disk;
use mobula_base::disk::Disk;
use mobula_base::mutant;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

/// One replication message carries about this many bytes of entries, and at least one entry.
const REPLICATE_BYTES: usize = 4 << 20;

/// The log of one shard. Clones share it.
#[derive(Clone)]
pub struct ShardLog {
    shard: u32,
    memory: Arc<Mutex<ShardIndex>>,
    disk: Arc<dyn Disk>,
    writer: LogWriter,
    skip_votes: bool,
}

impl ShardLog {
    /// The log of `shard` as it was found.
    pub fn new(shard: u32, found: ShardIndex, disk: Arc<dyn Disk>, writer: LogWriter) -> Self {
        ShardLog { shard, memory: Arc::new(Mutex::new(found)), disk, writer, skip_votes: false }
    }

    /// The same, with somebody who watches.
    pub fn watched(self, hook: SharedHook) -> Self {
        ShardLog { skip_votes: hook.has(Plant::SkipVote), ..self }
    }

    fn memory(&self) -> MutexGuard<'_, ShardIndex> {
        lock(&self.memory)
    }

    /// The entries of `start..end` that exist, from `start` on, about `bytes` of them at a time.
    async fn get(&self, start: u64, end: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        let found = self.memory().find(start, end, bytes);
        let blocks = match found {
            Found::Here(entries) => return Ok(entries),
            Found::Nowhere => return Ok(Vec::new()),
            Found::On(blocks) => blocks,
        };
        let shard = self.shard;
        let read = on_disk(self.disk.clone(), move |disk| {
            let reader = Reader::new(disk);
            let mut entries = Vec::new();
            for block in &blocks {
                entries.extend(reader.read(block, shard).map_err(Error::into_io)?);
            }
            Ok(entries)
        })
        .await;
        // Purged meanwhile, its segment has another life.
        if read.is_err() && self.memory().start() > start { Ok(Vec::new()) } else { read }
    }
}

fn lock(memory: &Mutex<ShardIndex>) -> MutexGuard<'_, ShardIndex> {
    memory.lock().expect("nothing panics under this lock")
}

impl RaftLogReader<Types> for ShardLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let mut next = start.max(self.memory().start());
        let mut entries = Vec::new();
        while next < end {
            let more = self.get(next, end, REPLICATE_BYTES).await?;
            let Some(last) = more.last() else { break };
            next = last.log_id.index + 1;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.get(start, end, REPLICATE_BYTES).await
    }
}

impl RaftLogStorage<Types> for ShardLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.memory().vote = Some(*vote);
        if self.skip_votes {
            return Ok(());
        }
        self.writer.write(Record::Vote { shard: self.shard, vote: record::pack(vote) }).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.memory().committed = committed;
        if let Some(log_id) = committed {
            let log_id = record::pack(&log_id);
            self.writer.note_committed(self.shard, log_id);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = EntryBatch::default();
        let (mut first, mut end) = (None, 0);
        let cuts = {
            let mut memory = self.memory();
            for entry in entries {
                batch.entries.push(record::store_entry(&entry));
                first.get_or_insert(entry.log_id.index);
                end = entry.log_id.index + 1;
                memory.push(entry);
            }
            memory.cuts()
        };
        let memory = self.memory.clone();
        let done = Box::new(move |result: io::Result<_>| {
            callback.io_completed(
                result.map(|place| lock(&memory).place(first.unwrap_or(end), end, place, cuts)),
            );
        });
        // Queued before this returns: the order of appends is the order of the log.
        self.writer.submit(Record::Entries { shard: self.shard, end, batch }, Some(done)).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let end = last.map_or(0, |id| id.index + 1);
        self.memory().truncate(last);
        let memory = self.memory.clone();
        let done = Box::new(move |result: io::Result<_>| {
            if result.is_ok() {
                lock(&memory).truncate_blocks(end);
            }
        });
        let end = end + u64::from(mutant!("M25"));
        self.writer.submit(Record::Truncate { shard: self.shard, end }, Some(done)).await;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.memory().purge(upto);
        let log_id = record::pack(&upto);
        self.writer.write(Record::Purge { shard: self.shard, index: upto.index, log_id }).await
    }
}
