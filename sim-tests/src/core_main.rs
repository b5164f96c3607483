//! `mobula-sim-core`: the core simulation alone, built without the whole stack and its flags.

/// A run is many small events: a fifth of its time would go to the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    mobula_sim_tests::core::command::main()
}
