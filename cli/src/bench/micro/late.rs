//! What a task's latency owes to the control store: its answers to records are held back by so many
//! milliseconds, and the median latency is compared between the durability modes (the figure of the
//! Lineage Stash, SOSP 2019).
//!
//! `none` is for comparison only: a node on which records linger for as long as the benchmark takes.

use super::tasks::{check, small_value};
use super::{Bench, WORKERS, percentiles};
use crate::bench::table::Aim;
use crate::cluster::{LocalCluster, Shape};
use crate::exit::Failure;
use mobula::{Client, ConnectOptions, Durability};
use std::time::{Duration, Instant};

/// Answers are so late, ms.
const LATE_MS: [u64; 3] = [0, 1, 5];
/// Each figure is the median of so many medians, taken in turn with all others.
const ROUNDS: usize = 9;
/// Tasks of one median.
const TASKS: usize = 100;
/// In `none` records linger for so long, ms.
const NEVER_MS: u64 = 3_600_000;
/// Latency with late answers, over that without.
const RATIO: Aim = Aim::AtMost(1.05);

const NAMES: [[&str; 3]; 3] = [
    ["task latency, stash", "task latency, stash, store 1 ms late", "task latency, stash, store 5 ms late"],
    [
        "task latency, commit",
        "task latency, commit, store 1 ms late",
        "task latency, commit, store 5 ms late",
    ],
    ["task latency, none", "task latency, none, store 1 ms late", "task latency, none, store 5 ms late"],
];

/// One mode at one delay.
struct Setting {
    client: Client,
    medians: Vec<Duration>,
}

/// All modes at all delays, in turn.
pub fn late(bench: &mut Bench) -> Result<(), Failure> {
    bench.stop()?;
    let cluster = start()?;
    let mut settings = Vec::new();
    for (first_node, durability) in [(1, Durability::Stash), (1, Durability::Commit), (4, Durability::Stash)]
    {
        for delay in 0..LATE_MS.len() {
            let client = connect(&cluster, first_node + delay, durability)?;
            settings.push(Setting { client, medians: Vec::new() });
        }
    }
    for round in 0..=ROUNDS {
        for setting in &mut settings {
            let median = median_latency(&setting.client)?;
            // The first round warms up.
            setting.medians.extend((round > 0).then_some(median));
        }
    }
    let [stash, commit, none] =
        [0, 1, 2].map(|mode| [0, 1, 2].map(|delay| percentiles(&mut settings[mode * 3 + delay].medians)[0]));
    for (names, figures) in NAMES.iter().zip([stash, commit, none]) {
        for (name, figure) in names.iter().zip(figures) {
            bench.figures.add(name, figure, "µs");
        }
    }
    let [at_once, _, latest] = stash;
    bench.figures.add_aimed("stash, store 5 ms late, over in time", latest / at_once, "×", RATIO, None);
    for Setting { client, .. } in settings {
        client.end(true)?;
    }
    Ok(())
}

/// Nodes 1 to 3 hear of their records late, each later than the one before; so do 4 to 6, which send none.
fn start() -> Result<LocalCluster, Failure> {
    let cluster = LocalCluster::prepare(false)?;
    for node in 0..2 * LATE_MS.len() {
        cluster.option(node + 1, "--late-ms", LATE_MS[node % LATE_MS.len()].to_string());
        if node >= LATE_MS.len() {
            cluster.option(node + 1, "--linger-ms", NEVER_MS.to_string());
        }
    }
    cluster.start(Shape { heads: 3, nodes: 2 * LATE_MS.len(), shards: 4, workers: WORKERS, store_mb: 16 })?;
    Ok(cluster)
}

fn connect(cluster: &LocalCluster, node: usize, durability: Durability) -> Result<Client, Failure> {
    let socket = cluster.node(node).and_then(|n| n.socket).ok_or("a node has no socket for drivers")?;
    let job_name = "bench".into();
    Ok(Client::connect(ConnectOptions {
        socket,
        job_name,
        args: Vec::new(),
        durability,
        ..Default::default()
    })?)
}

/// From `submit` to `get`, one task at a time.
fn median_latency(client: &Client) -> Result<Duration, Failure> {
    let mut times = Vec::with_capacity(TASKS);
    for _ in 0..TASKS {
        let at = Instant::now();
        check(client.submit(small_value::task()).get()?)?;
        times.push(at.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
