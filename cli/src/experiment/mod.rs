//! `mobula experiment`: measured claims, each repeated on a cluster of its own.
//!
//! - [`failover`] — a leader is taken away again and again; what its clients see of it.
//! - [`crashes`] — all heads are killed at once.
//! - [`head_kills`] — tasks in flight while heads are killed and restarted.
//! - [`recovery`] — a node is killed with what it holds: how long until that exists again; [`chains`] — what is lost.
//! - [`owner_death`] — everything in which Ray loses objects.
//! - [`lanes`] — clients with one write in flight each, which remember what was acknowledged.
//! - [`strike`] — taking a head away and giving it back; [`look`] — what heads say of themselves.
//! - [`ghost`] — what a leader does that was stopped, replaced, and continues.
//! - [`report`], [`stats`], [`svg`], [`bars`] — figures as text, JSON and drawings.

pub mod bars;
pub mod chains;
pub mod crashes;
pub mod failover;
pub mod ghost;
pub mod head_kills;
pub mod lanes;
pub mod look;
pub mod owner_death;
pub mod recovery;
pub mod report;
pub mod stats;
pub mod strike;
pub mod svg;

use crate::args::ExperimentArgs;
use crate::cluster::{Heads, LocalCluster, Shape};
use crate::config::Settings;
use crate::demo::plan::cluster_size;
use crate::exit::{self, Failure, Outcome};
use crate::{limits, say, signals};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// The experiments that exist, with what they show.
const EXPERIMENTS: [(&str, &str); 5] = [
    ("failover", "a shard's leader is killed, stopped, cut off or asked to go: how long its clients stall"),
    ("crashes", "all heads are killed at once, under load: nothing acknowledged may be missing"),
    ("head-kills", "a job of short tasks runs while heads are killed and restarted: it must not notice"),
    (
        "recovery",
        "a node is killed with what it holds: time until that exists again against the shortest possible, what ran again",
    ),
    (
        "owner-death",
        "every case without actors in which Ray loses an object with its owner: it must be there",
    ),
];

/// Runs one of the experiments.
pub fn run(settings: &Settings, args: &ExperimentArgs) -> Outcome {
    let run: fn(&Settings, &ExperimentArgs) -> Outcome = match args.name.as_str() {
        "list" => {
            for (name, what) in EXPERIMENTS {
                say!(settings.output, "{name:<12} {what}");
            }
            settings.output.data(&EXPERIMENTS.map(|(name, _)| name));
            return Ok(exit::OK);
        }
        "crashes" => crashes::run,
        "failover" => failover::run,
        "head-kills" => head_kills::run,
        "recovery" => recovery::run,
        "owner-death" => owner_death::run,
        other => {
            return Err(Failure::usage(format!(
                "`mobula experiment {other}` is not there yet: there are failover, crashes, head-kills, recovery, owner-death and list"
            )));
        }
    };
    if args.kills == Some(0) {
        return Err(Failure::usage("an experiment without a strike shows nothing; use --kills 1 or more"));
    }
    cluster_size(args.heads, 1, args.shards, 1).map_err(Failure::usage)?;
    limits::raise_open_files()?;
    signals::leave_in_order();
    run(settings, args)
}

fn harness(message: String) -> Failure {
    Failure { code: exit::HARNESS, message }
}

/// A cluster of the experiment's own: so many nodes of so many CPUs, each with so much memory for objects.
fn start(
    args: &ExperimentArgs,
    (nodes, workers, store_mb): (usize, u32, u64),
    special: &Heads,
) -> Result<LocalCluster, Failure> {
    let cluster = LocalCluster::prepare(args.keep).map_err(harness)?;
    let shape = Shape { heads: args.heads, nodes, shards: args.shards, workers, store_mb };
    cluster.start_with(shape, special).map_err(harness)?;
    Ok(cluster)
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(length: usize) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("  [{bar:32}] {pos:>4}/{len:<4} {elapsed} {msg}");
    let style = style.expect("the template is fixed").progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length as u64), target).with_style(style)
}

/// Where a drawing goes: beside the report, unless a place is named.
fn drawing(args: &ExperimentArgs) -> Option<PathBuf> {
    let beside = || {
        Some(args.report.as_ref()?.with_extension("svg")).filter(|path| args.report.as_ref() != Some(path))
    };
    args.svg.clone().or_else(beside)
}

/// Writes a file that was asked for.
fn write_text(path: Option<&Path>, text: &str) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    Ok(std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}

/// Writes a report as JSON.
fn write_report(path: Option<&Path>, report: &impl Serialize) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_vec_pretty(report).expect("reports have only text keys");
    Ok(std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}
