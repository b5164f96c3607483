//! Figures with their names and units.

use crate::output::Output;
use crate::say;
use serde::Serialize;
use std::time::Duration;

/// What a figure is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Aim {
    /// Whether a figure is what it is meant to be.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Aim::AtLeast(least) => value >= least,
            Aim::AtMost(most) => value <= most,
        }
    }

    /// For people.
    pub fn shown(self) -> String {
        match self {
            Aim::AtLeast(least) => format!("≥ {}", shown_short(least)),
            Aim::AtMost(most) => format!("≤ {}", shown_short(most)),
        }
    }
}

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it is meant to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aim: Option<Aim>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// What this machine does in the same run with nothing of ours in the way, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
}

/// All figures of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The benchmark.
    pub benchmark: &'static str,
    /// CPUs of this machine.
    pub cpus: usize,
    /// What was measured, in order.
    pub figures: Vec<Figure>,
}

impl Figures {
    /// Nothing is measured yet.
    pub fn new(benchmark: &'static str) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        Figures { benchmark, cpus, figures: Vec::new() }
    }

    /// Adds a figure.
    pub fn add(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.figures.push(Figure { name, value, unit, aim: None, met: None, floor: None });
    }

    /// Adds a figure that is meant to be something; `floor` is what it is compared with.
    pub fn add_aimed(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        aim: Aim,
        floor: Option<f64>,
    ) {
        let met = Some(aim.is_met(value));
        self.figures.push(Figure { name, value, unit, aim: Some(aim), met, floor });
    }

    /// Adds the median and the 99th percentile of some durations, in microseconds.
    pub fn add_times(&mut self, names: [&'static str; 2], times: &mut [Duration]) {
        times.sort_unstable();
        for (name, percent) in names.into_iter().zip([50, 99]) {
            self.add(name, percentile(times, percent).as_secs_f64() * 1e6, "µs");
        }
    }

    /// Prints them as a table. Those that are meant to be something have columns that say so.
    pub fn print(&self, output: Output) {
        say!(output, "bench {} on {} CPUs", self.benchmark, self.cpus);
        let width = self.figures.iter().map(|f| f.name.chars().count()).max().unwrap_or(0).max(44);
        let has_aims = self.figures.iter().any(|f| f.aim.is_some());
        if has_aims {
            say!(output, "  {:<width$} {:>14} {:<5} {:>12}  {:<4} {:>12}", "", "", "", "aim", "met", "floor");
        }
        for figure in &self.figures {
            let line = format!("  {:<width$} {:>14} {:<5}", figure.name, shown(figure.value), figure.unit);
            let aim = figure.aim.map(Aim::shown).unwrap_or_default();
            let met = figure.met.map_or("", |met| if met { "yes" } else { "NO" });
            let floor = figure.floor.map(shown).unwrap_or_default();
            say!(output, "{}", format!("{line} {aim:>12}  {met:<4} {floor:>12}").trim_end());
        }
    }
}

/// A percentile of sorted durations: the smallest that so many percent do not exceed.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Three digits that count, thousands apart.
fn shown(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// As [`shown`], without digits that do not count.
fn shown_short(value: f64) -> String {
    if value.fract() == 0.0 { shown(value).trim_end_matches(".00").to_owned() } else { shown(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(percentile(&times, 50), Duration::from_micros(100));
        assert_eq!(percentile(&times, 99), Duration::from_micros(198));
        assert_eq!(percentile(&times[..1], 99), Duration::from_micros(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!([Aim::AtLeast(1e6), Aim::AtMost(0.95)].map(Aim::shown), ["≥ 1,000,000", "≤ 0.95"]);
        assert_eq!(Aim::AtMost(40.0).shown(), "≤ 40");
        assert_eq!([shown(0.1234), shown(55.0), shown(1_234_567.0)], ["0.12", "55.00", "1,234,567"]);
    }

    #[test]
    fn aims_are_met_at_their_edge() {
        assert!(Aim::AtLeast(0.8).is_met(0.8) && !Aim::AtLeast(0.8).is_met(0.79));
        assert!(Aim::AtMost(5.0).is_met(5.0) && !Aim::AtMost(5.0).is_met(5.01));
        let mut figures = Figures::new("test");
        figures.add("plain", 1.0, "s");
        figures.add_aimed("aimed", 2.0, "/s", Aim::AtLeast(3.0), Some(4.0));
        let json = serde_json::to_value(&figures).expect("text keys");
        assert_eq!(json["figures"][0], serde_json::json!({ "name": "plain", "value": 1.0, "unit": "s" }));
        let aimed = serde_json::json!({
            "name": "aimed", "value": 2.0, "unit": "/s", "aim": { "at_least": 3.0 }, "met": false, "floor": 4.0
        });
        assert_eq!(json["figures"][1], aimed);
    }
}
