//! `mobula-sim`: the production code on a simulated network, disk and clock.
//!
//! One process runs one seed: task ids of tokio are process-global and decide the order in which a
//! crashing host drops its tasks. Nothing of the product depends on this crate.
//!
//! Read it in this order:
//!
//! - [`full`] — whole clusters: random programs, a swarm of faults, and what they come to.
//! - [`judge`] — what must hold, a file each.
//! - [`store`] — the control store alone: its own clients, faults and planted bugs.
//! - [`mobula_sim_tests::mutants`] — bugs planted in the product, and who finds them.
//! - [`net`] — the simulated network.
//! - [`clock`] — no wall clock, not even below the seams.
//! - [`trace`] — what happened, event by event; two runs of a seed must agree.

#[cfg(not(tokio_unstable))]
compile_error!(
    "mobula-sim needs RUSTFLAGS='--cfg tokio_unstable' (else the runtime's dice are not seeded); \
     use `mobula sim` or `cargo test -p mobula-sim-tests`, which set it"
);

/// Half of what the simulator does is to allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod clock;
mod command;
mod full;
mod judge;
mod net;
mod replicas;
mod store;
mod trace;

fn main() -> std::process::ExitCode {
    command::main()
}
