//! The command line as its users meet it: real processes, real signals, real exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

fn mobula(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mobula"));
    command.args(args);
    for variable in ["MOBULA_ADDRESS", "MOBULA_CONFIG", "MOBULA_DATA_DIR", "MOBULA_SOCKET"] {
        command.env_remove(variable);
    }
    command
}

fn run(args: &[&str]) -> Output {
    mobula(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mobula-cli-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a scratch directory");
        Scratch(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Text files of about 3 MB, some of them near-duplicates.
fn write_input(dir: &Path) {
    fs::create_dir_all(dir).expect("writable");
    for number in 0..60u64 {
        // Every third file is its predecessor with a few lines changed.
        let seed = if number % 3 == 2 { number - 1 } else { number };
        let mut text = String::new();
        for line in 0..1500u64 {
            let changed = if seed != number && line % 90 == 0 { number } else { 0 };
            let word = (seed * 7919 + line * 104_729 + changed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            text.push_str(&format!("let w{word} = f{}({line});\n", word % 977));
        }
        fs::write(dir.join(format!("file{number:02}.txt")), text).expect("writable");
    }
}

/// Processes of this binary that name `pid` as the one they must not outlive.
fn children_of(pid: u32) -> Vec<String> {
    let marks = [format!("--die-with-parent\0{pid}\0"), format!("mobula-{pid}-")];
    let entries = fs::read_dir("/proc").expect("Linux");
    let lines = entries.flatten().filter_map(|e| fs::read_to_string(e.path().join("cmdline")).ok());
    lines.filter(|line| marks.iter().any(|mark| line.contains(mark))).collect()
}

fn wait(mut child: Child) -> std::process::ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("still running after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_job_survives_a_head_and_a_node_and_gives_the_reference_s_answer() {
    let scratch = Scratch::new("demo");
    let (input, report) = (scratch.path("input"), scratch.path("report.json"));
    write_input(Path::new(&input));
    let args =
        ["demo", "--input", &input, "--kill", "head:1@30%", "--kill", "node:2@56%", "--report", &report];
    let output = run(&args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    assert!(
        out.contains("killed head 1") && out.contains("killed node 2") && out.contains("passed"),
        "{out}"
    );
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
    assert_eq!(report["passed"], true);
    assert_eq!(report["hash"], report["reference_hash"]);
    assert_eq!(report["audit"]["lost"], 0);
    assert_eq!(report["faults"].as_array().map(Vec::len), Some(2));
    assert!(report["matches"].as_u64() >= Some(20), "every third file was planted: {}", report["matches"]);
}

#[test]
fn an_ended_demo_leaves_nothing_behind() {
    let scratch = Scratch::new("ended");
    let input = scratch.path("input");
    write_input(Path::new(&input));
    for (signal, expected, grace_ms) in [("INT", Some(130), 0), ("TERM", Some(143), 0), ("KILL", None, 3000)]
    {
        let child =
            mobula(&["demo", "--input", &input]).stdout(Stdio::null()).spawn().expect("the binary runs");
        let pid = child.id();
        let until = Instant::now() + PATIENCE;
        while children_of(pid).len() < 7 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let killed =
            Command::new("kill").args(["-s", signal, &pid.to_string()]).status().expect("kill is everywhere");
        assert!(killed.success());
        assert_eq!(wait(child).code(), expected, "{signal}");
        // Only after SIGKILL is there nobody left to wait for.
        let until = Instant::now() + Duration::from_millis(grace_ms);
        while !children_of(pid).is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(children_of(pid), [""; 0], "{signal}");
        let dir = std::env::temp_dir().join(format!("mobula-{pid}-0"));
        assert!(!dir.exists(), "{signal}: {} is left", dir.display());
    }
}

#[test]
fn a_closed_standard_output_ends_the_demo_quietly() {
    let mut child = mobula(&["demo", "--no-kill"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(141), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_daemon_is_started_looked_at_and_stopped() {
    let scratch = Scratch::new("start");
    let dir = scratch.path("data");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let start = ["start", "--head", "--listen", &address, "--cpus", "1", "--data-dir", &dir];

    let taken = run(&start);
    assert_eq!(taken.status.code(), Some(1), "the port is ours");
    assert!(text(&taken.stderr).contains(&address), "{}", text(&taken.stderr));
    drop(listener);

    let started = run(&start);
    assert!(started.status.success(), "{}", text(&started.stderr));
    let again = run(&start);
    assert!(text(&again.stderr).contains("already runs"), "{}", text(&again.stderr));
    let until = Instant::now() + PATIENCE;
    let mut status = run(&["status", "--data-dir", &dir]);
    while status.status.code() != Some(0) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        status = run(&["status", "--data-dir", &dir]);
    }
    assert_eq!(text(&status.stdout).lines().next(), Some("healthy"));
    let json = run(&["status", "--json", "--data-dir", &dir]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("only JSON on standard output");
    assert_eq!(json["health"], "healthy");

    let input = scratch.path("input");
    write_input(Path::new(&input));
    let job = run(&["run", "example:neardup", "--data-dir", &dir, "--", "--input", &input]);
    assert!(job.status.success(), "{}", text(&job.stderr));

    let stopped = run(&["stop", "--data-dir", &dir]);
    assert!(text(&stopped.stdout).starts_with("stopped pid"), "{}", text(&stopped.stdout));
    let gone = run(&["status", "--address", &address, "--data-dir", &dir]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(text(&gone.stdout).starts_with("unavailable"));
    assert!(text(&run(&["stop", "--data-dir", &dir]).stdout).starts_with("nothing to stop"));
}

#[test]
fn wrong_usage_is_64_and_says_what_to_do() {
    let scratch = Scratch::new("usage");
    let config = scratch.path("mobula.toml");
    fs::write(&config, "adress = \"a:1\"\n").expect("writable");
    for (args, says) in [
        (&["demo", "--fast"][..], "--fast"),
        (&["demo", "--heads", "1"][..], "--heads 3"),
        (&["demo", "--heads", "4"][..], "odd"),
        (&["demo", "--shards", "0"][..], "--shards 1"),
        (&["demo", "--kill", "node:1@50%"][..], "driver"),
        (&["demo", "--kill", "head:1"][..], "head:NUMBER@PERCENT%"),
        (&["demo", "--input", "/nonexistent"][..], "--input"),
        (&["start"][..], "--head"),
        (&["experiment", "tomorrow"][..], "not there yet"),
        (&["chaos", "suite"][..], "<SUITE>"),
        (&["run", "--detach", "true"][..], "not there yet"),
        (&["run", "example:nothing"][..], "example:neardup"),
        (&["bench", "everything"][..], "micro and transfer"),
        (&["status", "--config", &config][..], "adress"),
        (&["status", "--address", "nowhere"][..], "host:port"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn too_few_open_files_are_refused() {
    let script = format!("ulimit -n 64; exec {} demo --no-kill", env!("CARGO_BIN_EXE_mobula"));
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ulimit -n"), "{}", text(&output.stderr));
}
