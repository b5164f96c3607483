//! What the control store does: records made durable, proposals, memory per record.
//!
//! Three head processes with the production log, apply and transport; every record is synced on two
//! of them before it counts, and a part of them is read back and compared.
//! Beside them, in the same run: what is left when only consensus and the log are measured ([`bare`]).

mod bare;
pub mod records;
pub mod writers;

use super::table::Figures;
use crate::args::BenchArgs;
use crate::cluster::{LocalCluster, Shape};
use crate::disk_probe::DiskProbe;
use crate::exit::Failure;
use crate::output::complain;
use crate::process::Process;
use futures::future::try_join_all;
use mobula_base::TaskId;
use mobula_base::ids::RUN_LEN;
use mobula_base::random::Random;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use mobula_proto as proto;
use records::RECORD_BYTES;
use std::sync::Arc;
use std::time::{Duration, Instant};
use writers::Writer;

const SHARDS: u32 = 4;
/// How long connecting and reading are tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// Streams that write whole runs, over all shards.
const RUN_WRITERS: u64 = 16;
/// Streams that write single records.
const SINGLE_WRITERS: u64 = 64;
/// Of each run that was acknowledged, so many records are read back: one in a hundred.
const READ_BACK: u64 = RUN_LEN / 100;
/// Records asked for in one read.
const READ_BATCH: usize = 1000;
/// Runs in one batch of the memory benchmark.
const RUNS_AT_ONCE: u64 = 2;
/// Tasks of the memory benchmark, unless another number is asked for.
const TASKS: u64 = 100_000;
/// In the memory benchmark, resident memory is looked at so many times.
const LOOKS: u64 = 50;
/// So many syncs where the disk alone is measured.
const SYNCS: usize = 2000;

/// `bench gcs`.
pub fn run(args: &BenchArgs) -> Result<Figures, Failure> {
    let mut figures = Figures::new("gcs");
    let cluster = heads()?;
    sync_alone(&mut figures, &cluster)?;
    on_runtime(async {
        let client = connect(&cluster).await?;
        let seconds = Duration::from_secs(args.seconds);
        let spread = ["single-record proposals, 64 clients", "p50", "p99"];
        single(&mut figures, &cluster, &client, seconds, spread, |n| 1000 + n).await?;
        let one = ["the same, all of one shard", "p50", "p99"];
        single(&mut figures, &cluster, &client, seconds, one, |n| 2000 + n * u64::from(SHARDS)).await?;
        batched(&mut figures, &cluster, &client, seconds).await
    })?;
    resident(&mut figures, &cluster);
    // It has the machine to itself.
    drop(cluster);
    let place = LocalCluster::prepare(false)?;
    bare::measure(&mut figures, &place.dir().join("bare"), Duration::from_secs(args.seconds))?;
    Ok(figures)
}

/// `bench memory`: tasks that end while every reference is held, and what heads keep in memory.
pub fn run_memory(args: &BenchArgs) -> Result<Figures, Failure> {
    let mut figures = Figures::new("memory");
    let tasks = args.tasks.unwrap_or(TASKS);
    let cluster = heads()?;
    on_runtime(async {
        let client = connect(&cluster).await?;
        let mut writers: Vec<Writer> = (0..RUN_WRITERS).map(|n| Writer::new(&client, 1, n)).collect();
        let runs = tasks.div_ceil(RUN_LEN).div_ceil(RUN_WRITERS * LOOKS).max(1);
        let (mut highest, at) = (0, Instant::now());
        for look in 1..=LOOKS {
            try_join_all(writers.iter_mut().map(|writer| writer.submit_and_end(runs, RUNS_AT_ONCE))).await?;
            let now = cluster.processes().iter().map(|head| head.resident_bytes()).max().unwrap_or(0);
            highest = highest.max(now);
            complain(format_args!(
                "{:>12} tasks  {:>5} MB",
                look * runs * RUN_LEN * RUN_WRITERS,
                now / 1_000_000
            ));
        }
        let tasks = LOOKS * runs * RUN_LEN * RUN_WRITERS;
        figures.add("tasks submitted and ended, every reference held", tasks as f64, "");
        figures.add("of these per second", tasks as f64 / at.elapsed().as_secs_f64(), "/s");
        figures.add("most resident memory of a head", highest as f64 / 1e6, "MB");
        let compared = read_back(&client, &writers).await?;
        figures.add("records read back and equal", compared as f64, "");
        Ok(())
    })?;
    figures.add("on disk, all heads, per task", disk_bytes(&cluster) / tasks.max(1) as f64 / 3.0, "B");
    Ok(figures)
}

/// Processor time of the heads and of this process.
struct Used {
    heads: Duration,
    client: Duration,
}

impl Used {
    fn now(cluster: &LocalCluster) -> Self {
        let heads = cluster.processes().into_iter().map(Process::cpu_time).sum();
        Used { heads, client: Process::current().cpu_time() }
    }

    fn until(self, cluster: &LocalCluster) -> Self {
        let now = Used::now(cluster);
        Used { heads: now.heads - self.heads, client: now.client - self.client }
    }

    fn add(&self, figures: &mut Figures, count: u64, names: [&'static str; 2]) {
        for (name, used) in names.into_iter().zip([self.heads, self.client]) {
            figures.add(name, used.as_secs_f64() * 1e6 / count.max(1) as f64, "µs");
        }
    }
}

fn heads() -> Result<LocalCluster, Failure> {
    let cluster = LocalCluster::prepare(false)?;
    cluster.start(Shape { heads: 3, nodes: 0, shards: SHARDS, workers: 0, store_mb: 1 })?;
    Ok(cluster)
}

fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("cannot wait for answers: {e}"))?.block_on(work)
}

async fn connect(cluster: &LocalCluster) -> Result<Client, Failure> {
    let client = Client::new(Arc::new(TcpNet), cluster.head_addresses(), 7);
    client.connect(PATIENCE).await?;
    Ok(client)
}

/// What the disk below the cluster does with nobody else there.
fn sync_alone(figures: &mut Figures, cluster: &LocalCluster) -> Result<(), Failure> {
    let mut times = DiskProbe::open(cluster.dir())?.syncs(SYNCS)?;
    figures.add_times(["the disk alone: 4 kB overwritten and synced, p50", "p99"], &mut times);
    Ok(())
}

async fn single(
    figures: &mut Figures,
    cluster: &LocalCluster,
    client: &Client,
    seconds: Duration,
    names: [&'static str; 3],
    number: fn(u64) -> u64,
) -> Result<(), Failure> {
    let mut writers: Vec<Writer> = (0..SINGLE_WRITERS).map(|n| Writer::new(client, 2, number(n))).collect();
    let (before, at, used) = (syncs(cluster, client).await?, Instant::now(), Used::now(cluster));
    try_join_all(writers.iter_mut().map(|writer| writer.submit_singly(at + seconds))).await?;
    let took = at.elapsed().as_secs_f64();
    let used = used.until(cluster);
    let mut times: Vec<Duration> = writers.iter().flat_map(|writer| writer.times.iter().copied()).collect();
    figures.add(names[0], times.len() as f64 / took, "/s");
    figures.add_times([names[1], names[2]], &mut times);
    used.add(figures, times.len() as u64, ["processor time per proposal: all heads", "the client"]);
    let synced = syncs(cluster, client).await? - before;
    figures.add("syncs of a head meanwhile, mean", synced as f64 / took / 3.0, "/s");
    Ok(())
}

async fn batched(
    figures: &mut Figures,
    cluster: &LocalCluster,
    client: &Client,
    seconds: Duration,
) -> Result<(), Failure> {
    let mut writers: Vec<Writer> = (0..RUN_WRITERS).map(|n| Writer::new(client, 1, n)).collect();
    let (before, at, used) = (syncs(cluster, client).await?, Instant::now(), Used::now(cluster));
    try_join_all(writers.iter_mut().map(|writer| writer.submit_runs(at + seconds))).await?;
    let took = at.elapsed().as_secs_f64();
    let used = used.until(cluster);
    let mut times: Vec<Duration> = writers.iter().flat_map(|writer| writer.times.iter().copied()).collect();
    let records = times.len() as u64 * RUN_LEN;
    figures.add("lineage records made durable, batched", records as f64 / took, "/s");
    figures.add("of", RECORD_BYTES as f64, "B each");
    figures.add_times(["batch of 512 records, p50", "batch of 512 records, p99"], &mut times);
    used.add(figures, records, ["processor time per record: all heads", "the client"]);
    let synced = syncs(cluster, client).await? - before;
    figures.add("syncs of a head meanwhile, mean", synced as f64 / took / 3.0, "/s");
    let compared = read_back(client, &writers).await?;
    figures.add("records read back and equal", compared as f64, "");
    Ok(())
}

/// Reads some records of every acknowledged run, fresh; how many were as they had been sent.
async fn read_back(client: &Client, writers: &[Writer]) -> Result<u64, Failure> {
    let (mut random, mut compared) = (Random::new(5), 0);
    for (writer, shard) in writers.iter().zip((0..client.shards()).cycle()) {
        let place = |random: &mut Random| random.below(RUN_LEN) as u16;
        let ids: Vec<TaskId> = writer
            .acknowledged
            .iter()
            .flat_map(|run| {
                (0..READ_BACK).map(|_| TaskId { run: *run, place: place(&mut random) }).collect::<Vec<_>>()
            })
            .collect();
        for ids in ids.chunks(READ_BATCH) {
            let asked = ids.iter().map(|id| proto::task_bytes(*id)).collect();
            let views = client.read_tasks(shard, asked, true, PATIENCE).await?;
            for (id, view) in ids.iter().zip(views) {
                if view.spec != Some(writer.source.record(*id)) {
                    return Err(format!("task {id} was acknowledged and reads back as {view:?}").into());
                }
                compared += 1;
            }
        }
    }
    Ok(compared)
}

async fn syncs(cluster: &LocalCluster, client: &Client) -> Result<u64, Failure> {
    let mut all = 0;
    for head in cluster.head_addresses() {
        all += client.status_of(&head).await?.syncs;
    }
    Ok(all)
}

fn resident(figures: &mut Figures, cluster: &LocalCluster) {
    let most = cluster.processes().iter().map(|head| head.resident_bytes()).max().unwrap_or(0);
    figures.add("resident memory of a head, after", most as f64 / 1e6, "MB");
}

/// Bytes in the directories of all heads.
fn disk_bytes(cluster: &LocalCluster) -> f64 {
    fn below(dir: &std::path::Path) -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => below(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            })
            .sum()
    }
    below(cluster.dir()) as f64
}
