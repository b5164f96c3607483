//! `run`, `sweep`, `meta` and `coverage` of the core layer.

use super::options::{Options, Profile};
use super::sometimes::Sometimes;
use super::tools::{self, ExplainArgs, SeedArgs};
use super::{Outcome, run, run_options};
use crate::mutants;
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds of a sweep that are run a second time, in a fresh process.
const RECHECK_EVERY: u64 = 20;
/// Failures a sweep prints in full.
const FAILURES_SHOWN: usize = 20;

/// The core simulation alone.
#[derive(Parser)]
#[command(name = "mobula-sim-core", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// What can be asked of the core layer.
#[derive(Subcommand)]
pub enum What {
    /// One seed.
    Run(RunArgs),
    /// Many seeds, on all processors.
    Sweep(SweepArgs),
    /// Each seed twice, in fresh processes: the traces must agree.
    Meta(MetaArgs),
    /// Bugs that can be planted: what there is, and who finds it.
    Mutants {
        #[command(subcommand)]
        what: mutants::What,
    },
    /// How often each point was reached in a sweep.
    Coverage(SweepArgs),
    /// A seed as a scenario file, with the faults that landed.
    Repro(SeedArgs),
    /// A failing seed, made small.
    Shrink(SeedArgs),
    /// What led to a failure.
    Explain(ExplainArgs),
    /// One seed of placement groups under faults.
    Groups {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// A bug to plant.
        #[arg(long)]
        mutant: Option<String>,
    },
}

/// How faults are drawn.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Drawn {
    /// A random subset of all kinds.
    Swarm,
    /// One kind alone.
    Single,
    /// Crashes only.
    Lite,
    /// None.
    Calm,
}

impl From<Drawn> for Profile {
    fn from(drawn: Drawn) -> Self {
        match drawn {
            Drawn::Swarm => Profile::Swarm,
            Drawn::Single => Profile::Single,
            Drawn::Lite => Profile::Lite,
            Drawn::Calm => Profile::Calm,
        }
    }
}

/// One seed.
#[derive(Args)]
pub struct RunArgs {
    /// The core layer; this program has no other.
    #[arg(long, value_parser = ["core"], default_value = "core", hide = true)]
    pub layer: String,
    /// Decides everything.
    #[arg(long, required_unless_present = "scenario")]
    pub seed: Option<u64>,
    /// A scenario file instead of a seed.
    #[arg(long, conflicts_with = "seed")]
    pub scenario: Option<std::path::PathBuf>,
    /// Writes a page about the run to this file (HTML, nothing beside it is needed).
    #[arg(long)]
    pub report: Option<std::path::PathBuf>,
    /// Another draw of the faults than the seed's own.
    #[arg(long)]
    pub profile: Option<Drawn>,
    /// Writes every event to this file.
    #[arg(long)]
    pub trace: Option<std::path::PathBuf>,
    /// Prints what was drawn.
    #[arg(long)]
    pub options: bool,
    /// One line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Plants a bug of the product.
    #[arg(long)]
    pub mutant: Option<String>,
}

/// Many seeds.
#[derive(Args)]
pub struct SweepArgs {
    /// The core layer; this program has no other.
    #[arg(long, value_parser = ["core"], default_value = "core", hide = true)]
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
    /// JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// Plants a bug of the product.
    #[arg(long)]
    pub mutant: Option<String>,
    /// Ends with the first seed that is red.
    #[arg(long)]
    pub until_found: bool,
}

/// Seeds twice.
#[derive(Args)]
pub struct MetaArgs {
    /// The core layer; this program has no other.
    #[arg(long, value_parser = ["core"], default_value = "core", hide = true)]
    pub layer: String,
    /// First and last seed, `A..B`, or one.
    #[arg(long, alias = "seed", value_parser = parse_seeds)]
    pub seeds: (u64, u64),
}

/// Reads `A..B` or one number.
pub fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = match text.split_once("..") {
        Some((a, b)) => a.parse().ok().zip(b.trim_start_matches('=').parse().ok()),
        None => text.parse().ok().map(|n| (n, n)),
    };
    parsed.filter(|(a, b)| a <= b).ok_or_else(|| format!("{text} is no range of seeds; write 1..20"))
}

/// Reads a time.
pub fn parse_budget(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let times = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let parsed =
        number.parse::<u64>().ok().zip(times).map(|(number, times)| Duration::from_secs(number * times));
    parsed.ok_or_else(|| format!("{text} is no time; write 90s, 10m or 8h"))
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => perform(arguments.what),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 64 } else { 0 })
        }
    }
}

/// Does what is asked.
pub fn perform(what: What) -> ExitCode {
    // A panic of the product is a finding: it is told with its seed, not in between.
    std::panic::set_hook(Box::new(|_| {}));
    let planted = match &what {
        What::Run(args) => args.mutant.as_deref(),
        What::Sweep(args) | What::Coverage(args) => args.mutant.as_deref(),
        What::Groups { mutant, .. } => mutant.as_deref(),
        What::Meta(_) | What::Mutants { .. } | What::Repro(_) | What::Shrink(_) | What::Explain(_) => None,
    };
    if let Some(Err(why)) = planted.map(mutants::plant) {
        eprintln!("{why}");
        return ExitCode::from(64);
    }
    match what {
        What::Run(args) => run_one(&args),
        What::Sweep(args) => sweep(&args, false),
        What::Coverage(args) => sweep(&args, true),
        What::Meta(args) => meta(args.seeds),
        What::Repro(args) => tools::repro(&args),
        What::Shrink(args) => tools::shrink_seed(&args),
        What::Explain(args) => tools::explain_run(&args),
        What::Mutants { what } => {
            mutants::run(what, &[mutants::catalogue::Layer::Core, mutants::catalogue::Layer::Groups])
        }
        What::Groups { seed, .. } => crate::groups::command(seed),
    }
}

fn run_one(args: &RunArgs) -> ExitCode {
    let profile = args.profile.map(Profile::from);
    let options = match &args.scenario {
        Some(file) => match tools::read(file) {
            Ok(scenario) => super::scenario::options(&scenario),
            Err(why) => return tools::complain(&why),
        },
        None => Options::draw(args.seed.unwrap_or_default(), profile),
    };
    if args.options {
        println!("{options:#?}");
    }
    // How fast it is is wall time by nature; nothing inside depends on it.
    let started = Instant::now();
    let outcome = run_options(options.clone(), args.trace.is_some() || args.report.is_some());
    let wall = started.elapsed().as_secs_f64();
    if let (Some(file), Some(lines)) = (&args.trace, &outcome.lines) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        if let Err(error) = std::fs::write(file, text) {
            return tools::complain(&format!("cannot write the trace to {}: {error}", file.display()));
        }
    }
    if let Some(file) = &args.report
        && let Err(why) = tools::write_page(file, &outcome, &options)
    {
        return tools::complain(&why);
    }
    if args.json {
        println!("{}", json(&outcome));
    } else {
        let speed = outcome.lasted.as_secs_f64() / wall.max(1e-6);
        println!("{} ({speed:.0} s/s)", line(&outcome));
    }
    if outcome.objection.is_some() {
        eprintln!("run it again: {} --trace events.txt", outcome.replay());
    }
    ExitCode::from(outcome.code())
}

/// A run in one line.
pub(crate) fn line(outcome: &Outcome) -> String {
    let faults: Vec<String> =
        outcome.faults.iter().map(|(kind, landed)| format!("{kind} {landed}")).collect();
    let verdict = match &outcome.objection {
        None => "pass".to_owned(),
        Some(o) => format!("{:?} by {} ({}): {}", o.class, o.judge, o.rule, o.text),
    };
    format!(
        "seed {} trace {:016x} {:?}: {:.1} s, {} tasks, {} executions ({} in excess), {} values, {} events, {} deaths, \
         faults [{}]: {verdict}",
        outcome.seed,
        outcome.hash,
        outcome.profile,
        outcome.lasted.as_secs_f64(),
        outcome.tasks,
        outcome.runs.0,
        outcome.runs.1,
        outcome.gets,
        outcome.events,
        outcome.deaths,
        faults.join(", ")
    )
}

fn json(outcome: &Outcome) -> serde_json::Value {
    let objection = outcome.objection.as_ref().map(|o| {
        serde_json::json!({"judge": o.judge, "rule": o.rule, "class": format!("{:?}", o.class), "text": o.text})
    });
    serde_json::json!({
        "seed": outcome.seed,
        "trace": format!("{:016x}", outcome.hash),
        "profile": format!("{:?}", outcome.profile),
        "simulated_s": outcome.lasted.as_secs_f64(),
        "tasks": outcome.tasks,
        "executions": outcome.runs.0,
        "excess": outcome.runs.1,
        "values": outcome.gets,
        "events": outcome.events,
        "deaths": outcome.deaths,
        "faults": outcome.faults.iter().cloned().collect::<std::collections::BTreeMap<String, u64>>(),
        "objection": objection,
        "code": outcome.code(),
        "replay": outcome.replay(),
    })
}

/// Without these a sweep has had no fault of the scheduler and the object store: a task went to another node, a
/// transfer broke off, a value left memory and came back, and what was being made again was lost again.
const LANDS: [&str; 5] = [
    "spilled over",
    "fetch repeated",
    "value left memory for a file",
    "value came back from its file",
    "rebuilt twice",
];
/// A sweep of so many seeds has all of them.
const SEEDS_FOR_ALL: u64 = 50;

/// What a sweep adds up.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: Vec<Outcome>,
    simulated: Duration,
    tasks: u64,
    executions: u64,
    excess: u64,
    faults: std::collections::BTreeMap<String, u64>,
    sometimes: Sometimes,
    differing: Vec<u64>,
    rechecked: u64,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated += outcome.lasted;
        self.tasks += outcome.tasks;
        self.executions += outcome.runs.0;
        self.excess += outcome.runs.1;
        for (kind, landed) in &outcome.faults {
            *self.faults.entry(kind.clone()).or_default() += landed;
        }
        self.sometimes.merge(&outcome.sometimes);
        if outcome.objection.is_some() {
            self.failed.push(outcome);
        }
    }

    /// Faults of the scheduler and the object store that did not land in any run: one alone need not have all.
    fn lacking(&self) -> impl Iterator<Item = &'static str> {
        let needed = if self.seeds < SEEDS_FOR_ALL { &LANDS[..1] } else { &LANDS[..] };
        needed.iter().copied().filter(|point| self.sometimes.hits(point) == 0)
    }

    /// Of everything, the worst: safety, then non-determinism, liveness, harness, coverage.
    fn code(&self) -> u8 {
        let has = |code| self.failed.iter().any(|outcome| outcome.code() == code);
        let faultless = !self.faults.is_empty() && self.lacking().next().is_some();
        match () {
            () if has(1) => 1,
            () if !self.differing.is_empty() => 4,
            () if has(3) => 3,
            () if has(5) => 5,
            () if has(2) || faultless => 2,
            () => 0,
        }
    }
}

fn bar(args: &SweepArgs) -> ProgressBar {
    let total = match (args.seeds, args.budget) {
        (Some((a, b)), _) => b - a + 1,
        (None, Some(budget)) => budget.as_secs(),
        (None, None) => 0,
    };
    let bar = ProgressBar::new(total);
    if args.json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed}").expect("it is well formed");
    bar.set_style(style);
    bar
}

fn sweep(args: &SweepArgs, only_coverage: bool) -> ExitCode {
    let profile = args.profile.map(Profile::from);
    let (first, last) = args.seeds.unwrap_or((1, u64::MAX));
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let bar = bar(args);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let over = args.budget.is_some_and(|budget| started.elapsed() >= budget);
            if seed > last || over {
                return;
            }
            let outcome = run(seed, profile, false);
            let again = (seed % RECHECK_EVERY == 0)
                .then(|| hash_in_a_fresh_process(seed, args.profile, args.mutant.as_deref()));
            let mut sum = sum.lock().expect("nothing panics under this lock");
            if let Some(again) = again {
                sum.rechecked += 1;
                if again.is_none_or(|again| again != outcome.hash) {
                    sum.differing.push(seed);
                }
            }
            let red = matches!(outcome.code(), 1 | 3) || !sum.differing.is_empty();
            if args.until_found && red {
                stop.store(true, Ordering::Relaxed);
            }
            if outcome.objection.is_some()
                && !args.json
                && !only_coverage
                && sum.failed.len() < FAILURES_SHOWN
            {
                bar.suspend(|| println!("{}\n  again: {}", line(&outcome), outcome.replay()));
            }
            sum.add(outcome);
            let done = if args.seeds.is_some() { sum.seeds } else { started.elapsed().as_secs() };
            bar.set_position(done);
            bar.set_message(format!("{} seeds, {} failed", sum.seeds, sum.failed.len()));
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    bar.finish_and_clear();
    let sum = sum.into_inner().expect("nothing panics under this lock");
    tell(args, &sum, started.elapsed(), threads, only_coverage);
    ExitCode::from(sum.code())
}

fn tell(args: &SweepArgs, sum: &Sum, wall: Duration, threads: usize, only_coverage: bool) {
    let speed = sum.simulated.as_secs_f64() / wall.as_secs_f64().max(1e-6) / threads as f64;
    let missed = sum.sometimes.missed();
    if args.json {
        let points: std::collections::BTreeMap<&str, u64> =
            super::sometimes::POINTS.iter().map(|point| (*point, sum.sometimes.hits(point))).collect();
        let figures = serde_json::json!({
            "seeds": sum.seeds, "failed": sum.failed.iter().map(json).collect::<Vec<_>>(),
            "simulated_s": sum.simulated.as_secs_f64(), "wall_s": wall.as_secs_f64(), "s_per_s_and_core": speed,
            "tasks": sum.tasks, "executions": sum.executions, "excess": sum.excess, "faults": sum.faults,
            "rechecked": sum.rechecked, "differing": sum.differing, "points": points, "missed": missed,
            "reached": mutants::reached(),
        });
        return println!("{figures}");
    }
    if only_coverage {
        for point in super::sometimes::POINTS {
            println!("{:>10} {point}", sum.sometimes.hits(point));
        }
    }
    let faults: Vec<String> = sum.faults.iter().map(|(kind, landed)| format!("{kind} {landed}")).collect();
    println!(
        "{} seeds, {} failed, {:.0} s simulated ({speed:.0} s/s on each of {threads} processors), {} tasks, {} \
         executions ({} in excess)\nfaults: {}\n{} run again in a fresh process, {} differ{}",
        sum.seeds,
        sum.failed.len(),
        sum.simulated.as_secs_f64(),
        sum.tasks,
        sum.executions,
        sum.excess,
        faults.join(", "),
        sum.rechecked,
        sum.differing.len(),
        if sum.differing.is_empty() { String::new() } else { format!(": seeds {:?}", sum.differing) },
    );
    let lacking: Vec<&str> = sum.lacking().collect();
    if !sum.faults.is_empty() && !lacking.is_empty() {
        println!("it does not count without: {}", lacking.join(", "));
    }
    if !missed.is_empty() {
        println!("never reached: {}", missed.join(", "));
    }
}

/// The trace hash of a seed, from another process.
fn hash_in_a_fresh_process(seed: u64, profile: Option<Drawn>, mutant: Option<&str>) -> Option<u64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["run", "--layer", "core", "--json", "--seed", &seed.to_string()]);
    if let Some(profile) = profile {
        command.args(["--profile", &format!("{profile:?}").to_lowercase()]);
    }
    if let Some(mutant) = mutant {
        command.args(["--mutant", mutant]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    u64::from_str_radix(told.get("trace")?.as_str()?, 16).ok()
}

fn meta(seeds: (u64, u64)) -> ExitCode {
    let mut differing = 0;
    for seed in seeds.0..=seeds.1 {
        let (first, second) =
            (hash_in_a_fresh_process(seed, None, None), hash_in_a_fresh_process(seed, None, None));
        match (first, second) {
            (Some(a), Some(b)) if a == b => println!("seed {seed}: {a:016x} twice"),
            other => {
                println!("seed {seed}: {other:?}: not deterministic");
                differing += 1;
            }
        }
    }
    ExitCode::from(if differing > 0 { 4 } else { 0 })
}
