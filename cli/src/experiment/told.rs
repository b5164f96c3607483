//! What an experiment has to tell, however it found it: lines for people, data for programs, drawings, an exit code.

use crate::args::ExperimentArgs;
use crate::exit::Failure;
use crate::output::Output;
use crate::say;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// What is told of one experiment.
pub struct Told {
    /// The exit code that says how it went.
    pub code: u8,
    /// For people.
    pub lines: Lines,
    /// For programs.
    pub data: Value,
    /// The rows as CSV; empty where there are none.
    pub csv: String,
    /// The drawing as SVG; empty where there is none.
    pub svg: String,
    /// The figure that stands for it in a list, and what is asked of it.
    pub figure: (String, String),
}

/// Lines for people, to be printed later: `say!(lines, "{} heads", n)`.
#[derive(Default)]
pub struct Lines(Vec<String>);

impl Lines {
    /// One more.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        self.0.push(text.to_string());
    }
}

impl Told {
    /// Of an experiment with a report of its own.
    pub fn of(code: u8, lines: Lines, report: &impl Serialize, figure: (String, String)) -> Told {
        let data = serde_json::to_value(report).expect("reports have only text keys");
        Told { code, lines, data, csv: String::new(), svg: String::new(), figure }
    }

    /// Prints the lines.
    pub fn print(&self, output: Output) {
        self.lines.0.iter().for_each(|line| say!(output, "{line}"));
    }

    /// Writes the files that were asked for. A drawing goes beside the report, unless a place is named.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn write(&self, args: &ExperimentArgs) -> Result<(), Failure> {
        let report = serde_json::to_string_pretty(&self.data).expect("it is data already");
        write(args.report.as_deref(), &report)?;
        write(args.csv.as_deref(), &self.csv)?;
        write(drawing(args).as_deref(), &self.svg)
    }
}

fn drawing(args: &ExperimentArgs) -> Option<PathBuf> {
    let beside = || {
        Some(args.report.as_ref()?.with_extension("svg")).filter(|path| args.report.as_ref() != Some(path))
    };
    args.svg.clone().or_else(beside)
}

fn write(path: Option<&Path>, text: &str) -> Result<(), Failure> {
    let Some(path) = path.filter(|_| !text.is_empty()) else { return Ok(()) };
    Ok(std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}
