//! A task's latency against the size of its argument, on a network of a gigabit (the figure of locality-aware placement in
//! Ray's paper): left to itself it goes where the argument is; forced elsewhere, the argument comes to it.

use super::found::{Cell, Found};
use super::naps::{self, nap};
use super::plot::{Axis, Curve, draw};
use super::stats::{Estimate, median};
use super::told::Told;
use super::{harness, repeats, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::bench::transfer::{consume, produce};
use crate::chaos::work::tasks::connect;
use crate::cluster::{Heads, LocalCluster};
use crate::commands::fault_switch;
use crate::exit::Failure;
use mobula::{Affinity, Client};
use mobula_net::faults::Weather;
use std::time::{Duration, Instant};

/// Node 1 is the driver's; on node 2 arguments are made; node 3 has none.
const NODES: usize = 3;
const OWNER: &str = "node-2";
const OTHER: &str = "node-3";
const CPUS: u32 = 2;
/// Memory of each node's store, MB: room for a few of the largest.
const STORE_MB: u64 = 512;
/// Bytes in a second of each connection of nodes 2 and 3: a gigabit.
const RATE: u64 = 125_000_000;
/// Sizes of the argument, bytes.
const SIZES: [u64; 4] = [100_000, 1_000_000, 10_000_000, 100_000_000];
const QUICK_SIZES: [u64; 2] = [100_000, 1_000_000];
/// Each way at each size is measured so often.
const ROUNDS: usize = 3;
/// A task that shows that a worker has nothing else to do sleeps so long.
const NAP_US: u64 = 5_000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the argument is, no size is further from the middle of all.
const FLAT: Aim = Aim::AtMost(0.2);
/// Where it is not, over where it is, at the largest size.
const FARTHER: Aim = Aim::AtLeast(10.0);

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (NODES, CPUS, STORE_MB), &Heads { with_switches: true, ..Heads::default() })?;
    slow_down(&cluster).map_err(harness)?;
    let client = connect(&cluster, "locality").map_err(harness)?;
    let sizes = if args.quick { &QUICK_SIZES[..] } else { &SIZES[..] };
    let rounds = repeats(args, ROUNDS);
    let mut measured = Vec::new();
    for size in sizes {
        let (mut aware, mut unaware) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            let seed = size << 8 | round as u64;
            let near = latency_ms(&client, *size, seed, None).map_err(harness)?;
            let far = latency_ms(&client, *size, seed + 128, Some(OTHER)).map_err(harness)?;
            // The first round warms up.
            if round > 0 {
                aware.push(near);
                unaware.push(far);
            }
        }
        measured.push((*size, aware, unaware));
    }
    client.end(true)?;
    Ok(found(&measured, rounds).told())
}

fn slow_down(cluster: &LocalCluster) -> Result<(), String> {
    let weather = Weather { rate: RATE, ..Weather::default() };
    (2..=NODES).try_for_each(|n| fault_switch::order(&cluster.node_dir(n).fault_switch(), &weather, None))
}

/// From `submit` to `get` of a task with a fresh argument, ms.
fn latency_ms(client: &Client, size: u64, seed: u64, place: Option<&str>) -> Result<f64, String> {
    let made = client.submit(produce::task(size, seed).node_affinity(OWNER, Affinity::Hard));
    if client.wait(std::slice::from_ref(&made), 1, PATIENCE) != [true] {
        return Err(format!("{size} bytes were not made within {PATIENCE:?}"));
    }
    // Whoever made it has put everything away once it can sleep on all CPUs there.
    let idle: Vec<_> = (0..u64::from(CPUS))
        .map(|number| client.submit(nap::task(number, NAP_US).node_affinity(OWNER, Affinity::Hard)))
        .collect();
    for (number, nap) in idle.iter().enumerate() {
        naps::check(nap, number as u64, PATIENCE)?;
    }
    let task = consume::task(&made);
    let task = match place {
        Some(node) => task.node_affinity(node, Affinity::Hard),
        None => task,
    };
    let at = Instant::now();
    let bytes = client.submit(task).get_timeout(PATIENCE).map_err(|e| e.to_string())?;
    let took = at.elapsed().as_secs_f64() * 1e3;
    if bytes == size { Ok(took) } else { Err(format!("{bytes} bytes came of {size}")) }
}

fn found(measured: &[(u64, Vec<f64>, Vec<f64>)], rounds: usize) -> Found {
    let what =
        format!("{NODES} nodes, connections of two limited to {} MB/s, {rounds} rounds", RATE / 1_000_000);
    let columns = &["bytes", "where it is ms", "median ms", "elsewhere ms", "elsewhere, median ms"];
    let mut found = Found::new("locality", what, columns);
    for (size, aware, unaware) in measured {
        let cells = [aware, unaware]
            .map(|ms| [Cell::Repeated(Estimate::of(ms)), Cell::Number(median(ms))])
            .into_iter()
            .flatten();
        found.row([Cell::Count(*size)].into_iter().chain(cells).collect());
    }
    let medians: Vec<[f64; 2]> = measured.iter().map(|(_, a, u)| [median(a), median(u)]).collect();
    let near: Vec<f64> = medians.iter().map(|of| of[0]).collect();
    let mean = Estimate::of(&near).mean;
    let off = near.iter().map(|ms| (ms / mean - 1.0).abs()).fold(0.0, f64::max);
    if let Some([aware, unaware]) = medians.last() {
        found.aimed("largest, elsewhere over where it is", unaware / aware, "×", FARTHER);
    }
    if let (Some((size, ..)), Some([_, ms])) = (measured.last(), medians.last()) {
        found.figure("bandwidth of the largest from node to node", *size as f64 / ms / 1e3, "MB/s");
    }
    found.aimed("where it is, furthest of a size from the mean of all, ±", off, "×", FLAT);
    found.note("medians are compared; the limit is of each connection, both ways; what it comes to is the bandwidth above");
    let curve = |label: &str, at: usize| {
        let points = measured.iter().zip(&medians).map(|(m, of)| (m.0 as f64, of[at]));
        Curve { label: label.into(), points: points.collect() }
    };
    found.svg = draw(
        "A task and the size of its argument",
        [Axis { label: "bytes", is_log: true }, Axis { label: "submit to get, median, ms", is_log: true }],
        &[curve("where the argument is", 0), curve("elsewhere", 1)],
        &[],
    );
    found
}
