//! Heads that are killed, stopped and cut off for real. Figures are not judged here: other work on
//! the machine decides them. What must never happen is.

use serde_json::Value;
use std::process::Command;

/// Runs an experiment; its report. `codes` are the exit codes that are fine.
fn experiment(args: &[&str], codes: &[i32]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mobula"));
    command.arg("experiment").args(args).arg("--json");
    for variable in ["MOBULA_ADDRESS", "MOBULA_CONFIG", "MOBULA_DATA_DIR", "MOBULA_SOCKET"] {
        command.env_remove(variable);
    }
    let output = command.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().expect("it was not killed");
    assert!(codes.contains(&code), "{args:?}: exit code {code}\n{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: no JSON ({e})\n{said}"))
}

/// 0 passed, 6 safe but slower than asked.
const SAFE: [i32; 2] = [0, 6];

fn count(report: &Value, list: &str) -> Option<usize> {
    report[list].as_array().map(Vec::len)
}

fn assert_safe(report: &Value) {
    assert_eq!(
        (count(report, "writes_lost"), count(report, "writes_failed")),
        (Some(0), Some(0)),
        "{report:#}"
    );
    assert!(report["writes_acknowledged"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["false_alarms"], 0, "{report:#}");
}

#[test]
fn a_killed_leader_is_replaced_by_the_fast_alarm() {
    let report = experiment(&["failover", "--kills", "2"], &SAFE);
    assert_safe(&report);
    assert_eq!(report["noticed_ms"]["count"], 2, "somebody raised the alarm each time: {report:#}");
}

#[test]
fn a_stopped_leader_that_continues_neither_acknowledges_alone_nor_reads_stale() {
    let report = experiment(&["failover", "--kills", "1", "--how", "stop"], &SAFE);
    assert_safe(&report);
    assert_eq!(report["stopped_leaders"]["tried"], 1);
    assert_eq!(report["stopped_leaders"]["violations"], Value::Array(Vec::new()));
}

#[test]
fn a_leader_that_falls_silent_is_replaced_without_an_alarm() {
    let report = experiment(&["failover", "--kills", "1", "--how", "drop"], &SAFE);
    assert_safe(&report);
    assert_eq!(report["noticed_ms"]["count"], 0);
    assert_eq!(report["stopped_leaders"]["violations"], Value::Array(Vec::new()));
}

#[test]
fn killing_all_heads_at_once_loses_nothing_even_without_tables() {
    let report = experiment(&["crashes", "--kills", "2"], &[0]);
    assert_eq!((count(&report, "writes_lost"), report["tables_deleted"].as_u64()), (Some(0), Some(1)));
}

#[test]
fn tasks_in_flight_do_not_notice_dying_heads() {
    let report = experiment(&["head-kills", "--kills", "4"], &[0]);
    assert!(report["tasks"].as_u64() > Some(0));
    assert_eq!(report["workers_restarted"], 0);
}

#[test]
#[ignore = "minutes: the full number of kills"]
fn the_full_numbers() {
    let report = experiment(&["crashes", "--kills", "100"], &[0]);
    assert_eq!(count(&report, "writes_lost"), Some(0));
    let report = experiment(&["head-kills", "--kills", "219"], &[0]);
    assert_eq!(count(&report, "tasks_failed"), Some(0));
}
