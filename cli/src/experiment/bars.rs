//! Pairs of bars as a drawing: what was measured beside what it is compared with.

use crate::chaos::report::escape;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 210.0;
const ROW: f64 = 38.0;
const TOP: f64 = 56.0;

/// A row.
pub struct Row {
    /// What it is about.
    pub label: String,
    /// What was measured.
    pub measured: f64,
    /// What it is compared with.
    pub bound: f64,
    /// Beside the bars.
    pub note: String,
}

/// The whole picture. Lengths are logarithmic, from a tenth of the least on.
pub fn draw(title: &str, measured: &str, bound: &str, rows: &[Row]) -> String {
    let all = || rows.iter().flat_map(|row| [row.measured, row.bound]).filter(|value| *value > 0.0);
    let (least, most) = (all().fold(f64::INFINITY, f64::min) / 10.0, all().fold(0.0, f64::max));
    let room = WIDTH - LEFT - 150.0;
    let length = |value: f64| {
        if value <= 0.0 {
            0.0
        } else {
            (value / least).ln() / (most / least).ln().max(f64::MIN_POSITIVE) * room
        }
    };
    let height = TOP + ROW * rows.len() as f64 + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"22\" font-size=\"15\">{}</text>\n\
         <rect x=\"10\" y=\"32\" width=\"10\" height=\"10\" fill=\"#0b68cb\"/><text x=\"26\" y=\"41\">{}</text>\n\
         <rect x=\"260\" y=\"32\" width=\"10\" height=\"10\" fill=\"#b9bdc1\"/><text x=\"276\" y=\"41\">{}; logarithmic</text>\n",
        escape(title),
        escape(measured),
        escape(bound)
    );
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + ROW * at as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 18.0,
            escape(&row.label)
        );
        for (dy, value, colour) in [(2.0, row.measured, "#0b68cb"), (15.0, row.bound, "#b9bdc1")] {
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{colour}\"/>",
                y + dy,
                length(value)
            );
        }
        let x = LEFT + length(row.measured.max(row.bound)) + 8.0;
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.0}\">{}</text>", y + 18.0, escape(&row.note));
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_is_longer_and_text_is_escaped() {
        let row =
            |label: &str, measured, bound| Row { label: label.into(), measured, bound, note: "n".into() };
        let svg = draw("a < b", "m", "b", &[row("x", 10.0, 1.0), row("y", 0.0, 100.0)]);
        let widths: Vec<f64> = svg
            .split("height=\"12\"")
            .filter_map(|part| part.rsplit_once("width=\"")?.1.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 4, "{svg}");
        assert!(widths[0] > widths[1] && widths[3] > widths[0] && widths[2] == 0.0, "{widths:?}");
        assert!(svg.contains("a &lt; b"));
    }
}
