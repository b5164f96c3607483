//! Every experiment, one after the other; what fails does not keep the others from being run.

use super::EXPERIMENTS;
use crate::args::ExperimentArgs;
use crate::config::Settings;
use crate::exit::{self, Outcome};
use crate::say;
use serde::Serialize;
use serde_json::Value;
use std::time::Instant;

/// How one went.
#[derive(Serialize)]
struct Went {
    name: &'static str,
    figure: String,
    aim: String,
    /// `passed`, `missed` or `failed`.
    verdict: &'static str,
    code: u8,
    seconds: f64,
    report: Value,
}

/// From the best to the worst: what cannot be trusted, then what was not measured, then what does not end.
const WORSE: [u8; 5] = [exit::OK, exit::FIGURE_MISSED, exit::NOT_LIVE, exit::HARNESS, exit::FAILED];

/// Runs all.
pub fn run(settings: &Settings, args: &ExperimentArgs) -> Outcome {
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    }
    let mut all = Vec::new();
    for experiment in &EXPERIMENTS {
        let file = |kind: &str| args.dir.as_ref().map(|dir| dir.join(format!("{}.{kind}", experiment.name)));
        let args = ExperimentArgs {
            name: experiment.name.to_owned(),
            report: file("json"),
            csv: file("csv"),
            svg: file("svg"),
            ..args.clone()
        };
        let began = Instant::now();
        let told = (experiment.run)(&args);
        let seconds = began.elapsed().as_secs_f64();
        let went = |code, (figure, aim): (String, String), report| {
            let verdict = verdict(code);
            Went { name: experiment.name, figure, aim, verdict, code, seconds, report }
        };
        all.push(match told {
            Ok(told) => {
                told.print(settings.output);
                told.write(&args)?;
                went(told.code, told.figure, told.data)
            }
            Err(failure) => {
                say!(settings.output, "{}: {}", experiment.name, failure.message);
                went(failure.code, (failure.message, String::new()), Value::Null)
            }
        });
        say!(settings.output);
    }
    let width = all.iter().map(|went| went.figure.chars().count()).max().unwrap_or(0).min(90);
    for Went { name, figure, aim, verdict, seconds, .. } in &all {
        say!(settings.output, "{name:<15} {verdict:<6} {figure:<width$} {aim:>12} {seconds:>7.1} s");
    }
    settings.output.data(&all);
    Ok(worst(all.iter().map(|went| went.code)))
}

fn verdict(code: u8) -> &'static str {
    match code {
        exit::OK => "passed",
        exit::FIGURE_MISSED => "missed",
        _ => "failed",
    }
}

fn worst(codes: impl Iterator<Item = u8>) -> u8 {
    // A code that is not among them says that something else went wrong: it is the worst.
    codes
        .max_by_key(|code| WORSE.iter().position(|known| known == code).unwrap_or(WORSE.len()))
        .unwrap_or(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_code_counts() {
        assert_eq!(worst([exit::OK, exit::FIGURE_MISSED, exit::OK].into_iter()), exit::FIGURE_MISSED);
        assert_eq!(worst([exit::FAILED, exit::HARNESS, exit::FIGURE_MISSED].into_iter()), exit::FAILED);
        assert_eq!(worst([exit::OK].into_iter()), exit::OK);
        assert_eq!(
            [exit::OK, exit::FIGURE_MISSED, exit::HARNESS].map(verdict),
            ["passed", "missed", "failed"]
        );
    }
}
