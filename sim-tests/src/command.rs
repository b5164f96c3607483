//! `mobula-sim run | store | meta | sweep | plants | mutants`; with `--layer core`, the core simulation's own
//! commands.

use crate::full::command::{RunArgs, run_one};
use crate::full::sweep::{SweepArgs, sweep};
use crate::judge::Verdict;
use crate::{clock, store, trace};
use clap::{Parser, Subcommand};
use mobula_sim_tests::core::command::parse_seeds;
use mobula_sim_tests::mutants;
use mobula_sim_tests::processes::{fingerprint, for_seeds, one};
use std::process::ExitCode;
use std::time::Instant;

/// Runs simulated clusters of the production code.
#[derive(Parser)]
#[command(name = "mobula-sim", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One seed: whole daemons, a random program, a swarm of faults.
    Run(RunArgs),
    /// One seed of the control store alone: clients, and a swarm of faults.
    Store {
        /// Decides everything.
        #[arg(long)]
        seed: u64,
        /// Writes every event to this file.
        #[arg(long)]
        trace: Option<std::path::PathBuf>,
        /// Plants a bug by its name.
        #[arg(long)]
        plant: Option<String>,
        /// Plants a bug of the product.
        #[arg(long)]
        mutant: Option<String>,
    },
    /// Plants each bug in turn and looks for it, one seed after the other.
    Plants {
        /// Gives up after so many seeds.
        #[arg(long, default_value_t = 200)]
        max_seeds: u64,
        /// Only this bug.
        #[arg(long)]
        only: Option<String>,
    },
    /// Bugs that can be planted: what there is, and who finds it.
    Mutants {
        #[command(subcommand)]
        what: mutants::What,
    },
    /// Runs each seed twice in fresh processes: the traces must agree, event for event.
    Meta {
        /// The full layer; the core layer has options of its own.
        #[arg(long, value_parser = ["full"], default_value = "full", hide = true)]
        layer: String,
        /// First and last seed, `A..B`.
        #[arg(long, value_parser = parse_seeds)]
        seeds: (u64, u64),
        /// The control store alone.
        #[arg(long)]
        store: bool,
    },
    /// Runs many seeds, one process each.
    Sweep(SweepArgs),
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    if asks_for_core(std::env::args().skip(1)) {
        return mobula_sim_tests::core::command::main();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match arguments.what {
        What::Run(args) => with_mutant(args.mutant.as_deref(), || {
            log_to_stderr();
            run_one(&args)
        }),
        What::Store { seed, trace, plant, mutant } => {
            with_mutant(mutant.as_deref(), || run_store(seed, trace, plant.as_deref()))
        }
        What::Mutants { what } => mutants::run(what, &mutants::catalogue::Layer::ALL),
        What::Plants { max_seeds, only } => plants(max_seeds, only.as_deref()),
        What::Meta { seeds, store, .. } => meta(seeds, kind(store)),
        What::Sweep(args) if args.store => sweep_store(args.seeds.unwrap_or((1, 1))),
        What::Sweep(args) => sweep(&args),
    }
}

/// Runs something with a bug of the product planted, or none.
fn with_mutant(mutant: Option<&str>, run: impl FnOnce() -> ExitCode) -> ExitCode {
    match mutant.map(mutants::plant) {
        Some(Err(why)) => {
            eprintln!("{why}");
            ExitCode::from(64)
        }
        Some(Ok(())) | None => run(),
    }
}

/// What the line of a run says of the bug that is planted.
fn said_of_the_bug() -> &'static str {
    match mutants::reached() {
        Some(false) => ", the bug was not reached",
        Some(true) | None => "",
    }
}

/// Commands that only the core layer has.
const ONLY_CORE: [&str; 5] = ["coverage", "repro", "shrink", "explain", "groups"];

/// Whether the core layer is meant, which has options of its own.
fn asks_for_core(arguments: impl Iterator<Item = String>) -> bool {
    let arguments: Vec<String> = arguments.collect();
    arguments.windows(2).any(|pair| pair[0] == "--layer" && pair[1] == "core")
        || arguments.iter().any(|argument| argument == "--layer=core")
        || arguments.first().is_some_and(|what| ONLY_CORE.contains(&what.as_str()))
        || arguments.iter().any(|argument| argument == "--scenario" || argument.starts_with("--scenario="))
}

/// What a seed is run by.
fn kind(store: bool) -> &'static str {
    if store { "store" } else { "run" }
}

fn log_to_stderr() {
    let filter = std::env::var("MOBULA_LOG").unwrap_or_else(|_| "off".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Writes every event to a file, if one is named.
pub fn write_trace(file: Option<std::path::PathBuf>) -> Result<(), ExitCode> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(&file, trace::events().join("\n") + "\n").map_err(|error| {
        eprintln!("cannot write the trace to {}: {error}", file.display());
        ExitCode::from(5)
    })
}

fn run_store(seed: u64, file: Option<std::path::PathBuf>, plant: Option<&str>) -> ExitCode {
    log_to_stderr();
    let started = Instant::now();
    let outcome = store::run(seed, plant);
    clock::thaw();
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(64);
        }
    };
    let wall = started.elapsed().as_secs_f64();
    if let Err(code) = write_trace(file) {
        return code;
    }
    let simulated = outcome.simulated.as_secs_f64();
    println!(
        "seed {seed} trace {:016x} {} events, {}{}, {simulated:.1} s simulated in {wall:.1} s ({:.0} s/s): {:?}",
        outcome.fingerprint,
        trace::events().len(),
        outcome.figures,
        said_of_the_bug(),
        simulated / wall.max(0.001),
        outcome.verdict
    );
    if outcome.verdict != Verdict::Pass {
        let plant = plant.map_or(String::new(), |plant| format!(" --plant {plant}"));
        eprintln!("run it again: mobula sim store --seed {seed}{plant} --trace events.txt");
    }
    ExitCode::from(outcome.verdict.code())
}

/// Looks for every planted bug.
fn plants(max_seeds: u64, only: Option<&str>) -> ExitCode {
    let mut missed = 0;
    for (name, _, _, by) in store::planted::BUGS.iter().filter(|bug| only.is_none_or(|only| only == bug.0)) {
        let mut found = None;
        let step = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let mut first = 1;
        while found.is_none() && first <= max_seeds {
            let results = for_seeds((first, first + step - 1), |seed| one(&["store", "--plant", name], seed));
            let red = |(seed, result): (u64, Result<(String, i32), String>)| {
                let (line, code) = result.ok()?;
                (code != 0 && code != 2 && code != 5).then_some((seed, line))
            };
            found = results.into_iter().find_map(red);
            first += step;
        }
        match found {
            Some((seed, line)) => {
                let how = line.split_once(" s/s): ").map_or(&line[..], |(_, how)| how);
                println!("{name}: seed {seed}, after {seed} seeds: {how}");
            }
            None => {
                println!("{name}: not found in {max_seeds} seeds; {by} should have");
                missed += 1;
            }
        }
    }
    ExitCode::from(if missed > 0 { 2 } else { 0 })
}

fn meta(seeds: (u64, u64), kind: &str) -> ExitCode {
    let mut worst = 0;
    for (seed, (first, second)) in for_seeds(seeds, |seed| (one(&[kind], seed), one(&[kind], seed))) {
        match (first, second) {
            (Ok((a, code)), Ok((b, _)))
                if fingerprint(&a) == fingerprint(&b) && fingerprint(&a) != "none" =>
            {
                println!("seed {seed}: {} twice", fingerprint(&a));
                worst = worst.max(code);
            }
            (Ok((a, _)), Ok((b, _))) => {
                println!("seed {seed}: {} and {}: not deterministic", fingerprint(&a), fingerprint(&b));
                worst = worst.max(4);
            }
            (Err(error), _) | (_, Err(error)) => {
                println!("seed {seed}: cannot run: {error}");
                worst = 5;
            }
        }
    }
    ExitCode::from(worst as u8)
}

/// Runs many seeds of the control store.
fn sweep_store(seeds: (u64, u64)) -> ExitCode {
    let (mut passed, mut failed, mut worst) = (0, 0, 0);
    for (seed, result) in for_seeds(seeds, |seed| one(&["store"], seed)) {
        let (line, code) = result.unwrap_or_else(|e| (format!("seed {seed}: cannot run: {e}"), 5));
        println!("{}", if line.is_empty() { format!("seed {seed}: no verdict (exit {code})") } else { line });
        if code == 0 {
            passed += 1
        } else {
            failed += 1
        }
        worst = worst.max(code);
    }
    println!("{passed} passed, {failed} failed");
    ExitCode::from(worst as u8)
}
