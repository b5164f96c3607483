//! Placement groups under faults: `cargo test -p mobula-sim-tests --test groups -- --nocapture` prints what was done.

use mobula_sim_tests::groups::{Tally, run};

/// Seeds of one test run.
const SEEDS: u64 = 60;

#[test]
fn what_fits_is_placed_and_nothing_is_promised_twice_or_lost() {
    let mut all = Tally::default();
    for seed in 1..=SEEDS {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let tally = outcome.unwrap_or_else(|_| panic!("seed {seed} is red"));
        all.groups += tally.groups;
        all.committed += tally.committed;
        all.given_up += tally.given_up;
        all.leaders += tally.leaders;
        all.deaths += tally.deaths;
        all.lost += tally.lost;
        all.messages += tally.messages;
        all.in_groups += tally.in_groups;
        all.beside += tally.beside;
        all.refused += tally.refused;
    }
    println!("{SEEDS} seeds: {all:?}");
    // What is claimed to be survived has happened.
    let Tally {
        groups,
        committed,
        given_up,
        leaders,
        deaths,
        lost,
        messages,
        in_groups,
        beside,
        refused,
        ..
    } = all;
    let happened = [groups, committed, given_up, leaders, deaths, lost, messages, in_groups, beside, refused];
    assert!(happened.into_iter().all(|count| count >= SEEDS / 2), "{all:?}");
}

/// Many more, for whoever has changed something: with `--ignored`, in release.
#[test]
#[ignore = "takes minutes"]
fn many_seeds() {
    for seed in 1_000..5_000 {
        assert!(std::panic::catch_unwind(|| run(seed)).is_ok(), "seed {seed} is red");
    }
}

#[test]
fn a_seed_is_the_same_every_time() {
    assert_eq!(run(3), run(3));
}
