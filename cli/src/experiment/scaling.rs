//! Tasks in a second against nodes. Tasks sleep, so that the CPUs of one machine are enough for many nodes: what could bend
//! the line is what nodes and heads have to do for each task, and for each other. More nodes than fit on one machine are
//! simulated, with costs measured on real processes: `cargo test -p mobula-sim-tests --test scale -- --nocapture`.

use super::found::{Cell, Found};
use super::naps;
use super::plot::{Axis, Curve, draw};
use super::stats::{Estimate, line};
use super::steps::now_us;
use super::told::Told;
use super::{harness, repeats, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::connect;
use crate::cluster::Heads;
use crate::exit::Failure;
use std::time::Duration;

const NODES: [usize; 5] = [1, 2, 4, 8, 16];
const QUICK_NODES: [usize; 3] = [1, 2, 4];
/// CPUs of each, and memory of its store, MB.
const CPUS: u32 = 2;
const STORE_MB: u64 = 16;
/// How long a task sleeps.
const NAP_US: u64 = 50_000;
/// Tasks in flight for each CPU.
const PER_CPU: usize = 3;
/// Workers start before anything is counted.
const WARM_UP_US: u64 = 1_500_000;
/// Seconds that are counted, each a repeat.
const SECONDS: usize = 5;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// R² of the line through all points; the last point, over as many times the first.
const STRAIGHT: Aim = Aim::AtLeast(0.99);
const EFFICIENCY: Aim = Aim::AtLeast(0.9);

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let sizes = if args.quick { &QUICK_NODES[..] } else { &NODES[..] };
    let what =
        format!("nodes of {CPUS} CPUs, tasks of {} ms, {PER_CPU} in flight for each CPU", NAP_US / 1000);
    let mut found = Found::new("scaling", what, &["nodes", "tasks /s", "each node /s", "of the possible"]);
    let mut points = Vec::new();
    let possible = f64::from(CPUS) * 1e6 / NAP_US as f64;
    for nodes in sizes {
        let (rates, wrong) = rates(args, *nodes)?;
        let rate = Estimate::of(&rates);
        points.push((*nodes as f64, rate.mean));
        let each = rate.mean / *nodes as f64;
        let numbers = [each, each / possible].map(Cell::Number);
        found.row([Cell::Count(*nodes as u64), Cell::Repeated(rate)].into_iter().chain(numbers).collect());
        found.wrong(wrong);
    }
    found.aimed("R² of a straight line", line(&points).1, "", STRAIGHT);
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let efficiency = last.1 / (first.1 * last.0 / first.0);
        found.aimed("most nodes, over as many times the fewest", efficiency, "×", EFFICIENCY);
    }
    found.note(
        "up to 1,000 nodes in virtual time: cargo test -p mobula-sim-tests --test scale -- --nocapture",
    );
    let straight = points.iter().map(|(nodes, _)| (*nodes, nodes * possible)).collect();
    found.svg = draw(
        "Tasks in a second against nodes",
        [Axis { label: "nodes", is_log: false }, Axis { label: "tasks in a second", is_log: false }],
        &[
            Curve { label: "measured".into(), points },
            Curve { label: "if all CPUs slept all the time".into(), points: straight },
        ],
        &[],
    );
    Ok(found.told())
}

/// Tasks that ended in each second, on so many nodes, and what was wrong.
fn rates(args: &ExperimentArgs, nodes: usize) -> Result<(Vec<f64>, Vec<String>), Failure> {
    let cluster = start(args, (nodes, CPUS, STORE_MB), &Heads::default())?;
    let client = connect(&cluster, "scaling").map_err(harness)?;
    let in_flight = nodes * CPUS as usize * PER_CPU;
    let from_us = now_us() + WARM_UP_US;
    let to_us = from_us + 1_000_000 * repeats(args, SECONDS) as u64;
    let napped = naps::stream(&client, (in_flight, NAP_US), PATIENCE, || now_us() >= to_us);
    client.end(true)?;
    Ok((napped.rates(from_us, to_us), napped.wrong))
}
