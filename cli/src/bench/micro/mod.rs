//! The table of what a task, an object and a lineage record cost: each row beside what it is meant to be,
//! and where it makes sense beside what this machine does in the same run with nothing of ours in the way.
//!
//! Rows are named as in Ray's microbenchmark where there is one like them. Each checks its answers.
//!
//! - [`floor`] — bare messages between three processes.
//! - [`tasks`] — how many, how soon; [`shapes`] — chains, fan-in, waiting for many.
//! - [`objects`] — `put` and `get`; [`copies`] — large values beside `memcpy` and a TCP stream.
//! - [`late`] — what durability costs when the control store is slow to answer.
//! - [`memory`] — what tasks in flight and tasks gone by leave in memory.

mod copies;
pub mod floor;
mod late;
mod memory;
mod objects;
mod shapes;
mod tasks;

use super::table::{Aim, Figures};
use super::{WORKERS, cluster, driver};
use crate::args::BenchArgs;
use crate::cluster::LocalCluster;
use crate::exit::Failure;
use crate::process::Process;
use indicatif::{ProgressBar, ProgressStyle};
use mobula::Client;
use std::time::{Duration, Instant};

/// A figure of so many repetitions is their median.
const REPEATS: usize = 5;
/// Each rate is measured for so long.
const SECONDS: Duration = Duration::from_millis(2500);
/// Tasks run before anything is measured: workers are started and memory is warm.
const WARM_UP: usize = 2_000;
/// Shared memory of the node that tasks are measured on, MB.
const STORE_MB: u64 = 1024;
/// How long durability is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// A fresh daemon has so many MB at most.
const IDLE_MB: Aim = Aim::AtMost(40.0);
/// From nothing to the first result, ms.
const FIRST_RESULT_MS: Aim = Aim::AtMost(150.0);

/// One part of the table, measured by itself.
struct Row {
    /// Its name on the command line.
    key: &'static str,
    measure: fn(&mut Bench) -> Result<(), Failure>,
}

/// In the order in which they are measured: what looks at memory comes first.
const ROWS: [Row; 16] = [
    Row { key: "start", measure: |bench| bench.client().map(drop) },
    Row { key: "in-flight", measure: memory::in_flight },
    Row { key: "floor", measure: |bench| bench.floor().map(drop) },
    Row { key: "sync", measure: tasks::singly },
    Row { key: "async", measure: tasks::dropped },
    Row { key: "threads", measure: tasks::threads },
    Row { key: "held", measure: tasks::held },
    Row { key: "chain", measure: shapes::chain },
    Row { key: "fan-in", measure: shapes::fan_in },
    Row { key: "wait", measure: shapes::wait },
    Row { key: "put", measure: objects::small },
    Row { key: "put-1mb", measure: objects::large },
    Row { key: "growth", measure: memory::growth },
    Row { key: "put-1gb", measure: copies::put },
    Row { key: "transfer", measure: copies::transfer },
    Row { key: "late", measure: late::late },
];

/// What rows share.
struct Bench<'a> {
    args: &'a BenchArgs,
    figures: Figures,
    running: Option<Running>,
    floor: Option<Floor>,
}

/// The cluster that most rows are measured on, and the driver of its node.
struct Running {
    client: Client,
    cluster: LocalCluster,
}

/// What bare messages cost.
#[derive(Clone, Copy)]
struct Floor {
    /// Many at a time, in a second.
    rate: f64,
    /// One at a time, µs.
    p50: f64,
    p99: f64,
}

/// Measures the rows that were asked for.
pub fn run(args: &BenchArgs) -> Result<Figures, Failure> {
    let rows = chosen(&args.only)?;
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}").expect("a valid template");
    let bar = ProgressBar::new(rows.len() as u64).with_style(style);
    let mut bench = Bench { args, figures: Figures::new("micro"), running: None, floor: None };
    for row in rows {
        bar.set_message(row.key);
        (row.measure)(&mut bench)
            .map_err(|e| Failure { message: format!("{}: {}", row.key, e.message), ..e })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    bench.stop()?;
    Ok(bench.figures)
}

fn chosen(only: &[String]) -> Result<Vec<&'static Row>, Failure> {
    let keys = || ROWS.iter().map(|row| row.key).collect::<Vec<_>>().join(", ");
    match only.iter().find(|key| ROWS.iter().all(|row| row.key != *key)) {
        Some(unknown) => Err(Failure::usage(format!("there is no row \"{unknown}\"; there are {}", keys()))),
        None => {
            Ok(ROWS.iter().filter(|row| only.is_empty() || only.iter().any(|key| row.key == key)).collect())
        }
    }
}

impl Bench<'_> {
    /// The driver of a node; the cluster is started, and its start measured, when it is needed first.
    fn client(&mut self) -> Result<Client, Failure> {
        if self.running.is_none() {
            self.running = Some(self.start()?);
        }
        Ok(self.running.as_ref().expect("set above").client.clone())
    }

    fn start(&mut self) -> Result<Running, Failure> {
        let started = Instant::now();
        let cluster = cluster(1, STORE_MB)?;
        let serving = started.elapsed();
        let client = driver(&cluster)?;
        tasks::check(client.submit(tasks::small_value::task()).get()?)?;
        let first = started.elapsed().as_secs_f64() * 1e3;
        let figures = &mut self.figures;
        figures.add_aimed(
            "empty machine to first result, 3 heads and a node",
            first,
            "ms",
            FIRST_RESULT_MS,
            None,
        );
        figures.add("of these, until all daemons serve", serving.as_secs_f64() * 1e3, "ms");
        for (name, process) in cluster.processes().iter().enumerate().filter_map(|(at, process)| match at {
            0 => Some(("resident memory of a head, fresh", process)),
            3 => Some(("resident memory of a node daemon, fresh", process)),
            _ => None,
        }) {
            figures.add_aimed(name, process.resident_bytes() as f64 / 1e6, "MB", IDLE_MB, None);
        }
        tasks::many(&client, WARM_UP)?;
        settle(&client)?;
        Ok(Running { client, cluster })
    }

    /// The node daemon that the driver is attached to, and the heads.
    fn daemons(&self) -> (Process, Vec<Process>) {
        let mut heads = self.running.as_ref().expect("rows ask for the client first").cluster.processes();
        (heads.pop().expect("a node was started last"), heads)
    }

    /// What bare messages cost, measured when it is needed first.
    fn floor(&mut self) -> Result<Floor, Failure> {
        if let Some(floor) = self.floor {
            return Ok(floor);
        }
        let place = LocalCluster::prepare(false)?;
        let mut bare = floor::Floor::start(&place)?;
        bare.rate(SECONDS / 10, tasks::IN_FLIGHT as u64)?;
        let rate = bare.rate(SECONDS, tasks::IN_FLIGHT as u64)?;
        let [p50, p99] = percentiles(&mut bare.singly(tasks::SINGLY)?);
        self.figures.add("bare transport: driver, daemon, worker and back", rate, "/s");
        self.figures.add("bare transport, one at a time, p50", p50, "µs");
        self.figures.add("bare transport, one at a time, p99", p99, "µs");
        Ok(*self.floor.insert(Floor { rate, p50, p99 }))
    }

    /// Ends the cluster: others have the machine to themselves.
    fn stop(&mut self) -> Result<(), Failure> {
        if let Some(Running { client, cluster }) = self.running.take() {
            client.end(true)?;
            drop(cluster);
        }
        Ok(())
    }
}

/// Waits until every record is durable or elided; how many were acknowledged as durable since the last call.
fn settle(client: &Client) -> Result<usize, Failure> {
    client.wait_durable(PATIENCE)?;
    Ok(client.take_committed().len())
}

/// The median and the 99th percentile, µs.
fn percentiles(times: &mut [Duration]) -> [f64; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| super::table::percentile(times, percent).as_secs_f64() * 1e6)
}

/// The median of [`REPEATS`] durations.
fn median_of(mut once: impl FnMut() -> Result<Duration, Failure>) -> Result<Duration, Failure> {
    let mut times = (0..REPEATS).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    Ok(times[REPEATS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_name_in_the_order_of_the_table() {
        let keys = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|key| (*key).to_owned()).collect();
            chosen(&only).map(|rows| rows.iter().map(|row| row.key).collect::<Vec<_>>())
        };
        assert_eq!(keys(&[]).expect("all").len(), ROWS.len());
        assert_eq!(keys(&["wait", "floor"]).expect("two"), ["floor", "wait"]);
        let refused = keys(&["wait", "speed"]).expect_err("no such row");
        assert!(refused.message.contains("\"speed\"") && refused.message.contains("put-1gb"));
        let mut all: Vec<&str> = ROWS.iter().map(|row| row.key).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ROWS.len(), "each name once");
    }
}
