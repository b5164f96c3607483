//! R7, S15 as far as it shows from outside: *a task without retries begins at most once.* And every value that a task
//! was given is whole (S13).

use super::{Class, Judged};
use mobula_chaos::program::Oracle;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What workers wrote down.
#[derive(Debug, Default)]
pub struct Found {
    /// Executions.
    pub executions: u64,
    /// Executions that were not the first of their task.
    pub again: u64,
    /// Lives of nodes in which there were some.
    pub places: BTreeSet<u64>,
    /// How often each attempt of each task began, by their names.
    begun: BTreeMap<(String, u32), u64>,
    torn: Option<String>,
    strange: Option<String>,
}

/// Reads what all workers wrote.
///
/// # Errors
/// It cannot be read.
pub fn read(dir: &Path) -> Result<Found, String> {
    let failed = |e: std::io::Error| format!("cannot read what workers wrote to {}: {e}", dir.display());
    let mut found = Found::default();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let text = std::fs::read_to_string(entry.map_err(failed)?.path()).map_err(failed)?;
        text.lines().for_each(|line| found.line(line));
    }
    let tasks: BTreeSet<&String> = found.begun.keys().map(|(task, _)| task).collect();
    found.again = found.executions - tasks.len() as u64;
    Ok(found)
}

impl Found {
    fn line(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (what, task, rest) = (words.next(), words.next(), words.next().unwrap_or_default());
        let numbers = rest
            .split_once(' ')
            .and_then(|(attempt, node)| Some((attempt.parse().ok()?, node.parse().ok()?)));
        match (what, task, numbers) {
            (Some("run"), Some(task), Some((attempt, node))) => {
                self.executions += 1;
                self.places.insert(node);
                *self.begun.entry((task.to_owned(), attempt)).or_default() += 1;
            }
            (Some("torn"), Some(task), _) => {
                self.torn.get_or_insert(format!("an argument of {task}: {rest}"));
            }
            _ => _ = self.strange.get_or_insert(line.to_owned()),
        }
    }
}

/// What is to be said of it.
pub fn judge(found: &Found, oracle: &Oracle) -> Vec<Judged> {
    let mut may_once: BTreeSet<String> = BTreeSet::new();
    for (task, known) in &oracle.tasks {
        if known.retries == 0 {
            may_once.insert(task.to_string());
        }
    }
    let first = |task: &String| found.begun.get(&(task.clone(), 1)).copied().unwrap_or(0);
    let twice = may_once.iter().find(|task| first(task) > 1);
    let twice = twice.map(|task| format!("{task}, which has no retries, began {} times", first(task)));
    let strange = found.strange.as_ref().map(|line| format!("a worker wrote {line:?}"));
    vec![
        Judged::of("once", "R7, S15", Class::Safety, may_once.len() as u64).objecting(twice),
        Judged::of("whole", "S13", Class::Safety, found.executions).objecting(found.torn.clone()),
        Judged::of("record", "harness", Class::Unknown, found.executions).objecting(strange),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::{JobId, ObjectId, TaskId};
    use mobula_chaos::program::{Style, Submission};

    fn oracle(retries: u32) -> (Oracle, TaskId) {
        let job = JobId(1);
        let mut oracle = Oracle::of(job);
        let root = TaskId::root(job);
        let id = TaskId::new(job, root, 0, 0);
        let style = Style::of_processes(1, mobula_chaos::scenario::Work::Programs);
        let args: Vec<ObjectId> = Vec::new();
        oracle.run(
            &style,
            &Submission { id, parent: root, seed: 1, depth: 0, args: args.clone(), nested: args },
        );
        oracle.tasks.get_mut(&id).expect("it ran").retries = retries;
        (oracle, id)
    }

    fn objection(lines: &[String], oracle: &Oracle, judge: &str) -> Option<String> {
        let mut found = Found::default();
        lines.iter().for_each(|line| found.line(line));
        self::judge(&found, oracle).into_iter().find(|judged| judged.judge == judge)?.objection
    }

    #[test]
    fn a_task_without_retries_may_begin_once_and_others_again() {
        let (oracle, task) = self::oracle(0);
        let run = format!("run {task} 1 77");
        let twice = [run.clone(), run];
        assert_eq!(objection(&twice[..1], &oracle, "once"), None);
        assert!(objection(&twice, &oracle, "once").expect("it began twice").contains("2 times"));
        let (oracle, _) = self::oracle(3);
        assert_eq!(objection(&twice, &oracle, "once"), None);
    }

    #[test]
    fn what_was_torn_or_makes_no_sense_is_told() {
        let (oracle, task) = self::oracle(3);
        let torn = format!("torn {task} a value of 3 bytes is not what its hash says");
        assert!(objection(&[torn], &oracle, "whole").expect("torn").contains("3 bytes"));
        assert!(objection(&["walk".into()], &oracle, "record").is_some());
    }
}
