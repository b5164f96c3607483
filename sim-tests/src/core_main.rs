//! `mobula-sim-core`: the core simulation alone, built without the whole stack and its flags.

fn main() -> std::process::ExitCode {
    mobula_sim_tests::core::command::main()
}
