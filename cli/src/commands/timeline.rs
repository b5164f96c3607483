//! `mobula timeline`: what ran where, and when, for people or for a trace viewer.

use crate::args::TimelineArgs;
use crate::commands::ask::{failed, looking};
use crate::commands::table::aligned;
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, millis};
use crate::say;
use mobula_gcs::clock;
use mobula_look::Look;
use mobula_look::names;
use mobula_look::timeline::{Bar, Timeline};
use std::collections::BTreeMap;

/// Prints what each worker did, or writes it all.
pub fn run(settings: &Settings, args: &TimelineArgs) -> Outcome {
    let since_ms = match &args.since {
        None => 0,
        Some(text) => clock::unix_ms().saturating_sub(age_ms(text).map_err(Failure::usage)?),
    };
    let output = settings.output;
    looking(settings, async |look: Look| {
        let timeline = look.timeline(since_ms, 0).await.map_err(failed)?;
        match &args.out {
            Some(path) => {
                let text = timeline.chrome().to_string();
                std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
                let (bars, shown) = (timeline.bars.len(), path.display());
                say!(
                    output,
                    "{bars} spans written to {shown}: open it with ui.perfetto.dev or chrome://tracing"
                );
            }
            None => print(output, &timeline),
        }
        timeline.silent.iter().for_each(|why| say!(output, "{why}"));
        output.data(&timeline);
        Ok(exit::OK)
    })
}

/// `10s`, `5m`, `2h`.
fn age_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("--since {text:?}: give an age such as 10s, 5m or 2h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let ms = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(ms).ok_or_else(wrong)
}

/// What one worker did, function by function.
#[derive(Default)]
struct Did {
    tasks: u64,
    again: u64,
    failed: u64,
    busy_us: u64,
}

fn print(output: Output, timeline: &Timeline) {
    let mut did: BTreeMap<(&str, u64, &str), Did> = BTreeMap::new();
    for bar in &timeline.bars {
        let Bar { node, worker, name, .. } = bar;
        let entry = did.entry((node, *worker, name)).or_default();
        let ended_us = if bar.ended_us == 0 { timeline.now_ms * 1000 } else { bar.ended_us };
        entry.tasks += u64::from(bar.count);
        entry.again += if bar.attempt > 1 { u64::from(bar.count) } else { 0 };
        entry.failed += if bar.failed { u64::from(bar.count) } else { 0 };
        entry.busy_us += ended_us.saturating_sub(bar.began_us);
    }
    let heading = ["NODE", "WORKER", "FUNCTION", "TASKS", "AGAIN", "FAILED", "BUSY"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(did.iter().map(|((node, worker, name), did)| {
        let busy = millis(did.busy_us as f64 / 1000.0);
        let (tasks, again, failed) = (did.tasks.to_string(), did.again.to_string(), did.failed.to_string());
        vec![(*node).to_owned(), worker.to_string(), (*name).to_owned(), tasks, again, failed, busy]
    }));
    match did.is_empty() {
        true => say!(output, "no worker has ended or runs a task of that time, as far as the nodes remember"),
        false => aligned(&cells).iter().for_each(|line| say!(output, "{line}")),
    }
    for mark in &timeline.marks {
        say!(output, "{}  {}", names::time(mark.unix_ms), mark.what);
    }
    if timeline.more {
        say!(output, "a node remembers more than it tells at once: give a later --since");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_understood_or_refused() {
        assert_eq!(age_ms("10s"), Ok(10_000));
        assert_eq!(age_ms("2h"), Ok(7_200_000));
        for wrong in ["", "s", "10", "10d", "-1s", "99999999999999999999h", "1ü"] {
            assert!(age_ms(wrong).is_err(), "{wrong}");
        }
    }
}
