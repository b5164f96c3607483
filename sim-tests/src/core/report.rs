//! A run as one page: what was drawn, a lane for each machine and shard, the faults over them, and what led
//! to the objection. It needs nothing beside itself.

use super::explain;
use super::options::Options;
use super::trace::Line;
use super::{Outcome, judge::Class};
use std::fmt::Write as _;

/// Pixels of the picture's time axis.
const WIDTH: f64 = 1100.0;
/// Pixels before it, for names.
const LEFT: f64 = 90.0;
/// Height of a lane.
const LANE: f64 = 18.0;
/// Marks in one lane at most: more are not told apart.
const MARKS_MAX: usize = 4000;

/// The page.
pub fn html(outcome: &Outcome, options: &Options, lines: &[Line]) -> String {
    let verdict = match &outcome.objection {
        None => "pass".to_owned(),
        Some(o) => format!("{:?}: {} ({})", o.class, o.judge, o.rule),
    };
    let colour = match outcome.objection.as_ref().map(|o| o.class) {
        None => "#2a7",
        Some(Class::Safety) => "#c33",
        Some(_) => "#d80",
    };
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html><meta charset=utf-8><title>Mobula: seed {seed}</title><style>\
         body{{font:14px/1.4 system-ui,sans-serif;margin:24px;max-width:1240px;color:#222;background:#fff}}\
         table{{border-collapse:collapse}}td,th{{padding:2px 12px 2px 0;text-align:left;vertical-align:top}}\
         pre{{background:#f6f6f4;padding:10px;overflow:auto;font-size:12px}}h1 b{{color:{colour}}}\
         svg text{{font-size:11px}}</style>\
         <h1>Seed {seed}: <b>{verdict}</b></h1>",
        seed = outcome.seed,
        verdict = escape(&verdict),
    );
    if let Some(objection) = &outcome.objection {
        let _ = write!(page, "<p>{}</p>", escape(&objection.text));
    }
    let _ = write!(page, "<p>Again: <code>{}</code></p>", escape(&outcome.replay()));
    page.push_str(&facts(outcome));
    page.push_str("<h2>Time</h2>");
    page.push_str(&timeline(outcome, options, lines));
    let about = outcome.objection.as_ref().map_or("", |o| o.text.as_str());
    let slice = explain::slice(lines, about);
    let _ = write!(page, "<h2>What led to it</h2><pre>");
    for line in slice {
        let _ = writeln!(page, "{}", escape(&line.to_string()));
    }
    let _ = write!(page, "</pre><h2>Drawn</h2><pre>{}</pre>", escape(&format!("{options:#?}")));
    page
}

fn facts(outcome: &Outcome) -> String {
    let faults: Vec<String> = outcome.faults.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    let rows = [
        ("trace", format!("{:016x}, {} events", outcome.hash, outcome.events)),
        ("simulated", format!("{:.1} s", outcome.lasted.as_secs_f64())),
        ("tasks", format!("{}, {} executions, {} in excess", outcome.tasks, outcome.runs.0, outcome.runs.1)),
        ("values compared", outcome.gets.to_string()),
        ("faults", faults.join(", ")),
        ("deaths declared", outcome.deaths.to_string()),
    ];
    let mut table = "<table>".to_owned();
    for (name, value) in rows {
        let _ = write!(table, "<tr><th>{name}<td>{}", escape(&value));
    }
    table.push_str("</table>");
    table
}

/// Which lane a line belongs to: machines first, then shards, then faults.
fn lane_of(line: &Line, options: &Options) -> Option<usize> {
    match line.kind {
        "fault" | "quiet" => Some(options.nodes + options.shards),
        "runs" | "starts" | "joins" | "rejoins" | "worker-dies" => {
            Some(line.place as usize).filter(|lane| *lane < options.nodes)
        }
        "leads" | "leaderless" | "dies" => {
            let shard = (line.place as usize).checked_sub(1000)?;
            Some(options.nodes + shard).filter(|_| shard < options.shards)
        }
        _ => None,
    }
}

fn colour(kind: &str) -> &'static str {
    match kind {
        "runs" => "#9ab",
        "joins" | "starts" | "leads" => "#2a7",
        "fault" => "#c33",
        "dies" | "rejoins" | "leaderless" | "worker-dies" => "#d80",
        _ => "#888",
    }
}

fn timeline(outcome: &Outcome, options: &Options, lines: &[Line]) -> String {
    let lanes = options.nodes + options.shards + 1;
    let seconds = outcome.lasted.as_secs_f64().max(0.001);
    let height = lanes as f64 * LANE + 30.0;
    let x = |line: &Line| LEFT + line.at.0 as f64 / 1e9 / seconds * WIDTH;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{:.0}' height='{height:.0}' role='img'>",
        LEFT + WIDTH + 20.0
    );
    for lane in 0..lanes {
        let name = match lane {
            machine if machine < options.nodes => format!("machine {machine}"),
            shard if shard + 1 < lanes => format!("shard {}", shard - options.nodes),
            _ => "faults".to_owned(),
        };
        let y = lane as f64 * LANE;
        let fill = if lane % 2 == 0 { "#f6f6f4" } else { "#fff" };
        let _ = write!(
            svg,
            "<rect x='{LEFT}' y='{y}' width='{WIDTH}' height='{LANE}' fill='{fill}'/><text x='0' y='{:.0}'>{name}</text>",
            y + 13.0
        );
    }
    let mut marks = vec![0; lanes];
    for line in lines {
        let Some(lane) = lane_of(line, options) else { continue };
        marks[lane] += 1;
        if marks[lane] > MARKS_MAX {
            continue;
        }
        let (y, tall) = (lane as f64 * LANE, if line.kind == "runs" { 6.0 } else { LANE - 2.0 });
        let _ = write!(
            svg,
            "<rect x='{:.1}' y='{:.1}' width='2' height='{tall}' fill='{}'><title>{}</title></rect>",
            x(line),
            y + (LANE - tall) / 2.0,
            colour(line.kind),
            escape(&line.to_string())
        );
        // A fault is seen through all lanes.
        if line.kind == "fault" {
            let _ = write!(
                svg,
                "<rect x='{:.1}' y='0' width='1' height='{:.0}' fill='#c33' opacity='0.15'/>",
                x(line),
                lanes as f64 * LANE
            );
        }
    }
    for tick in 0..=6 {
        let at = seconds / 6.0 * f64::from(tick);
        let _ = write!(
            svg,
            "<text x='{:.0}' y='{:.0}'>{at:.0} s</text>",
            LEFT + at / seconds * WIDTH - 8.0,
            height - 8.0
        );
    }
    svg.push_str("</svg>");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}
