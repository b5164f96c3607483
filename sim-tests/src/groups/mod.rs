//! Placement groups under all that may go wrong: real scheduler cores, the real tables of shard 0, the real next
//! step of its leader, and dice that choose what happens next.
//!
//! Between any two steps a coordinator may die (its successor knows the log and nothing else, and what was proposed
//! may still be committed or not), a node may die or fall behind, and what nodes and leader tell each other may be
//! lost, doubled or come late. Groups come and go, workers too, and tasks in groups and beside them take what there is.
//! After every step the ledger is checked; then all goes well, and what fits must be placed and every task must end;
//! at last the groups go, and nothing may be left of them.
//!
//! Read [`world`] (what there is), [`steps`] (what happens), [`judge`] (what must hold).

pub mod judge;
mod perform;
pub mod steps;
pub mod world;

use std::process::ExitCode;
use world::World;

/// Steps with faults in one run.
const STEPS: u64 = 600;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Groups that were asked for.
    pub groups: u64,
    /// Attempts that were committed, and given up.
    pub committed: u64,
    /// Given up by the leader, or over with a death.
    pub given_up: u64,
    /// Leaders of shard 0 that died.
    pub leaders: u64,
    /// Nodes that died.
    pub deaths: u64,
    /// Bundles that lost their place with a node.
    pub lost: u64,
    /// Messages that were lost or doubled.
    pub messages: u64,
    /// Tasks that ended with a value: in groups, and beside them.
    pub in_groups: u64,
    /// Beside them.
    pub beside: u64,
    /// Tasks that ended without one, since their group had gone or was too small.
    pub refused: u64,
    /// A hash over all that was done, to compare runs.
    pub fingerprint: u64,
}

/// Runs one seed and prints what it came to. The exit code is 1 when something did not hold.
pub fn command(seed: u64) -> ExitCode {
    let outcome = std::panic::catch_unwind(|| run(seed));
    let bug = match crate::mutants::reached() {
        Some(false) => ", the bug was not reached",
        Some(true) | None => "",
    };
    match outcome {
        Ok(tally) => {
            println!("seed {seed}: {tally:?}{bug}");
            ExitCode::SUCCESS
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            println!("seed {seed}: {}{bug}", text.unwrap_or_default());
            ExitCode::from(1)
        }
    }
}

/// Runs one seed.
///
/// # Panics
/// Something does not hold that must.
pub fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        world.check();
    }
    world.settle();
    world.check_settled();
    world.end();
    world.check_ended();
    world.tally
}
