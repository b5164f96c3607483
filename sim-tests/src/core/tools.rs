//! `repro`, `shrink` and `explain`, and runs of scenario files: what one does with a failing seed.

use super::command::{Drawn, line};
use super::options::{Options, Profile};
use super::scenario::{self, Layer, Scenario};
use super::{Outcome, explain, report, run, run_options, shrink};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The exit code of what the simulator itself could not do.
const HARNESS: u8 = 5;

/// A seed, of which a scenario file is made.
#[derive(Args)]
pub struct SeedArgs {
    /// The core layer; this program has no other.
    #[arg(long, value_parser = ["core"], default_value = "core", hide = true)]
    pub layer: String,
    /// Which.
    pub seed: u64,
    /// Another draw of the faults than the seed's own.
    #[arg(long)]
    pub profile: Option<Drawn>,
    /// Writes the scenario to this file rather than to standard output.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// What led to the failure of a seed or a scenario.
#[derive(Args)]
pub struct ExplainArgs {
    /// The core layer; this program has no other.
    #[arg(long, value_parser = ["core"], default_value = "core", hide = true)]
    pub layer: String,
    /// Which.
    #[arg(required_unless_present = "scenario")]
    pub seed: Option<u64>,
    /// A scenario file instead.
    #[arg(long, conflicts_with = "seed")]
    pub scenario: Option<PathBuf>,
    /// Another draw of the faults than the seed's own.
    #[arg(long)]
    pub profile: Option<Drawn>,
}

/// Reads a scenario file.
///
/// # Errors
/// It cannot be read, or says something that is not known.
pub fn read(file: &Path) -> Result<Scenario, String> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let parsed = Scenario::parse(&text).and_then(|scenario| scenario.suits(Layer::Core).map(|()| scenario));
    parsed.map_err(|why| format!("{}: {why}", file.display()))
}

/// Says what could not be done.
pub fn complain(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(HARNESS)
}

/// Writes a page about a run.
///
/// # Errors
/// The file cannot be written.
pub fn write_page(file: &Path, outcome: &Outcome, options: &Options) -> Result<(), String> {
    let lines = outcome.lines.as_deref().unwrap_or_default();
    std::fs::write(file, report::html(outcome, options, lines))
        .map_err(|error| format!("cannot write {}: {error}", file.display()))
}

fn give(text: &str, out: Option<&Path>) -> Result<(), String> {
    match out {
        Some(file) => {
            std::fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))
        }
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

/// Prints a seed as a scenario, with the faults that landed.
pub fn repro(args: &SeedArgs) -> ExitCode {
    let outcome = run(args.seed, args.profile.map(Profile::from), false);
    let options = Options::draw(args.seed, Some(outcome.profile));
    let scenario = scenario::of(args.seed, &options, outcome.planned.clone());
    eprintln!("{}", line(&outcome));
    match give(&scenario.to_text(), args.out.as_deref()) {
        Ok(()) => ExitCode::from(outcome.code()),
        Err(why) => complain(&why),
    }
}

/// Makes a failing seed small.
pub fn shrink_seed(args: &SeedArgs) -> ExitCode {
    let failed = run(args.seed, args.profile.map(Profile::from), false);
    if failed.objection.is_none() {
        return complain(&format!("seed {} passes: there is nothing to shrink", args.seed));
    }
    eprintln!("{}", line(&failed));
    let bar = ProgressBar::new(shrink::RUNS_MAX as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let mut progress = |runs: usize, events: usize| {
        bar.set_position(runs as u64);
        bar.set_message(format!("{events} events left"));
    };
    let shrunk = shrink::shrink(&failed, &mut progress);
    bar.finish_and_clear();
    let Some(shrunk) = shrunk else {
        return complain("the faults that landed, planned at the same moments, do not make it fail again");
    };
    let (faults, machines) = (shrunk.scenario.faults.len(), shrunk.scenario.cluster.nodes.unwrap_or(0));
    eprintln!(
        "{} events are left after {} runs: {faults} faults and {} steps of the driver, on {machines} machines\n{} \
         ({}): {}",
        faults + shrunk.steps,
        shrunk.runs,
        shrunk.steps,
        shrunk.objection.judge,
        shrunk.objection.rule,
        shrunk.objection.text
    );
    match give(&shrunk.scenario.to_text(), args.out.as_deref()) {
        Ok(()) => ExitCode::from(failed.code()),
        Err(why) => complain(&why),
    }
}

/// Prints what led to a failure.
pub fn explain_run(args: &ExplainArgs) -> ExitCode {
    let options = match (&args.scenario, args.seed) {
        (Some(file), _) => match read(file) {
            Ok(scenario) => scenario::options(&scenario),
            Err(why) => return complain(&why),
        },
        (None, seed) => Options::draw(seed.unwrap_or_default(), args.profile.map(Profile::from)),
    };
    let outcome = run_options(options, true);
    let Some(objection) = &outcome.objection else {
        println!("{}", line(&outcome));
        return ExitCode::SUCCESS;
    };
    println!("{} ({}): {}\n", objection.judge, objection.rule, objection.text);
    println!("    seconds   event kind        where life");
    for line in explain::slice(outcome.lines.as_deref().unwrap_or_default(), &objection.text) {
        println!("{line}");
    }
    ExitCode::from(outcome.code())
}
