//! The recovery report: what happened, what it cost, and whether the run passed.

use super::audit::Audit;
use super::faults::rebuilt_text;
use super::input::Skipped;
use super::plan::{Kill, Plan};
use crate::output::{Output, bytes, millis};
use crate::say;
use serde::Serialize;

/// One kill and its cost. Times start at the SIGKILL.
#[derive(Debug, Clone, Serialize)]
pub struct FaultReport {
    /// Who was killed.
    pub victim: String,
    /// At which progress it was to happen.
    pub asked_percent: u32,
    /// Whether it happened at all.
    pub is_struck: bool,
    /// At which progress it happened.
    pub at_percent: Option<u32>,
    /// When, in seconds since the job started.
    pub at_s: Option<f64>,
    /// It happened before the last task finished.
    pub is_in_time: bool,
    /// After how long somebody noticed.
    pub noticed_ms: Option<f64>,
    /// A head: every shard it led accepts a write. A node: every needed object exists again.
    pub recovered_ms: Option<f64>,
    /// A head: the shards it led.
    pub shards_led: Vec<u32>,
    /// Of these, the ones that another head has led since.
    pub shards_moved: Vec<u32>,
    /// A node: tasks that ran again because of it.
    pub tasks_run_again: u64,
    /// A node: outputs that were made again.
    pub objects_rebuilt: u64,
    /// Their size.
    pub bytes_rebuilt: u64,
}

impl FaultReport {
    /// A kill whose moment never came.
    pub fn never(kill: &Kill) -> Self {
        FaultReport {
            victim: kill.victim.to_string(),
            asked_percent: kill.at_percent,
            is_struck: false,
            at_percent: None,
            at_s: None,
            is_in_time: false,
            noticed_ms: None,
            recovered_ms: None,
            shards_led: Vec::new(),
            shards_moved: Vec::new(),
            tasks_run_again: 0,
            objects_rebuilt: 0,
            bytes_rebuilt: 0,
        }
    }
}

/// What was worked on.
#[derive(Debug, Clone, Serialize)]
pub struct InputReport {
    /// Where it comes from.
    pub name: String,
    /// Number of files.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// Number of packages.
    pub packages: u32,
    /// What was left out.
    pub skipped: Skipped,
}

/// How long the parts took, in seconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Times {
    /// Listing the input.
    pub listing_s: f64,
    /// From the first process started to the last member ready.
    pub cluster_s: f64,
    /// From the first submission to the answer.
    pub job_s: f64,
    /// The audit.
    pub audit_s: f64,
    /// The single-threaded reference run.
    pub reference_s: f64,
    /// Everything.
    pub total_s: f64,
}

/// A near-duplicate worth showing.
#[derive(Debug, Clone, Serialize)]
pub struct PairReport {
    /// One file.
    pub a: String,
    /// The other.
    pub b: String,
    /// Jaccard similarity in parts per million.
    pub similar_ppm: u32,
    /// Five-token shingles they share.
    pub shared_shingles: u32,
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether everything that must hold does.
    pub passed: bool,
    /// What does not hold.
    pub failures: Vec<String>,
    /// The seed.
    pub seed: u64,
    /// Heads, nodes, shards, workers on each node.
    pub heads: usize,
    /// Node daemons.
    pub nodes: usize,
    /// Shards of the control store.
    pub shards: u32,
    /// Worker processes on each node.
    pub workers: u32,
    /// The input.
    pub input: InputReport,
    /// Tasks submitted.
    pub tasks: usize,
    /// Pairs that were compared.
    pub candidates: usize,
    /// Pairs that are near-duplicates.
    pub matches: usize,
    /// Some of them.
    pub interesting: Vec<PairReport>,
    /// Hash of the answer.
    pub hash: String,
    /// Hash of the reference run's answer.
    pub reference_hash: String,
    /// The faults, in order.
    pub faults: Vec<FaultReport>,
    /// The loss audit.
    pub audit: Audit,
    /// How long things took.
    pub times: Times,
}

impl Report {
    /// Judges the run: always by hashes and audit; by the effects of the faults where they are
    /// the default ones, chosen so that they have some.
    pub fn judge(&mut self, plan: &Plan) {
        let mut failures = Vec::new();
        if self.hash != self.reference_hash {
            failures.push(format!("the answer {} is not the reference's {}", self.hash, self.reference_hash));
        }
        if self.audit.lost > 0 {
            failures.push(format!(
                "{} acknowledged writes lost, the first: {}",
                self.audit.lost,
                self.audit.lost_named.first().map_or("?", String::as_str)
            ));
        }
        if plan.is_default_kills {
            for fault in self.faults.iter().filter(|f| !f.is_in_time) {
                failures
                    .push(format!("the kill of {} did not land before the last task finished", fault.victim));
            }
            if self.faults.iter().all(|f| f.shards_moved.is_empty()) {
                failures.push("no shard that the killed head led has moved".into());
            }
            if self.faults.iter().all(|f| f.objects_rebuilt == 0) {
                failures.push("no needed object was rebuilt".into());
            }
            if self.audit.tasks_run_again == 0 {
                failures.push("no task was run again".into());
            }
        }
        self.passed = failures.is_empty();
        self.failures = failures;
    }

    /// Prints what a person wants to know.
    pub fn print(&self, output: Output) {
        say!(output);
        say!(
            output,
            "answer    {} near-duplicate pairs of {} candidates; the most interesting:",
            self.matches,
            self.candidates
        );
        for pair in &self.interesting {
            say!(output, "  {:>5.1} %  {}", f64::from(pair.similar_ppm) / 1e4, pair.a);
            say!(output, "           {}", pair.b);
        }
        self.print_recovery(output);
        let says = if self.hash == self.reference_hash { "the same" } else { "ANOTHER ANSWER" };
        say!(output);
        say!(output, "check     answer     {}", self.hash);
        say!(output, "          reference  {}  {says} (one thread, its own process)", self.reference_hash);
        let t = &self.times;
        say!(
            output,
            "times     cluster {:.1} s, job {:.1} s, audit {:.1} s, reference {:.1} s, in all {:.1} s",
            t.cluster_s,
            t.job_s,
            t.audit_s,
            t.reference_s,
            t.total_s
        );
        for failure in &self.failures {
            say!(output, "FAILED    {failure}");
        }
        if self.passed {
            say!(output, "passed");
        }
    }

    fn print_recovery(&self, output: Output) {
        say!(output);
        say!(output, "recovery  at      noticed after  recovered after  cost");
        for fault in &self.faults {
            let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), millis);
            let cost = match (fault.is_struck, fault.victim.starts_with("head")) {
                (false, _) => "its moment never came".into(),
                (true, true) if fault.shards_led.is_empty() => "it led no shard".into(),
                (true, true) => {
                    format!("{} of {} shards it led moved", fault.shards_moved.len(), fault.shards_led.len())
                }
                (true, false) => rebuilt_text(fault),
            };
            say!(
                output,
                "  {:<7} {:>3} %   {:>13}  {:>15}  {cost}",
                fault.victim,
                fault.at_percent.unwrap_or(fault.asked_percent),
                time(fault.noticed_ms),
                time(fault.recovered_ms)
            );
        }
        if self.faults.is_empty() {
            say!(output, "  nobody was killed");
        }
        let a = &self.audit;
        say!(
            output,
            "  tasks run more than once: {} (outputs {})",
            a.tasks_run_again,
            bytes(a.bytes_run_again)
        );
        say!(
            output,
            "  acknowledged writes lost: {} of {} ({} of {} lineage records, {} keys read back)",
            a.lost,
            a.records_acknowledged + a.keys_acknowledged,
            a.records_acknowledged,
            a.records_submitted,
            a.keys_acknowledged
        );
    }
}
