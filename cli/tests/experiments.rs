//! Experiments at their smallest: what they print can be read, and every value is right. No figure is looked at: this
//! machine may have other things to do.

use serde_json::Value;
use std::process::Command;

/// Passed, or a figure was missed.
const SAFE: [i32; 2] = [0, 6];

/// Runs an experiment with small sizes; its report, once its exit code says that nothing was wrong.
fn report(name: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_mobula"))
        .args(["experiment", name, "--quick", "--repeats", "1", "--json"])
        .output()
        .expect("the binary runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| SAFE.contains(&code)), "{}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).expect("one document of JSON and nothing else")
}

/// What all reports have in common.
fn check(report: &Value, name: &str) {
    assert_eq!(report["experiment"], name);
    assert_eq!(report["wrong"], Value::Array(Vec::new()), "every value is right");
    assert!(report["what"].is_string() && report["passed"].is_boolean(), "{report}");
    let figures = report["figures"].as_array().expect("figures");
    assert!(
        figures.iter().any(|figure| figure["met"].is_boolean()),
        "something is asked of one: {figures:?}"
    );
    assert!(figures.iter().all(|figure| figure["value"].is_number()), "{figures:?}");
    let rows = report["rows"].as_array().expect("rows");
    assert!(!rows.is_empty() && rows.iter().all(Value::is_object), "{rows:?}");
}

fn figure<'a>(report: &'a Value, name: &str) -> &'a Value {
    let figures = report["figures"].as_array().expect("figures");
    figures.iter().find(|figure| figure["name"] == name).unwrap_or_else(|| panic!("no {name} in {figures:?}"))
}

#[test]
fn chains_go_on_while_nodes_are_killed() {
    let report = report("reconstruction");
    check(&report, "reconstruction");
    assert_eq!(figure(&report, "of them, that need not have")["value"], 0.0);
    assert!(
        figure(&report, "chains, all of them checked")["value"].as_f64().is_some_and(|count| count > 0.0)
    );
}

#[test]
fn rollouts_end_with_a_barrier_and_without() {
    let report = report("simulation");
    check(&report, "simulation");
    let row = &report["rows"][0];
    assert!(row["barrier steps/s"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
}

#[test]
fn all_are_listed() {
    let output = Command::new(env!("CARGO_BIN_EXE_mobula"))
        .args(["experiment", "list", "--json"])
        .output()
        .expect("the binary runs");
    let names: Vec<String> = serde_json::from_slice(&output.stdout).expect("names");
    assert!(
        ["failover", "reconstruction", "stash", "complaints"]
            .iter()
            .all(|name| names.contains(&(*name).into()))
    );
}
