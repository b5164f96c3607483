//! `run` of the full layer: one seed, in this process.

use super::{Outcome, about, run};
use crate::judge::Verdict;
use crate::{clock, trace};
use clap::Args;
use mobula_base::TaskId;
use mobula_sim_tests::core::command::Drawn;
use mobula_sim_tests::core::options::Profile;
use mobula_sim_tests::mutants;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// One seed.
#[derive(Args)]
pub struct RunArgs {
    /// The full layer; the core layer has options of its own.
    #[arg(long, value_parser = ["full"], default_value = "full", hide = true)]
    pub layer: String,
    /// Decides everything.
    #[arg(long)]
    pub seed: u64,
    /// Another draw of the faults than the seed's own.
    #[arg(long)]
    pub profile: Option<Drawn>,
    /// Writes every event to this file.
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// One line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Notes in the trace what the log says about this task.
    #[arg(long, value_parser = about::parse)]
    pub about: Option<TaskId>,
    /// Plants a bug of the product.
    #[arg(long)]
    pub mutant: Option<String>,
}

/// Runs it.
pub fn run_one(args: &RunArgs) -> ExitCode {
    // How fast it is is wall time by nature; nothing inside depends on it.
    let started = Instant::now();
    about::set(args.about);
    let outcome = run(args.seed, args.profile.map(Profile::from));
    clock::thaw();
    let wall = started.elapsed().as_secs_f64();
    if let Err(code) = crate::command::write_trace(args.trace.clone()) {
        return code;
    }
    if args.json {
        println!("{}", json(&outcome, wall));
    } else {
        println!("{}", line(&outcome, wall));
    }
    if outcome.verdict != Verdict::Pass {
        eprintln!("run it again: {} --trace events.txt", again(args));
    }
    ExitCode::from(outcome.verdict.code())
}

fn again(args: &RunArgs) -> String {
    let mutant = args.mutant.as_ref().map_or(String::new(), |mutant| format!(" --mutant {mutant}"));
    let profile = args.profile.map_or(String::new(), |p| format!(" --profile {}", name(p)));
    format!("mobula sim run --layer full --seed {}{profile}{mutant}", args.seed)
}

/// A draw as it is written on the command line.
pub fn name(drawn: Drawn) -> String {
    format!("{drawn:?}").to_lowercase()
}

fn line(outcome: &Outcome, wall: f64) -> String {
    let simulated = outcome.simulated.as_secs_f64();
    let faults: Vec<String> = outcome.faults.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    let unreached = if mutants::reached() == Some(false) { ", the bug was not reached" } else { "" };
    format!(
        "seed {} trace {:016x} {} events, {:?}, {} tasks ({} executions), {} values, {} failures, {} records audited, \
         {} deaths, faults: {}{unreached}, {simulated:.1} s simulated in {wall:.1} s ({:.0} s/s): {:?}",
        outcome.seed,
        outcome.fingerprint,
        trace::events().len(),
        outcome.profile,
        outcome.tasks.0,
        outcome.tasks.1,
        outcome.answers.0,
        outcome.answers.1,
        outcome.audited,
        outcome.deaths,
        faults.join(", "),
        simulated / wall.max(0.001),
        outcome.verdict
    )
}

fn json(outcome: &Outcome, wall: f64) -> serde_json::Value {
    let (verdict, text) = match &outcome.verdict {
        Verdict::Pass => ("pass", ""),
        Verdict::Safety(text) => ("safety", text.as_str()),
        Verdict::Liveness(text) => ("liveness", text.as_str()),
        Verdict::Unknown(text) => ("unknown", text.as_str()),
        Verdict::Harness(text) => ("harness", text.as_str()),
    };
    serde_json::json!({
        "seed": outcome.seed, "trace": format!("{:016x}", outcome.fingerprint), "profile": format!("{:?}", outcome.profile),
        "verdict": verdict, "text": text, "simulated_s": outcome.simulated.as_secs_f64(), "wall_s": wall,
        "tasks": outcome.tasks.0, "executions": outcome.tasks.1, "values": outcome.answers.0,
        "failures": outcome.answers.1, "audited": outcome.audited, "deaths": outcome.deaths, "stayed": outcome.stayed,
        "faults": outcome.faults.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "points": outcome.points.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        "reached": mutants::reached(),
    })
}
