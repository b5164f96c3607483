//! The core simulation on fixed seeds: quick enough for every build.

use mobula_sim_tests::core::options::Profile;
use mobula_sim_tests::core::sometimes::Sometimes;
use mobula_sim_tests::core::{Outcome, run};

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
    let outcome = passes(11, Some(Profile::Calm));
    assert_eq!((outcome.landed(), outcome.deaths, outcome.runs.1), (0, 0, 0));
    assert_eq!(outcome.runs.0, outcome.tasks);
}

#[test]
fn one_seed_twice_is_one_trace() {
    let (first, second, other) = (run(5, None, false), run(5, None, true), run(6, None, false));
    assert_eq!((first.hash, first.events), (second.hash, second.events));
    assert_ne!(first.hash, other.hash);
}
