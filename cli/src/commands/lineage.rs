//! `mobula lineage`: what an object was made of, and where that stands.

use crate::args::LineageArgs;
use crate::commands::ask::{failed, looking};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, bytes};
use crate::say;
use mobula_look::Look;
use mobula_look::lineage::{DEADLINE, Lineage, TASKS_MAX};
use mobula_look::records::parse_object;
use std::collections::BTreeSet;

/// Prints, or draws.
pub fn run(settings: &Settings, args: &LineageArgs) -> Outcome {
    let object = parse_object(&args.object).map_err(Failure::usage)?;
    let output = settings.output;
    looking(settings, async |look: Look| {
        let view = look.view().await.map_err(failed)?;
        let lineage = look.lineage(object, &view).await.map_err(failed)?;
        if args.dot {
            say!(output, "{}", lineage.dot().trim_end());
        } else {
            tree(output, &lineage);
        }
        if let Some(path) = &args.svg {
            std::fs::write(path, lineage.svg())
                .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            say!(output, "drawn: {}", path.display());
        }
        output.data(&lineage);
        Ok(exit::OK)
    })
}

/// A line for each task, under what takes it; what was shown already is only named.
fn tree(output: Output, lineage: &Lineage) {
    let counts = lineage.counts().into_iter().map(|(standing, count)| format!("{count} {}", standing.name()));
    say!(output, "{} tasks: {}", lineage.tasks.len(), counts.collect::<Vec<_>>().join(", "));
    // Not by recursion: a lineage may be as deep as memory allows.
    let (mut shown, mut open) = (BTreeSet::new(), vec![(0_usize, 0_usize)]);
    while let Some((place, indent)) = open.pop() {
        let task = &lineage.tasks[place];
        let pad = " ".repeat(2 * indent.min(INDENT_MAX));
        let again = if task.attempt > 1 { format!(", attempt {}", task.attempt) } else { String::new() };
        if !shown.insert(place) {
            say!(output, "{pad}{}  (above)", task.task);
            continue;
        }
        let name = if task.name.is_empty() { "?" } else { &task.name };
        let at = if task.nodes.is_empty() { String::new() } else { format!(" on {}", task.nodes.join(", ")) };
        let why = if task.why.is_empty() { String::new() } else { format!(": {}", task.why) };
        let size = if task.size > 0 { format!(", {}", bytes(task.size)) } else { String::new() };
        say!(output, "{pad}{}  {name}  {}{at}{size}{again}{why}", task.task, task.standing.name());
        open.extend(task.takes.iter().rev().map(|taken| (*taken, indent + 1)));
    }
    if lineage.cut {
        say!(output, "there are more: only {TASKS_MAX} are followed, and not for longer than {DEADLINE:?}");
    }
}

/// Deeper lines are not moved further to the right.
const INDENT_MAX: usize = 30;
