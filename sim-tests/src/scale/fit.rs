//! How straight a line is.

/// Least squares: slope, intercept, and R², the share of the variance that the line explains.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// Rise per unit.
    pub slope: f64,
    /// Where it begins.
    pub intercept: f64,
    /// 1 for a perfect line.
    pub r2: f64,
}

/// Fits a line through points.
pub fn line(points: &[(f64, f64)]) -> Fit {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|p| of(p.0 - x, p.1 - y)).sum::<f64>();
    let (xx, xy, yy) = (sum(&|a, _| a * a), sum(&|a, b| a * b), sum(&|_, b| b * b));
    Fit { slope: xy / xx, intercept: y - x * xy / xx, r2: xy * xy / (xx * yy) }
}

/// The largest over the smallest: 1 when all are alike.
pub fn spread(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().fold(f64::MIN, f64::max) / values.fold(f64::MAX, f64::min)
}
