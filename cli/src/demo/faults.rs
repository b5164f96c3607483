//! Kills at their moments, and what each of them cost.

use super::monitor::{Event, LostHead, Monitor, Written};
use super::plan::{Kill, Victim};
use super::progress::Progress;
use super::report::FaultReport;
use super::struck::Struck;
use crate::cluster::LocalCluster;
use crate::output::bytes;
use mobula::{Notice, TaskId};
use mobula_base::random::Random;
use std::time::Instant;

/// The faults of a run.
pub struct Faults<'a> {
    cluster: &'a LocalCluster,
    random: Random,
    started: Instant,
    pending: Vec<Kill>,
    struck: Vec<Struck>,
    /// Every write of the monitor that was acknowledged.
    pub written: Vec<Written>,
}

impl<'a> Faults<'a> {
    /// Nothing has happened yet.
    pub fn new(cluster: &'a LocalCluster, kills: &[Kill], seed: u64, started: Instant) -> Self {
        let random = Random::new(seed).fork("victims");
        let pending = kills.to_vec();
        Faults { cluster, random, started, pending, struck: Vec::new(), written: Vec::new() }
    }

    /// Kills whoever's moment has come; says what was done.
    pub fn strike(&mut self, monitor: &Monitor, progress: &Progress) -> Vec<String> {
        let mut told = Vec::new();
        for earlier in &mut self.struck {
            earlier.confirm(progress);
        }
        // A kill after the end would show nothing; it is reported as one that never came.
        if progress.is_over() {
            return told;
        }
        while let Some(kill) = self.pending.first().copied().filter(|k| k.at_percent <= progress.percent()) {
            self.pending.remove(0);
            told.push(match kill.victim {
                Victim::Head(_) | Victim::LeadingHead => self.kill_head(monitor, kill, progress),
                Victim::Node(_) | Victim::HoldingNode => self.kill_node(monitor, kill, progress),
            });
        }
        told
    }

    fn kill_head(&mut self, monitor: &Monitor, kill: Kill, progress: &Progress) -> String {
        let addresses = self.cluster.head_addresses();
        let seen = monitor.look();
        let led = |number: usize| -> (u64, Vec<(u32, u64)>) {
            let status = seen.iter().find(|(address, _)| *address == addresses[number - 1]);
            status.map_or((0, Vec::new()), |(_, s)| {
                let led = s.shards.iter().filter(|shard| shard.leader == s.head && s.head != 0);
                (s.head, led.map(|shard| (shard.shard, shard.term)).collect())
            })
        };
        let number = match kill.victim {
            Victim::Head(number) => number,
            _ => {
                let leading: Vec<usize> = (1..=addresses.len()).filter(|n| !led(*n).1.is_empty()).collect();
                self.pick(&leading, 1)
            }
        };
        let (head, led) = led(number);
        let at = self.cluster.kill_head(number);
        let fault = self.struck.len();
        let shards: Vec<u32> = led.iter().map(|(shard, _)| *shard).collect();
        monitor.watch(LostHead { fault, head, address: addresses[number - 1].clone(), led });
        let mut struck = Struck::new(kill, format!("head {number}"), at, progress);
        struck.led.clone_from(&shards);
        let text = match shards.as_slice() {
            [] => format!("killed head {number}, which led no shard"),
            shards => format!("killed head {number}, which led {}", named("shard", shards)),
        };
        self.struck.push(struck);
        text
    }

    fn kill_node(&mut self, monitor: &Monitor, kill: Kill, progress: &Progress) -> String {
        let number = match kill.victim {
            Victim::Node(number) => number,
            _ => self.pick_holder(monitor),
        };
        let at = self.cluster.kill_node(number);
        let mut struck = Struck::new(kill, format!("node {number}"), at, progress);
        struck.incarnation = self.cluster.node(number).and_then(|n| n.incarnation);
        self.struck.push(struck);
        format!("killed node {number} with its workers and objects")
    }

    /// A node with objects and without the driver.
    fn pick_holder(&mut self, monitor: &Monitor) -> usize {
        let views = monitor.nodes();
        let others: Vec<usize> = (2..).take_while(|n| self.cluster.node(*n).is_some()).collect();
        let holds = |number: &usize| {
            let incarnation = self.cluster.node(*number).and_then(|n| n.incarnation);
            views.iter().any(|v| Some(v.incarnation) == incarnation && v.alive && v.store_bytes_used > 0)
        };
        let holding: Vec<usize> = others.iter().copied().filter(holds).collect();
        // Loads travel with heartbeats, so an early kill may see none.
        let candidates = if holding.is_empty() { others } else { holding };
        self.pick(&candidates, 2)
    }

    fn pick(&mut self, candidates: &[usize], otherwise: usize) -> usize {
        let at = self.random.below(candidates.len() as u64) as usize;
        candidates.get(at).copied().unwrap_or(otherwise)
    }

    /// Takes in what the observer saw; says what is worth saying.
    pub fn observe(&mut self, events: Vec<Event>) -> Vec<String> {
        let mut told = Vec::new();
        for event in events {
            match event {
                Event::Written(written) => self.written.push(written),
                Event::HeadNoticed { fault, at } => told.extend(self.struck[fault].notice(at)),
                Event::ShardMoved { fault, shard } => drop(self.struck[fault].moved.insert(shard)),
                Event::ShardServes { fault, shard, at } => told.extend(self.struck[fault].serves(shard, at)),
                Event::NodeDead { incarnation, at } => told.extend(self.node_dead(incarnation, at)),
            }
        }
        told
    }

    fn node_dead(&mut self, incarnation: u64, at: Instant) -> Option<String> {
        self.struck.iter_mut().find(|s| s.incarnation == Some(incarnation))?.notice(at)
    }

    /// Takes in what the driver was told; says what is worth saying.
    pub fn hear(&mut self, notices: Vec<Notice>) -> Vec<String> {
        let mut told = Vec::new();
        for notice in notices {
            let now = Instant::now();
            match (notice.kind.as_str(), notice.task) {
                ("node-dead", _) => told.extend(self.node_dead(notice.incarnation, now)),
                ("rebuild-start", Some(task)) => self.rebuild_starts(task),
                ("rebuild-done", Some(task)) => {
                    // The end of one attempt may be told by several nodes: the first one counts.
                    if let Some(struck) = self.struck.iter_mut().find(|s| s.rebuilding.contains(&task)) {
                        struck.rebuilt(task, notice.bytes, now);
                    }
                }
                ("diverged", task) => {
                    told.push(format!("task {} gave other bytes than before: {}", shown(task), notice.text));
                }
                _ => {}
            }
        }
        told
    }

    /// Rebuilding counts for the last node that was killed, and no longer for an earlier one: it
    /// may have died while it did the work.
    fn rebuild_starts(&mut self, task: TaskId) {
        for earlier in &mut self.struck {
            earlier.rebuilding.remove(&task);
        }
        if let Some(last) = self.struck.iter_mut().rev().find(|s| s.incarnation.is_some()) {
            last.again.insert(task);
            last.rebuilding.insert(task);
        }
    }

    /// Whether something is still being timed.
    pub fn is_watching(&self) -> bool {
        self.struck.iter().any(Struck::is_open)
    }

    /// The costs, once the job is over. A node of which nothing had to be rebuilt has cost no
    /// more than noticing it.
    pub fn reports(&self) -> Vec<FaultReport> {
        let mut reports: Vec<FaultReport> = self.struck.iter().map(|s| s.report(self.started)).collect();
        reports.extend(self.pending.iter().map(FaultReport::never));
        reports
    }
}

/// What a rebuilt node cost, in words.
pub fn rebuilt_text(report: &FaultReport) -> String {
    format!(
        "{} tasks run again, {} objects rebuilt ({})",
        report.tasks_run_again,
        report.objects_rebuilt,
        bytes(report.bytes_rebuilt)
    )
}

fn named(what: &str, numbers: &[u32]) -> String {
    let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match list.as_slice() {
        [one] => format!("{what} {one}"),
        [first @ .., last] => format!("{what}s {} and {last}", first.join(", ")),
        [] => format!("no {what}"),
    }
}

fn shown(task: Option<TaskId>) -> String {
    task.map_or_else(|| "?".into(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_read_well() {
        assert_eq!(named("shard", &[1]), "shard 1");
        assert_eq!(named("shard", &[0, 1, 3]), "shards 0, 1 and 3");
    }
}
