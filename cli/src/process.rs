//! Processes by pid *and* start time: a pid alone may be somebody else's by now.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// One process, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since the machine booted.
    pub started_ticks: u64,
}

impl Process {
    /// This process.
    pub fn current() -> Process {
        Process::of(std::process::id()).expect("a running process is in /proc")
    }

    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<Process> {
        Some(Process { pid, started_ticks: stat(pid)?.started_ticks })
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|s| s.started_ticks == self.started_ticks && s.state != 'Z')
    }

    /// Sends a signal, if it still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may end between the check and the signal; then there is nothing to do.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has ended, at most `patience`. Whether it has.
    pub fn wait_end(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Processor time it has used, user and system; 0 when it is gone.
    pub fn cpu_time(self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name in parentheses may contain anything; utime and stime are fields 14 and 15.
        let after = text.rsplit_once(')').map_or("", |(_, after)| after);
        let ticks: u64 =
            after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Its resident memory in bytes; 0 when it is gone.
    pub fn resident_bytes(self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }

    /// The processes it started that still run.
    pub fn children(self) -> Vec<Process> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|pid| stat(pid).filter(|s| s.parent == self.pid).map(|s| (pid, s.started_ticks)))
            .map(|(pid, started_ticks)| Process { pid, started_ticks })
            .collect()
    }
}

struct Stat {
    state: char,
    parent: u32,
    started_ticks: u64,
}

/// Fields 3, 4 and 22 of `/proc/PID/stat`. The name before them may contain anything, so they
/// are counted from its closing parenthesis.
fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, started_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_is_another_process() {
        let me = Process::current();
        assert!(me.is_alive());
        assert!(me.resident_bytes() > 100_000);
        let earlier = Process { started_ticks: me.started_ticks.wrapping_sub(1), ..me };
        assert!(!earlier.is_alive());
        // Must not reach us.
        earlier.signal(Signal::KILL);
    }

    #[test]
    fn a_child_is_seen_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is everywhere");
        let process = Process::of(child.id()).expect("it runs");
        assert!(Process::current().children().contains(&process));
        assert!(!process.wait_end(Duration::from_millis(10)));
        process.signal(Signal::KILL);
        assert!(process.wait_end(Duration::from_secs(5)), "a zombie has ended");
        child.wait().expect("our child");
        assert_eq!(Process::of(process.pid), None);
    }
}
