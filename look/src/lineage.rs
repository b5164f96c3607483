//! What an object was made of: its task, the arguments of that, and so on, each with where it stands now. From the control
//! store, so that it is there after every node involved is gone.

use crate::gather::Look;
use crate::names::Names;
use mobula_base::{ObjectId, TaskId};
use mobula_gcs::Error;
use mobula_proto::{ClusterView, TaskState, TaskView, arg, located, object_id};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

/// Tasks that are followed; beyond them the lineage is cut, and says so.
pub const TASKS_MAX: usize = 2_000;

/// It is not followed for longer: each level is a question to every shard.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How things stand with a task of a lineage and what it made. The order is that of the colours' legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// What it made is there.
    Here,
    /// It ended, and what it made is not needed any more, or is made again when it is.
    Freed,
    /// It has not ended.
    Waiting,
    /// It runs, and had run before.
    Again,
    /// What it made is lost; nobody has asked for it since.
    Lost,
    /// It failed: what hangs on it never will be there.
    Failed,
    /// There is no record of it.
    Unknown,
}

impl Standing {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Here => "here",
            Standing::Freed => "freed",
            Standing::Waiting => "waiting",
            Standing::Again => "running again",
            Standing::Lost => "lost",
            Standing::Failed => "failed",
            Standing::Unknown => "no record",
        }
    }

    /// Fill for drawings on a dark page.
    pub fn fill(self) -> &'static str {
        match self {
            Standing::Here => "#1f5c40",
            Standing::Freed => "#3a4353",
            Standing::Waiting => "#5c4516",
            Standing::Again => "#4b3b86",
            Standing::Lost => "#5f2424",
            Standing::Failed => "#111111",
            Standing::Unknown => "#22262e",
        }
    }
}

/// A task of a lineage.
#[derive(Clone, Debug, Serialize)]
pub struct Ancestor {
    pub task: String,
    pub name: String,
    pub standing: Standing,
    pub attempt: u32,
    /// Bytes of what it made, where that is known.
    pub size: u64,
    /// Nodes that have it.
    pub nodes: Vec<String>,
    /// Why it failed.
    pub why: String,
    /// How far it is from the object: 0 is the task that makes it.
    pub depth: u32,
    /// Tasks that make what this one takes, by their place in the list.
    pub takes: Vec<usize>,
}

/// The lineage of an object.
#[derive(Clone, Debug, Serialize)]
pub struct Lineage {
    pub object: String,
    /// The task that makes it comes first; what is nearer to it goes before what is farther.
    pub tasks: Vec<Ancestor>,
    /// There are more ancestors than are followed.
    pub cut: bool,
}

/// What is followed: a task, and which of its objects somebody takes.
type Level = BTreeMap<TaskId, BTreeSet<ObjectId>>;

impl Look {
    /// The lineage of an object, breadth first: a question to each shard a level.
    ///
    /// # Errors
    /// A shard does not answer.
    pub async fn lineage(&self, object: ObjectId, view: &ClusterView) -> Result<Lineage, Error> {
        let names = Names::of(view);
        let (mut tasks, mut places) = (Vec::new(), BTreeMap::new());
        let mut edges: Vec<(TaskId, TaskId)> = Vec::new();
        let mut level: Level = BTreeMap::from([(object.task, BTreeSet::from([object]))]);
        let (mut depth, mut cut) = (0, false);
        let until = Instant::now() + DEADLINE;
        while !level.is_empty() {
            if Instant::now() >= until {
                cut = true;
                break;
            }
            let ids: Vec<TaskId> = level.keys().copied().collect();
            let wanted: Vec<ObjectId> = level.values().flatten().copied().collect();
            let (records, located) = tokio::join!(self.records(&ids, true), self.located(&wanted));
            let (records, located) = (records?, located?);
            let mut next = Level::new();
            for (task, objects) in &level {
                let record = records.get(task);
                places.insert(*task, tasks.len());
                tasks.push(ancestor(
                    *task,
                    record,
                    objects.iter().filter_map(|o| located.get(o)),
                    &names,
                    depth,
                ));
                for taken in record.map(takes).into_iter().flatten() {
                    edges.push((*task, taken.task));
                    if !places.contains_key(&taken.task) && !level.contains_key(&taken.task) {
                        next.entry(taken.task).or_default().insert(taken);
                    }
                }
            }
            while tasks.len() + next.len() > TASKS_MAX && next.pop_last().is_some() {
                cut = true;
            }
            level = next;
            depth += 1;
        }
        for (task, taken) in edges {
            if let (Some(from), Some(to)) = (places.get(&task), places.get(&taken))
                && !tasks[*from].takes.contains(to)
            {
                tasks[*from].takes.push(*to);
            }
        }
        Ok(Lineage { object: object.to_string(), tasks, cut })
    }
}

/// Objects that a task takes.
fn takes(record: &TaskView) -> Vec<ObjectId> {
    let args = record.spec.iter().flat_map(|spec| &spec.args);
    args.filter_map(|arg| match &arg.arg {
        Some(arg::Arg::Object(bytes)) => object_id(bytes).ok(),
        _ => None,
    })
    .collect()
}

fn ancestor<'a>(
    task: TaskId,
    record: Option<&TaskView>,
    located: impl Iterator<Item = &'a located::Answer>,
    names: &Names,
    depth: u32,
) -> Ancestor {
    let located: Vec<&located::Answer> = located.collect();
    let spec = record.and_then(|record| record.spec.as_ref());
    let failure = record.and_then(|record| record.failure.as_ref());
    let holders = located.iter().flat_map(|answer| match answer {
        located::Answer::Here(here) => &here.holders[..],
        _ => &[],
    });
    let mut nodes: Vec<String> = holders.map(|holder| names.node(holder.incarnation)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    Ancestor {
        task: task.to_string(),
        name: spec.map_or_else(String::new, |spec| names.function(spec.job, spec.function)),
        standing: standing(record, &located),
        attempt: record.map_or(0, |record| record.attempt),
        size: record.map_or(0, |record| record.outputs.iter().map(|output| output.size).sum()),
        nodes,
        why: failure.map_or_else(String::new, |failure| failure.message.clone()),
        depth,
        takes: Vec::new(),
    }
}

fn standing(record: Option<&TaskView>, located: &[&located::Answer]) -> Standing {
    let is_here =
        |answer: &&located::Answer| matches!(answer, located::Answer::Here(_) | located::Answer::Value(_));
    let is_lost = |answer: &&located::Answer| matches!(answer, located::Answer::Lost(_));
    let Some(record) = record else {
        return if located.iter().any(&is_here) { Standing::Here } else { Standing::Unknown };
    };
    match record.state() {
        TaskState::TaskFailed => Standing::Failed,
        TaskState::TaskPending if record.keeper_fenced => Standing::Lost,
        TaskState::TaskPending if record.attempt > 1 => Standing::Again,
        TaskState::TaskPending => Standing::Waiting,
        TaskState::TaskDone if located.iter().any(is_lost) => Standing::Lost,
        TaskState::TaskDone if located.iter().any(is_here) => Standing::Here,
        TaskState::TaskDone => Standing::Freed,
        TaskState::TaskUnknown => Standing::Unknown,
    }
}

/// Width, height and distances of a drawing, in its own units.
const BOX: (u32, u32) = (150, 26);
const STEP: (u32, u32) = (190, 40);
const MARGIN: u32 = 16;

impl Lineage {
    /// How many ancestors stand how, in the order of the legend.
    pub fn counts(&self) -> BTreeMap<Standing, usize> {
        let mut counts = BTreeMap::new();
        for task in &self.tasks {
            *counts.entry(task.standing).or_default() += 1;
        }
        counts
    }

    /// For Graphviz. Arrows go from what is made to what it goes into.
    pub fn dot(&self) -> String {
        let mut dot = String::from(
            "digraph lineage {\n  rankdir=LR;\n  node [shape=box, style=filled, fontcolor=white];\n",
        );
        for (place, task) in self.tasks.iter().enumerate() {
            let (label, tip) = (self.label(place), quoted(&task.task));
            let _ = writeln!(
                dot,
                "  t{place} [label={}, fillcolor=\"{}\", tooltip={tip}];",
                quoted(&label),
                task.standing.fill()
            );
            for taken in &task.takes {
                let _ = writeln!(dot, "  t{taken} -> t{place};");
            }
        }
        dot + "}\n"
    }

    fn label(&self, place: usize) -> String {
        let task = &self.tasks[place];
        let name = if task.name.is_empty() { task.task.get(..8).unwrap_or_default() } else { &task.name };
        let again = if task.attempt > 1 { format!(" ×{}", task.attempt) } else { String::new() };
        format!("{name}{again}, {}", task.standing.name())
    }

    /// A drawing: the object's task on the right, what it was made of on the left.
    pub fn svg(&self) -> String {
        let deepest = self.tasks.iter().map(|task| task.depth).max().unwrap_or(0);
        let mut rows = BTreeMap::<u32, u32>::new();
        let at: Vec<(u32, u32)> = self
            .tasks
            .iter()
            .map(|task| {
                let row = rows.entry(task.depth).or_default();
                let y = MARGIN + *row * STEP.1;
                *row += 1;
                (MARGIN + (deepest - task.depth) * STEP.0, y)
            })
            .collect();
        let tallest = rows.values().max().copied().unwrap_or(1);
        let (width, height) = (2 * MARGIN + deepest * STEP.0 + BOX.0, 2 * MARGIN + tallest * STEP.1);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#0e1420\"/>\n"
        );
        for (task, (x, y)) in self.tasks.iter().zip(&at) {
            for taken in &task.takes {
                let (from_x, from_y) = (at[*taken].0 + BOX.0, at[*taken].1 + BOX.1 / 2);
                let (to_y, bend) = (y + BOX.1 / 2, (STEP.0 - BOX.0) / 2);
                let _ = writeln!(
                    svg,
                    "<path d=\"M{from_x} {from_y} C{} {from_y} {} {to_y} {x} {to_y}\" fill=\"none\" stroke=\"#5b6b86\"/>",
                    from_x + bend,
                    x.saturating_sub(bend)
                );
            }
        }
        for (place, (x, y)) in at.iter().enumerate() {
            let task = &self.tasks[place];
            let (w, h) = BOX;
            let _ = writeln!(
                svg,
                "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"4\" fill=\"{}\" \
                 stroke=\"#5b6b86\"/><text x=\"{}\" y=\"{}\" fill=\"#e6edf7\" text-anchor=\"middle\">{}</text></g>",
                escaped(&task.task),
                task.standing.fill(),
                x + w / 2,
                y + h / 2 + 4,
                escaped(&self.label(place))
            );
        }
        svg + "</svg>\n"
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::Here;

    fn record(state: TaskState, attempt: u32, fenced: bool) -> TaskView {
        TaskView { state: state.into(), attempt, keeper_fenced: fenced, ..TaskView::default() }
    }

    #[test]
    fn a_task_stands_as_its_record_and_its_copies_say() {
        let (here, lost) = (located::Answer::Here(Here::default()), located::Answer::Lost(1));
        let done = record(TaskState::TaskDone, 1, false);
        assert_eq!(standing(Some(&done), &[&here]), Standing::Here);
        assert_eq!(standing(Some(&done), &[&lost]), Standing::Lost);
        assert_eq!(standing(Some(&done), &[]), Standing::Freed);
        assert_eq!(standing(Some(&record(TaskState::TaskPending, 1, false)), &[]), Standing::Waiting);
        assert_eq!(standing(Some(&record(TaskState::TaskPending, 2, false)), &[]), Standing::Again);
        assert_eq!(standing(Some(&record(TaskState::TaskPending, 2, true)), &[]), Standing::Lost);
        assert_eq!(standing(None, &[]), Standing::Unknown);
    }

    #[test]
    fn drawings_name_every_task_and_nothing_in_a_name_breaks_them() {
        let of = |name: &str, depth, takes| Ancestor {
            task: TaskId::default().to_string(),
            name: name.into(),
            standing: Standing::Again,
            attempt: 2,
            size: 0,
            nodes: Vec::new(),
            why: String::new(),
            depth,
            takes,
        };
        let tasks = vec![of("join<a&b>", 0, vec![1, 2]), of("read \"x\"", 1, vec![]), of("", 1, vec![])];
        let lineage = Lineage { object: String::new(), tasks, cut: false };
        let (dot, svg) = (lineage.dot(), lineage.svg());
        assert!(
            dot.contains("t1 -> t0;") && dot.contains("t2 -> t0;") && dot.contains("read \\\"x\\\" ×2"),
            "{dot}"
        );
        assert!(
            svg.contains("join&lt;a&amp;b&gt; ×2, running again") && svg.matches("<path").count() == 2,
            "{svg}"
        );
        assert_eq!(lineage.counts(), BTreeMap::from([(Standing::Again, 3)]));
    }
}
