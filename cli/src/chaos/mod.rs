//! `mobula chaos`: a cluster is hurt on purpose, and judged. The scenarios, programs and answers are those of the
//! simulator (`mobula_chaos`); here they run on real processes.
//!
//! - [`fault`] — a fault as it went; [`hands`] — doing it; [`injector`] — at its moment; [`catalogue`] — all there are.
//! - [`work`] — what runs meanwhile; [`pulse`] — its answers over time; [`probe`] — what nodes say of themselves.
//! - [`judge`] — what must hold. [`report`], [`page`] — what was found.
//! - [`args`] — what can be asked. [`run`] — one scenario; [`suite`] — many. [`inject`], [`journal`] — single faults on daemons that run already.

pub mod args;
pub mod catalogue;
pub mod fault;
pub mod hands;
pub mod inject;
pub mod injector;
pub mod journal;
pub mod judge;
pub mod page;
pub mod probe;
pub mod pulse;
pub mod report;
pub mod run;
pub mod suite;
pub mod work;

use crate::chaos::args::{ChaosCommand, ChaosReports};
use crate::config::Settings;
use crate::exit::{Failure, Outcome};
use crate::{limits, say, signals};
use mobula_chaos::Scenario;
use mobula_chaos::scenario::Layer;
use mobula_chaos::suite::{SCENARIOS, built_in};
use report::Report;
use std::path::{Path, PathBuf};

/// Runs one of the commands.
pub fn run(settings: &Settings, command: &ChaosCommand) -> Outcome {
    match command {
        ChaosCommand::Faults => catalogue::list(settings.output),
        ChaosCommand::Run(args) if args.scenario == "list" => run::list(settings.output),
        ChaosCommand::Run(args) => run::command(settings, args),
        ChaosCommand::Suite(args) => suite::command(settings, args),
        ChaosCommand::Inject(args) => inject::command(settings, args),
        ChaosCommand::Heal { .. } => inject::heal_all(settings),
    }
}

/// What commands that start clusters do first.
fn prepare() -> Result<(), Failure> {
    limits::raise_open_files()?;
    signals::leave_in_order();
    Ok(())
}

/// The scenario that is meant: a built-in one by its name, else a file.
///
/// # Errors
/// There is none, or it is not for processes.
pub fn scenario(name: &str, beside: Option<&Path>) -> Result<Scenario, Failure> {
    let found = match built_in(name) {
        Some(scenario) => scenario,
        None => {
            let path = place_of(name, beside);
            let text = std::fs::read_to_string(&path).map_err(|error| {
                let names: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
                Failure::usage(format!(
                    "{name:?} is no built-in scenario (there are {}), and cannot be read as a file: {error}",
                    names.join(", ")
                ))
            })?;
            Scenario::parse(&text).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?
        }
    };
    found.suits(Layer::Real).map_err(|why| Failure::usage(format!("{name}: {why}")))?;
    Ok(found)
}

/// Where the file of a scenario is: as it is named, or beside the suite that names it.
fn place_of(name: &str, beside: Option<&Path>) -> PathBuf {
    beside.and_then(Path::parent).map_or_else(|| name.into(), |dir| dir.join(name))
}

/// Prints the data and writes the files that were asked for; the exit code is the worst of all.
fn conclude(settings: &Settings, title: &str, wanted: &ChaosReports, reports: &[Report]) -> Outcome {
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> String| -> Result<(), Failure> {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, text()).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        say!(settings.output, "written: {}", path.display());
        Ok(())
    };
    write(&wanted.report, &|| serde_json::to_string_pretty(reports).expect("reports have only text keys"))?;
    write(&wanted.junit, &|| report::junit(title, reports))?;
    write(&wanted.html, &|| page::html(title, reports))?;
    settings.output.data(&reports);
    Ok(worst(reports))
}

/// The worst wins: what is wrong before what does not end, what is broken, unclear, late.
fn worst(reports: &[Report]) -> u8 {
    let order = ["safety", "liveness", "harness", "unknown", "figure"];
    let worst = order.iter().find_map(|verdict| reports.iter().find(|report| report.verdict == *verdict));
    worst.map_or(crate::exit::OK, Report::code)
}
