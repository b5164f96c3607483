//! What a row of durations looks like.

use serde::Serialize;
use std::time::Duration;

/// The distribution of some durations, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// How many.
    pub count: usize,
    /// The shortest.
    pub min: f64,
    /// Half are no longer.
    pub p50: f64,
    /// Nine in ten are no longer.
    pub p90: f64,
    /// 99 in 100 are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// Their sum over their count.
    pub mean: f64,
}

impl Distribution {
    /// Of these durations, in any order.
    pub fn of(durations: &[Duration]) -> Distribution {
        let sorted = sorted_ms(durations);
        Distribution {
            count: sorted.len(),
            min: percentile(&sorted, 0),
            p50: percentile(&sorted, 50),
            p90: percentile(&sorted, 90),
            p99: percentile(&sorted, 99),
            max: percentile(&sorted, 100),
            mean: if sorted.is_empty() { 0.0 } else { sorted.iter().sum::<f64>() / sorted.len() as f64 },
        }
    }
}

/// In milliseconds, in order.
pub fn sorted_ms(durations: &[Duration]) -> Vec<f64> {
    let mut ms: Vec<f64> = durations.iter().map(|d| d.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    ms
}

/// The smallest that so many percent do not exceed; 0 of nothing.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// The share that does not exceed a value, as steps: (value, share up to and including it).
pub fn cdf(sorted: &[f64]) -> Vec<(f64, f64)> {
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for (at, value) in sorted.iter().enumerate() {
        let share = (at + 1) as f64 / sorted.len() as f64;
        match steps.last_mut() {
            Some(last) if last.0 == *value => last.1 = share,
            _ => steps.push((*value, share)),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let thousand: Vec<Duration> = (1..=1000).rev().map(Duration::from_millis).collect();
        let of = Distribution::of(&thousand);
        assert_eq!(
            of,
            Distribution {
                count: 1000,
                min: 1.0,
                p50: 500.0,
                p90: 900.0,
                p99: 990.0,
                max: 1000.0,
                mean: 500.5
            }
        );
        let three = Distribution::of(&thousand[..3]);
        assert_eq!((three.p50, three.p99, three.max), (999.0, 1000.0, 1000.0));
        assert_eq!(Distribution::of(&[]), Distribution::default());
    }

    #[test]
    fn the_cdf_ends_at_one_and_merges_equal_values() {
        assert_eq!(cdf(&[1.0, 2.0, 2.0, 4.0]), [(1.0, 0.25), (2.0, 0.75), (4.0, 1.0)]);
        assert_eq!(cdf(&[]), []);
    }
}
