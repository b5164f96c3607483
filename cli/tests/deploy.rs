//! What lies in `deploy/` is checked by the tools it is meant for, where they are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").join("deploy")
}

/// Runs a tool; `None` and a printed reason where there is none.
fn tool(program: &str, args: &[&str], dir: &Path) -> Option<(bool, String)> {
    match Command::new(program).args(args).current_dir(dir).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
        }
        Err(error) => {
            println!("skipped: {program} cannot be run here: {error}");
            None
        }
    }
}

#[test]
fn the_units_are_valid() {
    let dir = std::env::temp_dir().join(format!("mobula-units-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("writable");
    for unit in ["mobula-head.service", "mobula-node.service"] {
        let text = fs::read_to_string(deploy().join("systemd").join(unit)).expect("it is there");
        assert!(text.contains("RestartPreventExitStatus=64"), "{unit}: a wrong configuration is not retried");
        // The program is installed on the machines it is meant for, not here.
        let text = text.replace("/usr/bin/mobula", env!("CARGO_BIN_EXE_mobula"));
        fs::write(dir.join(unit), text).expect("writable");
        if let Some((is_good, said)) =
            tool("systemd-analyze", &["verify", "--man=no", &format!("./{unit}")], &dir)
        {
            assert!(is_good && !said.contains(unit), "{unit}: {said}");
        }
    }
    fs::remove_dir_all(dir).expect("it was there");
}

#[test]
fn the_alerts_fire_when_they_should() {
    let dir = deploy().join("prometheus");
    for args in [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]] {
        if let Some((is_good, said)) = tool("promtool", &args, &dir) {
            assert!(is_good, "{said}");
        }
    }
}

#[test]
fn rules_and_dashboard_use_metrics_that_exist() {
    let source = |path: &str| fs::read_to_string(deploy().join(path)).expect("the sources are here");
    let source = source("../gcs/src/metrics.rs") + &source("../node/src/metrics.rs");
    let dashboard = fs::read_to_string(deploy().join("grafana/mobula.json")).expect("it is there");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(parsed["panels"].as_array().is_some_and(|panels| panels.len() > 5));
    let rules = fs::read_to_string(deploy().join("prometheus/rules.yml")).expect("it is there");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    for text in [dashboard, rules] {
        for rest in text.split("mobula_").skip(1) {
            let name = rest.split(|c| !is_name(c)).next().expect("there is a first part");
            let name = name.trim_end_matches("_total").trim_end_matches("_bucket");
            assert!(source.contains(&format!("\"{name}\"")), "no metric is called mobula_{name}");
        }
    }
}
