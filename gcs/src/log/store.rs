//! One shard's log as openraft sees it: entries above the purge point in memory, everything durable
//! through the shared writer.

use super::item::Record;
use super::record::{self, EntryBatch};
use super::recover::Recovered;
use super::writer::LogWriter;
use crate::raft::types::{Entry, LogId, Types, Vote};
use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use prost::Message;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard};

/// One replication message carries about this many bytes of entries, and at least one entry.
const REPLICATE_BYTES: usize = 4 << 20;

/// The log of one shard. Clones share it.
#[derive(Clone)]
pub struct ShardLog {
    shard: u32,
    memory: Arc<Mutex<Recovered>>,
    writer: LogWriter,
}

impl ShardLog {
    /// The log of `shard` as it was found.
    pub fn new(shard: u32, found: Recovered, writer: LogWriter) -> Self {
        ShardLog { shard, memory: Arc::new(Mutex::new(found)), writer }
    }

    fn memory(&self) -> MutexGuard<'_, Recovered> {
        self.memory.lock().expect("nothing panics under this lock")
    }
}

impl RaftLogReader<Types> for ShardLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.memory().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut bytes = 0;
        let memory = self.memory();
        let entries = memory.entries.range(start..end).map(|(_, entry)| entry);
        let fits = entries.take_while(|entry| {
            let fits = bytes < REPLICATE_BYTES;
            if let EntryPayload::Normal(proposal) = &entry.payload {
                bytes += proposal.0.len();
            }
            fits
        });
        Ok(fits.cloned().collect())
    }
}

impl RaftLogStorage<Types> for ShardLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let memory = self.memory();
        let last = memory.entries.last_key_value().map(|(_, entry)| entry.log_id).or(memory.purged);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.memory().vote = Some(*vote);
        self.writer.write(Record::Vote { shard: self.shard, vote: record::pack(vote) }).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.memory().committed = committed;
        if let Some(log_id) = committed {
            let log_id = record::pack(&log_id);
            self.writer.submit_lazy(Record::Committed { shard: self.shard, log_id });
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
        let (mut batch, mut end) = (EntryBatch::default(), 0);
        {
            let mut memory = self.memory();
            for entry in entries {
                batch.entries.push(record::store_entry(&entry));
                end = entry.log_id.index + 1;
                memory.entries.insert(entry.log_id.index, entry);
            }
        }
        let payload = Bytes::from(batch.encode_to_vec());
        let done = Box::new(move |result| callback.io_completed(result));
        // Queued before this returns: the order of appends is the order of the log.
        self.writer.submit(Record::Entries { shard: self.shard, end, payload }, Some(done)).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let end = last.map_or(0, |id| id.index + 1);
        self.memory().entries.split_off(&end);
        self.writer.submit(Record::Truncate { shard: self.shard, end }, None).await;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut memory = self.memory();
            memory.entries = memory.entries.split_off(&(upto.index + 1));
            memory.purged = Some(upto);
        }
        let log_id = record::pack(&upto);
        self.writer.write(Record::Purge { shard: self.shard, index: upto.index, log_id }).await
    }
}
