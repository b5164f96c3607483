//! `sweep` and `meta` of the full layer: a process for each seed, since the runtime's task ids, which order
//! the end of a crashing host, are those of a process.

use super::command::name;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mobula_sim_tests::core::command::{Drawn, parse_budget, parse_seeds};
use mobula_sim_tests::core::sometimes::FULL_POINTS;
use mobula_sim_tests::processes::one;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds of a sweep that are run a second time: one in so many.
const RECHECK_EVERY: u64 = 20;
/// Failures a sweep prints in full.
const FAILURES_SHOWN: usize = 20;
/// From so many seeds on, a point that none has reached fails the sweep.
const MISSES_COUNT_FROM: u64 = 500;

/// Many seeds.
#[derive(Args)]
pub struct SweepArgs {
    /// The full layer; the core layer has options of its own.
    #[arg(long, value_parser = ["full"], default_value = "full", hide = true)]
    pub layer: String,
    /// First and last seed, `A..B`.
    #[arg(long, value_parser = parse_seeds, required_unless_present = "budget")]
    pub seeds: Option<(u64, u64)>,
    /// As many seeds as fit into this time: `90s`, `10m`, `8h`.
    #[arg(long, value_parser = parse_budget)]
    pub budget: Option<Duration>,
    /// Another draw of the faults than each seed's own.
    #[arg(long)]
    pub profile: Option<Drawn>,
    /// Processes at once; else as many as there are processors.
    #[arg(long)]
    pub jobs: Option<usize>,
    /// JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// The control store alone.
    #[arg(long)]
    pub store: bool,
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: Vec<Value>,
    worst: i32,
    simulated: f64,
    busy: f64,
    tasks: u64,
    executions: u64,
    rechecked: u64,
    differing: Vec<u64>,
    faults: BTreeMap<String, u64>,
    points: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, told: &Value) {
        self.seeds += 1;
        let count = |name: &str| told[name].as_u64().unwrap_or(0);
        self.tasks += count("tasks");
        self.executions += count("executions");
        self.simulated += told["simulated_s"].as_f64().unwrap_or(0.0);
        self.busy += told["wall_s"].as_f64().unwrap_or(0.0);
        for (of, sum) in [("faults", &mut self.faults), ("points", &mut self.points)] {
            for (name, hits) in told[of].as_object().into_iter().flatten() {
                *sum.entry(name.clone()).or_default() += hits.as_u64().unwrap_or(0);
            }
        }
        if told["verdict"] != "pass" {
            self.failed.push(told.clone());
        }
    }

    fn missed(&self) -> Vec<&'static str> {
        FULL_POINTS.iter().copied().filter(|point| !self.points.contains_key(*point)).collect()
    }

    /// The worst of all: safety before liveness, before what is not deterministic, before the rest.
    fn code(&self) -> u8 {
        if !self.differing.is_empty() && !matches!(self.worst, 1 | 3) {
            return 4;
        }
        match self.worst {
            0 if self.seeds >= MISSES_COUNT_FROM && !self.missed().is_empty() => 2,
            code => u8::try_from(code).unwrap_or(5),
        }
    }
}

/// How bad an exit code is.
fn rank(code: i32) -> u32 {
    match code {
        0 => 0,
        2 => 1,
        3 => 3,
        1 => 4,
        _ => 2,
    }
}

/// One seed in a fresh process: what it said, and its exit code.
fn told(seed: u64, profile: Option<Drawn>) -> (Value, i32) {
    let drawn = profile.map(name);
    let mut arguments = vec!["run", "--json"];
    if let Some(drawn) = &drawn {
        arguments.extend(["--profile", drawn]);
    }
    match one(&arguments, seed) {
        Err(error) => (json!({ "seed": seed, "verdict": "harness", "text": error }), 5),
        Ok((line, code)) => match serde_json::from_str(&line) {
            Ok(told) => (told, code),
            // It panicked: the product's own assertion.
            Err(_) => (json!({ "seed": seed, "verdict": "safety", "text": line }), 1),
        },
    }
}

/// Runs the sweep.
pub fn sweep(args: &SweepArgs) -> ExitCode {
    let (first, last) = args.seeds.unwrap_or((1, u64::MAX));
    let until = args.budget.map(|budget| Instant::now() + budget);
    let started = Instant::now();
    let bar = bar(args, (first, last));
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last || until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            let (said, code) = told(seed, args.profile);
            let again = seed.is_multiple_of(RECHECK_EVERY).then(|| told(seed, args.profile).0);
            let mut sum = sum.lock().expect("nothing panics under this lock");
            if let Some(again) = again {
                sum.rechecked += 1;
                if again["trace"] != said["trace"] {
                    sum.differing.push(seed);
                }
            }
            if rank(code) > rank(sum.worst) {
                sum.worst = code;
            }
            if code != 0 && !args.json && sum.failed.len() < FAILURES_SHOWN {
                bar.suspend(|| println!("{}", failure(&said, args.profile)));
            }
            sum.add(&said);
            bar.set_position(if args.seeds.is_some() { sum.seeds } else { started.elapsed().as_secs() });
            bar.set_message(format!("{} seeds, {} failed", sum.seeds, sum.failed.len()));
        }
    };
    let threads = args.jobs.unwrap_or(std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    bar.finish_and_clear();
    let sum = sum.into_inner().expect("nothing panics under this lock");
    tell(args, &sum, started.elapsed());
    ExitCode::from(sum.code())
}

fn bar(args: &SweepArgs, (first, last): (u64, u64)) -> ProgressBar {
    let len = args.budget.map_or(last.saturating_sub(first) + 1, |budget| budget.as_secs());
    let bar = ProgressBar::new(len);
    if args.json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} left {eta} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn failure(said: &Value, profile: Option<Drawn>) -> String {
    let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    let seed = &said["seed"];
    let profile = profile.map_or(String::new(), |profile| format!(" --profile {}", name(profile)));
    format!(
        "seed {seed} {}: {}\n  again: mobula sim run --layer full --seed {seed}{profile} --trace events.txt",
        text("verdict"),
        text("text")
    )
}

fn tell(args: &SweepArgs, sum: &Sum, wall: Duration) {
    let speed = sum.simulated / sum.busy.max(1e-6);
    let missed = sum.missed();
    if args.json {
        let points: BTreeMap<&str, u64> =
            FULL_POINTS.iter().map(|point| (*point, sum.points.get(*point).copied().unwrap_or(0))).collect();
        let figures = json!({
            "seeds": sum.seeds, "failed": sum.failed, "simulated_s": sum.simulated, "wall_s": wall.as_secs_f64(),
            "s_per_s_and_core": speed, "tasks": sum.tasks, "executions": sum.executions, "faults": sum.faults,
            "rechecked": sum.rechecked, "differing": sum.differing, "points": points, "missed": missed,
        });
        return println!("{figures}");
    }
    let faults: Vec<String> = sum.faults.iter().map(|(kind, landed)| format!("{kind} {landed}")).collect();
    println!(
        "{} passed, {} failed, {:.0} s simulated ({speed:.1} s/s in each process), {} tasks, {} executions\nfaults: {}\n\
         {} run again in a fresh process, {} differ {:?}",
        sum.seeds - sum.failed.len() as u64,
        sum.failed.len(),
        sum.simulated,
        sum.tasks,
        sum.executions,
        faults.join(", "),
        sum.rechecked,
        sum.differing.len(),
        sum.differing,
    );
    if !missed.is_empty() {
        println!("never reached: {}", missed.join(", "));
    }
}
