//! What `experiment failover` found.

use super::ghost;
use super::stats::{Distribution, sorted_ms};
use super::svg::{Curve, Mark, draw};
use super::told::Lines;
use crate::args::How;
use crate::exit;
use crate::output::millis;
use crate::say;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What one strike did.
#[derive(Clone, Debug)]
pub struct Strike {
    /// The shards the victim led.
    pub shards: usize,
    /// The longest time without a successful write after the strike.
    pub stall: Duration,
    /// The same in as long a time before it.
    pub quiet: Duration,
    /// The same while the victim came back and caught up.
    pub back: Duration,
    /// From the strike to another head's alarm; not for what raises none.
    pub noticed: Option<Duration>,
    /// Terms that passed on the victim's shards.
    pub elections: u64,
    /// The whole cycle.
    pub cycle: Duration,
}

/// What is asked of a figure.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Which figure.
    pub figure: &'static str,
    /// In milliseconds.
    pub at_most: f64,
    /// In milliseconds.
    pub measured: f64,
    /// Whether it holds.
    pub passed: bool,
    /// Missing it fails the experiment.
    pub required: bool,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `failover`.
    pub experiment: &'static str,
    /// `kill`, `stop`, `drop` or `transfer`.
    pub how: &'static str,
    /// Heads of the cluster.
    pub heads: usize,
    /// Shards of the cluster.
    pub shards: u32,
    /// CPUs of this machine.
    pub cpus: usize,
    /// Whether this is a release build.
    pub optimized: bool,
    /// The client's stall, in milliseconds.
    pub stall_ms: Distribution,
    /// The longest gap in as many windows without a strike.
    pub quiet_ms: Distribution,
    /// The longest gap while the victim came back.
    pub back_ms: Distribution,
    /// Until another head raised the alarm.
    pub noticed_ms: Distribution,
    /// A sync of the disk that all heads share, while nothing else is written.
    pub disk_sync_ms: Distribution,
    /// Elections on the shards of a victim, and how many strikes had so many for each shard.
    pub elections: BTreeMap<String, usize>,
    /// Terms that passed without a strike, on shards that were written to.
    pub unplanned_elections: u64,
    /// Alarms about heads that lived.
    pub false_alarms: u64,
    /// Writes that were acknowledged.
    pub writes_acknowledged: u64,
    /// Acknowledged writes that were not read back as acknowledged.
    pub writes_lost: Vec<String>,
    /// Writes that were never acknowledged.
    pub writes_failed: Vec<String>,
    /// What stopped leaders did when they continued.
    pub stopped_leaders: ghost::Outcome,
    /// What is asked of the figures.
    pub targets: Vec<Target>,
    /// Every stall in milliseconds, in order of time.
    pub stalls: Vec<f64>,
    /// Milliseconds of a whole cycle.
    pub cycle_ms: Distribution,
    /// Whether all is as it must be.
    pub passed: bool,
}

/// What is gathered besides the strikes.
#[derive(Default)]
pub struct Gathered {
    /// See [`Report::unplanned_elections`].
    pub unplanned_elections: u64,
    /// See [`Report::false_alarms`].
    pub false_alarms: u64,
    /// See [`Report::writes_acknowledged`].
    pub acknowledged: u64,
    /// See [`Report::writes_lost`].
    pub lost: Vec<String>,
    /// See [`Report::writes_failed`].
    pub failed: Vec<String>,
    /// See [`Report::stopped_leaders`].
    pub ghosts: ghost::Outcome,
    /// See [`Report::disk_sync_ms`].
    pub disk: Vec<Duration>,
}

impl Report {
    /// Of these strikes.
    pub fn new(how: How, heads: usize, shards: u32, strikes: &[Strike], gathered: Gathered) -> Report {
        let of = |what: fn(&Strike) -> Duration| strikes.iter().map(what).collect::<Vec<_>>();
        let stalls = of(|s| s.stall);
        let stall_ms = Distribution::of(&stalls);
        let mut elections = BTreeMap::new();
        for strike in strikes {
            let each = strike.elections as f64 / strike.shards.max(1) as f64;
            *elections.entry(format!("{each:.1}")).or_default() += 1;
        }
        let targets = targets(how, &stall_ms);
        let is_safe = gathered.lost.is_empty() && gathered.ghosts.violations.is_empty();
        let is_live = gathered.failed.is_empty() && gathered.false_alarms == 0;
        Report {
            experiment: "failover",
            how: name(how),
            heads,
            shards,
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get()),
            optimized: !cfg!(debug_assertions),
            quiet_ms: Distribution::of(&of(|s| s.quiet)),
            back_ms: Distribution::of(&of(|s| s.back)),
            noticed_ms: Distribution::of(&strikes.iter().filter_map(|s| s.noticed).collect::<Vec<_>>()),
            disk_sync_ms: Distribution::of(&gathered.disk),
            elections,
            unplanned_elections: gathered.unplanned_elections,
            false_alarms: gathered.false_alarms,
            writes_acknowledged: gathered.acknowledged,
            writes_lost: gathered.lost,
            writes_failed: gathered.failed,
            stopped_leaders: gathered.ghosts,
            passed: is_safe && is_live && targets.iter().all(|t| t.passed || !t.required),
            targets,
            stalls: stalls.iter().map(|d| d.as_secs_f64() * 1e3).collect(),
            cycle_ms: Distribution::of(&of(|s| s.cycle)),
            stall_ms,
        }
    }

    /// The exit code that says so.
    pub fn code(&self) -> u8 {
        if !self.writes_lost.is_empty() || !self.stopped_leaders.violations.is_empty() {
            return exit::FAILED;
        }
        if !self.writes_failed.is_empty() {
            return exit::NOT_LIVE;
        }
        if self.passed { exit::OK } else { exit::FIGURE_MISSED }
    }

    /// For people.
    pub fn print(&self, output: &mut Lines) {
        say!(
            output,
            "failover, --how {}: {} strikes, {} heads, {} shards, {} CPUs{}",
            self.how,
            self.stall_ms.count,
            self.heads,
            self.shards,
            self.cpus,
            if self.optimized { "" } else { ", not optimized" }
        );
        say!(output, "  {:<24} {:>10} {:>10} {:>10} {:>10}", "", "p50", "p90", "p99", "max");
        let mut row = |label: &str, d: &Distribution| {
            if d.count > 0 {
                let [p50, p90, p99, max] = [d.p50, d.p90, d.p99, d.max].map(millis);
                say!(output, "  {label:<24} {p50:>10} {p90:>10} {p99:>10} {max:>10}");
            }
        };
        row("stall", &self.stall_ms);
        row("longest gap when quiet", &self.quiet_ms);
        row("stall when it came back", &self.back_ms);
        row("death noticed after", &self.noticed_ms);
        row("the disk's sync alone", &self.disk_sync_ms);
        row("cycle", &self.cycle_ms);
        let elections: Vec<String> = self.elections.iter().map(|(each, n)| format!("{each}: {n}")).collect();
        say!(output, "  elections for each shard of the victim: {} (number: strikes)", elections.join(", "));
        say!(
            output,
            "  elections without a strike {}, false alarms {}",
            self.unplanned_elections,
            self.false_alarms
        );
        say!(
            output,
            "  writes acknowledged {}, of them lost {}, never acknowledged {}",
            self.writes_acknowledged,
            self.writes_lost.len(),
            self.writes_failed.len()
        );
        let ghosts = &self.stopped_leaders;
        if ghosts.tried > 0 {
            say!(
                output,
                "  stopped leaders asked {} times when they continued: {} violations",
                ghosts.tried,
                ghosts.violations.len()
            );
        }
        for wrong in self.writes_lost.iter().chain(&self.writes_failed).chain(&ghosts.violations).take(20) {
            say!(output, "  ! {wrong}");
        }
        for target in &self.targets {
            let verdict = match (target.passed, target.required) {
                (true, _) => "ok",
                (false, true) => "MISSED",
                (false, false) => "not reached",
            };
            say!(
                output,
                "  {:<24} at most {:>9}: {:>9}  {verdict}",
                target.figure,
                millis(target.at_most),
                millis(target.measured)
            );
        }
        if let Some(hint) = self.hint() {
            say!(output, "  {hint}");
        }
        say!(output, "{}", if self.passed { "passed" } else { "not passed" });
    }

    /// Whose fault a missed figure may be.
    fn hint(&self) -> Option<String> {
        let missed = self.targets.iter().find(|target| target.required && !target.passed)?;
        let disk = self.disk_sync_ms.max;
        (disk >= missed.at_most).then(|| {
            format!(
                "the disk alone took up to {} for one sync: for the share of the heads, set TMPDIR to another disk, or to /dev/shm",
                millis(disk)
            )
        })
    }

    /// The stall's distribution as a drawing.
    pub fn svg(&self) -> String {
        let durations: Vec<Duration> =
            self.stalls.iter().map(|ms| Duration::from_secs_f64(ms / 1e3)).collect();
        let sorted = sorted_ms(&durations);
        let of = &self.stall_ms;
        let label = format!(
            "{} strikes: p50 {}, p99 {}, max {}",
            of.count,
            millis(of.p50),
            millis(of.p99),
            millis(of.max)
        );
        let curves = [Curve { label, sorted_ms: &sorted, colour: "#06c" }];
        let marks = [
            Mark { ms: 30.0, label: "the Ray paper's chain: 30 ms" },
            Mark { ms: 20_800.0, label: "Ray's standby proposal: 20.8 s" },
        ];
        draw(&format!("Write stall when a leader is taken away ({})", self.how), &curves, &marks)
    }
}

fn name(how: How) -> &'static str {
    match how {
        How::Kill => "kill",
        How::Stop => "stop",
        How::Drop => "drop",
        How::Transfer => "transfer",
    }
}

fn targets(how: How, stall: &Distribution) -> Vec<Target> {
    let target = |figure, at_most, measured: f64, required| Target {
        figure,
        at_most,
        measured,
        passed: measured <= at_most,
        required,
    };
    let election = mobula_gcs::RaftTiming::default().election().as_secs_f64() * 1e3;
    match how {
        How::Kill => vec![
            target("stall p99", 30.0, stall.p99, true),
            target("stall max", 300.0, stall.max, true),
            target("stall p50 (moonshot)", 5.0, stall.p50, false),
        ],
        How::Stop | How::Drop => vec![target("stall max", 2.0 * election, stall.max, true)],
        How::Transfer => vec![target("stall max", 10.0, stall.max, true)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(stalls: &[u64]) -> Vec<Strike> {
        let strike = |ms: &u64| Strike {
            shards: 2,
            stall: Duration::from_millis(*ms),
            quiet: Duration::from_millis(2),
            back: Duration::from_millis(3),
            noticed: Some(Duration::from_millis(1)),
            elections: 2,
            cycle: Duration::from_secs(1),
        };
        stalls.iter().map(strike).collect()
    }

    #[test]
    fn the_verdict_follows_the_targets_and_safety_comes_first() {
        let report = |how, stalls: &[u64], gathered| Report::new(how, 3, 4, &strikes(stalls), gathered);
        assert_eq!(report(How::Kill, &[9, 12, 30], Gathered::default()).code(), exit::OK);
        assert_eq!(report(How::Kill, &[9, 12, 31], Gathered::default()).code(), exit::FIGURE_MISSED);
        assert_eq!(report(How::Stop, &[1400, 2000], Gathered::default()).code(), exit::OK);
        assert_eq!(report(How::Drop, &[2001], Gathered::default()).code(), exit::FIGURE_MISSED);
        let lost = Gathered { lost: vec!["k".into()], failed: vec!["f".into()], ..Gathered::default() };
        assert_eq!(report(How::Kill, &[9], lost).code(), exit::FAILED);
        let stuck = Gathered { failed: vec!["f".into()], ..Gathered::default() };
        assert_eq!(report(How::Kill, &[9], stuck).code(), exit::NOT_LIVE);
        let alarmed = Gathered { false_alarms: 1, ..Gathered::default() };
        assert_eq!(report(How::Stop, &[9], alarmed).code(), exit::FIGURE_MISSED);
        let ghosts = ghost::Outcome { violations: vec!["v".into()], ..ghost::Outcome::default() };
        let ghosts = Gathered { ghosts, ..Gathered::default() };
        assert_eq!(report(How::Stop, &[9], ghosts).code(), exit::FAILED);
    }

    #[test]
    fn a_slow_disk_is_named_only_where_it_explains_what_was_missed() {
        let hint = |stall, disk| {
            let disk = vec![Duration::from_millis(disk)];
            let gathered = Gathered { disk, ..Gathered::default() };
            Report::new(How::Kill, 3, 4, &strikes(&[stall]), gathered).hint()
        };
        assert!(hint(90, 80).expect("explained").contains("80"));
        assert_eq!((hint(90, 3), hint(9, 80)), (None, None));
    }

    #[test]
    fn the_drawing_names_the_marks() {
        let svg = Report::new(How::Kill, 3, 4, &strikes(&[9, 12]), Gathered::default()).svg();
        assert!(svg.contains("30 ms") && svg.contains("20.8 s") && svg.contains("2 strikes"), "{svg}");
    }
}
