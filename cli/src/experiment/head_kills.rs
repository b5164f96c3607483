//! Tasks in flight while heads are killed and restarted: they must not notice.

use super::look;
use super::told::{Lines, Told};
use super::{harness, progress_bar, start};
use crate::args::ExperimentArgs;
use crate::chaos::work::tasks::{connect, keep_busy};
use crate::cluster::{Heads, LocalCluster};
use crate::exit::{self, Failure};
use crate::process::Process;
use crate::say;
use mobula_base::random::Random;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Kills without `--kills`: the number is from a user's report against Ray.
const KILLS: usize = 219;
/// Node daemons.
const NODES: usize = 2;
/// Workers of each.
const WORKERS: u32 = 2;
/// How long anything may take before the experiment gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// A task that has no answer for so long has none.
const ANSWERED: Duration = Duration::from_secs(600);
/// How long a head stays dead.
const DEAD_FOR: Duration = Duration::from_millis(50);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    experiment: &'static str,
    /// Heads killed and restarted.
    pub kills: usize,
    leaders_killed: usize,
    heads: usize,
    shards: u32,
    seconds: f64,
    /// Tasks that were waited for.
    pub tasks: u64,
    /// Those that failed, and why.
    pub tasks_failed: Vec<String>,
    /// Those that were answered with something else.
    pub wrong_answers: u64,
    workers: usize,
    /// Workers that were not there any more at the end, or new.
    pub workers_restarted: usize,
    passed: bool,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let report = found(args, args.kills.unwrap_or(KILLS))?;
    let code = if report.passed { exit::OK } else { exit::FAILED };
    let failed = report.tasks_failed.len() as u64 + report.wrong_answers + report.workers_restarted as u64;
    let figure = format!("tasks failed or wrong, workers restarted: {failed} after {} kills", report.kills);
    Ok(Told::of(code, lines(&report), &report, (figure, "0".into())))
}

/// With so many kills, what was found.
///
/// # Errors
/// It cannot be carried out.
pub fn found(args: &ExperimentArgs, kills: usize) -> Result<Report, Failure> {
    if args.heads < 3 {
        return Err(Failure::usage("a cluster of one head ends with it; use --heads 3 or more"));
    }
    let special = Heads { rebalance_ms: Some(args.rebalance_ms), ..Heads::default() };
    let cluster = start(args, (NODES, WORKERS, 128), &special)?;
    measure(args, &cluster, kills).map_err(harness)
}

fn measure(args: &ExperimentArgs, cluster: &LocalCluster, kills: usize) -> Result<Report, String> {
    let driver = connect(cluster, "head-kills")?;
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    let (done, killed) = std::thread::scope(|scope| {
        let job = scope.spawn(|| keep_busy(&driver, ANSWERED, || stop.load(Ordering::SeqCst), || {}, || {}));
        let killed = kill_heads(args, cluster, kills);
        stop.store(true, Ordering::SeqCst);
        let done = job.join().map_err(|_| "the thread of the job panicked".to_owned());
        (done, killed)
    });
    let (done, (leaders_killed, before, after)) = (done?, killed?);
    // Ended in order: a job that cannot end has noticed something.
    let mut failed = done.failed;
    failed.extend(done.unanswered);
    failed.extend(done.lost);
    failed.extend(driver.end(true).err().map(|e| format!("the end of the job: {e}")));
    let workers_restarted = before.difference(&after).count().max(after.difference(&before).count());
    Ok(Report {
        experiment: "head-kills",
        kills,
        leaders_killed,
        heads: args.heads,
        shards: args.shards,
        seconds: started.elapsed().as_secs_f64(),
        tasks: done.tasks,
        passed: failed.is_empty() && done.wrong == 0 && workers_restarted == 0 && done.tasks > 0,
        tasks_failed: failed,
        wrong_answers: done.wrong,
        workers: before.len(),
        workers_restarted,
    })
}

/// Pids with start times: a pid alone may be another process by now.
type Workers = BTreeSet<(u32, u64)>;

/// Kills and restarts heads, each caught up before the next; how many led something, and the
/// workers before and after.
fn kill_heads(
    args: &ExperimentArgs,
    cluster: &LocalCluster,
    kills: usize,
) -> Result<(usize, Workers, Workers), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot make a runtime: {e}"))?;
    let addresses = cluster.head_addresses();
    let client = Client::new(Arc::new(TcpNet), addresses.clone(), args.seed);
    runtime.block_on(client.connect(PATIENCE)).map_err(|e| e.to_string())?;
    let mut random = Random::new(args.seed).fork("victims");
    let bar = progress_bar(kills);
    let (mut leaders_killed, before) = (0, all_workers(cluster)?);
    for number in 1..=kills {
        let settled = look::settled(&client, &addresses, false, PATIENCE);
        let seen = runtime.block_on(settled).map_err(|e| format!("before kill {number}: {e}"))?;
        let victim = 1 + random.below(addresses.len() as u64) as usize;
        let leads = |leaders: Vec<(usize, u64)>| leaders.iter().any(|l| l.0 == victim);
        leaders_killed += usize::from(look::leaders(&seen).is_some_and(leads));
        cluster.kill_head(victim);
        std::thread::sleep(DEAD_FOR);
        cluster.restart_head(victim).map_err(|e| format!("kill {number}: {e}"))?;
        if let Some(casualty) = cluster.first_casualty() {
            return Err(casualty);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((leaders_killed, before, workers(cluster)))
}

/// The workers, once all have been started.
fn all_workers(cluster: &LocalCluster) -> Result<Workers, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = workers(cluster);
        if found.len() == NODES * WORKERS as usize {
            return Ok(found);
        }
        if Instant::now() >= until {
            return Err(format!("{} of {} workers run", found.len(), NODES * WORKERS as usize));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn workers(cluster: &LocalCluster) -> Workers {
    let nodes = (1..=NODES).filter_map(|number| cluster.node(number));
    let children = nodes.flat_map(|node| Process::children(node.process));
    children.map(|worker| (worker.pid, worker.started_ticks)).collect()
}

fn lines(report: &Report) -> Lines {
    let mut output = Lines::default();
    say!(
        output,
        "head-kills: {} heads killed and restarted in {:.1} s, {} of them led a shard",
        report.kills,
        report.seconds,
        report.leaders_killed
    );
    say!(
        output,
        "  tasks done {}, failed {}, wrong answers {}",
        report.tasks,
        report.tasks_failed.len(),
        report.wrong_answers
    );
    say!(output, "  workers {}, restarted {}", report.workers, report.workers_restarted);
    for failed in report.tasks_failed.iter().take(20) {
        say!(output, "  ! {failed}");
    }
    say!(output, "{}", if report.passed { "passed" } else { "not passed" });
    output
}
