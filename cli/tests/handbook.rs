//! The operator's handbook shows what really happens: its console blocks are run, in order, in one
//! shell session, and what they print is compared with what stands there.
//!
//! In expected output numbers and white space do not count, a line `...` stands for any lines,
//! `...` inside a line for any text. A command must succeed unless `(exit code N)` ends its output.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// The whole handbook must be through by then.
const PATIENCE: Duration = Duration::from_secs(300);

/// One command and what the page says about it.
#[derive(Debug, PartialEq)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    code: i32,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(page.lines()) {
        if line.starts_with("```") {
            inside = !inside && line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: number, command: command.into(), expected: Vec::new(), code: 0 });
        } else if inside {
            let step = steps.last_mut().expect("a block starts with a command");
            let code = line.strip_prefix("(exit code ").and_then(|rest| rest.strip_suffix(')'));
            match code {
                Some(code) => step.code = code.parse().expect("a number"),
                None => step.expected.push(line.to_owned()),
            }
        }
    }
    steps
}

/// A line without what may differ: numbers, and how much white space there is.
fn plain(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let is_id = word.len() >= 16 && word.chars().all(|c| c.is_ascii_hexdigit());
        if is_id { "#".to_owned() } else { numbers(word) }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn numbers(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    out.replace("#.#", "#").replace("#.#", "#")
}

/// Whether `line` is `pattern`, in which `...` stands for anything.
fn fits(pattern: &str, line: &str) -> bool {
    let (pattern, line) = (plain(pattern), plain(line));
    let mut rest = line.as_str();
    let parts: Vec<&str> = pattern.split("...").collect();
    for (place, part) in parts.iter().enumerate() {
        let is_last = place + 1 == parts.len();
        let found = match place {
            0 if !rest.starts_with(part) => None,
            0 => Some(0),
            _ if is_last && !part.is_empty() => rest.ends_with(part).then(|| rest.len() - part.len()),
            _ => rest.find(part),
        };
        let Some(at) = found else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || pattern.ends_with("...")
}

/// Whether the lines are as expected; a pattern `...` alone stands for any number of them.
fn agree(expected: &[String], printed: &[&str]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any.trim() == "..." => {
            (0..=printed.len()).any(|skipped| agree(rest, &printed[skipped..]))
        }
        Some((pattern, rest)) => {
            printed.first().is_some_and(|line| fits(pattern, line)) && agree(rest, &printed[1..])
        }
    }
}

/// Where the session runs. What it started ends with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.path().join("daemon.pid").exists() {
                let stop = Command::new(env!("CARGO_BIN_EXE_mobula"))
                    .args(["stop", "--data-dir"])
                    .arg(entry.path())
                    .stdout(Stdio::null())
                    .status();
                // Nothing more can be done about one that does not stop.
                drop(stop);
            }
        }
        fs::remove_dir_all(&self.0).ok();
    }
}

/// As many ports as asked for that nobody uses, below the range of outgoing connections.
fn free_ports(count: usize) -> Vec<u16> {
    let start = 10_000 + (std::process::id() % 200) as u16 * 100;
    let free = (start..).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.take(count).collect()
}

#[test]
fn the_handbook_does_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let page = fs::read_to_string(root.join("docs/operations.md")).expect("there is a handbook");
    let steps = steps(&page);
    assert!(steps.len() > 10, "the handbook has lost its examples");
    let scratch = Scratch(std::env::temp_dir().join(format!("mobula-handbook-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).expect("writable");
    // The page's ports stand for ports that are free here.
    let ports = free_ports(10);
    let with_ports = |text: &str| {
        (0..10).fold(text.to_owned(), |text, n| text.replace(&format!(":638{n}"), &format!(":{}", ports[n])))
    };
    let mut script = String::new();
    for (number, step) in steps.iter().enumerate() {
        let command = with_ports(&step.command);
        script += &format!("echo '@@@ begin {number}'\n{{ {command}\n}} 2>&1 </dev/null\n");
        script += &format!("echo \"@@@ end {number} $?\"\n");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_mobula")).parent().expect("it lies somewhere");
    let path = std::env::var("PATH").expect("there is a PATH");
    let mut session = Command::new("bash");
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("MOBULA_") {
            session.env_remove(variable);
        }
    }
    let mut session = session
        .args(["-c", &script])
        .current_dir(&scratch.0)
        .env("HOME", &scratch.0)
        .env("PATH", format!("{}:{path}", binary.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a bash");
    let out = BufReader::new(session.stdout.take().expect("piped"));
    let (told, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || out.split(b'\n').map_while(Result::ok).try_for_each(|line| told.send(line)));
    let (until, mut printed) = (Instant::now() + PATIENCE, String::new());
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => printed.extend([&*String::from_utf8_lossy(&line), "\n"]),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                session.kill().ok();
                let begun =
                    printed.rsplit("@@@ begin ").next().and_then(|rest| rest.lines().next()?.parse().ok());
                let step = begun.and_then(|number: usize| steps.get(number));
                let at =
                    step.map_or(String::new(), |step| format!("; line {}: $ {}", step.line, step.command));
                panic!("the handbook's session does not end within {PATIENCE:?}{at}");
            }
        }
    }
    session.wait().expect("it has ended");
    let mut wrong = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let begin = format!("@@@ begin {number}\n");
        let end = format!("@@@ end {number} ");
        let rest = printed.split_once(&begin).map_or("", |(_, rest)| rest);
        let Some((said, rest)) = rest.split_once(&end) else {
            wrong.push(format!("line {}: {} did not end", step.line, step.command));
            break;
        };
        let code: i32 = rest.lines().next().and_then(|code| code.parse().ok()).expect("an exit code");
        let lines: Vec<&str> = said.lines().collect();
        if code != step.code || !agree(&step.expected, &lines) {
            wrong.push(format!(
                "line {}: $ {}\nexit code {code}, expected {}\n--- printed\n{said}--- expected\n{}",
                step.line,
                step.command,
                step.code,
                step.expected.join("\n")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn the_comparison_can_fail() {
    let page = "text\n```console\n$ a b\nout 1\n(exit code 2)\n$ c\n```\n```toml\n$ d\n```\n";
    let found = steps(page);
    assert_eq!(
        found.iter().map(|step| (step.command.as_str(), step.code)).collect::<Vec<_>>(),
        [("a b", 2), ("c", 0)]
    );
    for (pattern, line) in
        [("pid 12", "pid  7"), ("a ... c", "a b b c"), ("1.5 MB", "20.75 MB"), ("x...", "xyz")]
    {
        assert!(fits(pattern, line), "{pattern} | {line}");
    }
    for (pattern, line) in [("pid 12", "pid x"), ("a ... c", "a b"), ("a", "ab"), ("healthy", "unhealthy")] {
        assert!(!fits(pattern, line), "{pattern} | {line}");
    }
    let expected = ["one".to_owned(), "...".into(), "end".into()];
    assert!(agree(&expected, &["one", "two", "three", "end"]) && agree(&expected, &["one", "end"]));
    assert!(!agree(&expected, &["one", "two"]) && !agree(&expected, &["end"]));
}
