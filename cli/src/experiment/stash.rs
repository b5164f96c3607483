//! A task's latency with a control store that answers late (the table of Lineage Stash, SOSP 2019), by durability mode:
//! only where a record must be durable first may it matter.

use super::found::{Cell, Found};
use super::naps;
use super::plot::{Axis, Curve, draw};
use super::stats::{Distribution, Estimate};
use super::told::Told;
use super::{harness, repeats};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::cluster::{LocalCluster, Shape};
use crate::exit::Failure;
use mobula::{Client, ConnectOptions, Durability};
use std::time::Duration;

/// Answers are so late, ms.
const LATE_MS: [u64; 3] = [0, 1, 5];
/// Each mode, the first of the nodes it is measured on, one for each delay, and its durability.
const MODES: [(&str, usize, Durability); 3] =
    [("stash", 1, Durability::Stash), ("commit", 1, Durability::Commit), ("none", 4, Durability::Stash)];
/// In `none` records linger for so long, ms: none is sent while it is measured.
const NEVER_MS: u64 = 3_600_000;
/// Each median is of so many tasks, and taken so often.
const TASKS: usize = 200;
const ROUNDS: usize = 9;
/// How long a task may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// With answers 5 ms late, over in time.
const STASH: Aim = Aim::AtMost(1.1);
/// What they add when records must be durable first, ms: nine tenths of the delay.
const COMMIT_MS: Aim = Aim::AtLeast(4.5);

struct Setting {
    client: Client,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = cluster(args)?;
    let mut settings = Vec::new();
    for (_, node, durability) in MODES {
        for delay in 0..LATE_MS.len() {
            let client = connect(&cluster, node + delay, durability)?;
            settings.push(Setting { client, p50: Vec::new(), p99: Vec::new() });
        }
    }
    let tasks = if args.quick { TASKS / 10 } else { TASKS };
    let rounds = repeats(args, ROUNDS);
    for round in 0..=rounds {
        for setting in &mut settings {
            let times = naps::singly(&setting.client, tasks, PATIENCE).map_err(harness)?;
            let of = Distribution::of(&times);
            // The first round warms up.
            if round > 0 {
                setting.p50.push(of.p50);
                setting.p99.push(of.p99);
            }
        }
    }
    let found = found(&settings, rounds, tasks);
    for Setting { client, .. } in settings {
        client.end(true)?;
    }
    Ok(found.told())
}

fn found(settings: &[Setting], rounds: usize, tasks: usize) -> Found {
    let what = format!("{rounds} medians of {tasks} tasks each, taken in turn");
    let mut found = Found::new("stash", what, &["mode", "late ms", "p50 ms", "p99 ms"]);
    let mut curves = Vec::new();
    for ((mode, ..), of_mode) in MODES.iter().zip(settings.chunks(LATE_MS.len())) {
        let mut points = Vec::new();
        for (late, setting) in LATE_MS.iter().zip(of_mode) {
            let [p50, p99] = [Estimate::of(&setting.p50), Estimate::of(&setting.p99)];
            points.push((*late as f64, p50.mean));
            found.row(vec![
                Cell::Text((*mode).to_owned()),
                Cell::Count(*late),
                Cell::Repeated(p50),
                Cell::Repeated(p99),
            ]);
        }
        curves.push(Curve { label: (*mode).to_owned(), points });
    }
    // Pairs of one round: what the machine does meanwhile concerns both.
    let pairs = |at: usize, of: fn(f64, f64) -> f64| {
        let (in_time, late) = (&settings[at].p50, &settings[at + LATE_MS.len() - 1].p50);
        Estimate::of(&in_time.iter().zip(late).map(|(a, b)| of(*a, *b)).collect::<Vec<_>>())
    };
    let first_of = |mode: usize| mode * LATE_MS.len();
    found.aimed("stash, 5 ms late over in time", pairs(first_of(0), |a, b| b / a), "×", STASH);
    found.aimed("commit, 5 ms late adds", pairs(first_of(1), |a, b| b - a), "ms", COMMIT_MS);
    found.figure("none, 5 ms late over in time", pairs(first_of(2), |a, b| b / a), "×");
    found.note("none: a node whose records linger for as long as this takes; for comparison only");
    found.svg = draw(
        "A task's latency and a late control store",
        [
            Axis { label: "answers late by, ms", is_log: false },
            Axis { label: "submit to get, p50, ms", is_log: true },
        ],
        &curves,
        &[],
    );
    found
}

/// Nodes 1 to 3 hear of their records late, each later than the one before; so do 4 to 6, which send none.
fn cluster(args: &ExperimentArgs) -> Result<LocalCluster, Failure> {
    let cluster = LocalCluster::prepare(args.keep).map_err(harness)?;
    for node in 0..2 * LATE_MS.len() {
        cluster.option(node + 1, "--late-ms", LATE_MS[node % LATE_MS.len()].to_string());
        if node >= LATE_MS.len() {
            cluster.option(node + 1, "--linger-ms", NEVER_MS.to_string());
        }
    }
    let (heads, nodes, shards) = (args.heads, 2 * LATE_MS.len(), args.shards);
    cluster.start(Shape { heads, nodes, shards, workers: 2, store_mb: 16 }).map_err(harness)?;
    Ok(cluster)
}

fn connect(cluster: &LocalCluster, node: usize, durability: Durability) -> Result<Client, Failure> {
    let socket = cluster.node(node).and_then(|n| n.socket);
    let socket = socket.ok_or_else(|| harness("a node has no socket for drivers".into()))?;
    let (job_name, args) = ("stash".to_owned(), Vec::new());
    Ok(Client::connect(ConnectOptions { socket, job_name, args, durability, ..Default::default() })?)
}
