//! Chaos on real processes: short runs pass their judges, what is wrong or missing shows in the exit code, and what is
//! injected into a running daemon is undone whatever becomes of the command.

use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

fn mobula(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mobula"));
    command.args(args);
    for variable in ["MOBULA_ADDRESS", "MOBULA_CONFIG", "MOBULA_DATA_DIR", "MOBULA_SOCKET", "MOBULA_TOKEN"] {
        command.env_remove(variable);
    }
    command
}

fn code_of(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

/// Runs chaos; the first report. Its exit code must be this.
fn chaos(args: &[&str], code: i32) -> Value {
    let output = mobula(&[&["chaos", "run"], args, &["--json"]].concat()).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code_of(&output), code, "{args:?}: {said}");
    let reports: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {said}"));
    reports[0].clone()
}

fn installed(report: &Value, kind: &str) -> usize {
    let faults = report["faults"].as_array().expect("a list of faults");
    let is_it = |fault: &&Value| fault["kind"] == kind && fault["outcome"] == "installed";
    faults.iter().filter(is_it).count()
}

fn judged<'a>(report: &'a Value, judge: &str) -> &'a Value {
    let judged = report["judged"].as_array().expect("a list of judges");
    judged.iter().find(|judged| judged["judge"] == judge).unwrap_or_else(|| panic!("no {judge}: {report:#}"))
}

/// A directory of a test's own, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mobula-chaos-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("writable");
        Dir(dir)
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).expect("writable");
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_program_survives_a_leader_a_node_and_a_worker_and_the_log_tells_of_them() {
    let dir = Dir::new("program");
    let scenario = dir.file(
        "scenario.toml",
        r#"
schema = 1
name = "a leader, a node, workers"
seed = 2
ends = "6s"
[[fault]]
at = "1s"
do = "head-crash"
target = "leader"
for = "300ms"
[[fault]]
at = "2s"
do = "crash"
target = "holder"
for = "500ms"
[[fault]]
at = "2500ms"
every = "500ms"
do = "kill-worker"
"#,
    );
    let (page, junit) = (dir.path("page.html"), dir.path("junit.xml"));
    let report = chaos(&[&scenario, "--html", &page, "--junit", &junit], 0);
    assert_eq!((installed(&report, "head-crash"), installed(&report, "crash")), (1, 1), "{report:#}");
    assert!(installed(&report, "kill-worker") >= 3, "{report:#}");
    for judge in ["value", "durable", "whole", "digest"] {
        assert!(
            judged(&report, judge)["checked"].as_u64() > Some(0),
            "{judge} looked at nothing: {report:#}"
        );
    }
    assert_eq!(judged(&report, "told")["checked"], 2, "{report:#}");
    let told = |kind: &str| {
        let faults = report["faults"].as_array().expect("a list");
        let fault = faults.iter().find(|fault| fault["kind"] == kind).expect("it was installed");
        fault["told"][0].as_str().unwrap_or_default().to_owned()
    };
    assert!(told("crash").contains("declared dead"), "{report:#}");
    assert!(told("head-crash").starts_with("shard "), "{report:#}");
    let page = fs::read_to_string(page).expect("the page was asked for");
    assert!(page.contains("1 of 1 passed") && page.contains("head 3") && page.contains("node 4"), "{page}");
    let junit = fs::read_to_string(junit).expect("it was asked for");
    assert!(junit.contains("tests=\"1\" failures=\"0\""), "{junit}");
}

#[test]
fn members_that_are_cut_off_late_or_stand_still_cost_no_answer() {
    let dir = Dir::new("network");
    let scenario = dir.file(
        "scenario.toml",
        r#"
schema = 1
name = "the network, and members that stand still"
seed = 3
ends = "8s"
[cluster]
nodes = 4
[workload]
kind = "tasks"
[[fault]]
at = "1s"
do = "head-cut"
for = "1s"
[[fault]]
at = "2500ms"
do = "node-cut"
for = "1s"
[[fault]]
at = "3s"
do = "delay"
machine = 0
for = "1s"
[[fault]]
at = "4s"
do = "head-pause"
target = "leader"
for = "1s"
[[fault]]
at = "4500ms"
do = "pause"
for = "1s"
[[fault]]
at = "6s"
do = "requests"
for = "1s"
[[fault]]
at = "6500ms"
do = "leader-change"
"#,
    );
    let report = chaos(&[&scenario], 0);
    for kind in ["head-cut", "node-cut", "delay", "head-pause", "pause", "requests"] {
        assert_eq!(installed(&report, kind), 1, "{kind}: {report:#}");
    }
    assert!(report["values"].as_u64() > Some(100), "{report:#}");
}

#[test]
fn what_is_late_or_shows_nothing_does_not_pass() {
    let dir = Dir::new("verdicts");
    let text = |fault: &str, expect: &str| {
        format!(
            "schema = 1\nname = \"n\"\nseed = 1\nends = \"2s\"\n[cluster]\nnodes = 2\n[workload]\nkind = \"writes\"\n\
             [[fault]]\nat = \"1s\"\n{fault}\n[expect]\n{expect}\n"
        )
    };
    let late = dir.file("late.toml", &text("do = \"head-crash\"\ntarget = \"leader\"", "stall = \"1us\""));
    let report = chaos(&[&late], 6);
    assert_eq!(report["verdict"], "figure");
    // The driver's node is left alone.
    let idle = dir.file("idle.toml", &text("do = \"crash\"\nmachine = 0", ""));
    let report = chaos(&[&idle], 2);
    assert_eq!((report["verdict"].as_str(), installed(&report, "crash")), (Some("unknown"), 0));
    assert!(
        judged(&report, "coverage")["objection"].as_str().expect("why").contains("left alone"),
        "{report:#}"
    );
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_starts() {
    let dir = Dir::new("refused");
    let core = "schema = 1\nlayers = [\"core\"]\nseed = 1\n[[fault]]\nat = \"1s\"\ndo = \"rot\"\n";
    let core = dir.file("core.toml", core);
    let typing = dir.file("typing.toml", "schema = 1\nseed = 1\n[[fault]]\nat = \"1s\"\ndo = \"cras\"\n");
    for (args, why) in [
        (vec!["run", "nothing-like-this"], "no built-in scenario"),
        (vec!["run", core.as_str()], "not meant for the layer real"),
        (vec!["run", typing.as_str()], "cras"),
        (vec!["run", "heads", "--workload", "reads"], "no workload"),
        (vec!["run", "heads", "--ends", "0s"], "ends"),
        (vec!["run", "heads", "--repeat", "0"], "--repeat"),
        (vec!["suite", "nothing-like-this"], "no built-in suite"),
        (vec!["inject", "rain"], "no daemon runs"),
    ] {
        let args: Vec<&str> = ["chaos"].into_iter().chain(args).collect();
        let output = mobula(&args).env("MOBULA_DATA_DIR", &dir.0).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let code = if why == "no daemon runs" { 1 } else { 64 };
        assert!(code_of(&output) == code && said.contains(why), "{args:?}: {said}");
    }
}

#[test]
fn a_dry_run_says_the_same_each_time() {
    let dry =
        || mobula(&["chaos", "run", "swarm", "--dry-run", "--seed", "5"]).output().expect("the binary runs");
    let (first, second) = (dry(), dry());
    assert_eq!(code_of(&first), 0);
    assert_eq!(first.stdout, second.stdout);
    assert!(String::from_utf8_lossy(&first.stdout).contains("head-crash"));
}

/// A head that runs by itself, ended with the test.
struct Head {
    dir: Dir,
    pid: u32,
}

impl Head {
    fn start(name: &str) -> Self {
        let dir = Dir::new(name);
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let address = format!("127.0.0.1:{port}");
        let args = ["start", "--head", "--cpus", "0", "--listen", &address, "--data-dir", &dir.path("d")];
        let output = mobula(&args).output().expect("the binary runs");
        assert_eq!(code_of(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let ready: Value =
            serde_json::from_slice(&fs::read(dir.0.join("d/ready.json")).expect("it serves")).expect("JSON");
        let pid = ready["process"]["pid"].as_u64().expect("a pid") as u32;
        Head { dir, pid }
    }

    fn chaos(&self, args: &[&str]) -> Command {
        let mut command = mobula(&[&["chaos"], args].concat());
        command.env("MOBULA_DATA_DIR", self.dir.path("d"));
        command
    }

    fn state(&self) -> char {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("it runs");
        text.rsplit_once(')').expect("a name").1.trim().chars().next().expect("a state")
    }

    fn until(&self, what: &str, is_so: impl Fn(char) -> bool) {
        let since = Instant::now();
        while !is_so(self.state()) {
            assert!(since.elapsed() < PATIENCE, "the head is not {what}: {}", self.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn records(&self) -> usize {
        fs::read_dir(self.dir.0.join("d/chaos")).map_or(0, Iterator::count)
    }

    fn stop_by(&self) -> Child {
        let child =
            self.chaos(&["inject", "stop", "--for", "10m"]).stdout(Stdio::null()).spawn().expect("it starts");
        self.until("stopped", |state| state == 'T');
        child
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        let _ = mobula(&["stop", "--data-dir", &self.dir.path("d")]).output();
    }
}

fn signal(child: &Child, name: &str) {
    let status =
        Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill is everywhere");
    assert!(status.success());
}

#[test]
fn what_was_injected_is_undone_by_time_by_interrupt_and_after_a_death() {
    let head = Head::start("inject");
    let output = head.chaos(&["inject", "stop", "--for", "300ms"]).output().expect("it runs");
    assert_eq!(code_of(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    head.until("running again", |state| state != 'T');

    let mut interrupted = head.stop_by();
    signal(&interrupted, "-INT");
    assert_eq!(interrupted.wait().expect("our child").code(), Some(130));
    head.until("running again", |state| state != 'T');
    assert_eq!(head.records(), 0);

    let mut killed = head.stop_by();
    signal(&killed, "-KILL");
    killed.wait().expect("our child");
    assert_eq!((head.state(), head.records()), ('T', 1), "nobody has undone it yet");
    let healed = head.chaos(&["heal", "--all"]).output().expect("it runs");
    assert_eq!(code_of(&healed), 0, "{}", String::from_utf8_lossy(&healed.stderr));
    head.until("running again", |state| state != 'T');
    assert_eq!(head.records(), 0);

    // Without a fault switch its network cannot be told.
    let refused = head.chaos(&["inject", "cut", "--for", "1s"]).output().expect("it runs");
    assert_eq!(code_of(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--fault-switch"));
    assert!(Path::new(&head.dir.path("d")).exists());
}
