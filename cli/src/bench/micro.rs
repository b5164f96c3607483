//! What a task, an object and a lineage record cost.

use super::table::Figures;
use super::{cluster, driver};
use crate::args::BenchArgs;
use crate::cluster::LocalCluster;
use crate::exit::Failure;
use mobula::{Blob, Client, ObjectRef};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Tasks run before anything is measured: workers are started and memory is warm.
const WARM_UP: u64 = 2_000;
/// Repetitions of what is timed singly.
const SINGLY: usize = 2_000;
/// Tasks in flight at once where references are dropped.
const IN_FLIGHT: usize = 10_000;
/// How long durability is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

#[mobula::remote]
fn noop() {}

/// Measures on a cluster of three heads and one node.
pub fn run(args: &BenchArgs) -> Result<Figures, Failure> {
    let mut figures = Figures::new("micro");
    let started = Instant::now();
    let cluster = cluster(1, 1024)?;
    let client = driver(&cluster)?;
    client.submit(noop::task()).get()?;
    figures.add("start of a cluster to its first result", started.elapsed().as_secs_f64() * 1e3, "ms");
    resident(
        &mut figures,
        &cluster,
        "resident memory of a head, fresh",
        "resident memory of a node daemon, fresh",
    );

    many(&client, WARM_UP)?;
    latency(&mut figures, &client)?;
    throughput(&mut figures, &client, args.tasks)?;
    dropping(&mut figures, &client, args.tasks)?;
    objects(&mut figures, &client)?;
    resident(
        &mut figures,
        &cluster,
        "resident memory of a head, after",
        "resident memory of a node daemon, after",
    );
    client.end(true)?;
    Ok(figures)
}

/// Submits `count` tasks and waits for all.
fn many(client: &Client, count: u64) -> Result<(), Failure> {
    let refs: Vec<ObjectRef<()>> = (0..count).map(|_| client.submit(noop::task())).collect();
    for reference in &refs {
        reference.get()?;
    }
    Ok(())
}

fn latency(figures: &mut Figures, client: &Client) -> Result<(), Failure> {
    let mut times = Vec::with_capacity(SINGLY);
    for _ in 0..SINGLY {
        let at = Instant::now();
        client.submit(noop::task()).get()?;
        times.push(at.elapsed());
    }
    figures.add_times(["submit to get, p50", "submit to get, p99"], &mut times);
    Ok(())
}

/// No-op tasks in flight by thousands, every reference kept, lineage on: how fast they are done,
/// and how fast their records are durable.
fn throughput(figures: &mut Figures, client: &Client, count: u64) -> Result<(), Failure> {
    let (durable_before, _) = settle(client);
    let at = Instant::now();
    let refs: Vec<ObjectRef<()>> = (0..count).map(|_| client.submit(noop::task())).collect();
    let submitted = at.elapsed();
    for reference in &refs {
        reference.get()?;
    }
    let done = at.elapsed();
    let durable = settle(client).0 - durable_before;
    let committed = at.elapsed();
    figures.add("submissions", count as f64 / submitted.as_secs_f64(), "/s");
    figures.add("no-op tasks, submit to get", count as f64 / done.as_secs_f64(), "/s");
    figures.add("lineage records made durable", durable as f64 / committed.as_secs_f64(), "/s");
    Ok(())
}

/// The same, each reference dropped once its task is done: records of tasks that came and went before they were
/// sent are elided.
fn dropping(figures: &mut Figures, client: &Client, count: u64) -> Result<(), Failure> {
    settle(client);
    let at = Instant::now();
    let mut window: VecDeque<ObjectRef<()>> = VecDeque::new();
    for _ in 0..count {
        if window.len() == IN_FLIGHT
            && let Some(oldest) = window.pop_front()
        {
            oldest.get()?;
        }
        window.push_back(client.submit(noop::task()));
    }
    window.into_iter().try_for_each(|reference| reference.get())?;
    figures.add("no-op tasks, references dropped", count as f64 / at.elapsed().as_secs_f64(), "/s");
    let (_, sent) = settle(client);
    figures.add("of their records, reached the log", sent as f64 / count as f64 * 100.0, "%");
    Ok(())
}

/// Waits until every record is durable or elided; how many are, and how many were acknowledged since the last
/// call.
fn settle(client: &Client) -> (u64, usize) {
    let until = Instant::now() + PATIENCE;
    while client.committed() < client.submitted() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(200));
    }
    // Taken, so that they do not pile up in the client.
    let sent = client.take_committed().len();
    (client.committed(), sent)
}

fn objects(figures: &mut Figures, client: &Client) -> Result<(), Failure> {
    let small = Blob::from(vec![7u8; 1_000]);
    let large = Blob::from(vec![7u8; 1_000_000]);
    let names = [
        (
            &small,
            SINGLY / 2,
            ["put of 1 kB, p50", "put of 1 kB, p99"],
            ["get of 1 kB, p50", "get of 1 kB, p99"],
        ),
        (&large, 200, ["put of 1 MB, p50", "put of 1 MB, p99"], ["get of 1 MB, p50", "get of 1 MB, p99"]),
    ];
    for (value, count, put_names, get_names) in names {
        let (mut puts, mut gets) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let at = Instant::now();
            let reference = client.put(value)?;
            puts.push(at.elapsed());
            let at = Instant::now();
            let got = reference.get()?;
            gets.push(at.elapsed());
            if got.0.len() != value.0.len() {
                return Err("an object came back with another length".into());
            }
        }
        figures.add_times(put_names, &mut puts);
        figures.add_times(get_names, &mut gets);
    }
    Ok(())
}

/// The memory of the first head and of the node.
fn resident(figures: &mut Figures, cluster: &LocalCluster, head: &'static str, node: &'static str) {
    let processes = cluster.processes();
    for (name, process) in [(head, processes.first()), (node, processes.last())] {
        figures.add(name, process.map_or(0, |p| p.resident_bytes()) as f64 / 1e6, "MB");
    }
}
