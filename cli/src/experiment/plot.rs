//! Curves over a common axis as a drawing.

use crate::chaos::report::escape;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 52.0;
/// In the order of the curves.
const COLOURS: [&str; 6] = ["#0b68cb", "#d9730d", "#8a8f94", "#2c8a4b", "#8e44ad", "#b03a2e"];
/// A logarithmic axis begins here at the least.
const LOG_MIN: f64 = 1e-9;

/// One curve.
pub struct Curve {
    /// What it shows.
    pub label: String,
    /// In order of x.
    pub points: Vec<(f64, f64)>,
}

/// One axis.
#[derive(Clone, Copy)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: &'static str,
    /// Every power of ten takes as much room.
    pub is_log: bool,
}

/// The whole picture; `marks` are vertical lines with what they stand for.
pub fn draw(title: &str, [x, y]: [Axis; 2], curves: &[Curve], marks: &[(f64, String)]) -> String {
    let of = |at: fn(&(f64, f64)) -> f64| curves.iter().flat_map(move |c| c.points.iter().map(at));
    let (across, up) = (Scale::of(x, of(|p| p.0)), Scale::of(y, of(|p| p.1)));
    let place_x = |value: f64| LEFT + across.share(value) * (WIDTH - LEFT - RIGHT);
    let place_y = |value: f64| HEIGHT - BOTTOM - up.share(value) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    let text = |x: f64, y: f64, anchor: &str, colour: &str, text: &str| {
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>\n",
            escape(text)
        )
    };
    for tick in across.ticks() {
        let at = place_x(tick);
        svg += &line((at, TOP), (at, HEIGHT - BOTTOM), "#ddd", "");
        svg += &text(at, HEIGHT - BOTTOM + 18.0, "middle", "black", &short(tick));
    }
    for tick in up.ticks() {
        let at = place_y(tick);
        svg += &line((LEFT, at), (WIDTH - RIGHT, at), "#ddd", "");
        svg += &text(LEFT - 6.0, at + 4.0, "end", "black", &short(tick));
    }
    svg += &text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0, "middle", "black", x.label);
    svg += &text(LEFT, TOP - 8.0, "start", "#555", y.label);
    for (at, label) in marks {
        svg +=
            &line((place_x(*at), TOP), (place_x(*at), HEIGHT - BOTTOM), "#c33", " stroke-dasharray=\"4 3\"");
        svg += &text(place_x(*at) + 3.0, TOP + 12.0, "start", "#c33", label);
    }
    for ((number, curve), colour) in curves.iter().enumerate().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        for (at, (x, y)) in curve.points.iter().enumerate() {
            let _ = write!(path, "{}{:.1},{:.1} ", if at == 0 { 'M' } else { 'L' }, place_x(*x), place_y(*y));
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        svg += &text(WIDTH - RIGHT - 6.0, TOP + 28.0 + 16.0 * number as f64, "end", colour, &curve.label);
    }
    svg + "</svg>\n"
}

fn line(from: (f64, f64), to: (f64, f64), colour: &str, more: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"{more}/>\n",
        from.0, from.1, to.0, to.1
    )
}

/// From where to where an axis goes.
struct Scale {
    from: f64,
    to: f64,
    is_log: bool,
}

impl Scale {
    fn of(axis: Axis, values: impl Iterator<Item = f64>) -> Scale {
        let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if !axis.is_log {
            // Amounts begin at nothing.
            let to = if most > 0.0 { most * 1.1 } else { 1.0 };
            return Scale { from: 0.0, to, is_log: false };
        }
        let least = if least.is_finite() { least.max(LOG_MIN) } else { 1.0 };
        let (from, to) = (least.log10().floor(), most.max(least).log10().ceil());
        Scale { from, to: to.max(from + 1.0), is_log: true }
    }

    fn share(&self, value: f64) -> f64 {
        let value = if self.is_log { value.max(LOG_MIN).log10() } else { value };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            return (self.from as i32..=self.to as i32).map(|power| 10f64.powi(power)).collect();
        }
        // About five, at round numbers.
        let rough = self.to / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|each| each * power).into_iter().find(|each| *each >= rough);
        let step = step.unwrap_or(rough);
        (0..).map(|number| f64::from(number) * step).take_while(|tick| *tick <= self.to).collect()
    }
}

fn short(value: f64) -> String {
    let (value, unit) = match value {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    // Powers of ten and round steps have few digits; what computing adds to them is rounded away.
    format!("{}{unit}", (value * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Axis = Axis { label: "x", is_log: false };
    const LOG: Axis = Axis { label: "y", is_log: true };

    #[test]
    fn ticks_are_round() {
        assert_eq!(Scale::of(PLAIN, [0.0, 20.0].into_iter()).ticks(), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(Scale::of(LOG, [0.2, 30.0].into_iter()).ticks(), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!([short(0.1), short(2_500.0), short(1e6)], ["0.1", "2.5k", "1M"]);
    }

    #[test]
    fn more_is_higher_and_text_is_escaped() {
        let curve = Curve { label: "a < b".into(), points: vec![(0.0, 1.0), (10.0, 100.0)] };
        let svg = draw("t", [PLAIN, LOG], &[curve], &[(5.0, "killed".into())]);
        assert!(svg.contains("a &lt; b") && svg.contains("killed"), "{svg}");
        assert!(svg.contains(&format!("M{LEFT:.1},{:.1}", HEIGHT - BOTTOM)), "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_can_be_drawn() {
        assert!(draw("t", [PLAIN, LOG], &[], &[]).ends_with("</svg>\n"));
    }
}
