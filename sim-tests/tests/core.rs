//! The core simulation on fixed seeds: quick enough for every build.

use mobula_sim_tests::core::options::{Options, Profile};
use mobula_sim_tests::core::report::html;
use mobula_sim_tests::core::scenario::{self, Scenario};
use mobula_sim_tests::core::sometimes::Sometimes;
use mobula_sim_tests::core::{Outcome, run, run_options};

fn passes(seed: u64, profile: Option<Profile>) -> Outcome {
    let outcome = run(seed, profile, false);
    assert_eq!(outcome.objection, None, "{}", outcome.replay());
    outcome
}

#[test]
fn programs_come_out_right_under_a_swarm_of_faults() {
    let mut reached = Sometimes::default();
    for seed in [2, 4, 5] {
        reached.merge(&passes(seed, None).sometimes);
    }
    for point in ["spilled over", "rebuilt", "attempt granted", "node back after its death"] {
        assert!(reached.hits(point) > 0, "{point} was not reached");
    }
}

#[test]
fn without_faults_nothing_fails_and_nothing_runs_twice() {
    // Of programs that do not ask for it themselves.
    let mut options = Options::draw(13, Some(Profile::Calm));
    let style = &mut options.style;
    (style.stumble_permille, style.poison_permille, style.hang_permille) = (0, 0, 0);
    (style.again_permille, style.limit_permille) = (0, 0);
    let outcome = run_options(options, false);
    assert_eq!(outcome.objection, None);
    assert_eq!((outcome.landed(), outcome.deaths, outcome.runs.1), (0, 0, 0));
    assert_eq!(outcome.runs.0, outcome.tasks);
}

#[test]
fn one_seed_twice_is_one_trace() {
    let (first, second, other) = (run(5, None, false), run(5, None, true), run(6, None, false));
    assert_eq!((first.hash, first.events), (second.hash, second.events));
    assert_ne!(first.hash, other.hash);
}

#[test]
fn a_seed_written_down_as_a_scenario_is_the_same_run() {
    let first = run(4, None, false);
    let options = Options::draw(4, Some(first.profile));
    let scenario = scenario::of(4, &options, first.planned.clone());
    let scenario = Scenario::parse(&scenario.to_text()).expect("it was written here");
    let second = run_options(scenario::options(&scenario), false);
    assert_eq!((first.hash, first.landed()), (second.hash, second.landed()));
    assert_eq!(first.steps, second.steps);
}

#[test]
fn a_scenario_without_steps_and_faults_ends_at_once_and_in_peace() {
    let first = run(4, None, false);
    let options = Options::draw(4, Some(first.profile));
    let mut scenario = scenario::of(4, &options, Vec::new());
    scenario.workload.without = (0..first.steps).collect();
    let outcome = run_options(scenario::options(&scenario), true);
    assert_eq!((outcome.objection.clone(), outcome.tasks, outcome.landed()), (None, 0, 0));
    let page = html(&outcome, &scenario::options(&scenario), outcome.lines.as_deref().unwrap_or_default());
    assert!(page.contains("pass") && page.contains("machine 0") && page.contains("shard 0"));
}
