//! A cumulative distribution as a drawing: time on a logarithmic axis, marks for what others need.

use super::stats::cdf;
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 52.0;

/// One curve.
pub struct Curve<'a> {
    /// What it shows.
    pub label: String,
    /// Sorted values, in milliseconds.
    pub sorted_ms: &'a [f64],
    /// Its colour.
    pub colour: &'a str,
}

/// A vertical line.
pub struct Mark<'a> {
    /// Where, in milliseconds.
    pub ms: f64,
    /// What it stands for.
    pub label: &'a str,
}

/// The whole picture.
pub fn draw(title: &str, curves: &[Curve<'_>], marks: &[Mark<'_>]) -> String {
    let axis = Axis::around(curves, marks);
    let mut svg = String::new();
    let mut put = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    put(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    put(r#"<rect width="100%" height="100%" fill="white"/>"#.into());
    put(format!(r#"<text x="{LEFT}" y="22" font-size="15">{}</text>"#, escaped(title)));
    for decade in axis.from..=axis.to {
        let (x, label) = (axis.x(10f64.powi(decade)), time_label(decade));
        put(line(x, TOP, x, HEIGHT - BOTTOM, "#ddd", ""));
        put(format!(
            r#"<text x="{x:.1}" y="{}" text-anchor="middle">{label}</text>"#,
            HEIGHT - BOTTOM + 18.0
        ));
    }
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let at = y(share);
        put(line(LEFT, at, WIDTH - RIGHT, at, "#ddd", ""));
        let label = quarter * 25;
        put(format!(r#"<text x="{}" y="{:.1}" text-anchor="end">{label} %</text>"#, LEFT - 6.0, at + 4.0));
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    put(format!(r#"<text x="{middle}" y="{}" text-anchor="middle">stall</text>"#, HEIGHT - 12.0));
    for (mark, row) in marks.iter().zip(0..) {
        let x = axis.x(mark.ms);
        put(line(x, TOP, x, HEIGHT - BOTTOM, "#c33", r#" stroke-dasharray="4 3""#));
        // Beside the line, towards the middle, so that it stays inside the picture.
        let (dx, anchor) = if x > middle { (-4.0, "end") } else { (4.0, "start") };
        let (x, y) = (x + dx, TOP + 14.0 + 15.0 * f64::from(row));
        put(format!(
            r##"<text x="{x:.1}" y="{y:.1}" fill="#c33" text-anchor="{anchor}">{}</text>"##,
            escaped(mark.label)
        ));
    }
    for (curve, row) in curves.iter().zip(0..) {
        put(format!(
            r#"<path d="{}" fill="none" stroke="{}" stroke-width="2"/>"#,
            steps(&axis, curve.sorted_ms),
            curve.colour
        ));
        let y = HEIGHT - BOTTOM - 12.0 - 16.0 * f64::from(row);
        put(format!(
            r#"<text x="{}" y="{y:.1}" fill="{}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT - 6.0,
            curve.colour,
            escaped(&curve.label)
        ));
    }
    put("</svg>".into());
    svg
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64, colour: &str, more: &str) -> String {
    format!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}"{more}/>"#)
}

/// From the bottom left along the steps to the right edge.
fn steps(axis: &Axis, sorted_ms: &[f64]) -> String {
    let mut path = String::new();
    let mut before = y(0.0);
    for (number, (value, share)) in cdf(sorted_ms).into_iter().enumerate() {
        let (x, next) = (axis.x(value), y(share));
        let to = if number == 0 { 'M' } else { 'L' };
        write!(path, "{to}{x:.1},{before:.1} L{x:.1},{next:.1} ").expect("a string grows");
        before = next;
    }
    if !path.is_empty() {
        write!(path, "L{:.1},{before:.1}", WIDTH - RIGHT).expect("a string grows");
    }
    path
}

fn y(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
}

/// Powers of ten of a millisecond.
struct Axis {
    from: i32,
    to: i32,
}

impl Axis {
    fn around(curves: &[Curve<'_>], marks: &[Mark<'_>]) -> Axis {
        let values = curves.iter().flat_map(|c| c.sorted_ms).copied().chain(marks.iter().map(|m| m.ms));
        let exponents: Vec<f64> = values.map(|v| v.max(0.001).log10()).collect();
        let least = exponents.iter().copied().fold(f64::INFINITY, f64::min);
        let most = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if exponents.is_empty() {
            return Axis { from: 0, to: 1 };
        }
        let from = least.floor() as i32;
        Axis { from, to: (most.ceil() as i32).max(from + 1) }
    }

    fn x(&self, ms: f64) -> f64 {
        let share = (ms.max(0.001).log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - RIGHT - LEFT)
    }
}

fn time_label(decade: i32) -> String {
    match decade {
        ..0 => format!("{} µs", 10f64.powi(decade + 3).round()),
        0..3 => format!("{} ms", 10u32.pow(decade as u32)),
        _ => format!("{} s", 10u64.pow(decade as u32 - 3)),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_spans_values_and_marks_in_whole_decades() {
        let curve = Curve { label: "a".into(), sorted_ms: &[3.0, 8.0, 250.0], colour: "blue" };
        let axis = Axis::around(&[curve], &[Mark { ms: 20_800.0, label: "m" }]);
        assert_eq!((axis.from, axis.to), (0, 5));
        assert!((axis.x(1.0) - LEFT).abs() < 1e-9);
        assert!((axis.x(100_000.0) - (WIDTH - RIGHT)).abs() < 1e-9);
        let step = axis.x(10.0) - axis.x(1.0);
        assert!((axis.x(1000.0) - axis.x(100.0) - step).abs() < 1e-9, "every decade is equally wide");
    }

    #[test]
    fn a_curve_rises_from_nothing_to_everything() {
        let axis = Axis { from: 0, to: 2 };
        let path = steps(&axis, &[1.0, 10.0]);
        let half = (y(0.0) + y(1.0)) / 2.0;
        let (left, middle, right) = (axis.x(1.0), axis.x(10.0), WIDTH - RIGHT);
        assert_eq!(
            path,
            format!(
                "M{left:.1},{:.1} L{left:.1},{half:.1} L{middle:.1},{half:.1} L{middle:.1},{:.1} L{right:.1},{:.1}",
                y(0.0),
                y(1.0),
                y(1.0)
            )
        );
        assert_eq!(steps(&axis, &[]), "");
    }

    #[test]
    fn text_is_escaped_and_axes_are_labelled() {
        let curve = Curve { label: "a < b & c".into(), sorted_ms: &[0.05, 2000.0], colour: "#06c" };
        let svg = draw("t", &[curve], &[]);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("10 µs") && svg.contains("10 s"), "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
