//! One kill that happened, and what it cost.

use super::plan::Kill;
use super::progress::Progress;
use super::report::FaultReport;
use crate::output::millis;
use mobula::TaskId;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A kill that happened, and what has been seen since.
pub struct Struck {
    asked: Kill,
    label: String,
    at: Instant,
    at_percent: u32,
    is_in_time: Option<bool>,
    /// A node: the life that ended.
    pub incarnation: Option<u64>,
    /// A head: the shards it led.
    pub led: Vec<u32>,
    /// Of these, the ones that another head has led since.
    pub moved: BTreeSet<u32>,
    serving: BTreeSet<u32>,
    noticed: Option<Duration>,
    recovered: Option<Duration>,
    /// A node: tasks that run again because of it.
    pub again: BTreeSet<TaskId>,
    /// Of these, the ones that are not over yet.
    pub rebuilding: BTreeSet<TaskId>,
    rebuilt: u64,
    rebuilt_bytes: u64,
}

impl Struck {
    /// A kill that has just happened.
    pub fn new(asked: Kill, label: String, at: Instant, progress: &Progress) -> Self {
        Struck {
            asked,
            label,
            at,
            at_percent: progress.percent(),
            is_in_time: None,
            incarnation: None,
            led: Vec::new(),
            moved: BTreeSet::new(),
            serving: BTreeSet::new(),
            noticed: None,
            recovered: None,
            again: BTreeSet::new(),
            rebuilding: BTreeSet::new(),
            rebuilt: 0,
            rebuilt_bytes: 0,
        }
    }

    /// The first look at the job after the kill: if it was not over then, the kill was in time.
    pub fn confirm(&mut self, progress: &Progress) {
        self.is_in_time.get_or_insert(!progress.is_over());
    }

    /// Somebody shows that it noticed; news the first time.
    pub fn notice(&mut self, at: Instant) -> Option<String> {
        if self.noticed.is_some() {
            return None;
        }
        let after = at.saturating_duration_since(self.at);
        self.noticed = Some(after);
        Some(format!("{}: noticed after {}", self.label, millis(after.as_secs_f64() * 1e3)))
    }

    /// A shard that this head led accepts writes. With the last of them the head is recovered.
    pub fn serves(&mut self, shard: u32, at: Instant) -> Option<String> {
        self.serving.insert(shard);
        if self.serving.len() < self.led.len() {
            return None;
        }
        let after = at.saturating_duration_since(self.at);
        self.recovered = Some(after);
        Some(format!(
            "{}: recovered after {}, every shard it led accepts writes",
            self.label,
            millis(after.as_secs_f64() * 1e3)
        ))
    }

    /// A task that ran again is over.
    pub fn rebuilt(&mut self, task: TaskId, bytes: u64, at: Instant) {
        if self.rebuilding.remove(&task) {
            self.rebuilt += 1;
            self.rebuilt_bytes += bytes;
            // The last one stands.
            self.recovered = Some(at.saturating_duration_since(self.at));
        }
    }

    /// Whether something is still being timed.
    pub fn is_open(&self) -> bool {
        match self.incarnation {
            Some(_) => self.noticed.is_none() || !self.rebuilding.is_empty(),
            None => !self.led.is_empty() && (self.noticed.is_none() || self.recovered.is_none()),
        }
    }

    /// What it cost, once the job is over.
    pub fn report(&self, started: Instant) -> FaultReport {
        let ms = |d: Option<Duration>| d.map(|d| d.as_secs_f64() * 1e3);
        let recovered = match self.incarnation {
            Some(_) if !self.rebuilding.is_empty() => None,
            // Nothing that anybody needed was lost: noticing was all.
            Some(_) if self.again.is_empty() => self.noticed,
            None if self.led.is_empty() => self.noticed,
            _ => self.recovered,
        };
        FaultReport {
            victim: self.label.clone(),
            asked_percent: self.asked.at_percent,
            is_struck: true,
            at_percent: Some(self.at_percent),
            at_s: Some(self.at.saturating_duration_since(started).as_secs_f64()),
            is_in_time: self.is_in_time == Some(true),
            noticed_ms: ms(self.noticed),
            recovered_ms: ms(recovered),
            shards_led: self.led.clone(),
            shards_moved: self.moved.iter().copied().collect(),
            tasks_run_again: self.again.len() as u64,
            objects_rebuilt: self.rebuilt,
            bytes_rebuilt: self.rebuilt_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Victim;
    use super::*;

    fn struck(victim: Victim) -> Struck {
        Struck::new(Kill { victim, at_percent: 40 }, victim.to_string(), Instant::now(), &Progress::default())
    }

    #[test]
    fn a_head_is_recovered_with_the_last_of_its_shards() {
        let mut head = struck(Victim::Head(1));
        head.led = vec![0, 2];
        let at = head.at + Duration::from_millis(9);
        assert!(head.is_open());
        assert!(head.notice(at).expect("news").contains("9.0 ms"));
        assert_eq!(head.notice(at), None, "told once");
        assert_eq!(head.serves(0, at), None);
        assert!(head.is_open());
        assert!(head.serves(2, at).expect("news").contains("recovered"));
        assert!(!head.is_open());
        assert_eq!(head.report(head.at).recovered_ms, Some(9.0));
    }

    #[test]
    fn a_node_is_recovered_with_the_last_object_rebuilt() {
        let mut node = struck(Victim::Node(2));
        node.incarnation = Some(7);
        let (one, two) = (TaskId { place: 1, ..TaskId::default() }, TaskId { place: 2, ..TaskId::default() });
        node.notice(node.at + Duration::from_millis(5));
        assert_eq!(node.report(node.at).recovered_ms, Some(5.0), "nothing was lost");
        node.again.extend([one, two]);
        node.rebuilding.extend([one, two]);
        assert_eq!(node.report(node.at).recovered_ms, None);
        node.rebuilt(one, 10, node.at + Duration::from_millis(20));
        node.rebuilt(one, 10, node.at + Duration::from_millis(25));
        assert!(node.is_open());
        node.rebuilt(two, 10, node.at + Duration::from_millis(30));
        let report = node.report(node.at);
        assert_eq!((report.recovered_ms, report.objects_rebuilt, report.bytes_rebuilt), (Some(30.0), 2, 20));
        assert!(!node.is_open());
    }
}
