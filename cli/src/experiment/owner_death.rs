//! Every case without actors in which Ray loses an object because its *owner*, the worker that submitted or put it, is gone:
//! here lineage is the control store's, so the object must be there, or come back, and be right.

use super::told::{Lines, Told};
use super::{harness, start};
use crate::args::ExperimentArgs;
use crate::chaos::work::tasks::connect;
use crate::cluster::{Heads, LocalCluster};
use crate::exit::{self, Failure};
use crate::process::Process;
use crate::say;
use mobula::{Affinity, Blob, Client, Error, ObjectRef};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Node 1 is the driver's; on node 2 owners live; on node 3 others.
const NODES: usize = 3;
const OWNER: usize = 2;
const CPUS: u32 = 4;
/// Memory of each node's store, MB.
const STORE_MB: u64 = 256;
/// Rounds of each case without `--kills`.
const ROUNDS: usize = 3;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a value, and of one that takes a while to bring.
const BYTES: usize = 120_000;
const LARGE: usize = 60_000_000;
/// A slow child takes so long.
const SLOW: Duration = Duration::from_millis(400);

type Made = (u64, Blob);

fn value(number: u64, bytes: usize) -> Made {
    (number, vec![number as u8; bytes].into())
}

fn is_right(made: &Made, number: u64) -> bool {
    made.0 == number && !made.1.is_empty() && made.1.iter().all(|byte| *byte == number as u8)
}

/// What an owner leaves behind: references that it made, and who it was.
#[derive(Serialize, Deserialize)]
struct Left {
    submitted: ObjectRef<Made>,
    put: ObjectRef<Made>,
    worker: u32,
}

#[mobula::remote]
fn child(number: u64, ms: u64) -> Made {
    std::thread::sleep(Duration::from_millis(ms));
    value(number, BYTES)
}

#[mobula::remote]
fn owner(number: u64, ms: u64, bytes: usize) -> Result<Left, Error> {
    let client = mobula::current();
    let submitted = client.submit(child::task(number, ms).node_affinity("node-3", Affinity::Soft));
    let put = client.put(&value(number, bytes))?;
    Ok(Left { submitted, put, worker: std::process::id() })
}

/// Keeps what somebody else owns inside a value of its own.
#[mobula::remote]
fn keeper(left: Left) -> Left {
    left
}

#[mobula::remote]
fn reader(made: Made) -> Made {
    made
}

/// What goes.
#[derive(Clone, Copy)]
enum Goes {
    Worker,
    Node,
}

/// How it is asked for.
#[derive(Clone, Copy)]
enum Asks {
    /// What the owner submitted.
    Submitted,
    /// What the owner put.
    Put,
    /// The same, out of another's value.
    Kept,
    /// By a task that takes it.
    Taken,
    /// By a get that is under way when the owner goes.
    UnderWay,
}

struct Case {
    name: &'static str,
    /// What Ray says then.
    ray: &'static str,
    goes: Goes,
    asks: Asks,
    /// The owner goes before what it submitted has ended.
    early: bool,
}

const CASES: [Case; 8] = [
    Case {
        name: "the worker that submitted it dies",
        ray: "OwnerDiedError",
        goes: Goes::Worker,
        asks: Asks::Submitted,
        early: false,
    },
    Case {
        name: "the worker that put it dies",
        ray: "OwnerDiedError; copies deleted",
        goes: Goes::Worker,
        asks: Asks::Put,
        early: false,
    },
    Case {
        name: "the worker dies before what it submitted ends",
        ray: "OwnerDiedError",
        goes: Goes::Worker,
        asks: Asks::Submitted,
        early: true,
    },
    Case {
        name: "the node of whoever submitted it dies",
        ray: "OwnerDiedError",
        goes: Goes::Node,
        asks: Asks::Submitted,
        early: false,
    },
    Case {
        name: "the node of whoever put it dies, with the only copy",
        ray: "puts are not rebuilt",
        goes: Goes::Node,
        asks: Asks::Put,
        early: false,
    },
    Case {
        name: "it lies in another's value when its owner's node dies",
        ray: "OwnerDiedError",
        goes: Goes::Node,
        asks: Asks::Kept,
        early: false,
    },
    Case {
        name: "a task that waits for it when its owner's node dies",
        ray: "OwnerDiedError",
        goes: Goes::Node,
        asks: Asks::Taken,
        early: true,
    },
    Case {
        name: "it is being brought when its owner's node dies",
        ray: "hung until 2026 (ray#63694)",
        goes: Goes::Node,
        asks: Asks::UnderWay,
        early: false,
    },
];

/// A case, tried.
#[derive(Clone, Debug, Serialize)]
struct Tried {
    case: &'static str,
    ray: &'static str,
    rounds: usize,
    right: usize,
    longest_ms: f64,
    why: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    experiment: &'static str,
    cpus: usize,
    cases: Vec<Tried>,
    passed: bool,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (NODES, CPUS, STORE_MB), &Heads::default())?;
    let rounds = args.kills.unwrap_or(ROUNDS);
    let mut cases = Vec::new();
    for case in &CASES {
        cases.push(tried(&cluster, case, rounds).map_err(harness)?);
    }
    let passed = cases.iter().all(|case| case.right == case.rounds);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let report = Report { experiment: "owner-death", cpus, cases, passed };
    let mut lines = Lines::default();
    for case in &report.cases {
        let mark = if case.right == case.rounds { "ok " } else { "NOT" };
        say!(
            lines,
            "  {mark} {:<54} {} of {} right, at most {:>5.0} ms; Ray: {}",
            case.case,
            case.right,
            case.rounds,
            case.longest_ms,
            case.ray
        );
        case.why.iter().for_each(|why| say!(lines, "      {why}"));
    }
    say!(lines, "{}", if passed { "passed" } else { "not passed" });
    let wrong: usize = report.cases.iter().map(|case| case.rounds - case.right).sum();
    let figure = (format!("values lost or wrong: {wrong}"), "0".into());
    Ok(Told::of(if passed { exit::OK } else { exit::FAILED }, lines, &report, figure))
}

fn tried(cluster: &LocalCluster, case: &Case, rounds: usize) -> Result<Tried, String> {
    let (mut right, mut longest, mut why) = (0, Duration::ZERO, None);
    for round in 0..rounds as u64 {
        let client = connect(cluster, "owner-death")?;
        let began = Instant::now();
        match once(cluster, &client, case, 17 + round) {
            Ok(took) => {
                right += 1;
                longest = longest.max(took);
            }
            Err(text) => {
                longest = longest.max(began.elapsed());
                why = why.or(Some(text));
            }
        }
        client.end(true).map_err(|e| format!("the job cannot end: {e}"))?;
        if matches!(case.goes, Goes::Node) {
            cluster.restart_node(OWNER)?;
        }
    }
    let longest_ms = longest.as_secs_f64() * 1e3;
    Ok(Tried { case: case.name, ray: case.ray, rounds, right, longest_ms, why })
}

/// The time from the death until the value is here and right.
fn once(cluster: &LocalCluster, client: &Client, case: &Case, number: u64) -> Result<Duration, String> {
    let text = |error: Error| error.to_string();
    let ms = if case.early { SLOW.as_millis() as u64 } else { 0 };
    let bytes = if matches!(case.asks, Asks::UnderWay) { LARGE } else { BYTES };
    let there = client.submit(owner::task(number, ms, bytes).node_affinity("node-2", Affinity::Soft));
    let left = there.get_timeout(PATIENCE).map_err(text)?;
    let kept = matches!(case.asks, Asks::Kept)
        .then(|| client.submit(keeper::task(&there).node_affinity("node-3", Affinity::Soft)));
    if let Some(kept) = &kept {
        // Made, and not brought here: it is looked into after the death.
        client.wait(std::slice::from_ref(kept), 1, PATIENCE);
    }
    let taken = matches!(case.asks, Asks::Taken).then(|| client.submit(reader::task(&left.submitted)));
    if !case.early {
        client.wait(std::slice::from_ref(&left.submitted), 1, PATIENCE);
    }
    let strike = || match case.goes {
        Goes::Worker => Process::of(left.worker).into_iter().for_each(|worker| worker.signal(Signal::KILL)),
        Goes::Node => _ = cluster.kill_node(OWNER),
    };
    let began = Instant::now();
    let made = match (case.asks, &kept, &taken) {
        (Asks::UnderWay, ..) => std::thread::scope(|scope| {
            let getting = scope.spawn(|| left.put.get_timeout(PATIENCE));
            strike();
            getting.join().map_err(|_| "the get panicked".to_owned())?.map_err(text)
        })?,
        (Asks::Kept, Some(kept), _) => {
            strike();
            let left = kept.get_timeout(PATIENCE).map_err(text)?;
            left.put.get_timeout(PATIENCE).map_err(text)?
        }
        (Asks::Taken, _, Some(taken)) => {
            strike();
            taken.get_timeout(PATIENCE).map_err(text)?
        }
        (Asks::Put, ..) => {
            strike();
            left.put.get_timeout(PATIENCE).map_err(text)?
        }
        _ => {
            strike();
            left.submitted.get_timeout(PATIENCE).map_err(text)?
        }
    };
    if is_right(&made, number) { Ok(began.elapsed()) } else { Err("the value is another".into()) }
}
