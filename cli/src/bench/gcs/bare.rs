//! The yardstick beside the heads: consensus and the log alone, three replicas in this process.

use super::records::RECORD_BYTES;
use super::{RUN_WRITERS, SHARDS, SINGLE_WRITERS};
use crate::bench::table::Figures;
use crate::exit::Failure;
use crate::process::Process;
use bytes::Bytes;
use futures::future::try_join_all;
use mobula_base::disk::{Disk, RealDisk};
use mobula_base::ids::RUN_LEN;
use mobula_gcs::RaftTiming;
use mobula_gcs::bare::Bare;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REPLICAS: usize = 3;
/// Of its elections.
const SEED: u64 = 11;

/// What is asked of it.
struct Load {
    writers: u64,
    shards: u32,
    /// Records in one proposal.
    records: u64,
    /// Rate, median, 99th percentile, processor time.
    names: [&'static str; 4],
}

const PER_PROPOSAL: &str = "bare: processor time per proposal, all of it";
const PER_RECORD: &str = "bare: processor time per record, all of it";
const SYNCS: &str = "bare: syncs of a replica meanwhile, mean";

const LOADS: [Load; 3] = [
    Load {
        writers: SINGLE_WRITERS,
        shards: SHARDS,
        records: 1,
        names: ["bare: single proposals, 64 clients", "bare: p50", "bare: p99", PER_PROPOSAL],
    },
    Load {
        writers: SINGLE_WRITERS,
        shards: 1,
        records: 1,
        names: ["bare: the same, all of one shard", "bare: p50", "bare: p99", PER_PROPOSAL],
    },
    Load {
        writers: RUN_WRITERS,
        shards: SHARDS,
        records: RUN_LEN,
        names: ["bare: records in entries of 512", "bare: entry, p50", "bare: entry, p99", PER_RECORD],
    },
];

/// Puts each load on it for `seconds`; its files are in `dir`, and gone afterwards.
pub fn measure(figures: &mut Figures, dir: &Path, seconds: Duration) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot wait for answers: {e}"))?;
    let cannot = |e: std::io::Error| format!("cannot use {}: {e}", dir.display());
    runtime.block_on(mobula_gcs::in_scope(SEED, async {
        let disks = (1..=REPLICAS).map(|n| Ok(Arc::new(RealDisk::new(dir.join(n.to_string()))?) as _));
        let disks: Vec<Arc<dyn Disk>> = disks.collect::<Result<_, _>>().map_err(cannot)?;
        let bare = Arc::new(Bare::start(&disks, SHARDS, &RaftTiming::default()).await?);
        for load in &LOADS {
            one(figures, &bare, load, seconds).await?;
        }
        Arc::into_inner(bare).expect("all writers have ended").stop().await;
        Ok::<_, Failure>(())
    }))?;
    std::fs::remove_dir_all(dir).map_err(cannot)?;
    Ok(())
}

async fn one(figures: &mut Figures, bare: &Arc<Bare>, load: &Load, seconds: Duration) -> Result<(), Failure> {
    let command = Bytes::from(vec![7; RECORD_BYTES * load.records as usize]);
    let (before, at, used) = (bare.syncs(), Instant::now(), Process::current().cpu_time());
    let writers = (0..load.writers).map(|n| {
        let (bare, command, shard) = (bare.clone(), command.clone(), (n % u64::from(load.shards)) as u32);
        // Tasks of their own, so that all processors take part.
        tokio::spawn(async move {
            let mut times = Vec::new();
            while at.elapsed() < seconds {
                let since = Instant::now();
                bare.propose(shard, command.clone()).await?;
                times.push(since.elapsed());
            }
            Ok::<_, mobula_gcs::Error>(times)
        })
    });
    let written = try_join_all(writers).await.map_err(|e| format!("a writer ended early: {e}"))?;
    let mut times: Vec<Duration> = written.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    let (took, used) = (at.elapsed().as_secs_f64(), Process::current().cpu_time() - used);
    let records = (times.len() as u64 * load.records).max(1) as f64;
    let [rate, p50, p99, processor] = load.names;
    figures.add(rate, records / took, "/s");
    figures.add_times([p50, p99], &mut times);
    figures.add(processor, used.as_secs_f64() * 1e6 / records, "µs");
    figures.add(SYNCS, (bare.syncs() - before) as f64 / took / REPLICAS as f64, "/s");
    Ok(())
}
