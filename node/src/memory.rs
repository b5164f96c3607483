//! How much memory there is, and who has it.

use crate::daemon::Life;
use crate::input::{Inbox, Input};
use mobula_scheduler::Event;
use mobula_scheduler::memory::Measured;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often memory is measured: as often as Ray's memory monitor does.
const MEASURED_EVERY: Duration = Duration::from_millis(250);
/// Of its machine's memory, and of its control group's, a node uses this part before it ends workers.
pub const MEMORY_FULL: f64 = 0.95;
/// Where control groups (version 2) are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Measures memory. Where processes are simulated nobody does.
pub trait Memory: Send + Sync {
    /// Bytes that a process has for itself; `None`: it is gone.
    fn of_process(&self, pid: u32) -> Option<u64>;
    /// Bytes in use and bytes there are: of the machine, and of each control group that bounds this process.
    fn rooms(&self) -> Vec<(u64, u64)>;
}

/// As Linux tells it.
pub struct LinuxMemory {
    page: u64,
    /// The control groups that this process is in, the innermost first.
    groups: Vec<PathBuf>,
}

impl LinuxMemory {
    /// Of this machine.
    pub fn new() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        LinuxMemory { page: rustix::param::page_size() as u64, groups: groups(&own) }
    }
}

impl Default for LinuxMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory for LinuxMemory {
    fn of_process(&self, pid: u32) -> Option<u64> {
        Some(own_pages(&fs::read_to_string(format!("/proc/{pid}/statm")).ok()?)? * self.page)
    }

    fn rooms(&self) -> Vec<(u64, u64)> {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|info| of_machine(&info));
        let group = |path: &PathBuf| {
            let read = |name: &str| fs::read_to_string(path.join(name)).ok();
            of_group(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
        };
        machine.into_iter().chain(self.groups.iter().filter_map(group)).collect()
    }
}

/// The groups of version 2 that `/proc/self/cgroup` names.
fn groups(own: &str) -> Vec<PathBuf> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let mut groups: Vec<PathBuf> =
        Path::new(path).ancestors().map(|group| Path::new(CGROUPS).join(group)).collect();
    groups.dedup();
    groups
}

/// Resident pages without those that others share, of `/proc/PID/statm`.
fn own_pages(statm: &str) -> Option<u64> {
    let mut fields = statm.split_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared))
}

/// What of `/proc/meminfo` is in use, and all there is.
fn of_machine(info: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let text = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let (total, available) = (field("MemTotal")?, field("MemAvailable")?);
    Some((total.saturating_sub(available) * 1024, total * 1024))
}

/// The same of a control group, if it has a limit. Pages of files that can be read again are not in use.
fn of_group(max: &str, current: &str, stat: &str) -> Option<(u64, u64)> {
    let (max, current): (u64, u64) = (max.trim().parse().ok()?, current.trim().parse().ok()?);
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some((current.saturating_sub(cache.unwrap_or(0)), max))
}

/// Has memory measured for as long as the daemon lives.
pub(crate) async fn run(inbox: Inbox) {
    let mut ticks = tokio::time::interval(MEASURED_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if inbox.send(Input::MeasureMemory).await.is_err() {
            return;
        }
    }
}

impl Life {
    /// Measures what workers have, if there are any.
    pub(crate) fn measure_memory(&self, events: &mut Vec<Event>) {
        let Some(memory) = &self.memory else { return };
        let workers = self.open.iter().filter_map(|(client, link)| Some((*client, link.pid?)));
        let workers: Vec<_> =
            workers.filter_map(|(client, pid)| Some((client, memory.of_process(pid)?))).collect();
        if workers.is_empty() {
            return;
        }
        let may = |total: u64| (total as f64 * self.memory_full) as u64;
        let rooms = memory.rooms().into_iter().map(|(used, total)| (used, may(total))).collect();
        events.push(Event::Memory(Measured { workers, rooms }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        assert_eq!(own_pages("1000 300 120 5 0 200 0\n"), Some(180));
        assert_eq!(own_pages("1000 10 120"), Some(0));
        assert_eq!(own_pages("1000"), None);
        let info = "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\n";
        assert_eq!(of_machine(info), Some((600 * 1024, 1000 * 1024)));
        assert_eq!(of_machine("MemTotal: 1 kB\n"), None);
        let stat = "anon 5\ninactive_file 30\nactive_file 7\n";
        assert_eq!(of_group("200\n", "130\n", stat), Some((100, 200)));
        assert_eq!(of_group("max\n", "130\n", stat), None);
    }

    #[test]
    fn a_group_lies_in_others() {
        let path = |path: &str| Path::new(CGROUPS).join(path);
        assert_eq!(groups("1:cpu:/x\n0::/a/b\n"), [path("a/b"), path("a"), path("")]);
        assert_eq!(groups("0::/\n"), [path("")]);
        assert!(groups("4:memory:/a\n").is_empty());
    }

    #[test]
    fn this_process_has_memory_and_its_machine_has_more() {
        let memory = LinuxMemory::new();
        let own = memory.of_process(std::process::id()).expect("it runs");
        let filled = vec![1u8; 100 << 20];
        let more = memory.of_process(std::process::id()).expect("it runs");
        assert!(more >= own + (90 << 20), "{own} then {more}");
        assert!(memory.rooms().iter().all(|(_, total)| *total > 0) && !memory.rooms().is_empty());
        assert!(filled.iter().all(|byte| *byte == 1));
        assert_eq!(memory.of_process(u32::MAX), None);
    }
}
