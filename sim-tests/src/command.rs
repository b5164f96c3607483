//! `mobula-sim run | meta | sweep`.

use crate::judge::Verdict;
use crate::{scenario, trace};
use clap::{Parser, Subcommand};
use std::process::{Command, ExitCode, Stdio};
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
    /// One seed: a job, a crashed leader, a crashed node, a leader cut off.
    Run {
        /// Decides everything.
        #[arg(long)]
        seed: u64,
        /// Writes every event to this file.
        #[arg(long)]
        trace: Option<std::path::PathBuf>,
        /// Lets no fault land.
        #[arg(long)]
        no_faults: bool,
    },
    /// Runs each seed twice in fresh processes: the traces must agree, event for event.
    Meta {
        /// First and last seed, `A..B`.
        #[arg(long, value_parser = parse_seeds)]
        seeds: (u64, u64),
    },
    /// Runs many seeds, one process each.
    Sweep {
        /// First and last seed, `A..B`.
        #[arg(long, value_parser = parse_seeds)]
        seeds: (u64, u64),
    },
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = match text.split_once("..") {
        Some((a, b)) => a.parse().ok().zip(b.trim_start_matches('=').parse().ok()),
        None => text.parse().ok().map(|n| (n, n)),
    };
    parsed.filter(|(a, b)| a <= b).ok_or_else(|| format!("{text} is no range of seeds; write 1..20"))
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match arguments.what {
        What::Run { seed, trace, no_faults } => run(seed, trace, !no_faults),
        What::Meta { seeds } => meta(seeds),
        What::Sweep { seeds } => sweep(seeds),
    }
}

fn run(seed: u64, file: Option<std::path::PathBuf>, faults: bool) -> ExitCode {
    let filter = std::env::var("MOBULA_LOG").unwrap_or_else(|_| "off".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
    // The speed of the simulator is wall time by nature; nothing inside depends on it.
    let started = Instant::now();
    let outcome = scenario::run(seed, faults);
    let wall = started.elapsed().as_secs_f64();
    if let Some(file) = file
        && let Err(error) = std::fs::write(&file, trace::events().join("\n") + "\n")
    {
        eprintln!("cannot write the trace to {}: {error}", file.display());
        return ExitCode::from(5);
    }
    let simulated = outcome.simulated.as_secs_f64();
    println!(
        "seed {seed} trace {:016x} {} events, {} rounds, {} records acknowledged, {simulated:.1} s simulated in \
         {wall:.1} s ({:.0} s/s): {:?}",
        outcome.fingerprint,
        trace::events().len(),
        outcome.rounds,
        outcome.acknowledged,
        simulated / wall.max(0.001),
        outcome.verdict
    );
    if outcome.verdict != Verdict::Pass {
        eprintln!("run it again: mobula sim run --seed {seed} --trace events.txt");
    }
    ExitCode::from(outcome.verdict.code())
}

/// Runs this binary on one seed in a fresh process: its output line and exit code.
fn one(seed: u64) -> Result<(String, i32), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(program)
        .args(["run", "--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((text, output.status.code().unwrap_or(5)))
}

fn fingerprint(line: &str) -> &str {
    line.split_whitespace().skip_while(|w| *w != "trace").nth(1).unwrap_or("none")
}

/// Runs `job` for every seed on as many threads as there are processors, in order of seeds.
fn for_seeds<T: Send>(seeds: (u64, u64), job: impl Fn(u64) -> T + Sync) -> Vec<(u64, T)> {
    let next = std::sync::atomic::AtomicU64::new(seeds.0);
    let results = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed > seeds.1 {
                        return;
                    }
                    let result = job(seed);
                    results.lock().expect("jobs do not panic").push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("jobs do not panic");
    results.sort_by_key(|(seed, _)| *seed);
    results
}

fn meta(seeds: (u64, u64)) -> ExitCode {
    let mut worst = 0;
    for (seed, (first, second)) in for_seeds(seeds, |seed| (one(seed), one(seed))) {
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

fn sweep(seeds: (u64, u64)) -> ExitCode {
    let (mut passed, mut failed, mut worst) = (0, 0, 0);
    for (seed, result) in for_seeds(seeds, one) {
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
