//! Seeds in fresh processes of this program.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// Runs this binary on one seed in a fresh process: its output line, or how it panicked, and its exit
/// code.
///
/// # Errors
/// It cannot be executed.
pub fn one(arguments: &[&str], seed: u64) -> Result<(String, i32), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(program)
        .args(arguments)
        .args(["--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    let mut text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let panic = errors.lines().skip_while(|line| !line.contains("panicked at")).take(2);
        text = format!("seed {seed}: {}", panic.collect::<Vec<_>>().join(" "));
    }
    // A shell's way to say that a signal ended it: a panic while another unwinds aborts.
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Ok((text, code))
}

/// The fingerprint in a run's line.
pub fn fingerprint(line: &str) -> &str {
    line.split_whitespace().skip_while(|w| *w != "trace").nth(1).unwrap_or("none")
}

/// Runs `job` for every seed on as many threads as there are processors, in order of seeds.
pub fn for_seeds<T: Send>(seeds: (u64, u64), job: impl Fn(u64) -> T + Sync) -> Vec<(u64, T)> {
    let next = std::sync::atomic::AtomicU64::new(seeds.0);
    let results = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed > seeds.1 {
                        return;
                    }
                    let result = job(seed);
                    results.lock().expect("jobs do not panic").push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("jobs do not panic");
    results.sort_by_key(|(seed, _)| *seed);
    results
}

/// What this program prints in a fresh process.
///
/// # Errors
/// It cannot be executed.
pub fn output(arguments: &[&str]) -> std::io::Result<Vec<u8>> {
    let program = std::env::current_exe()?;
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    Ok(run.stdout)
}
