//! What users of Ray and Dask complained about, played here at a size that fits one machine; each row is named after the
//! public issue that it is from.

use super::found::{Cell, Found};
use super::stats::Estimate;
use super::steps::now_us;
use super::told::Told;
use super::{harness, head_kills, naps, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::{connect, keep_busy};
use crate::cluster::{Heads, LocalCluster};
use crate::exit::Failure;
use crate::process::Process;
use mobula_base::random::Random;
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Heads that are killed without `--kills`, and worker processes for each of them: 219 and 426 were complained about.
const KILLS: usize = 10;
const WORKERS_PER_HEAD: usize = 2;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// Nodes of which two are lost, tasks that wait then, and how long each sleeps.
const NODES: usize = 30;
const LOST: usize = 2;
const PENDING: usize = 3_000;
const NAP_US: u64 = 100_000;
/// Seconds before and after the loss that are counted.
const BEFORE: u64 = 3;
const AFTER: u64 = 4;
/// Idle workers: so many on each of so many nodes.
const IDLE_NODES: usize = 8;
const IDLE_EACH: u32 = 25;
/// Of what the nodes that are left could do.
const GOES_ON: Aim = Aim::AtLeast(0.8);
/// What so many idle workers add to a head, MB.
const HEAD_MB: Aim = Aim::AtMost(64.0);

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let what = "each named after the issue that it is from".to_owned();
    let mut found =
        Found::new("complaints", what, &["issue", "what happened there", "faults", "tasks", "wrong"]);
    let kills = args.kills.unwrap_or(if args.quick { 2 } else { KILLS });
    heads(args, &mut found, kills)?;
    workers(args, &mut found, kills * WORKERS_PER_HEAD)?;
    nodes(args, &mut found)?;
    idle(args, &mut found)?;
    Ok(found.told())
}

fn row(found: &mut Found, issue: &str, what: &str, counts: [u64; 3]) {
    let texts = [issue, what].map(|text| Cell::Text(text.to_owned()));
    found.row(texts.into_iter().chain(counts.map(Cell::Count)).collect());
}

fn heads(args: &ExperimentArgs, found: &mut Found, kills: usize) -> Result<(), Failure> {
    let report = head_kills::found(args, kills)?;
    let wrong = report.wrong_answers + report.tasks_failed.len() as u64;
    row(
        found,
        "ray#52480",
        "219 head kills: workers restart, one nine times",
        [kills as u64, report.tasks, wrong],
    );
    found.wrong(report.tasks_failed.iter().map(|why| format!("ray#52480: {why}")));
    found.wrong((report.wrong_answers > 0).then(|| format!("ray#52480: {} answers", report.wrong_answers)));
    found.aimed("ray#52480: workers restarted", report.workers_restarted as f64, "", Aim::AtMost(0.0));
    Ok(())
}

fn workers(args: &ExperimentArgs, found: &mut Found, kills: usize) -> Result<(), Failure> {
    let (nodes, each) = (2, 2);
    let cluster = start(args, (nodes, each, 64), &Heads::default())?;
    let client = connect(&cluster, "complaints").map_err(harness)?;
    let stop = AtomicBool::new(false);
    let (kept, killed) = std::thread::scope(|scope| {
        let job = scope.spawn(|| keep_busy(&client, PATIENCE, || stop.load(Ordering::SeqCst), || {}, || {}));
        let killed = kill_workers(&cluster, kills, nodes * each as usize, args.seed);
        stop.store(true, Ordering::SeqCst);
        (job.join(), killed)
    });
    killed.map_err(harness)?;
    let kept = kept.map_err(|_| harness("the thread of the job panicked".into()))?;
    let failed: Vec<String> = kept.failed.into_iter().chain(kept.unanswered).chain(kept.lost).collect();
    let wrong = failed.len() as u64 + kept.wrong;
    let what = "426 worker kills: the computation hangs";
    row(found, "dask/distributed#3196", what, [kills as u64, kept.tasks, wrong]);
    found.wrong(failed.into_iter().map(|why| format!("dask#3196: {why}")));
    found.wrong((kept.wrong > 0).then(|| format!("dask#3196: {} answers", kept.wrong)));
    client.end(true)?;
    Ok(())
}

fn children(cluster: &LocalCluster) -> Vec<Process> {
    let all = (1..).map_while(|number| cluster.node(number));
    all.flat_map(|node| node.process.children()).collect()
}

/// Waits until so many workers run.
fn all_workers(cluster: &LocalCluster, many: usize) -> Result<Vec<Process>, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = children(cluster);
        if found.len() >= many {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(format!("{} of {many} workers run after {PATIENCE:?}", found.len()));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Kills one worker after the other, each when all run.
fn kill_workers(cluster: &LocalCluster, kills: usize, many: usize, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed).fork("workers");
    for _ in 0..kills {
        let workers = all_workers(cluster, many)?;
        let victim = workers[random.below(workers.len() as u64) as usize];
        victim.signal(Signal::KILL);
        if !victim.wait_end(PATIENCE) {
            return Err(format!("worker {} outlived SIGKILL for {PATIENCE:?}", victim.pid));
        }
    }
    Ok(())
}

fn nodes(args: &ExperimentArgs, found: &mut Found) -> Result<(), Failure> {
    let (nodes, pending, cpus) = if args.quick { (6, 100, 2) } else { (NODES, PENDING, 2) };
    let cluster = start(args, (nodes, cpus, 16), &Heads::default())?;
    let client = connect(&cluster, "complaints").map_err(harness)?;
    // Workers start in the first second; the one after the loss is for noticing it.
    let from_us = now_us() + 1_000_000;
    let lost_us = from_us + BEFORE * 1_000_000;
    let to_us = lost_us + (1 + AFTER) * 1_000_000;
    let napped = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_micros(lost_us.saturating_sub(now_us())));
            (nodes - LOST + 1..=nodes).for_each(|number| _ = cluster.kill_node(number));
        });
        naps::stream(&client, (pending, NAP_US), PATIENCE, || now_us() >= to_us)
    });
    let before = Estimate::of(&napped.rates(from_us, lost_us)).mean;
    let left = (nodes - LOST) as f64 / nodes as f64;
    let shares: Vec<f64> =
        napped.rates(lost_us + 1_000_000, to_us).iter().map(|r| r / before / left).collect();
    let tasks = (napped.ended_us.len() + napped.wrong.len()) as u64;
    let what =
        format!("2 of 30 nodes lost, 3000 tasks pending: those that run fall to 0 (here {nodes} nodes)");
    row(found, "ray#48996", &what, [LOST as u64, tasks, napped.wrong.len() as u64]);
    found.aimed(
        "ray#48996: tasks ended after the loss, over what the rest could do",
        Estimate::of(&shares),
        "×",
        GOES_ON,
    );
    found.wrong(napped.wrong.into_iter().map(|why| format!("ray#48996: {why}")));
    client.end(true)?;
    Ok(())
}

fn idle(args: &ExperimentArgs, found: &mut Found) -> Result<(), Failure> {
    let (nodes, each) = if args.quick { (2, 4) } else { (IDLE_NODES, IDLE_EACH) };
    let many = nodes * each as usize;
    let cluster = start(args, (nodes, each, 16), &Heads::default())?;
    let client = connect(&cluster, "complaints").map_err(harness)?;
    let head_mb = || {
        let heads = cluster.processes().into_iter().take(args.heads);
        heads.map(|head| head.resident_bytes() as f64 / 1e6).fold(0.0, f64::max)
    };
    let before = head_mb();
    // A node starts workers for a job when it is given tasks of it.
    let busy = AtomicBool::new(true);
    let (napped, workers) = std::thread::scope(|scope| {
        let naps = scope
            .spawn(|| naps::stream(&client, (many * 2, NAP_US), PATIENCE, || !busy.load(Ordering::SeqCst)));
        let workers = all_workers(&cluster, many);
        busy.store(false, Ordering::SeqCst);
        (naps.join(), workers)
    });
    let (workers, napped) =
        (workers.map_err(harness)?, napped.map_err(|_| harness("a thread panicked".into()))?);
    let resident: Vec<f64> = workers.iter().map(|worker| worker.resident_bytes() as f64 / 1e6).collect();
    let own: Vec<f64> = workers.iter().filter_map(|worker| own_mb(worker.pid)).collect();
    let what = format!("800 idle workers: 32 GB, the head is out of memory (here {} workers)", workers.len());
    row(found, "ray#48723", &what, [0, napped.ended_us.len() as u64, napped.wrong.len() as u64]);
    found.wrong(napped.wrong.into_iter().map(|why| format!("ray#48723: {why}")));
    found.aimed("ray#48723: memory of a head, more than without workers", head_mb() - before, "MB", HEAD_MB);
    found.figure("ray#48723: most memory of a head", head_mb(), "MB");
    found.figure("ray#48723: memory of an idle worker, resident", Estimate::of(&resident), "MB");
    found.figure("ray#48723: the same, shared pages divided among all", Estimate::of(&own), "MB");
    client.end(true)?;
    Ok(())
}

/// A process's share of memory, MB: pages that several have count as much less for each.
fn own_mb(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kb| kb * 1024.0 / 1e6)
}
