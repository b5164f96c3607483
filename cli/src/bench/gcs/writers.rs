//! Writers of lineage records: each is one stream with one batch under way, as a node is (R12).

use super::records::Source;
use crate::exit::Failure;
use bytes::Bytes;
use mobula_base::ids::RUN_LEN;
use mobula_base::{RunId, TaskId};
use mobula_gcs::Client;
use mobula_gcs::core::places::Places;
use mobula_proto as proto;
use proto::stream_item::Item;
use std::time::{Duration, Instant};

/// How long one batch is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// Incarnations from here on belong to no node.
const FIRST_INCARNATION: u64 = 1 << 40;
/// Bytes of one value that a task is said to have returned.
const VALUE_BYTES: u64 = 8;

/// One stream of one shard.
pub struct Writer {
    client: Client,
    shard: u32,
    incarnation: u64,
    seq: u64,
    /// Where its records come from.
    pub source: Source,
    /// Runs that were acknowledged, if they are kept.
    pub acknowledged: Vec<RunId>,
    /// How long each batch took.
    pub times: Vec<Duration>,
}

impl Writer {
    /// Writer `number`; writers are dealt to the shards in turn.
    pub fn new(client: &Client, job: u64, number: u64) -> Self {
        let shards = client.shards();
        let shard = (number % u64::from(shards)) as u32;
        Writer {
            client: client.clone(),
            shard,
            incarnation: FIRST_INCARNATION + number,
            seq: 0,
            source: Source::new(job, number, shard, shards),
            acknowledged: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Submits whole runs until `until`.
    pub async fn submit_runs(&mut self, until: Instant) -> Result<(), Failure> {
        while Instant::now() < until {
            let run = self.source.next_run();
            self.send(vec![Item::Run(self.source.records(run))], RUN_LEN).await?;
            self.acknowledged.push(run);
        }
        Ok(())
    }

    /// Submits and ends `count` whole runs, a few of them per batch.
    pub async fn submit_and_end(&mut self, count: u64, at_once: u64) -> Result<(), Failure> {
        let mut left = count;
        while left > 0 {
            let runs: Vec<RunId> = (0..at_once.min(left)).map(|_| self.source.next_run()).collect();
            left -= runs.len() as u64;
            let mut items: Vec<Item> = runs.iter().map(|run| Item::Run(self.source.records(*run))).collect();
            items.extend(runs.iter().map(|run| Item::RunDone(done(*run, self.incarnation))));
            self.send(items, RUN_LEN * 2 * runs.len() as u64).await?;
            self.acknowledged.extend(runs);
        }
        Ok(())
    }

    /// Submits one record after the other until `until`.
    pub async fn submit_singly(&mut self, until: Instant) -> Result<(), Failure> {
        loop {
            let run = self.source.next_run();
            for place in 0..RUN_LEN as u16 {
                if Instant::now() >= until {
                    return Ok(());
                }
                let spec = self.source.record(TaskId { run, place });
                self.send(vec![Item::Submit(spec)], 1).await?;
            }
        }
    }

    async fn send(&mut self, items: Vec<Item>, seqs: u64) -> Result<(), Failure> {
        let items = items.into_iter().map(|item| proto::StreamItem { item: Some(item) }).collect();
        let batch = proto::StreamBatch { incarnation: self.incarnation, first_seq: self.seq + 1, items };
        let at = Instant::now();
        let reply = self.client.stream(self.shard, batch, PATIENCE).await?;
        self.times.push(at.elapsed());
        self.seq += seqs;
        match reply.reply {
            Some(proto::reply::Reply::Stream(ack)) if ack.mark == self.seq && ack.outcomes.is_empty() => {
                Ok(())
            }
            other => Err(format!("a batch of lineage records was answered with {other:?}").into()),
        }
    }
}

/// All tasks of a run returned one value.
fn done(run: RunId, executor: u64) -> proto::RunDone {
    let places = Places::range(0, RUN_LEN as usize).expect("a whole run");
    let mut outputs = Vec::with_capacity(RUN_LEN as usize * 12);
    for place in 0..RUN_LEN as u32 {
        outputs.extend_from_slice(&place.to_le_bytes());
        outputs.extend_from_slice(&VALUE_BYTES.to_le_bytes());
    }
    proto::RunDone {
        run: Bytes::copy_from_slice(&run.0.to_be_bytes()),
        places: Bytes::copy_from_slice(&places.to_bytes()),
        executor,
        outputs: outputs.into(),
        holders: Vec::new(),
    }
}
