//! Chains of tasks are submitted all the time while nodes are killed at three moments and started again near the end (the
//! figure of task reconstruction in Ray's paper): what each node that lives gets done, beside a run without a kill.

use super::found::{Cell, Found};
use super::plot::{Axis, Curve, draw};
use super::stats::Estimate;
use super::steps::{self, Ended, now_us};
use super::told::Told;
use super::{harness, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::connect;
use crate::cluster::{Heads, LocalCluster};
use crate::exit::Failure;
use mobula::{Client, ObjectRef};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// CPUs of each node, and memory of its store, MB.
const CPUS: u32 = 2;
const STORE_MB: u64 = 64;
/// Each step sleeps so long, as in the paper.
const STEP_MS: u64 = 100;
/// Chains in flight for each CPU that lives: whoever is done finds work.
const CHAINS_PER_CPU: usize = 2;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the driver waits for news before it looks at the clock.
const LOOK: Duration = Duration::from_millis(50);
/// What a node that lives gets done, over the same without a kill.
const SHARE: f64 = 0.8;

/// When what happens, in seconds from the start.
struct Plan {
    nodes: usize,
    depth: u64,
    kills: [u64; 3],
    /// Nodes killed at each of these moments.
    each: usize,
    back: u64,
    end: u64,
}

const USUAL: Plan = Plan { nodes: 20, depth: 15, kills: [4, 8, 12], each: 4, back: 16, end: 20 };
const QUICK: Plan = Plan { nodes: 4, depth: 4, kills: [2, 3, 4], each: 1, back: 5, end: 7 };

/// Who died and came back when, microseconds since 1970.
#[derive(Default)]
struct Struck {
    /// Nodes by their processes.
    deaths: Vec<(u32, u64)>,
    returns: Vec<u64>,
}

/// What a run left.
struct Run {
    ended: Vec<Ended>,
    /// When it began, microseconds since 1970.
    from_us: u64,
    struck: Struck,
    chains: u64,
    wrong: Vec<String>,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let plan = if args.quick { &QUICK } else { &USUAL };
    let calm = once(args, plan, false)?;
    let struck = once(args, plan, true)?;
    let what = format!(
        "{} nodes of {CPUS} CPUs, chains of {} steps of {STEP_MS} ms; {} nodes killed after {:?} s, back after {} s",
        plan.nodes, plan.depth, plan.each, plan.kills, plan.back
    );
    let columns = &["s", "live nodes", "first /s", "again /s", "each node /s", "no fault, each node /s"];
    let mut found = Found::new("reconstruction", what, columns);
    let (first, again, calmly) =
        (struck.rates(plan, false), struck.rates(plan, true), calm.rates(plan, false));
    let live: Vec<f64> = (0..plan.end).map(|second| struck.live(plan, second)).collect();
    let each: Vec<f64> = (0..live.len()).map(|at| (first[at] + again[at]) / live[at]).collect();
    for (at, live) in live.iter().enumerate() {
        let numbers = [first[at], again[at], each[at], calmly[at] / plan.nodes as f64].map(Cell::Number);
        found.row([Cell::Count(at as u64), Cell::Number(*live)].into_iter().chain(numbers).collect());
    }
    // From one event to the next, without the second after each and without the first, in which workers start.
    let bounds = [0, plan.kills[0], plan.kills[1], plan.kills[2], plan.back, plan.end];
    let mut lowest: Option<Estimate> = None;
    for (from, to) in bounds.iter().zip(&bounds[1..]) {
        let ratios: Vec<f64> = (from + 1..*to)
            .filter(|second| *from != plan.back || struck.is_back(*second))
            .map(|second| each[second as usize] / (calmly[second as usize] / plan.nodes as f64))
            .collect();
        let share = Estimate::of(&ratios);
        if !ratios.is_empty() {
            found.figure(&format!("each live node, over no fault, {from} to {to} s"), share, "×");
            lowest = Some(lowest.filter(|lowest| lowest.mean <= share.mean).unwrap_or(share));
        }
    }
    let lowest = lowest.unwrap_or(Estimate::from(0.0));
    found.aimed("each live node, over no fault, lowest stretch", lowest, "×", Aim::AtLeast(SHARE));
    let again_count = struck.ended.iter().filter(|ended| ended.again).count() as f64;
    found.figure("steps run again", again_count, "");
    let excess = steps::excess(&struck.ended, &struck.struck.deaths) + steps::excess(&calm.ended, &[]);
    found.aimed("of them, that need not have", excess as f64, "", Aim::AtMost(0.0));
    found.figure("chains, all of them checked", (struck.chains + calm.chains) as f64, "");
    let curve = |label: &str, rates: &[f64]| {
        let points = rates.iter().enumerate().map(|(at, rate)| (at as f64 + 0.5, *rate)).collect();
        Curve { label: label.into(), points }
    };
    let marks: Vec<(f64, String)> = (plan.kills.iter().map(|s| (*s as f64, format!("{} killed", plan.each))))
        .chain([(plan.back as f64, "back".into())])
        .collect();
    found.svg = draw(
        "Chains of tasks while nodes die",
        [Axis { label: "seconds", is_log: false }, Axis { label: "steps in a second", is_log: false }],
        &[
            curve("for the first time", &first),
            curve("again", &again),
            curve("the same without a kill", &calmly),
        ],
        &marks,
    );
    found.wrong(calm.wrong.into_iter().chain(struck.wrong));
    Ok(found.told())
}

fn once(args: &ExperimentArgs, plan: &Plan, strikes: bool) -> Result<Run, Failure> {
    let cluster = start(args, (plan.nodes, CPUS, STORE_MB), &Heads::default())?;
    let log = cluster.dir().join("steps");
    std::fs::create_dir_all(&log).map_err(|e| harness(format!("cannot make {}: {e}", log.display())))?;
    let client = connect(&cluster, "reconstruction").map_err(harness)?;
    let live = AtomicUsize::new(plan.nodes);
    let (from, from_us) = (Instant::now(), now_us());
    let (driven, killed) = std::thread::scope(|scope| {
        let killing =
            scope.spawn(|| if strikes { strike(&cluster, plan, from, &live) } else { Ok(Struck::default()) });
        let driven = drive(&client, &log, plan, from, &live);
        (driven, killing.join().unwrap_or(Err("the thread that kills panicked".into())))
    });
    let struck = killed.map_err(harness)?;
    let (chains, wrong) = driven.map_err(harness)?;
    let ended = steps::read(&log).map_err(harness)?;
    client.end(true)?;
    Ok(Run { ended, from_us, struck, chains, wrong })
}

/// Kills the last nodes, a few at each moment, and starts all of them again at once.
fn strike(cluster: &LocalCluster, plan: &Plan, from: Instant, live: &AtomicUsize) -> Result<Struck, String> {
    let until = |second: u64| {
        std::thread::sleep((from + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
    };
    let mut victims = (2..=plan.nodes).rev();
    let (mut struck, mut dead) = (Struck::default(), Vec::new());
    for moment in plan.kills {
        until(moment);
        for number in victims.by_ref().take(plan.each) {
            let life = cluster.node_process(number).pid;
            cluster.kill_node(number);
            struck.deaths.push((life, now_us()));
            dead.push(number);
            live.fetch_sub(1, Ordering::SeqCst);
        }
    }
    until(plan.back);
    let revive = |number| {
        cluster.restart_node(number)?;
        live.fetch_add(1, Ordering::SeqCst);
        Ok(now_us())
    };
    struck.returns = std::thread::scope(|scope| {
        let threads: Vec<_> = dead.iter().map(|number| scope.spawn(|| revive(*number))).collect();
        let panicked = |_| Err("a thread that starts a node panicked".to_owned());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect::<Result<_, _>>()
    })?;
    Ok(struck)
}

/// Keeps chains in flight until the end, and checks what each comes to: how many, and what was wrong.
fn drive(
    client: &Client,
    log: &Path,
    plan: &Plan,
    from: Instant,
    live: &AtomicUsize,
) -> Result<(u64, Vec<String>), String> {
    let end = from + Duration::from_secs(plan.end);
    let mut flying: Vec<(ObjectRef<u64>, u64)> = Vec::new();
    let (mut chains, mut wrong, mut news) = (0, Vec::new(), Instant::now());
    loop {
        let room = live.load(Ordering::SeqCst) * CPUS as usize * CHAINS_PER_CPU;
        while flying.len() < room && Instant::now() < end {
            flying.push(steps::submit(client, log, chains, (plan.depth, STEP_MS)));
            chains += 1;
        }
        if flying.is_empty() {
            return Ok((chains, wrong));
        }
        let refs: Vec<ObjectRef<u64>> = flying.iter().map(|(last, _)| last.clone()).collect();
        let ready = client.wait(&refs, 1, LOOK);
        let mut flags = ready.iter();
        let before = flying.len();
        flying.retain(|(last, hash)| {
            let is_ready = flags.next().is_some_and(|flag| *flag);
            if is_ready {
                match last.get_timeout(PATIENCE) {
                    Ok(found) if found == *hash => {}
                    Ok(found) => wrong.push(format!("a chain ended with {found:#x} instead of {hash:#x}")),
                    Err(error) => wrong.push(format!("a chain failed: {error}")),
                }
            }
            !is_ready
        });
        if flying.len() < before {
            news = Instant::now();
        } else if news.elapsed() > PATIENCE {
            return Err(format!("none of {} chains ended within {PATIENCE:?}", flying.len()));
        }
    }
}

impl Run {
    /// Steps that ended in each second.
    fn rates(&self, plan: &Plan, again: bool) -> Vec<f64> {
        let mut rates = vec![0.0; plan.end as usize];
        for ended in self.ended.iter().filter(|ended| ended.again == again) {
            let second = ended.at_us.saturating_sub(self.from_us) / 1_000_000;
            if let Some(rate) = rates.get_mut(second as usize) {
                *rate += 1.0;
            }
        }
        rates
    }

    /// How many nodes lived in a second, in the mean.
    fn live(&self, plan: &Plan, second: u64) -> f64 {
        let end_us = self.from_us + (second + 1) * 1_000_000;
        // What of this second comes after a moment.
        let after = |at_us: u64| end_us.saturating_sub(at_us).min(1_000_000) as f64 / 1e6;
        let dead: f64 = self.struck.deaths.iter().map(|(_, at_us)| after(*at_us)).sum();
        let back: f64 = self.struck.returns.iter().map(|at_us| after(*at_us)).sum();
        plan.nodes as f64 - dead + back
    }

    /// All nodes have been back for a second.
    fn is_back(&self, second: u64) -> bool {
        let last = self.struck.returns.iter().max();
        last.is_some_and(|back_us| self.from_us + second * 1_000_000 >= back_us + 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_counts_for_as_long_as_it_lives() {
        let struck = Struck { deaths: vec![(7, 11_250_000)], returns: vec![13_500_000] };
        let run = Run { ended: Vec::new(), from_us: 10_000_000, struck, chains: 0, wrong: Vec::new() };
        let live: Vec<f64> = (0..5).map(|second| run.live(&QUICK, second)).collect();
        assert_eq!(live, [4.0, 3.25, 3.0, 3.5, 4.0]);
        assert_eq!([4, 5].map(|second| run.is_back(second)), [false, true]);
    }
}
