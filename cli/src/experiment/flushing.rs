//! Memory of a head against tasks that ended while every reference to their values is held, so that no record may go
//! (the figure of GCS flushing in Ray's paper): heads keep lineage on disk, so memory must not grow with it.

use super::found::{Cell, Found};
use super::plot::{Axis, Curve, draw};
use super::stats::line;
use super::told::Told;
use super::{harness, start};
use crate::args::ExperimentArgs;
use crate::bench::gcs::records::RECORD_BYTES;
use crate::bench::gcs::writers::Writer;
use crate::bench::table::Aim;
use crate::cluster::{Heads, LocalCluster};
use crate::exit::Failure;
use futures::future::try_join_all;
use mobula_base::ids::RUN_LEN;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tasks, and how often memory is looked at meanwhile.
const TASKS: u64 = 5_000_000;
const QUICK_TASKS: u64 = 200_000;
const LOOKS: u64 = 25;
/// Streams of records, over all shards, and runs of a batch.
const WRITERS: u64 = 16;
const RUNS_AT_ONCE: u64 = 2;
/// How long the heads may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The last four fifths of the run lie within so much of their middle.
const FLAT: Aim = Aim::AtMost(0.05);

/// Tasks that have ended, and MB of the head that had most.
type Look = (u64, f64);

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (0, 0, 1), &Heads::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| harness(format!("cannot make a runtime: {e}")))?;
    let tasks = if args.quick { QUICK_TASKS } else { TASKS };
    let began = Instant::now();
    let looks = runtime.block_on(measure(&cluster, tasks))?;
    Ok(found(args, &looks, began.elapsed().as_secs_f64()).told())
}

async fn measure(cluster: &LocalCluster, tasks: u64) -> Result<Vec<Look>, Failure> {
    let client = Client::new(Arc::new(TcpNet), cluster.head_addresses(), 7);
    client.connect(PATIENCE).await?;
    let mut writers: Vec<Writer> = (0..WRITERS).map(|n| Writer::new(&client, 1, n)).collect();
    let runs = tasks.div_ceil(RUN_LEN).div_ceil(WRITERS * LOOKS).max(1);
    let mut looks = Vec::new();
    for look in 1..=LOOKS {
        try_join_all(writers.iter_mut().map(|writer| writer.submit_and_end(runs, RUNS_AT_ONCE))).await?;
        let most = cluster.processes().iter().map(|head| head.resident_bytes()).max().unwrap_or(0);
        looks.push((look * runs * RUN_LEN * WRITERS, most as f64 / 1e6));
    }
    Ok(looks)
}

fn found(args: &ExperimentArgs, looks: &[Look], seconds: f64) -> Found {
    let tasks = looks.last().map_or(0, |look| look.0);
    let what =
        format!("{tasks} tasks submitted and ended through {} heads, every reference held", args.heads);
    let mut found = Found::new("flushing", what, &["tasks", "most of a head MB", "records alone MB"]);
    let records = |tasks: u64| tasks as f64 * RECORD_BYTES as f64 / 1e6;
    for (tasks, mb) in looks {
        found.row(vec![Cell::Count(*tasks), Cell::Number(*mb), Cell::Number(records(*tasks))]);
    }
    let last = &looks[looks.len() / 5..];
    let (least, most) =
        last.iter().fold((f64::INFINITY, 0.0f64), |(a, b), look| (a.min(look.1), b.max(look.1)));
    let around = (most - least) / (most + least);
    found.aimed("memory around its middle, last 80 % of the run, ±", around, "×", FLAT);
    let points: Vec<(f64, f64)> = last.iter().map(|(tasks, mb)| (*tasks as f64, mb * 1e6)).collect();
    found.figure("in these, more for each task", line(&points).0, "B");
    found.figure("a record alone", RECORD_BYTES as f64, "B");
    found.figure("most memory of a head", most, "MB");
    found.figure("records alone, if they were kept in memory", records(tasks), "MB");
    found.figure("tasks submitted and ended", tasks as f64 / seconds, "/s");
    found.note(
        "heads cannot be told to keep lineage in memory: the second curve is what the bytes of the records alone would \
         take, not a run without flushing",
    );
    let curve = |label: &str, points| Curve { label: label.into(), points };
    found.svg = draw(
        "Memory of a head and tasks that ended",
        [Axis { label: "tasks", is_log: false }, Axis { label: "MB", is_log: false }],
        &[
            curve("resident, the head with most", looks.iter().map(|l| (l.0 as f64, l.1)).collect()),
            curve("the records alone", looks.iter().map(|l| (l.0 as f64, records(l.0))).collect()),
        ],
        &[],
    );
    found
}
