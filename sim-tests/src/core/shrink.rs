//! Makes a failing run small: fewer faults, a shorter time, fewer steps of the program, fewer machines.
//! What is left fails in the same judge's eyes. The method is delta debugging (Zeller and Hildebrandt,
//! "Simplifying and isolating failure-inducing input", 2002).

use super::judge::Objection;
use super::scenario::{self, Planned, Scenario, time_text};
use super::{Outcome, run_options};
use std::time::Duration;

/// Runs at most.
pub const RUNS_MAX: usize = 600;
/// No run is made shorter than this.
const ENDS_MIN: Duration = Duration::from_secs(2);

/// How far it came.
pub struct Shrunk {
    /// What is left.
    pub scenario: Scenario,
    /// How that ends.
    pub objection: Objection,
    /// Runs it took.
    pub runs: usize,
    /// Steps of the program that are left.
    pub steps: usize,
}

struct Shrinking<'a> {
    judge: &'static str,
    best: Scenario,
    objection: Objection,
    steps: usize,
    runs: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

/// Shrinks what a failed run did. `None` when the faults that landed do not make it fail again.
pub fn shrink(failed: &Outcome, progress: &mut dyn FnMut(usize, usize)) -> Option<Shrunk> {
    let objection = failed.objection.clone()?;
    let options = super::options::Options::draw(failed.seed, Some(failed.profile));
    let scenario = scenario::of(failed.seed, &options, failed.planned.clone());
    let mut shrinking =
        Shrinking { judge: objection.judge, best: scenario.clone(), objection, steps: 0, runs: 0, progress };
    if !shrinking.fails(scenario) {
        return None;
    }
    loop {
        let before = shrinking.best.clone();
        shrinking.fewer_faults();
        shrinking.shorter();
        shrinking.fewer_steps();
        shrinking.fewer_machines();
        if shrinking.best == before || shrinking.runs >= RUNS_MAX {
            break;
        }
    }
    let Shrinking { best, objection, runs, steps, .. } = shrinking;
    Some(Shrunk { scenario: best, objection, runs, steps })
}

impl Shrinking<'_> {
    /// Whether a smaller one still fails: then it is the best so far.
    fn fails(&mut self, scenario: Scenario) -> bool {
        if self.runs >= RUNS_MAX {
            return false;
        }
        self.runs += 1;
        let outcome = run_options(scenario::options(&scenario), false);
        let same = outcome.objection.filter(|objection| objection.judge == self.judge);
        let Some(objection) = same else { return false };
        (self.best, self.objection, self.steps) = (scenario, objection, outcome.steps);
        (self.progress)(self.runs, self.best.faults.len() + self.steps);
        true
    }

    /// Tries to go without ever smaller parts of a list.
    fn without_parts<T: Clone>(&mut self, all: Vec<T>, make: impl Fn(&Scenario, Vec<T>) -> Scenario) {
        let (mut left, mut parts) = (all, 2);
        while !left.is_empty() && parts <= left.len() * 2 {
            let size = left.len().div_ceil(parts).max(1);
            let mut smaller = None;
            for start in (0..left.len()).step_by(size) {
                let end = (start + size).min(left.len());
                let rest: Vec<T> = left[..start].iter().chain(&left[end..]).cloned().collect();
                let scenario = make(&self.best, rest.clone());
                if self.fails(scenario) {
                    smaller = Some(rest);
                    break;
                }
            }
            match smaller {
                Some(rest) => (left, parts) = (rest, parts.saturating_sub(1).max(2)),
                None if size == 1 => return,
                None => parts *= 2,
            }
        }
    }

    fn fewer_faults(&mut self) {
        self.without_parts(self.best.faults.clone(), |best, faults| Scenario { faults, ..best.clone() });
    }

    fn shorter(&mut self) {
        let mut ends = scenario::options(&self.best).faults_end;
        loop {
            ends /= 2;
            let last = self.best.faults.iter().map(Planned::at).max().unwrap_or_default();
            let ends_then = ends.max(last + Duration::from_millis(500)).max(ENDS_MIN);
            // Whole milliseconds are easier to read.
            let ends_then = Duration::from_millis(ends_then.as_millis() as u64);
            if ends_then >= scenario::options(&self.best).faults_end {
                return;
            }
            let scenario = Scenario { ends: Some(time_text(ends_then)), ..self.best.clone() };
            if !self.fails(scenario) {
                return;
            }
        }
    }

    fn fewer_steps(&mut self) {
        let gone = self.best.workload.without.clone();
        let there: Vec<usize> = (0..super::driver::steps(&scenario::options(&self.best))).collect();
        let kept: Vec<usize> = there.iter().copied().filter(|step| !gone.contains(step)).collect();
        self.without_parts(kept, |best, kept| {
            let mut scenario = best.clone();
            scenario.workload.without = there.iter().copied().filter(|step| !kept.contains(step)).collect();
            scenario
        });
    }

    fn fewer_machines(&mut self) {
        while let Some(nodes) = self.best.cluster.nodes.filter(|nodes| *nodes > 2) {
            let mut scenario = self.best.clone();
            scenario.cluster.nodes = Some(nodes - 1);
            if !self.fails(scenario) {
                break;
            }
        }
        for shards in [1, 2] {
            if self.best.cluster.shards.is_some_and(|now| now > shards) {
                let mut scenario = self.best.clone();
                scenario.cluster.shards = Some(shards);
                if self.fails(scenario) {
                    break;
                }
            }
        }
    }
}
