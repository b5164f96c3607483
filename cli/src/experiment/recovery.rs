//! How long it takes until what a node took along exists again, against the shortest time in which that could be, and what
//! ran again that need not have: the lost fraction, the depth of the lineage and the fan-in vary.

use super::bars::{self, Row};
use super::chains::{Chains, Like};
use super::found::{Cell, Found};
use super::stats::Estimate;
use super::told::Told;
use super::{harness, progress_bar, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::connect;
use crate::cluster::{Heads, LocalCluster};
use crate::exit::Failure;
use mobula::Client;
use std::path::Path;
use std::time::{Duration, Instant};

/// Node 1 is the driver's, node 2 is the one that goes.
const NODES: usize = 5;
const VICTIM: usize = 2;
/// CPUs of each.
const CPUS: u32 = 4;
/// Memory of each node's store, MB.
const STORE_MB: u64 = 256;
/// How long anything may take before the experiment gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rounds of each case without `--kills`: the one in the middle counts.
const ROUNDS: usize = 3;
/// Over the bound, at most.
const RATIO_MAX: f64 = 1.1;

/// What is lost, and how deep it goes.
#[derive(Clone, Copy, Debug)]
struct Case {
    chains: u64,
    /// So many of them end on the node that goes.
    lost: u64,
    like: Like,
    /// One task takes the ends of all.
    gathers: bool,
}

const fn case(chains: u64, lost: u64, depth: u64, ms: u64) -> Case {
    Case { chains, lost, like: Like { depth, ms }, gathers: false }
}

const CASES: [Case; 8] = [
    case(100, 1, 1, 50),
    case(100, 10, 1, 50),
    case(100, 50, 1, 50),
    case(100, 10, 10, 20),
    case(100, 50, 10, 20),
    case(10, 1, 100, 10),
    case(10, 1, 1000, 2),
    Case { gathers: true, ..case(100, 50, 1, 50) },
];

impl Case {
    fn name(&self) -> String {
        let fan = if self.gathers { ", all taken by one" } else { "" };
        format!("{} % lost, depth {}{fan}", self.lost * 100 / self.chains, self.like.depth)
    }

    /// Tasks that must run again, and no others.
    fn needed(&self) -> u64 {
        self.lost * self.like.depth + u64::from(self.gathers)
    }

    /// The shortest time, once the loss is noticed: chains are as long as they are, and CPUs as many.
    fn bound_ms(&self) -> f64 {
        let cpus = (NODES as u64 - 1) * u64::from(CPUS);
        let waves = self.lost.div_ceil(cpus);
        (waves * self.like.depth * self.like.ms + if self.gathers { self.like.ms } else { 0 }) as f64
    }
}

/// A case, measured.
#[derive(Clone, Debug)]
struct Measured {
    case: String,
    /// Of a round without a fault: until all values are here.
    calm_ms: f64,
    /// From the SIGKILL until the driver heard of it, of the round in the middle.
    noticed_ms: f64,
    /// From the SIGKILL until all values are here, of the round in the middle; and of all rounds.
    recovered_ms: f64,
    rounds_ms: Vec<f64>,
    /// The shortest time after the loss is noticed.
    bound_ms: f64,
    /// What it took after that, over the bound.
    ratio: f64,
    /// Tasks that had to run again, and, of all rounds, the most that did beyond them.
    needed: u64,
    excess: i64,
    wrong: u64,
    failed: Option<String>,
}

/// Of each case. *Ratio*: what it took after the loss was noticed, over the bound.
const COLUMNS: [&str; 9] =
    ["lost", "noticed ms", "recovered ms", "mean ms", "bound ms", "no fault ms", "ratio", "needed", "excess"];

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (NODES, CPUS, STORE_MB), &Heads::default())?;
    let rounds = args.kills.unwrap_or(ROUNDS);
    let bar = progress_bar(CASES.len() * rounds);
    let mut cases = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        bar.set_message(case.name());
        let log = cluster.dir().join(format!("runs-{number}"));
        cases.push(measure(&cluster, case, rounds, &log, &|| bar.inc(1)).map_err(harness)?);
    }
    bar.finish_and_clear();
    Ok(found(&cases, rounds).told())
}

fn found(cases: &[Measured], rounds: usize) -> Found {
    let what =
        format!("{NODES} nodes of {CPUS} CPUs, one of which is killed; the round in the middle of {rounds}");
    let mut found = Found::new("recovery", what, &COLUMNS);
    for case in cases {
        let numbers = [case.noticed_ms, case.recovered_ms];
        let mut row = vec![Cell::Text(case.case.clone())];
        row.extend(numbers.map(Cell::Number));
        row.push(Cell::Repeated(Estimate::of(&case.rounds_ms)));
        row.extend([case.bound_ms, case.calm_ms, case.ratio].map(Cell::Number));
        row.extend([Cell::Count(case.needed), Cell::Number(case.excess as f64)]);
        found.row(row);
        if case.wrong > 0 {
            found.wrong([format!("{}: {} wrong values", case.case, case.wrong)]);
        }
        found.wrong(case.failed.iter().map(|why| format!("{}: {why}", case.case)));
    }
    let most = |of: fn(&Measured) -> f64| cases.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    found.aimed("most over the bound, once noticed", most(|case| case.ratio), "×", Aim::AtMost(RATIO_MAX));
    found.aimed("most tasks run again that need not", most(|case| case.excess as f64), "", Aim::AtMost(0.0));
    found.svg = svg(cases);
    found
}

/// One round without a fault, then the rounds with one.
fn measure(
    cluster: &LocalCluster,
    case: &Case,
    rounds: usize,
    log: &Path,
    done: &dyn Fn(),
) -> Result<Measured, String> {
    let calm = round(cluster, case, &log.join("calm"), false)?;
    let mut struck = Vec::new();
    for number in 0..rounds {
        struck.push(round(cluster, case, &log.join(number.to_string()), true)?);
        done();
    }
    let excess = struck.iter().map(|round| round.again as i64 - case.needed() as i64).max().unwrap_or(0);
    let wrong = calm.wrong + struck.iter().map(|round| round.wrong).sum::<u64>();
    let failed = struck.iter().chain([&calm]).find_map(|round| round.failed.clone());
    let rounds_ms = struck.iter().map(|round| ms(round.recovered)).collect();
    struck.sort_by_key(|round| round.recovered);
    let middle = &struck[struck.len() / 2];
    let after = ms(middle.recovered.saturating_sub(middle.noticed));
    Ok(Measured {
        case: case.name(),
        calm_ms: ms(calm.recovered),
        noticed_ms: ms(middle.noticed),
        recovered_ms: ms(middle.recovered),
        rounds_ms,
        bound_ms: case.bound_ms(),
        ratio: after / case.bound_ms(),
        needed: case.needed(),
        excess,
        wrong,
        failed,
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Round {
    noticed: Duration,
    recovered: Duration,
    again: u64,
    wrong: u64,
    failed: Option<String>,
}

/// Makes the values, takes the node away if it is to go, and gets them.
fn round(cluster: &LocalCluster, case: &Case, log: &Path, strikes: bool) -> Result<Round, String> {
    let client = connect(cluster, "recovery")?;
    let others: Vec<usize> = (VICTIM + 1..=NODES).collect();
    let kept = case.chains - case.lost;
    let share = |at: usize| (kept + at as u64) / others.len() as u64;
    let rest = others.iter().enumerate().map(|(at, node)| (format!("node-{node}"), share(at)));
    let on: Vec<(String, u64)> = [(format!("node-{VICTIM}"), case.lost)].into_iter().chain(rest).collect();
    let mut chains = Chains::make(&client, log, &on, case.like, (u64::from(CPUS), PATIENCE))?;
    client.take_notices();
    let (before, _) = chains.executions()?;
    let began = match strikes {
        true => cluster.kill_node(VICTIM),
        false => Instant::now(),
    };
    if case.gathers {
        // It is submitted when what it takes is gone already.
        chains = chains.gathered(&client, case.like.ms);
    }
    let (noticed, (wrong, failed)) = std::thread::scope(|scope| {
        let getting = scope.spawn(|| chains.get());
        let mut noticed = None;
        while !getting.is_finished() {
            noticed = noticed.or_else(|| hears(&client).then(|| began.elapsed()));
            std::thread::sleep(Duration::from_micros(200));
        }
        (noticed.unwrap_or_default(), getting.join().unwrap_or((0, None)))
    });
    let recovered = began.elapsed();
    let again = chains.executions()?.0 - before;
    drop(chains);
    client.end(true).map_err(|e| format!("the job cannot end: {e}"))?;
    if strikes {
        cluster.restart_node(VICTIM)?;
    }
    Ok(Round { noticed, recovered, again, wrong, failed: failed.map(|error| error.to_string()) })
}

fn hears(client: &Client) -> bool {
    client.take_notices().iter().any(|notice| notice.kind == "node-dead")
}

fn svg(cases: &[Measured]) -> String {
    let rows: Vec<Row> = cases
        .iter()
        .map(|case| Row {
            label: case.case.clone(),
            measured: case.recovered_ms - case.noticed_ms,
            bound: case.bound_ms,
            note: format!("{:.0} ms, {:.2}x, excess {}", case.recovered_ms, case.ratio, case.excess),
        })
        .collect();
    bars::draw(
        "Recovery from the loss of a node",
        "measured, after it was noticed",
        "shortest possible",
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_counts_waves_and_links() {
        assert_eq!(case(100, 50, 1, 50).bound_ms(), 200.0, "50 tasks on 16 CPUs are four waves");
        assert_eq!(case(10, 1, 100, 10).bound_ms(), 1000.0);
        assert_eq!(Case { gathers: true, ..case(100, 10, 1, 50) }.bound_ms(), 100.0);
        assert_eq!(case(100, 10, 10, 20).needed(), 100);
        assert_eq!(case(100, 1, 1, 50).name(), "1 % lost, depth 1");
    }
}
