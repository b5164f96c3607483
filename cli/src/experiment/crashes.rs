//! All heads are killed at once, under load, again and again; nothing acknowledged may be missing.
//! In every second round sled's directories are deleted while no head runs: they are only caches.

use super::lanes::Lanes;
use super::look;
use super::told::{Lines, Told};
use super::{harness, progress_bar, start};
use crate::args::ExperimentArgs;
use crate::cluster::{Heads, LocalCluster};
use crate::exit::{self, Failure};
use crate::say;
use mobula_base::random::Random;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rounds without `--kills`.
const ROUNDS: usize = 20;
/// Writes that each client has acknowledged before the kill.
const WRITES: usize = 20;
/// The kill comes at a random moment of this time after that.
const MOMENTS: Duration = Duration::from_millis(100);
/// How long anything may take before the experiment gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// Where a head keeps what sled holds, below its own directory.
const TABLES: &str = "tables";

#[derive(Clone, Debug, Default, Serialize)]
struct Report {
    experiment: &'static str,
    rounds: usize,
    tables_deleted: usize,
    heads: usize,
    shards: u32,
    seconds: f64,
    writes_acknowledged: u64,
    writes_lost: Vec<String>,
    writes_failed: Vec<String>,
    passed: bool,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (0, 1, 64), &Heads::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| harness(format!("cannot make a runtime: {e}")))?;
    let report = runtime.block_on(crash(args, &cluster)).map_err(harness)?;
    let code = match (report.writes_lost.is_empty(), report.passed) {
        (false, _) => exit::FAILED,
        (true, false) => exit::NOT_LIVE,
        (true, true) => exit::OK,
    };
    let figure = format!("acknowledged writes lost: {}", report.writes_lost.len());
    Ok(Told::of(code, lines(&report), &report, (figure, "0".into())))
}

async fn crash(args: &ExperimentArgs, cluster: &LocalCluster) -> Result<Report, String> {
    let started = Instant::now();
    let addresses = cluster.head_addresses();
    let client = Client::new(Arc::new(TcpNet), addresses.clone(), args.seed);
    client.connect(PATIENCE).await.map_err(|e| e.to_string())?;
    let lanes = Lanes::start(&addresses, args.shards);
    let all: Vec<u32> = (0..args.shards).collect();
    let mut random = Random::new(args.seed).fork("moments");
    let rounds = args.kills.unwrap_or(ROUNDS);
    let bar = progress_bar(rounds);
    let mut report =
        Report { experiment: "crashes", rounds, heads: args.heads, shards: args.shards, ..Report::default() };
    for round in 1..=rounds {
        let fail = |why: String| format!("round {round}: {why}");
        look::settled(&client, &addresses, false, PATIENCE).await.map_err(fail)?;
        let from = Instant::now();
        lanes.activate(&all);
        wait(|| lanes.have_written(&all, WRITES, from)).await.map_err(fail)?;
        tokio::time::sleep(Duration::from_nanos(random.below(MOMENTS.as_nanos() as u64))).await;
        cluster.kill_all_heads();
        if round % 2 == 0 {
            delete_tables(cluster, args.heads).map_err(|e| fail(format!("cannot delete tables: {e}")))?;
            report.tables_deleted += 1;
        }
        for number in 1..=args.heads {
            cluster.restart_head(number).map_err(fail)?;
        }
        // What was under way goes on by itself.
        lanes.activate(&[]);
        wait(|| lanes.are_idle()).await.map_err(fail)?;
        report.writes_lost.extend(lanes.lost(&client, &all).await.map_err(fail)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    (report.writes_acknowledged, report.writes_failed) = lanes.totals();
    lanes.stop();
    report.seconds = started.elapsed().as_secs_f64();
    report.passed = report.writes_lost.is_empty() && report.writes_failed.is_empty();
    Ok(report)
}

async fn wait(mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= until {
            return Err(format!("writes came to nothing for {PATIENCE:?}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn delete_tables(cluster: &LocalCluster, heads: usize) -> io::Result<()> {
    (1..=heads).try_for_each(|number| std::fs::remove_dir_all(cluster.head_dir(number).head().join(TABLES)))
}

fn lines(report: &Report) -> Lines {
    let mut output = Lines::default();
    say!(
        output,
        "crashes: all {} heads killed at once {} times in {:.1} s, sled's directories deleted {} times",
        report.heads,
        report.rounds,
        report.seconds,
        report.tables_deleted
    );
    say!(
        output,
        "  writes acknowledged {}, of them lost {}, never acknowledged {}",
        report.writes_acknowledged,
        report.writes_lost.len(),
        report.writes_failed.len()
    );
    for wrong in report.writes_lost.iter().chain(&report.writes_failed).take(20) {
        say!(output, "  ! {wrong}");
    }
    say!(output, "{}", if report.passed { "passed" } else { "not passed" });
    output
}
