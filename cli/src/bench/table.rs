//! Figures with their names and units.

use crate::output::Output;
use crate::say;
use serde::Serialize;
use std::time::Duration;

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
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
        self.figures.push(Figure { name, value, unit });
    }

    /// Adds the median and the 99th percentile of some durations, in microseconds.
    pub fn add_times(&mut self, names: [&'static str; 2], times: &mut [Duration]) {
        times.sort_unstable();
        for (name, percent) in names.into_iter().zip([50, 99]) {
            self.add(name, percentile(times, percent).as_secs_f64() * 1e6, "µs");
        }
    }

    /// Prints them as a table.
    pub fn print(&self, output: Output) {
        say!(output, "bench {} on {} CPUs", self.benchmark, self.cpus);
        for figure in &self.figures {
            say!(output, "  {:<44} {:>14} {}", figure.name, shown(figure.value), figure.unit);
        }
    }
}

/// A percentile of sorted durations: the smallest that so many percent do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
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
        assert_eq!([shown(0.1234), shown(55.0), shown(1_234_567.0)], ["0.12", "55.00", "1,234,567"]);
    }
}
