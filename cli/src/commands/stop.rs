//! `mobula stop`: ends what this data directory started, and nothing else.

use crate::config::Settings;
use crate::datadir::DataDir;
use crate::exit::{self, Outcome};
use crate::say;
use rustix::process::Signal;
use std::time::Duration;

/// How long a daemon may take to stop in order.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops the daemon. Without one there is nothing to do, which is fine.
pub fn run(settings: &Settings) -> Outcome {
    let dir = DataDir(settings.data_dir.clone());
    let shown = dir.0.display();
    let Some(process) = dir.running() else {
        if dir.process().exists() {
            say!(settings.output, "nothing to stop: what was started from {shown} has ended already");
        } else {
            say!(settings.output, "nothing to stop: no daemon was started from {shown}");
        }
        return Ok(exit::OK);
    };
    process.signal(Signal::TERM);
    if process.wait_end(PATIENCE) {
        say!(settings.output, "stopped pid {}", process.pid);
        return Ok(exit::OK);
    }
    process.signal(Signal::KILL);
    if process.wait_end(PATIENCE) {
        let seconds = PATIENCE.as_secs();
        say!(
            settings.output,
            "killed pid {}: it did not stop within {seconds} s; see {}",
            process.pid,
            dir.log().display()
        );
        return Ok(exit::OK);
    }
    Err(format!(
        "pid {} does not end even after SIGKILL; it may hang in the kernel, see {}",
        process.pid,
        dir.log().display()
    )
    .into())
}
