//! Runs as one page that needs nothing beside itself: verdicts, and for each run its time line (a lane for each head and
//! node with bands where something was wrong), its throughput, its faults with what the cluster says of them, its judges.

use crate::chaos::fault::{Fault, Outcome, Whom};
use crate::chaos::pulse::PART;
use crate::chaos::report::{Report, escape};
use std::fmt::Write as _;

/// Pixels of a picture's time axis, before it (for names), of a lane, and of the throughput.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 80.0;
const LANE: f64 = 18.0;
const RATE: f64 = 90.0;
/// A fault that is over at once is drawn so wide.
const THIN: f64 = 2.0;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1120px;padding:0 16px;color:#1c2024;\
background:#fff}h1,h2{line-height:1.2}table{border-collapse:collapse;width:100%}td,th{padding:3px 12px 3px 0;\
text-align:left;vertical-align:top;border-bottom:1px solid #e6e6e2}th{font-weight:600}code{background:#f4f4f1;\
padding:1px 5px}.pass{color:#18794e}.bad{color:#c62a2f}.dim{color:#6f767e}svg{width:100%;height:auto}\
svg text{font-size:11px;fill:#3c4248}section{break-inside:avoid-page;margin-bottom:36px}\
@media print{body{margin:0}}";

/// The page.
pub fn html(title: &str, reports: &[Report]) -> String {
    let failed = reports.iter().filter(|report| report.verdict != "pass").count();
    let verdict = match failed {
        0 => format!("<span class=pass>{} of {} passed</span>", reports.len(), reports.len()),
        _ => format!("<span class=bad>{failed} of {} did not pass</span>", reports.len()),
    };
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Mobula chaos: {title}</title><style>{STYLE}</style><h1>{title}: {verdict}</h1>",
        title = escape(title)
    );
    if reports.len() > 1 {
        page.push_str(&summary(reports));
    }
    for (number, report) in reports.iter().enumerate() {
        page.push_str(&section(number, report));
    }
    page.push_str("</html>\n");
    page
}

fn class(report: &Report) -> &'static str {
    if report.verdict == "pass" { "pass" } else { "bad" }
}

fn summary(reports: &[Report]) -> String {
    let mut table =
        "<table><tr><th>run<th>workload<th>verdict<th>faults<th>answers<th>longest stall".to_owned();
    for (number, report) in reports.iter().enumerate() {
        let _ = write!(
            table,
            "<tr><td><a href=\"#run{number}\">{}, seed {}</a><td>{}<td class={}>{}<td>{}<td>{}<td>{:.0} ms",
            escape(&report.name),
            report.seed,
            escape(&report.workload),
            class(report),
            report.verdict,
            report.faults.iter().filter(|fault| fault.outcome == Outcome::Installed).count(),
            report.values + report.failures,
            report.stall_ms
        );
    }
    table + "</table>"
}

fn section(number: usize, report: &Report) -> String {
    let mut text = format!(
        "<section id=run{number}><h2>{} <span class=dim>{}, seed {}</span>: <span class={}>{}</span></h2>",
        escape(&report.name),
        escape(&report.workload),
        report.seed,
        class(report),
        report.verdict
    );
    if let Some(objection) = report.objection() {
        let _ = write!(text, "<p class=bad>{}</p>", escape(&objection));
    }
    let _ = write!(
        text,
        "<p>{} values and {} failures with a cause; {} executions, {} of them again; longest time without an answer \
         {:.0} ms, at {:.1} s. Again: <code>{}</code></p>",
        report.values,
        report.failures,
        report.executions,
        report.executed_again,
        report.stall_ms,
        report.stall_at_s,
        escape(&report.again)
    );
    text.push_str(&picture(report));
    text.push_str(&judges(report));
    text.push_str(&faults(report));
    text + "</section>"
}

/// Heads first, then nodes, then what strikes all.
fn lane_of(whom: Whom, report: &Report) -> usize {
    match whom {
        Whom::Head(number) => number - 1,
        Whom::Node(number) => report.cluster[0] as usize + number - 1,
    }
}

fn colour(fault: &Fault) -> &'static str {
    match fault.kind.to_string().as_str() {
        "crash" | "head-crash" | "copies" | "kill-worker" => "#c62a2f",
        "pause" | "head-pause" | "slow-node" | "cpu-pressure" => "#8e4ec6",
        "leader-change" => "#18794e",
        _ => "#e5780b",
    }
}

fn picture(report: &Report) -> String {
    let lanes = (report.cluster[0] + report.cluster[1]) as usize + 1;
    let seconds = report.seconds.max(1.0);
    let x = |at: f64| LEFT + at / seconds * WIDTH;
    let tall = lanes as f64 * LANE;
    let height = tall + RATE + 34.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {:.0} {height:.0}\" role=img aria-label=\"time line\">",
        LEFT + WIDTH + 10.0
    );
    for lane in 0..lanes {
        let heads = report.cluster[0] as usize;
        let name = match lane {
            head if head < heads => format!("head {}", head + 1),
            node if node + 1 < lanes => format!("node {}", node - heads + 1),
            _ => "machine".to_owned(),
        };
        let fill = if lane % 2 == 0 { "#f4f4f1" } else { "#fbfbfa" };
        let y = lane as f64 * LANE;
        let _ = write!(
            svg,
            "<rect x={LEFT} y={y} width={WIDTH} height={LANE} fill=\"{fill}\"/><text x=0 y={:.0}>{name}</text>",
            y + 13.0
        );
    }
    for fault in report.faults.iter().filter(|fault| fault.outcome != Outcome::Skipped) {
        let lanes_of: Vec<usize> = match fault.whom.as_slice() {
            [] => vec![lanes - 1],
            whom => whom.iter().map(|whom| lane_of(*whom, report)).collect(),
        };
        let (from, wide) = (x(fault.at_s), (fault.lasted_s / seconds * WIDTH).max(THIN));
        for lane in lanes_of {
            let _ = write!(
                svg,
                "<rect x={from:.1} y={:.1} width={wide:.1} height={:.1} fill=\"{}\" opacity=\"0.75\"><title>{:.1} s {}: {}</title></rect>",
                lane as f64 * LANE + 2.0,
                LANE - 4.0,
                colour(fault),
                fault.at_s,
                fault.kind,
                escape(&fault.text)
            );
        }
    }
    svg.push_str(&throughput(report, tall, &x));
    let step = (seconds / 8.0).max(1.0).round();
    let mut at = 0.0;
    while at <= seconds {
        let _ = write!(svg, "<text x={:.0} y={:.0}>{at:.0} s</text>", x(at), height - 6.0);
        at += step;
    }
    svg + "</svg>"
}

/// Answers per second, below the lanes.
fn throughput(report: &Report, top: f64, x: &dyn Fn(f64) -> f64) -> String {
    let most = report.throughput.iter().copied().fold(1.0, f64::max);
    let (floor, tall) = (top + RATE + 10.0, RATE - 6.0);
    let mut path = format!("M{LEFT},{floor:.1}");
    for (part, rate) in report.throughput.iter().enumerate() {
        let (from, to) = (part as f64 * PART.as_secs_f64(), (part + 1) as f64 * PART.as_secs_f64());
        let y = floor - rate / most * tall;
        let _ = write!(path, " L{:.1},{y:.1} L{:.1},{y:.1}", x(from), x(to));
    }
    let end = report.throughput.len() as f64 * PART.as_secs_f64();
    let _ = write!(path, " L{:.1},{floor:.1} Z", x(end));
    format!(
        "<path d=\"{path}\" fill=\"#0b68cb\" opacity=\"0.35\"/><text x=0 y={:.0}>answers</text>\
         <text x=0 y={:.0}>{most:.0}/s</text>",
        floor - 4.0,
        top + 20.0
    )
}

fn judges(report: &Report) -> String {
    let mut table = "<table><tr><th>judge<th>rule<th>looked at<th>says".to_owned();
    for judged in &report.judged {
        let says = match &judged.objection {
            None => format!("<td class=pass>holds {}", escape(judged.note.as_deref().unwrap_or_default())),
            Some(text) => format!("<td class=bad>{}", escape(text)),
        };
        let _ = write!(table, "<tr><td>{}<td>{}<td>{}{says}", judged.judge, judged.rule, judged.checked);
    }
    table + "</table>"
}

fn faults(report: &Report) -> String {
    let mut table =
        "<details><summary>Faults</summary><table><tr><th>at<th>for<th>fault<th>what<th>the cluster says"
            .to_owned();
    for fault in &report.faults {
        let what = match fault.outcome {
            Outcome::Installed => escape(&fault.text),
            Outcome::Skipped => format!("<span class=dim>skipped: {}</span>", escape(&fault.text)),
            Outcome::Indeterminate => format!("<span class=bad>unclear: {}</span>", escape(&fault.text)),
        };
        let told: Vec<String> = fault.told.iter().map(|text| escape(text)).collect();
        let _ = write!(
            table,
            "<tr><td>{:.2} s<td>{:.2} s<td>{}<td>{what}<td>{}",
            fault.at_s,
            fault.lasted_s,
            fault.kind,
            told.join("<br>")
        );
    }
    table + "</table></details>"
}
