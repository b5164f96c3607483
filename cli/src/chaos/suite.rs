//! Many scenarios one after the other, until all have run or the budget is used up.

use crate::chaos::args::ChaosSuiteArgs;
use crate::chaos::{conclude, place_of, prepare, run, scenario};
use crate::config::Settings;
use crate::exit::{Failure, Outcome};
use crate::say;
use mobula_chaos::Scenario;
use mobula_chaos::scenario::parse_time;
use mobula_chaos::suite::{SUITES, Suite, built_in};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs it.
pub fn command(settings: &Settings, args: &ChaosSuiteArgs) -> Outcome {
    let (suite, file) = read(&args.suite)?;
    let budget = match &args.budget {
        Some(text) => Some(parse_time(text).map_err(Failure::usage)?),
        None => suite.budget(),
    };
    let round = suite.round();
    let scenarios: Vec<Scenario> = round
        .iter()
        .map(|(name, work)| {
            let mut scenario = scenario(name, file.as_deref())?;
            scenario.workload.kind = work.unwrap_or(scenario.workload.kind);
            Ok(scenario)
        })
        .collect::<Result<_, Failure>>()?;
    prepare()?;
    let (began, mut reports) = (Instant::now(), Vec::new());
    let is_over = || budget.is_some_and(|budget| began.elapsed() >= budget);
    let mut seed = args.seed.unwrap_or(suite.seed);
    'rounds: loop {
        for ((name, _), scenario) in round.iter().zip(&scenarios) {
            if is_over() {
                break 'rounds;
            }
            let once = Scenario { seed, ..scenario.clone() };
            seed += 1;
            let report = run::one(settings.output, &called(name, file.as_deref()), &once, args.reports.keep)?;
            say!(
                settings.output,
                "{:>6.0} s  {:<9} {:<10} {:<9} seed {}: {} faults, {} answers, stall {:.0} ms{}",
                began.elapsed().as_secs_f64(),
                report.verdict,
                name,
                report.workload,
                report.seed,
                report.faults.len(),
                report.values + report.failures,
                report.stall_ms,
                report.objection().map_or_else(String::new, |text| format!(
                    "\n          {text}\n          again: {}",
                    report.again
                ))
            );
            reports.push(report);
        }
        if !suite.rounds {
            break;
        }
    }
    let failed = reports.iter().filter(|report| report.verdict != "pass").count();
    let skipped = (round.len()).saturating_sub(reports.len());
    say!(
        settings.output,
        "{}: {} runs, {failed} did not pass, {:.0} s",
        suite.name,
        reports.len(),
        began.elapsed().as_secs_f64()
    );
    if skipped > 0 {
        say!(settings.output, "the budget was used up before {skipped} of {} runs", round.len());
    }
    conclude(settings, &suite.name, &args.reports, &reports)
}

/// How `chaos run` is told of a scenario of a suite.
fn called(name: &str, suite: Option<&Path>) -> String {
    match built_in(name) {
        Some(_) => name.to_owned(),
        None => place_of(name, suite).display().to_string(),
    }
}

/// The suite that is meant: a built-in one by its name, else a file, whose place is told, too.
fn read(name: &str) -> Result<(Suite, Option<PathBuf>), Failure> {
    if let Some((_, text)) = SUITES.iter().find(|(known, _)| *known == name) {
        return Ok((Suite::parse(text).expect("what is built in is right: a test reads it"), None));
    }
    let text = std::fs::read_to_string(name).map_err(|error| {
        Failure::usage(format!("{name:?} is no built-in suite (there are smoke and nightly), and cannot be read as a file: {error}"))
    })?;
    let suite = Suite::parse(&text).map_err(|why| Failure::usage(format!("{name}: {why}")))?;
    Ok((suite, Some(Path::new(name).to_owned())))
}
