//! Rollouts of uneven length on 16 CPUs, three for each (the table of simulations in Ray's paper): in rounds with a barrier
//! after each, as a program of MPI has them, and all at once, each taken up as soon as a CPU is free.

use super::found::{Cell, Found};
use super::naps::{self, nap};
use super::plot::{Axis, Curve, draw};
use super::stats::Estimate;
use super::told::Told;
use super::{harness, repeats, start};
use crate::args::ExperimentArgs;
use crate::bench::table::Aim;
use crate::chaos::work::tasks::connect;
use crate::cluster::Heads;
use crate::exit::Failure;
use mobula::{Affinity, Client};
use mobula_base::random::Random;
use std::time::{Duration, Instant};

const NODES: usize = 4;
const CPUS: u32 = 4;
const STORE_MB: u64 = 16;
/// Rollouts for each CPU.
const EACH: usize = 3;
/// Steps of a rollout, all as likely; each takes a millisecond, or a tenth of it when it is quick.
const STEPS: std::ops::RangeInclusive<u64> = 10..=1000;
const STEP_US: u64 = 1000;
const QUICK_STEP_US: u64 = 100;
const ROUNDS: usize = 7;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps in a second without a barrier, over those with.
const FASTER: Aim = Aim::AtLeast(1.3);

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    let cluster = start(args, (NODES, CPUS, STORE_MB), &Heads::default())?;
    let client = connect(&cluster, "simulation").map_err(harness)?;
    let cpus = NODES * CPUS as usize;
    let step_us = if args.quick { QUICK_STEP_US } else { STEP_US };
    // Workers are there before the clock runs.
    let warm: Vec<u64> = vec![200_000 / step_us; cpus * 2];
    rounds(&client, &warm, step_us).map_err(harness)?;
    let what = format!("{} rollouts of {STEPS:?} steps on {cpus} CPUs of {NODES} nodes", cpus * EACH);
    let columns = &["round", "steps", "barrier steps/s", "async steps/s", "ratio", "in order"];
    let mut found = Found::new("simulation", what, columns);
    let mut random = Random::new(args.seed).fork("rollouts");
    let (mut ratios, mut curves) = (Vec::new(), [Vec::new(), Vec::new()]);
    for round in 1..=repeats(args, ROUNDS) {
        let span = STEPS.end() - STEPS.start() + 1;
        let steps: Vec<u64> = (0..cpus * EACH).map(|_| STEPS.start() + random.below(span)).collect();
        let barrier = rounds(&client, &steps, step_us).map_err(harness)?;
        let free = free(&client, &steps, step_us).map_err(harness)?;
        let total: u64 = steps.iter().sum();
        let rates = [barrier, free].map(|took| total as f64 / took.as_secs_f64());
        let ratio = rates[1] / rates[0];
        ratios.push(ratio);
        curves.iter_mut().zip(rates).for_each(|(curve, rate)| curve.push((round as f64, rate)));
        let numbers = [rates[0], rates[1], ratio, in_order(&steps, cpus)].map(Cell::Number);
        found.row([Cell::Count(round as u64), Cell::Count(total)].into_iter().chain(numbers).collect());
    }
    client.end(true)?;
    found.aimed("without a barrier, over with one", Estimate::of(&ratios), "×", FASTER);
    found.note("in order: the ratio if whoever is free took the next as submitted and nothing but steps took time; each round has lengths of its own");
    let [barrier, free] = curves;
    found.svg = draw(
        "Rollouts of uneven length",
        [Axis { label: "round", is_log: false }, Axis { label: "steps in a second", is_log: false }],
        &[
            Curve { label: "with a barrier".into(), points: barrier },
            Curve { label: "without".into(), points: free },
        ],
        &[],
    );
    Ok(found.told())
}

/// Runs all rollouts at once: whoever is free takes the next.
fn free(client: &Client, steps: &[u64], step_us: u64) -> Result<Duration, String> {
    let at = Instant::now();
    let naps: Vec<_> = steps.iter().map(|steps| client.submit(nap::task(*steps, steps * step_us))).collect();
    naps.iter().zip(steps).try_for_each(|(nap, steps)| naps::check(nap, *steps, PATIENCE).map(drop))?;
    Ok(at.elapsed())
}

/// Runs as many as there are CPUs, each where it has one for itself, as a rank of MPI; the next when all have ended.
fn rounds(client: &Client, steps: &[u64], step_us: u64) -> Result<Duration, String> {
    let at = Instant::now();
    for round in steps.chunks(NODES * CPUS as usize) {
        let nap = |(rank, steps): (usize, &u64)| {
            let node = format!("node-{}", rank % NODES + 1);
            client.submit(nap::task(*steps, steps * step_us).node_affinity(node, Affinity::Hard))
        };
        let naps: Vec<_> = round.iter().enumerate().map(nap).collect();
        naps.iter().zip(round).try_for_each(|(nap, steps)| naps::check(nap, *steps, PATIENCE).map(drop))?;
    }
    Ok(at.elapsed())
}

/// The ratio if nothing but steps took time: rounds are as long as their longest; else whoever is free takes the next, in
/// the order in which they were submitted. Another order may be better.
fn in_order(steps: &[u64], cpus: usize) -> f64 {
    let barrier: u64 = steps.chunks(cpus).filter_map(|round| round.iter().max()).sum();
    let mut busy_until = vec![0u64; cpus];
    for steps in steps {
        if let Some(first) = busy_until.iter_mut().min() {
            *first += steps;
        }
    }
    barrier as f64 / busy_until.into_iter().max().unwrap_or(0).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_counts_who_waits() {
        // Rounds (4, 1) and (1, 4) take 8; without a barrier one CPU has 4 and the other 1, 1 and 4.
        assert_eq!(in_order(&[4, 1, 1, 4], 2), 8.0 / 6.0);
        assert_eq!(in_order(&[5, 5, 5, 5], 2), 1.0);
    }
}
