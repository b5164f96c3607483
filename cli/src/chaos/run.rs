//! One scenario on a cluster of its own: faults and workload side by side, then the judges.

use crate::chaos::args::ChaosRunArgs;
use crate::chaos::fault::{Fault, Outcome as Fate};
use crate::chaos::hands::Hands;
use crate::chaos::judge::{Class, Judged, log};
use crate::chaos::pulse::{PART, Pulse};
use crate::chaos::report::{Report, verdict};
use crate::chaos::work::{self, Done, Order, Shared};
use crate::chaos::{conclude, injector, prepare, scenario};
use crate::cluster::{Heads, LocalCluster, Shape};
use crate::commands::shard::digests;
use crate::config::Settings;
use crate::demo::audit;
use crate::demo::monitor::{Event, Monitor};
use crate::demo::plan::cluster_size;
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mobula_chaos::Scenario;
use mobula_chaos::scenario::{parse_time, time_text};
use mobula_chaos::suite::{SCENARIOS, built_in};
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// When no end is said.
const ENDS: Duration = Duration::from_secs(20);
/// What is usual, when nothing is said.
const HEADS: usize = 3;
const NODES: usize = 4;
const SHARDS: usize = 4;
const CPUS: u32 = 2;
/// Memory of a node's store: so little that objects leave it.
const STORE_MB: u64 = 96;
/// A head that lost its leaderships gets them back so soon, so that the next leader is another.
const REBALANCE_MS: u64 = 1_000;
/// How long the heads may take to agree, once all has healed.
const AGREE: Duration = Duration::from_secs(30);

/// Prints the scenarios that come with the program.
pub fn list(output: Output) -> Outcome {
    for (name, _) in SCENARIOS {
        let scenario = built_in(name).expect("its name was just read");
        say!(output, "{name:<10} {}", scenario.name);
    }
    output.data(&SCENARIOS.map(|(name, _)| name));
    Ok(exit::OK)
}

/// Runs it, as often as is asked for.
pub fn command(settings: &Settings, args: &ChaosRunArgs) -> Outcome {
    let mut scenario = scenario(&args.scenario, None)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    if let Some(work) = &args.workload {
        scenario.workload.kind = work.parse().map_err(Failure::usage)?;
    }
    if let Some(ends) = &args.ends {
        let time = parse_time(ends).map_err(Failure::usage)?;
        scenario.ends = Some(time_text(time));
        // Checked as if the file said so.
        scenario = Scenario::parse(&scenario.to_text()).map_err(Failure::usage)?;
    }
    if args.repeat == 0 {
        return Err(Failure::usage("--repeat 0 shows nothing; use 1 or more"));
    }
    if args.dry_run {
        return dry_run(settings.output, &scenario);
    }
    prepare()?;
    let mut reports = Vec::new();
    for number in 0..args.repeat {
        let once = Scenario { seed: scenario.seed + number, ..scenario.clone() };
        let report = one(settings.output, &args.scenario, &once, args.reports.keep)?;
        report.print(settings.output);
        reports.push(report);
    }
    conclude(settings, &scenario.name, &args.reports, &reports)
}

/// Prints what would be done when.
fn dry_run(output: Output, scenario: &Scenario) -> Outcome {
    let moments = scenario.moments(scenario.ends().unwrap_or(ENDS));
    say!(output, "{}: {} (seed {})", scenario.name, scenario.workload.kind, scenario.seed);
    for moment in &moments {
        let lasts = moment
            .lasts
            .as_ref()
            .map_or_else(|| "as long as is drawn".to_owned(), |lasts| format!("for {lasts}"));
        let target = moment.target.map_or_else(String::new, |target| format!(" {target:?}").to_lowercase());
        say!(output, "  {:>7.2} s  {}{target}, {lasts}", moment.at().as_secs_f64(), moment.kind);
    }
    say!(output, "{} faults; whom each strikes is found when it does", moments.len());
    output.data(&moments);
    Ok(exit::OK)
}

fn bar(length: Duration) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("  [{bar:32}] {pos:>4}/{len:<4} s {wide_msg}");
    let style = style.expect("the template is fixed").progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length.as_secs()), target).with_style(style)
}

/// Runs a scenario once.
///
/// # Errors
/// Its cluster does not come up.
pub fn one(output: Output, called: &str, scenario: &Scenario, keep: bool) -> Result<Report, Failure> {
    let harness = |message: String| Failure { code: exit::HARNESS, message };
    let plan = &scenario.cluster;
    let shape = Shape {
        heads: plan.heads.unwrap_or(HEADS),
        nodes: plan.nodes.unwrap_or(NODES),
        shards: plan.shards.unwrap_or(SHARDS) as u32,
        workers: plan.cpus.unwrap_or(CPUS),
        store_mb: STORE_MB,
    };
    cluster_size(shape.heads, shape.nodes, shape.shards, shape.workers).map_err(Failure::usage)?;
    let cluster = LocalCluster::prepare(keep).map_err(harness)?;
    let special = Heads { rebalance_ms: Some(REBALANCE_MS), with_switches: true, ..Heads::default() };
    cluster.start_with(shape, &special).map_err(harness)?;
    let monitor = Monitor::start(cluster.head_addresses());
    let report = Run { called, scenario, shape, cluster: &cluster }.run(monitor);
    if keep {
        say!(output, "data and logs: {}", cluster.dir().display());
    }
    Ok(report)
}

struct Run<'a> {
    called: &'a str,
    scenario: &'a Scenario,
    shape: Shape,
    cluster: &'a LocalCluster,
}

impl Run<'_> {
    fn run(&self, monitor: Monitor) -> Report {
        let ends = self.scenario.ends().unwrap_or(ENDS);
        let (pulse, shared, bar) = (Arc::new(Pulse::begin()), Arc::new(Shared::default()), bar(ends));
        let began = pulse.began();
        let order = Order {
            work: self.scenario.workload.kind,
            seed: self.scenario.seed,
            ends,
            without: self.scenario.workload.without.clone(),
            cluster: self.cluster,
            shards: self.shape.shards,
            pulse: pulse.clone(),
            shared: shared.clone(),
        };
        let size = (self.shape.heads, self.shape.nodes, self.shape.shards);
        let mut hands = Hands::new(self.cluster, &monitor, shared.clone(), size, (self.scenario.seed, began));
        let (done, faults) = std::thread::scope(|scope| {
            let working = scope.spawn(|| {
                let done = work::run(&order);
                // Nobody need be struck any more.
                shared.over.store(true, Ordering::SeqCst);
                done
            });
            let moments = self.scenario.moments(ends);
            let faults = injector::run(&mut hands, moments, (began, ends), &shared, &bar);
            bar.set_message("all has healed: what was begun ends, and is judged");
            let done = working.join().unwrap_or_else(|_| Err("the thread of the workload panicked".into()));
            (done, faults)
        });
        bar.finish_and_clear();
        let broken = [done.as_ref().err(), faults.as_ref().err()].into_iter().flatten().next().cloned();
        let (mut done, mut faults) = (done.unwrap_or_default(), faults.unwrap_or_default());
        let mut judged = std::mem::take(&mut done.judged);
        judged.extend(self.judge(monitor, &done, &mut faults, &pulse));
        let gap = pulse.longest();
        let verdict = verdict(&judged, broken.is_some());
        Report {
            name: self.scenario.name.clone(),
            workload: self.scenario.workload.kind.to_string(),
            seed: self.scenario.seed,
            verdict,
            again: self.again(),
            cluster: [size.0 as u64, size.1 as u64, u64::from(size.2), u64::from(self.shape.workers)],
            machine_cpus: std::thread::available_parallelism().map_or(1, usize::from),
            seconds: began.elapsed().as_secs_f64(),
            submitted: done.submitted,
            values: done.values,
            failures: done.failures,
            executions: done.executions.0,
            executed_again: done.executions.1,
            stall_ms: gap.map_or(0.0, |gap| gap.lasted.as_secs_f64() * 1e3),
            stall_at_s: gap.map_or(0.0, |gap| gap.from.as_secs_f64()),
            throughput: pulse.parts().iter().map(|many| *many as f64 / PART.as_secs_f64()).collect(),
            faults,
            judged,
            broken,
        }
    }

    fn again(&self) -> String {
        let (work, ends) = (self.scenario.workload.kind, self.scenario.ends().unwrap_or(ENDS));
        format!(
            "mobula chaos run {} --workload {work} --ends {} --seed {}",
            self.called,
            time_text(ends),
            self.scenario.seed
        )
    }

    /// What holds of the cluster, whatever ran on it.
    fn judge(&self, monitor: Monitor, done: &Done, faults: &mut [Fault], pulse: &Pulse) -> Vec<Judged> {
        let heads = self.cluster.head_addresses();
        let unclear =
            |judge, rule, why: String| Judged::of(judge, rule, Class::Unknown, 0).objecting(Some(why));
        let mut judged = Vec::new();
        let casualty = self.cluster.first_casualty();
        let members = (self.shape.heads + self.shape.nodes) as u64;
        judged.push(Judged::of("alive", "G1", Class::Safety, members).objecting(casualty));
        let written: Vec<_> = monitor
            .stop()
            .into_iter()
            .filter_map(|event| if let Event::Written(written) = event { Some(written) } else { None })
            .collect();
        judged.push(match audit::run(heads.clone(), 0, &[], &written) {
            Ok(audit) => Judged::of("acknowledged", "R4, S1", Class::Safety, audit.keys_acknowledged)
                .objecting(
                    (audit.lost > 0).then(|| format!("{} lost: {}", audit.lost, audit.lost_named.join("; "))),
                ),
            Err(why) => unclear("acknowledged", "R4, S1", why),
        });
        judged.push(agree(&heads, self.scenario.seed));
        match log::events(&heads) {
            Ok(events) => judged.extend([
                log::judge(faults, &events),
                log::driver_died(&events, self.cluster.node(1).and_then(|ready| ready.incarnation)),
            ]),
            Err(why) => judged.push(unclear("told", "explain", why)),
        }
        judged.push(self.coverage(faults, done));
        if let Some(most) = self.scenario.expect.stall() {
            let lasted = pulse.longest().map_or(Duration::ZERO, |gap| gap.lasted);
            let late = (lasted > most)
                .then(|| format!("{lasted:?} without an answer; at most {most:?} was expected"));
            judged.push(Judged::of("stall", "expect", Class::Figure, 1).objecting(late));
        }
        judged
    }

    /// A run in which little was done shows little.
    fn coverage(&self, faults: &[Fault], done: &Done) -> Judged {
        let of = |fate| faults.iter().filter(move |fault| fault.outcome == fate);
        let (installed, skipped) = (of(Fate::Installed).count(), of(Fate::Skipped).count());
        let first =
            || of(Fate::Skipped).next().map_or_else(String::new, |fault| format!(", first: {}", fault.text));
        let lacks = match self.scenario.expect.skipped {
            Some(most) if skipped > most => {
                Some(format!("{skipped} faults were skipped, {most} may be{}", first()))
            }
            _ if installed == 0 && !self.scenario.faults.is_empty() => {
                Some(format!("none of {} faults was installed{}", faults.len(), first()))
            }
            _ if done.executions.0 > 0 && done.places < 2 => {
                Some("all tasks ran on one node: what struck the others shows nothing".into())
            }
            _ => None,
        };
        Judged::of("coverage", "faults", Class::Unknown, faults.len() as u64)
            .objecting(lacks)
            .noting(format!("tasks ran in {} lives of nodes", done.places))
    }
}

/// All replicas of each shard have the same state at one entry, once all are there.
fn agree(heads: &[String], seed: u64) -> Judged {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => return Judged::of("digest", "S3", Class::Unknown, 0).objecting(Some(why.to_string())),
    };
    runtime.block_on(async {
        let client = Client::new(Arc::new(TcpNet), heads.to_vec(), seed ^ 0x6469_6765);
        let (since, mut shards, mut objection, mut class) = (Instant::now(), 0, None, Class::Safety);
        for round in 0.. {
            let asked = async {
                client.connect(AGREE).await?;
                digests(&client, seed.wrapping_add(round << 32)).await
            };
            objection = match asked.await {
                Ok(found) => {
                    (shards, class) = (found.len() as u64, Class::Safety);
                    let odd = found.iter().find(|shard| !shard.same);
                    odd.map(|shard| format!("shard {}: {}", shard.shard, shard.told()))
                }
                Err(error) => {
                    class = Class::Liveness;
                    Some(error.to_string())
                }
            };
            // A head that has just come back may still be catching up.
            if objection.is_none() || since.elapsed() > AGREE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Judged::of("digest", "S3", class, shards).objecting(objection)
    })
}
