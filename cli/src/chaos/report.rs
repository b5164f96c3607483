//! What a run found: as text, JSON and JUnit.

use crate::chaos::fault::{Fault, Outcome};
use crate::chaos::injector::tally;
use crate::chaos::judge::{Class, Judged};
use crate::exit;
use crate::output::Output;
use crate::say;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One run of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub name: String,
    /// What ran.
    pub workload: String,
    /// Decides the program and the faults.
    pub seed: u64,
    /// `pass`, `safety`, `liveness`, `unknown`, `figure` or `harness`.
    pub verdict: &'static str,
    /// How to run it again.
    pub again: String,
    /// Heads, nodes, shards, and CPUs of a node.
    pub cluster: [u64; 4],
    /// CPUs of this machine.
    pub machine_cpus: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Tasks that were submitted by the driver, or writes.
    pub submitted: u64,
    /// Answers with a value.
    pub values: u64,
    /// Answers with a failure.
    pub failures: u64,
    /// Executions in workers.
    pub executions: u64,
    /// Of these, not the first of their task.
    pub executed_again: u64,
    /// The longest time in which something waited and no answer came, in milliseconds, and when it began, in seconds.
    pub stall_ms: f64,
    /// See there.
    pub stall_at_s: f64,
    /// Answers per second in each quarter of a second.
    pub throughput: Vec<f64>,
    /// The faults, in the order of time.
    pub faults: Vec<Fault>,
    /// What each judge says.
    pub judged: Vec<Judged>,
    /// That it could not be carried out, and why.
    pub broken: Option<String>,
}

impl Report {
    /// The exit code: the worst of what was found.
    pub fn code(&self) -> u8 {
        match self.verdict {
            "pass" => exit::OK,
            "safety" => exit::FAILED,
            "unknown" => exit::UNKNOWN,
            "liveness" => exit::NOT_LIVE,
            "figure" => exit::FIGURE_MISSED,
            _ => exit::HARNESS,
        }
    }

    /// The first thing that is not as it must be.
    pub fn objection(&self) -> Option<String> {
        let judge = self.judged.iter().find_map(|judged| {
            judged.objection.as_ref().map(|text| format!("{} ({}): {text}", judged.judge, judged.rule))
        });
        self.broken.clone().or(judge)
    }

    /// For people.
    pub fn print(&self, output: Output) {
        let (installed, skipped, unclear) = tally(&self.faults);
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for fault in self.faults.iter().filter(|fault| fault.outcome == Outcome::Installed) {
            *kinds.entry(fault.kind.to_string()).or_default() += 1;
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, many)| format!("{kind} {many}")).collect();
        let [heads, nodes, shards, cpus] = self.cluster;
        say!(output, "{}: {} (seed {})", self.name, self.workload, self.seed);
        say!(
            output,
            "  cluster   {heads} heads, {shards} shards, {nodes} nodes of {cpus} CPUs; {:.1} s",
            self.seconds
        );
        say!(
            output,
            "  faults    {installed} installed, {skipped} skipped, {unclear} unclear: {}",
            kinds.join(", ")
        );
        say!(
            output,
            "  answers   {} of {} submitted and what they led to: {} values, {} failures that have a cause",
            self.values + self.failures,
            self.submitted,
            self.values,
            self.failures
        );
        if self.executions > 0 {
            say!(output, "  ran       {} executions, {} of them again", self.executions, self.executed_again);
        }
        say!(output, "  stall     {:.0} ms without an answer, at {:.1} s", self.stall_ms, self.stall_at_s);
        for judged in &self.judged {
            let note = judged.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
            match &judged.objection {
                None => say!(
                    output,
                    "  ok        {:<12} {:<9} {:>7} looked at{note}",
                    judged.judge,
                    judged.rule,
                    judged.checked
                ),
                Some(text) => {
                    say!(output, "  NOT       {:<12} {:<9} {text}{note}", judged.judge, judged.rule)
                }
            }
        }
        if let Some(why) = &self.broken {
            say!(output, "  broken    {why}");
        }
        say!(output, "{}", self.verdict);
        if self.verdict != "pass" {
            say!(output, "again: {}", self.again);
        }
    }
}

/// The verdict on all of it: the worst wins.
pub fn verdict(judged: &[Judged], broken: bool) -> &'static str {
    let has = |class| judged.iter().any(|judged| judged.class == class && judged.objection.is_some());
    match () {
        () if has(Class::Safety) => "safety",
        () if has(Class::Liveness) => "liveness",
        () if broken => "harness",
        () if has(Class::Unknown) => "unknown",
        () if has(Class::Figure) => "figure",
        () => "pass",
    }
}

/// All runs as JUnit has them: a test suite of a test case each.
pub fn junit(suite: &str, reports: &[Report]) -> String {
    let failed = reports.iter().filter(|report| report.verdict != "pass").count();
    let seconds: f64 = reports.iter().map(|report| report.seconds).sum();
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    let _ = writeln!(
        xml,
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" time=\"{seconds:.3}\">",
        escape(suite),
        reports.len()
    );
    for report in reports {
        let name = format!("{} (seed {})", report.name, report.seed);
        let _ = write!(
            xml,
            "  <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
            escape(&report.workload),
            escape(&name),
            report.seconds
        );
        match report.objection() {
            Some(text) if report.verdict != "pass" => {
                let _ = writeln!(
                    xml,
                    ">\n    <failure type=\"{}\" message=\"{}\"/>\n  </testcase>",
                    report.verdict,
                    escape(&text)
                );
            }
            _ => xml.push_str("/>\n"),
        }
    }
    xml.push_str("</testsuite>\n");
    xml
}

/// Text as it may stand in XML and HTML.
pub fn escape(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    plain
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_wins_and_a_broken_run_never_passes() {
        let judged = |class| Judged::of("j", "r", class, 1).objecting(Some("no".into()));
        assert_eq!(verdict(&[], false), "pass");
        assert_eq!(verdict(&[], true), "harness");
        assert_eq!(verdict(&[judged(Class::Figure)], true), "harness");
        assert_eq!(verdict(&[judged(Class::Figure), judged(Class::Unknown)], false), "unknown");
        assert_eq!(verdict(&[judged(Class::Liveness), judged(Class::Safety)], true), "safety");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a < b & \"c\" \u{1b}[1m"), "a &lt; b &amp; &quot;c&quot; [1m");
    }
}
