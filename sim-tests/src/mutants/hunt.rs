//! Looks for one bug in one layer.

use super::catalogue::{Layer, Mutant, Place};
use crate::processes::{fingerprint, for_seeds, one, output};
use serde_json::Value;

/// How a hunt ended.
#[derive(Clone, Debug)]
pub enum Found {
    /// At this seed, which was the last of so many, by this property.
    At {
        /// The seed.
        seed: u64,
        /// What a judge said.
        how: String,
    },
    /// In none of so many seeds, and whether any came to its place.
    Not {
        /// Seeds that were run.
        seeds: u64,
        /// Whether the wrong code ran in any of them.
        reached: bool,
    },
}

/// Runs seeds from 1 on until one is red that is not without the bug.
pub fn hunt(layer: Layer, mutant: &Mutant, max_seeds: u64) -> Found {
    match layer {
        Layer::Core => hunt_in_one_process(mutant, max_seeds),
        Layer::Full | Layer::Store | Layer::Groups => hunt_in_many(layer, mutant, max_seeds),
    }
}

fn hunt_in_many(layer: Layer, mutant: &Mutant, max_seeds: u64) -> Found {
    let arguments = arguments(layer, mutant);
    // A judge of one run cannot see that a second one would differ.
    let twice = mutant.breaks == "determinism";
    let step = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (mut first, mut reached) = (1, false);
    while first <= max_seeds {
        let last = (first + step - 1).min(max_seeds);
        for (seed, (how, came)) in for_seeds((first, last), |seed| look(&arguments, seed, twice)) {
            reached |= came;
            if let Some(how) = how
                && is_green_without(&arguments[..arguments.len() - 2], seed)
            {
                return Found::At { seed, how };
            }
        }
        first = last + 1;
    }
    Found::Not { seeds: max_seeds, reached }
}

/// Whether a seed passes, or at least says nothing, without a bug: else its verdict is not the bug's.
fn is_green_without(arguments: &[&str], seed: u64) -> bool {
    one(arguments, seed).is_ok_and(|(_, code)| matches!(code, 0 | 2))
}

/// The core layer runs thousands of seeds in the time of a new process.
fn hunt_in_one_process(mutant: &Mutant, max_seeds: u64) -> Found {
    let (mut first, mut reached) = (1, false);
    while first <= max_seeds {
        let seeds = format!("{first}..{max_seeds}");
        let arguments =
            ["sweep", "--layer", "core", "--json", "--until-found", "--mutant", mutant.id, "--seeds", &seeds];
        let Ok(told) = output(&arguments) else { break };
        let told: Value = serde_json::from_slice(&told).unwrap_or_default();
        reached |= told["reached"].as_bool().unwrap_or(false);
        let differs = told["differing"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        let differs = differs.map(|seed| (seed, "determinism: two runs differ".to_owned()));
        let failed = told["failed"].as_array().into_iter().flatten().filter_map(objection);
        let mut red: Vec<(u64, String)> = differs.chain(failed).collect();
        red.sort();
        let Some(last) = red.last().map(|(seed, _)| *seed) else { break };
        let green = |seed: &u64| is_green_without(&["run", "--layer", "core"], *seed);
        if let Some((seed, how)) = red.into_iter().find(|(seed, _)| green(seed)) {
            return Found::At { seed, how };
        }
        first = last + 1;
    }
    Found::Not { seeds: max_seeds, reached }
}

/// Which judge objected to a run, and what it said; nothing for a run that did too little or could not run.
fn objection(failed: &Value) -> Option<(u64, String)> {
    let (seed, objection) = (failed["seed"].as_u64()?, &failed["objection"]);
    let text = |name: &str| objection[name].as_str().unwrap_or_default().to_owned();
    let class = text("class");
    let short: String = text("text").chars().take(PROPERTY_MAX).collect();
    let says = format!("{} ({}): {short}", text("judge"), text("rule"));
    matches!(&*class, "Safety" | "Liveness").then(|| (seed, format!("{}: {says}", class.to_lowercase())))
}

fn arguments(layer: Layer, mutant: &Mutant) -> Vec<&'static str> {
    let mut arguments = match layer {
        Layer::Core => vec!["run", "--layer", "core"],
        Layer::Full => vec!["run"],
        Layer::Store => vec!["store"],
        Layer::Groups => vec!["groups"],
    };
    match mutant.place {
        Place::Product => arguments.extend(["--mutant", mutant.id]),
        Place::Planted(name) => arguments.extend(["--plant", name]),
    }
    arguments
}

/// Runs one seed: what a judge said, if it was red, and whether the run came to the bug's place.
fn look(arguments: &[&str], seed: u64, twice: bool) -> (Option<String>, bool) {
    let Ok((line, code)) = one(arguments, seed) else { return (None, false) };
    // A hook or a lying disk does not say.
    let reached = !line.contains("the bug was not reached");
    if code == 0 && twice {
        let same = one(arguments, seed).is_ok_and(|(again, _)| fingerprint(&again) == fingerprint(&line));
        return ((!same).then(|| "determinism: two runs differ".to_owned()), reached);
    }
    // Unknown and a failure of the simulator itself are no finding.
    let red = !matches!(code, 0 | 2 | 5 | 64);
    (red.then(|| property(&line, code)), reached)
}

/// The property that a run's line names: what comes before the first colon of the verdict.
fn property(line: &str, code: i32) -> String {
    let said = line.split_once(" s/s): ").map_or(line, |(_, verdict)| verdict);
    let kind = match code {
        1 => "safety",
        3 => "liveness",
        4 => "determinism",
        _ => "panic",
    };
    let text = said.split_once('"').map_or(said, |(_, text)| text);
    let short: String = text.split(['"', '\n']).next().unwrap_or("").chars().take(PROPERTY_MAX).collect();
    format!("{kind}: {short}")
}

/// Characters of a property in a table.
const PROPERTY_MAX: usize = 100;
