//! `mobula demo`: a real job survives the loss of a head and of a node.
//!
//! - [`text`], [`minhash`], [`lsh`], [`similarity`] — the algorithm, in plain functions.
//! - [`input`], [`corpus`], [`block`] — what it works on.
//! - [`steps`], [`job`], [`progress`] — the stages, as functions and as tasks.
//! - [`plan`], [`faults`], [`struck`], [`monitor`] — kills, and what they cost.
//! - [`run`], [`work`] — one run from start to verdict; [`screen`], [`report`], [`audit`] — what it tells.
//! - [`reference`] — the same answer without any cluster.
//! - [`example`] — the same job on a cluster that already runs.

pub mod answer;
pub mod audit;
pub mod block;
pub mod corpus;
pub mod example;
pub mod faults;
pub mod input;
pub mod job;
pub mod lsh;
pub mod minhash;
pub mod monitor;
pub mod plan;
pub mod progress;
pub mod reference;
pub mod report;
pub mod run;
pub mod screen;
pub mod similarity;
pub mod steps;
pub mod struck;
pub mod text;
pub mod work;

use crate::args::{DemoArgs, ReferenceArgs};
use crate::commands::machine::die_with_parent;
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use input::Input;
use plan::{Kill, Plan};
use report::PairReport;
use serde::{Deserialize, Serialize};
use similarity::Match;
use std::time::Instant;

/// Pairs shown to a person.
const PAIRS_SHOWN: usize = 8;

/// Runs the demo. The exit code says whether everything that must hold does.
pub fn run(settings: &Settings, args: &DemoArgs) -> Outcome {
    let kills: Vec<Kill> =
        args.kill.iter().map(|k| k.parse()).collect::<Result<_, _>>().map_err(Failure::usage)?;
    let plan = Plan::new(args.seed, args.heads, args.nodes, args.shards, args.workers, &kills, args.no_kill)
        .map_err(Failure::usage)?;
    run::run(settings.output, &plan, args)
}

/// What the reference process says on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReferenceAnswer {
    /// Hash of its answer.
    pub hash: String,
    /// Pairs found.
    pub matches: usize,
    /// How long it took.
    pub seconds: f64,
}

/// The reference process.
pub fn reference_process(args: &ReferenceArgs) -> Outcome {
    die_with_parent(args.die_with_parent)?;
    let started = Instant::now();
    let unusable = |e: String| Failure::usage(format!("cannot read the list {}: {e}", args.list.display()));
    let list = std::fs::read(&args.list).map_err(|e| unusable(e.to_string()))?;
    let input: input::Input = serde_json::from_slice(&list).map_err(|e| unusable(e.to_string()))?;
    let matches = reference::run(&input)?;
    let answer = ReferenceAnswer {
        hash: answer::hash(&matches, &input.labels),
        matches: matches.len(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Output { is_json: true }.data(&answer);
    Ok(exit::OK)
}

/// The pairs worth showing, by name.
fn pairs_of(input: &Input, matches: &[Match]) -> Vec<PairReport> {
    let packages: Vec<u32> = input.files.iter().map(|f| f.package).collect();
    answer::interesting(matches, &packages, PAIRS_SHOWN)
        .into_iter()
        .map(|m| PairReport {
            a: input.labels[m.a as usize].clone(),
            b: input.labels[m.b as usize].clone(),
            similar_ppm: m.similar_ppm,
            shared_shingles: m.shared,
        })
        .collect()
}
