//! What a row of durations looks like, how sure a mean is, how straight a line.

use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// The mean of some repeats, and how far from it the true one may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of its 95 % confidence interval, by Student's t; none of a single measurement.
    pub ci95: Option<f64>,
}

/// What Student's t exceeds in 2.5 % of cases, with 1, 2, … degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

impl Estimate {
    /// Of these repeats; 0 of none.
    pub fn of(repeats: &[f64]) -> Estimate {
        let count = repeats.len() as f64;
        let mean = repeats.iter().sum::<f64>() / count.max(1.0);
        let ci95 = (repeats.len() > 1).then(|| {
            let variance = repeats.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
            // Beyond the table the quantile goes down to the normal distribution's.
            let t = STUDENT.get(repeats.len() - 2).copied().unwrap_or(1.96 + 2.4 / (count - 1.0));
            t * (variance / count).sqrt()
        });
        Estimate { mean, ci95 }
    }
}

impl From<f64> for Estimate {
    fn from(mean: f64) -> Self {
        Estimate { mean, ci95: None }
    }
}

impl fmt::Display for Estimate {
    /// Three digits that count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.mean.abs() {
            0.0 => 0,
            ..1.0 => 3,
            1.0..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        write!(f, "{:.digits$}", self.mean)?;
        self.ci95.map_or(Ok(()), |half| write!(f, " ± {half:.digits$}"))
    }
}

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 50)
}

/// The line through some points by least squares: how much it rises, and how straight they lie: R², which is 1 where
/// they all lie on it.
pub fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count.max(1.0);
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|p| of(p.0 - x, p.1 - y)).sum::<f64>();
    let (xx, yy, xy) = (sum(&|x, _| x * x), sum(&|_, y| y * y), sum(&|x, y| x * y));
    if xx * yy == 0.0 { (0.0, 0.0) } else { (xy / xx, xy * xy / (xx * yy)) }
}

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
    fn intervals_are_those_of_student() {
        // Five repeats around 10: s = 1.5811, t = 2.776, so 2.776 * 1.5811 / sqrt(5) = 1.963.
        let five = Estimate::of(&[8.0, 9.0, 10.0, 11.0, 12.0]);
        assert_eq!(five.mean, 10.0);
        assert!((five.ci95.expect("five") - 1.9629).abs() < 1e-3, "{five:?}");
        // Two repeats say next to nothing.
        let two = Estimate::of(&[1.0, 2.0]);
        assert!((two.ci95.expect("two") - 6.353).abs() < 1e-3, "{two:?}");
        // 121 repeats: t is 1.980.
        let many: Vec<f64> = (0..121).map(f64::from).collect();
        let half = Estimate::of(&many).ci95.expect("many");
        assert!((half - 1.980 * 35.0737 / 11.0).abs() < 1e-2, "{half}");
        assert_eq!((Estimate::of(&[3.0]).ci95, Estimate::of(&[]).mean), (None, 0.0));
        assert_eq!([five.to_string(), Estimate::from(0.25).to_string()], ["10.0 ± 2.0", "0.250"]);
    }

    #[test]
    fn a_line_is_straight_and_a_cloud_is_not() {
        let (slope, r2) = line(&[(1.0, 3.0), (2.0, 5.0), (4.0, 9.0)]);
        assert!((slope - 2.0).abs() < 1e-12 && (r2 - 1.0).abs() < 1e-12);
        assert!(line(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]).1 < 1e-12);
        assert_eq!(line(&[(1.0, 1.0)]), (0.0, 0.0));
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[])), (2.0, 0.0));
    }

    #[test]
    fn the_cdf_ends_at_one_and_merges_equal_values() {
        assert_eq!(cdf(&[1.0, 2.0, 2.0, 4.0]), [(1.0, 0.25), (2.0, 0.75), (4.0, 1.0)]);
        assert_eq!(cdf(&[]), []);
    }
}
