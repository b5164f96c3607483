//! Four members add up their vectors (the figures of allreduce in Ray's paper): each part goes round the nodes as the value of
//! tasks, then comes to all; beside it, in the same run, the same ring of sockets in one process with nothing behind it. And
//! what a few milliseconds more for each task do to it.

use super::found::{Cell, Found};
use super::plot::{Axis, Curve, draw};
use super::ring::{self, MEMBERS};
use super::stats::Estimate;
use super::told::Told;
use super::{harness, repeats, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::connect;
use crate::cluster::Heads;
use crate::exit::Failure;
use mobula::{Affinity, Blob, Client, Many, ObjectRef};
use std::time::{Duration, Instant};

/// CPUs of each member's node, and memory of its store, MB.
const CPUS: u32 = 2;
const STORE_MB: u64 = 512;
/// Sizes of a member's vector, bytes.
const SIZES: [usize; 3] = [1_000_000, 10_000_000, 100_000_000];
const QUICK_SIZES: [usize; 1] = [1_000_000];
/// Each task of the second table takes so much longer, ms, with vectors of so many bytes.
const LATER_MS: [u64; 3] = [0, 1, 5];
const LATER_SIZE: usize = 10_000_000;
const ROUNDS: usize = 5;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// With the largest vectors, over the ring of sockets. Values are copied into the store, and out of it, and checked.
const OVER_SOCKETS: Aim = Aim::AtMost(2.0);

/// The vectors of one measurement.
#[derive(Clone, Copy)]
struct Size {
    /// Of a member's vector.
    bytes: usize,
    /// What every member must have in the end, in short.
    right: u64,
}

impl Size {
    fn of(bytes: usize) -> Size {
        Size { bytes, right: ring::expected(bytes / MEMBERS) }
    }

    /// Bytes of each part.
    fn part(self) -> usize {
        self.bytes / MEMBERS
    }
}

#[mobula::remote]
fn part(who: usize, number: usize, bytes: usize) -> Blob {
    ring::own(who, number, bytes).into()
}

#[mobula::remote]
fn add(sum: Blob, own: Blob, later_ms: u64) -> Blob {
    std::thread::sleep(Duration::from_millis(later_ms));
    let mut sum = sum.to_vec();
    ring::add(&mut sum, &own);
    sum.into()
}

#[mobula::remote]
fn gather(parts: Many<Blob>, later_ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(later_ms));
    ring::hash(parts.0.iter().map(|part| &part[..]))
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (MEMBERS, CPUS, STORE_MB), &Heads::default())?;
    let client = connect(&cluster, "allreduce").map_err(harness)?;
    let sizes = if args.quick { &QUICK_SIZES[..] } else { &SIZES[..] };
    let rounds = repeats(args, ROUNDS);
    let what = format!("{MEMBERS} members, each on a node of its own, {rounds} rounds");
    let mut found = Found::new("allreduce", what, &["bytes", "later ms", "tasks ms", "sockets ms", "ratio"]);
    let (mut ours, mut theirs, mut last) = (Vec::new(), Vec::new(), Estimate::from(0.0));
    for size in sizes {
        let size = Size::of(*size);
        let (mut tasks, mut sockets) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            let took = over_tasks(&client, size, 0).map_err(harness)?;
            let plain = over_sockets(size).map_err(harness)?;
            // The first round warms up.
            if round > 0 {
                tasks.push(took);
                sockets.push(plain);
            }
        }
        last = over(&tasks, &sockets);
        let [of_tasks, of_sockets] = [&tasks, &sockets].map(|each| Estimate::of(each));
        ours.push((size.bytes as f64, of_tasks.mean));
        theirs.push((size.bytes as f64, of_sockets.mean));
        let cells = [of_tasks, of_sockets, last].map(Cell::Repeated);
        found.row([Cell::Count(size.bytes as u64), Cell::Count(0)].into_iter().chain(cells).collect());
    }
    found.aimed("largest, tasks over sockets", last, "×", OVER_SOCKETS);
    later(&client, &mut found, args).map_err(harness)?;
    client.end(true)?;
    found
        .note("later: each task sleeps so long before it begins; the scheduler has no switch that delays it");
    found.svg = draw(
        "Allreduce of four",
        [Axis { label: "bytes of each", is_log: true }, Axis { label: "ms", is_log: true }],
        &[
            Curve { label: "tasks and objects".into(), points: ours },
            Curve { label: "sockets".into(), points: theirs },
        ],
        &[],
    );
    Ok(found.told())
}

/// The same with tasks that begin later.
fn later(client: &Client, found: &mut Found, args: &ExperimentArgs) -> Result<(), String> {
    let size = Size::of(if args.quick { QUICK_SIZES[0] } else { LATER_SIZE });
    let mut all: Vec<[Vec<f64>; 2]> = vec![[Vec::new(), Vec::new()]; LATER_MS.len()];
    for _ in 0..repeats(args, ROUNDS) {
        for (ms, [tasks, sockets]) in LATER_MS.iter().zip(&mut all) {
            tasks.push(over_tasks(client, size, *ms)?);
            sockets.push(over_sockets(size)?);
        }
    }
    for (ms, [tasks, sockets]) in LATER_MS.iter().zip(&all) {
        let cells = [Estimate::of(tasks), Estimate::of(sockets), over(tasks, sockets)].map(Cell::Repeated);
        found.row([Cell::Count(size.bytes as u64), Cell::Count(*ms)].into_iter().chain(cells).collect());
        if *ms > 0 {
            let name = format!("each task {ms} ms later, over at once, {} bytes", size.bytes);
            found.figure(&name, over(tasks, &all[0][0]), "×");
        }
    }
    Ok(())
}

/// The ratio of what was measured in the same round.
fn over(these: &[f64], those: &[f64]) -> Estimate {
    Estimate::of(&these.iter().zip(those).map(|(this, that)| this / that).collect::<Vec<_>>())
}

/// How long it takes as tasks, ms.
fn over_tasks(client: &Client, size: Size, later_ms: u64) -> Result<f64, String> {
    let node = |who: usize| format!("node-{}", who % MEMBERS + 1);
    let own: Vec<Vec<ObjectRef<Blob>>> = (0..MEMBERS)
        .map(|who| {
            let made = |number| part::task(who, number, size.part()).node_affinity(node(who), Affinity::Hard);
            (0..MEMBERS).map(|number| client.submit(made(number))).collect()
        })
        .collect();
    let all: Vec<ObjectRef<Blob>> = own.iter().flatten().cloned().collect();
    if client.wait(&all, all.len(), PATIENCE).iter().any(|is_ready| !is_ready) {
        return Err(format!("vectors were not made within {PATIENCE:?}"));
    }
    let at = Instant::now();
    let sums: Vec<ObjectRef<Blob>> = (0..MEMBERS)
        .map(|number| {
            (1..MEMBERS).fold(own[number][number].clone(), |sum, step| {
                let who = (number + step) % MEMBERS;
                let task = add::task(&sum, &own[who][number], later_ms);
                client.submit(task.node_affinity(node(who), Affinity::Hard))
            })
        })
        .collect();
    let gathered: Vec<ObjectRef<u64>> = (0..MEMBERS)
        .map(|who| client.submit(gather::task(&sums, later_ms).node_affinity(node(who), Affinity::Hard)))
        .collect();
    let hashes: Result<Vec<u64>, _> = gathered.iter().map(|each| each.get_timeout(PATIENCE)).collect();
    let took = at.elapsed();
    checked(took, &hashes.map_err(|e| e.to_string())?, size)
}

/// How long it takes over sockets, ms.
fn over_sockets(size: Size) -> Result<f64, String> {
    let (took, hashes) = ring::over_sockets(size.part()).map_err(|e| format!("a ring of sockets: {e}"))?;
    checked(took, &hashes, size)
}

fn checked(took: Duration, hashes: &[u64], size: Size) -> Result<f64, String> {
    match hashes.iter().find(|hash| **hash != size.right) {
        Some(wrong) => Err(format!("a member has {wrong:#x} instead of {:#x}", size.right)),
        None => Ok(took.as_secs_f64() * 1e3),
    }
}
