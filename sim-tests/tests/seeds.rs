//! Simulated clusters, one process per seed.
//!
//! The simulator needs `--cfg tokio_unstable`, which would rebuild the whole product, so this test
//! builds it beside the product: own flags, own profile, own target directory. The first time
//! that takes some minutes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// Builds the simulator, once.
fn simulator() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = root().join("target/sim");
        let status = Command::new(env!("CARGO"))
            .current_dir(root())
            .args([
                "build",
                "--locked",
                "--quiet",
                "-p",
                "mobula-sim-tests",
                "--features",
                "simulation,mutants",
            ])
            .args(["--profile", "sim", "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", "--cfg tokio_unstable")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the simulator does not build");
        target.join("sim/mobula-sim")
    })
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(simulator()).args(arguments).output().expect("the simulator runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn random_programs_come_to_what_the_interpreter_knows_under_a_swarm_of_faults() {
    let output = sim(&["sweep", "--layer", "full", "--seeds", "1..8"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("8 passed, 0 failed"), "{}", text(&output));
}

#[test]
fn one_seed_twice_is_one_trace() {
    let output = sim(&["meta", "--layer", "full", "--seeds", "21..23"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output).lines().filter(|l| l.ends_with("twice")).count(), 3, "{}", text(&output));
}

#[test]
fn the_control_store_keeps_its_word_under_a_swarm_of_faults() {
    let output = sim(&["sweep", "--store", "--seeds", "1..3"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("3 passed, 0 failed"), "{}", text(&output));
}

#[test]
fn one_seed_of_the_control_store_twice_is_one_trace() {
    let output = sim(&["meta", "--store", "--seeds", "5"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).trim_end().ends_with("twice"), "{}", text(&output));
}

#[test]
fn planted_bugs_are_found() {
    for bug in ["take-any-disk", "ignore-failed-sync"] {
        let output = sim(&["plants", "--only", bug, "--max-seeds", "8"]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("Safety"), "{}", text(&output));
    }
}

#[test]
fn the_faults_land() {
    let file = std::env::temp_dir().join(format!("mobula-sim-trace-{}", std::process::id()));
    let output = sim(&["run", "--seed", "5", "--profile", "lite", "--trace", &file.display().to_string()]);
    let events = std::fs::read_to_string(&file).expect("the trace is there");
    let _ = std::fs::remove_file(&file);
    assert!(output.status.success(), "{}", text(&output));
    for fault in ["HeadKill", "NodeKill"] {
        assert!(events.contains(&format!("fault {fault}")), "{fault} did not land");
    }
    assert!(events.contains("healed"));
}

#[test]
fn wrong_usage_is_64() {
    assert_eq!(sim(&["run"]).status.code(), Some(64));
    assert_eq!(sim(&["sweep", "--seeds", "9..1"]).status.code(), Some(64));
}
