//! Removes a directory after its owner has ended, in whatever way: the janitor is a process that
//! waits for the end of its standard input, whose other end only the owner holds.

use crate::exit::Outcome;
use crate::{cluster::spawner, exit};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// How often removal is tried: killed processes may still be writing for a moment.
const TRIES: u32 = 200;

/// A janitor at work.
#[derive(Debug)]
pub struct Janitor(Child);

impl Janitor {
    /// Employs one for `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(dir: &Path) -> io::Result<Janitor> {
        let mut command = spawner::this_program();
        command.arg("janitor").arg("--dir").arg(dir);
        // Outside the terminal's foreground group: Ctrl-C must not reach it.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        spawner::spawn(command).map(Janitor)
    }

    /// Has the directory removed now, and waits for it.
    pub fn finish(mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The janitor's own process.
pub fn run(dir: &Path) -> Outcome {
    // An interrupted or failed read is the end, too.
    let mut ignored = Vec::new();
    let _ = io::stdin().read_to_end(&mut ignored);
    if remove(dir) { Ok(exit::OK) } else { Err(format!("cannot remove {}", dir.display()).into()) }
}

fn remove(dir: &Path) -> bool {
    for _ in 0..TRIES {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(25))
            }
            _ => return true,
        }
    }
    false
}

/// A fresh directory for a cluster of this process.
///
/// # Errors
/// The temporary directory is not writable.
pub fn fresh_dir() -> io::Result<PathBuf> {
    let temp = std::env::temp_dir();
    for number in 0.. {
        let dir = temp.join(format!("mobula-{}-{number}", std::process::id()));
        match std::fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            // Kept by an earlier process with our pid.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    unreachable!("the numbers do not end")
}
