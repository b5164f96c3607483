//! Why a task waits or was lost, where an object is and why not, what became of a node: from the nodes that live and from
//! the replicated log, so that there is an answer after everything involved is gone.

use crate::gather::{Look, silent};
use crate::happened::{self, cause_of};
use crate::names::{self, Names};
use crate::records::parse_object;
use mobula_base::{Incarnation, ObjectId, TaskId, TaskPrefix};
use mobula_gcs::Error;
use mobula_proto::{
    ClusterView, Event, EventKind, LookRequest, NodeView, TaskSpan, TaskState, TaskView, arg, located,
    object_bytes,
};
use serde::Serialize;
use std::time::Duration;

/// What runs again this long after a node's death is told with it.
const AFTERMATH: Duration = Duration::from_secs(60);
/// Tasks that are named; the others are counted.
const NAMED_MAX: usize = 5;

/// What is said of one thing.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Told {
    /// What it is, by its id.
    pub what: String,
    /// Where it stands, in a word.
    pub state: String,
    /// Who says so.
    pub node: String,
    /// What it waits for, and because of what.
    pub because: Vec<String>,
}

/// Everything that was said, and by whom not.
#[derive(Debug, Default)]
pub struct Story {
    /// What was said.
    pub told: Vec<Told>,
    /// Nodes that did not answer.
    pub silent: Vec<String>,
    /// There is more.
    pub more: bool,
}

/// What may be asked about.
#[derive(Debug, PartialEq, Eq)]
pub enum Subject {
    /// Tasks whose ids begin so.
    Tasks(TaskPrefix),
    /// An object.
    Object(ObjectId),
    /// A node, by its name or incarnation.
    Node(String),
}

impl Subject {
    /// What a text means in a cluster. A name of a node goes before the beginning of an id.
    ///
    /// # Errors
    /// It is no id, and nothing is called so.
    pub fn of(text: &str, view: &ClusterView) -> Result<Subject, String> {
        let is_it = |node: &NodeView| node.name == text || Incarnation(node.incarnation).to_string() == text;
        if text.contains('#') {
            return parse_object(text).map(Subject::Object);
        }
        if text.starts_with("inc-") || view.nodes.iter().any(is_it) {
            return Ok(Subject::Node(text.to_owned()));
        }
        text.parse().map(Subject::Tasks).map_err(|why: String| format!("no node is called so, and {why}"))
    }
}

impl Look {
    /// What is known of a subject.
    ///
    /// # Errors
    /// No head answers.
    pub async fn explain(&self, subject: &Subject, text: &str, view: &ClusterView) -> Result<Story, Error> {
        match subject {
            Subject::Tasks(prefix) => self.explain_tasks(*prefix, text, view).await,
            Subject::Object(object) => self.explain_object(*object, view).await,
            Subject::Node(name) => self.explain_node(name, view).await,
        }
    }

    async fn explain_tasks(
        &self,
        prefix: TaskPrefix,
        text: &str,
        view: &ClusterView,
    ) -> Result<Story, Error> {
        let answers = self.explanations(view, text).await;
        let mut story = Story { silent: silent(&answers), ..Story::default() };
        for answer in &answers {
            let Ok(reply) = &answer.reply else { continue };
            story.more |= reply.more;
            story.told.extend(reply.tasks.iter().map(|task| Told {
                what: task.task.clone(),
                state: task.state.clone(),
                node: answer.node.name.clone(),
                because: task.because.clone(),
            }));
        }
        // What no node knows may be on record.
        if let (true, Some(task)) = (story.told.is_empty(), prefix.whole()) {
            story.told.extend(self.recorded(task, view).await?);
        }
        story.told.sort_by(|a, b| (&a.what, &a.node).cmp(&(&b.what, &b.node)));
        Ok(story)
    }

    async fn recorded(&self, task: TaskId, view: &ClusterView) -> Result<Option<Told>, Error> {
        let record = self.records(&[task], false).await?.remove(&task);
        let Some(record) = record else { return Ok(None) };
        let events = self.events(0).await?;
        let shard = self.client.slots().of_run(task.run);
        let (state, why) = of_record(&record, &Names::of(view), &events);
        let since = format!("its record has been in the log of {shard} since entry {}", record.revision);
        let because = vec![why, since];
        Ok(Some(Told { what: task.to_string(), state: state.into(), node: STORE.into(), because }))
    }

    async fn explain_object(&self, object: ObjectId, view: &ClusterView) -> Result<Story, Error> {
        let asked = LookRequest { objects: true, prefix: object.task.to_string(), ..LookRequest::default() };
        let (answers, record, located, events) = tokio::join!(
            self.nodes(view, &asked),
            self.records(std::slice::from_ref(&object.task), true),
            self.located(std::slice::from_ref(&object)),
            self.events(0),
        );
        let (record, located, events) = (record?.remove(&object.task), located?.remove(&object), events?);
        let names = Names::of(view);
        let mut story = Story { silent: silent(&answers), ..Story::default() };
        let (state, mut because) = of_located(located.as_ref(), &names, &events);
        if let Some(record) = &record {
            because.extend(of_task(object, record, &names, &events));
        }
        let what = object.to_string();
        story.told.push(Told { what: what.clone(), state: state.into(), node: STORE.into(), because });
        for answer in &answers {
            let Ok(reply) = &answer.reply else { continue };
            for row in reply.objects.iter().filter(|row| row.object == object_bytes(object)) {
                let mut because = vec![format!(
                    "{} programs refer to it, {} tasks name it, {} attempts use it, {} wait for it",
                    row.clients, row.tasks, row.used, row.waiting
                )];
                because.extend(row.spilled.then(|| "it is on this node's disk only".into()));
                because.extend(row.idle.then(|| "nobody here has a use for this copy".into()));
                let (state, node) = (row.state.clone(), answer.node.name.clone());
                story.told.push(Told { what: what.clone(), state, node, because });
            }
        }
        Ok(story)
    }

    async fn explain_node(&self, name: &str, view: &ClusterView) -> Result<Story, Error> {
        let asked = LookRequest { spans: true, ..LookRequest::default() };
        let (answers, events) = tokio::join!(self.nodes(view, &asked), self.events(0));
        let events = events?;
        let spans: Vec<TaskSpan> = answers
            .iter()
            .filter_map(|answer| answer.reply.as_ref().ok())
            .flat_map(|reply| reply.spans.iter().cloned())
            .collect();
        let lives = lives(name, view, &events);
        let told = lives.into_iter().map(|incarnation| of_life(incarnation, view, &events, &spans)).collect();
        Ok(Story { told, silent: silent(&answers), more: false })
    }
}

/// Who says what comes from the replicated log.
const STORE: &str = "the control store";

/// How a node died, if it did, with the evidence.
fn death(incarnation: u64, events: &[Event]) -> Option<String> {
    let event = events.iter().find(|event| {
        event.incarnation == incarnation
            && matches!(event.kind(), EventKind::EventNodeDied | EventKind::EventNodeLeft)
    })?;
    let left = event.kind() == EventKind::EventNodeLeft;
    let verb = if left { "left" } else { "was declared dead" };
    let cause = cause_of(event.cause()).map_or_else(String::new, |cause| format!(" because of {cause}"));
    let evidence = if event.evidence.is_empty() { String::new() } else { format!(": {}", event.evidence) };
    Some(format!("{verb} at {}{cause}{evidence} (event {})", names::time(event.unix_ms), event.seq))
}

fn node_of(incarnation: u64, names: &Names, events: &[Event]) -> String {
    let name = names.node(incarnation);
    match death(incarnation, events) {
        Some(death) => format!("node {name} ({}), which {death}", Incarnation(incarnation)),
        None => format!("node {name} ({})", Incarnation(incarnation)),
    }
}

/// Where a task stands by its record, and why.
fn of_record(record: &TaskView, names: &Names, events: &[Event]) -> (&'static str, String) {
    let TaskView { attempt, executor, keeper, keeper_fenced, .. } = record;
    let keeper = || node_of(*keeper, names, events);
    match record.state() {
        TaskState::TaskUnknown => ("unknown", "there is no record of it".into()),
        TaskState::TaskPending if *keeper_fenced => (
            "lost",
            format!(
                "attempt {attempt} was kept by {}; whoever needs what it makes asks for the next attempt, and nobody \
                 has yet",
                keeper()
            ),
        ),
        TaskState::TaskPending => {
            ("pending", format!("attempt {attempt} is kept by {}, which has not said how it ended", keeper()))
        }
        TaskState::TaskDone => {
            let size: u64 = record.outputs.iter().map(|output| output.size).sum();
            ("done", format!("attempt {attempt} made {size} bytes on {}", node_of(*executor, names, events)))
        }
        TaskState::TaskFailed => {
            let why = record.failure.as_ref().map_or("", |failure| failure.message.as_str());
            ("failed", format!("attempt {attempt}: {why}"))
        }
    }
}

/// Where an object is by its home, and why not.
fn of_located(
    answer: Option<&located::Answer>,
    names: &Names,
    events: &[Event],
) -> (&'static str, Vec<String>) {
    match answer {
        Some(located::Answer::Here(here)) => {
            let size = here.output.as_ref().map_or(0, |output| output.size);
            let at: Vec<String> = here.holders.iter().map(|h| names.node(h.incarnation)).collect();
            ("here", vec![format!("{size} bytes on {}", at.join(", "))])
        }
        Some(located::Answer::Value(bytes)) => {
            ("here", vec![format!("{} bytes, kept by the control store itself", bytes.len())])
        }
        Some(located::Answer::Making(keeper)) => {
            ("pending", vec![format!("its task is kept by {} and has not ended", node_of(*keeper, names, events))])
        }
        Some(located::Answer::Lost(attempt)) => (
            "lost",
            vec![format!(
                "no living node has it since attempt {attempt} of its task; it is made again as soon as somebody needs \
                 it"
            )],
        ),
        Some(located::Answer::Failed(failure)) => ("failed", vec![failure.message.clone()]),
        Some(located::Answer::Unknown(_) | located::Answer::Moved(_)) | None => (
            "unknown",
            vec!["the control store has no record of it: it never heard of it, or nobody refers to it any more".into()],
        ),
    }
}

/// What is on record of the task that makes an object.
fn of_task(object: ObjectId, record: &TaskView, names: &Names, events: &[Event]) -> Vec<String> {
    let (state, why) = of_record(record, names, events);
    let mut said = Vec::new();
    if let Some(spec) = &record.spec {
        let objects = spec.args.iter().filter(|arg| matches!(arg.arg, Some(arg::Arg::Object(_)))).count();
        let verb = if object.is_put() { "was put by" } else { "is made by" };
        said.push(format!(
            "it {verb} task {} ({}), which takes {objects} objects",
            object.task,
            names.function(spec.job, spec.function)
        ));
    }
    said.push(format!("its task is {state}: {why}"));
    if record.attempt > 1 {
        said.push(format!(
            "that is attempt {}: what the others had made, or were making, was lost or failed",
            record.attempt
        ));
    }
    said
}

/// The lives that a name or an incarnation means, oldest first.
fn lives(name: &str, view: &ClusterView, events: &[Event]) -> Vec<u64> {
    let is_it = |of: &str, incarnation: u64| of == name || Incarnation(incarnation).to_string() == name;
    let seen =
        view.nodes.iter().filter(|node| is_it(&node.name, node.incarnation)).map(|node| node.incarnation);
    let told = events
        .iter()
        .filter(|event| event.incarnation != 0 && event.job == 0 && is_it(&event.name, event.incarnation))
        .map(|event| event.incarnation);
    let mut lives: Vec<u64> = seen.chain(told).collect();
    lives.sort_unstable();
    lives.dedup();
    lives
}

fn of_life(incarnation: u64, view: &ClusterView, events: &[Event], spans: &[TaskSpan]) -> Told {
    let node = view.nodes.iter().find(|node| node.incarnation == incarnation);
    let own = |event: &&Event| event.incarnation == incarnation && event.job == 0;
    let mut because: Vec<String> =
        events.iter().filter(own).map(|event| happened::line(event).trim().to_owned()).collect();
    if let Some(node) = node.filter(|node| node.alive) {
        because.push(format!(
            "{} of {} CPUs free, {} tasks queued, {} of {} bytes of its store used",
            f64::from(node.cpu_milli_free) / 1000.0,
            f64::from(node.cpu_milli) / 1000.0,
            node.queued,
            node.store_bytes_used,
            node.store_bytes
        ));
    }
    let died = events.iter().filter(own).find(|event| event.kind() == EventKind::EventNodeDied);
    if let Some(died) = died {
        because.push(aftermath(died, spans));
    }
    let state = match (node, died) {
        (Some(node), _) if node.alive => "alive",
        (_, Some(_)) => "dead",
        _ => "gone",
    };
    let name = node.map(|node| node.name.clone()).or_else(|| Some(events.iter().find(own)?.name.clone()));
    let what = format!("{} ({})", Incarnation(incarnation), name.unwrap_or_default());
    Told { what, state: state.into(), node: STORE.into(), because }
}

/// What ran again after a death, as far as the nodes that live remember.
fn aftermath(died: &Event, spans: &[TaskSpan]) -> String {
    let from_us = died.unix_ms * 1000;
    let upto_us = from_us + AFTERMATH.as_micros() as u64;
    let again: Vec<&TaskSpan> =
        spans.iter().filter(|span| span.attempt > 1 && (from_us..upto_us).contains(&span.ended_us)).collect();
    let tasks: u32 = again.iter().map(|span| span.count).sum();
    let ran_us: u64 = again.iter().map(|span| span.ended_us.saturating_sub(span.began_us)).sum();
    let some: Vec<String> = again.iter().take(NAMED_MAX).map(|span| names::task(&span.task)).collect();
    let named = if some.is_empty() { String::new() } else { format!(": {}", some.join(", ")) };
    format!(
        "within {} s after that, later attempts of {tasks} tasks ended on the nodes that live, {:.1} ms of work{named}",
        AFTERMATH.as_secs(),
        ran_us as f64 / 1000.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_means_an_object_a_node_or_the_beginning_of_a_task() {
        let node = NodeView { incarnation: 7, name: "beef".into(), ..NodeView::default() };
        let view = ClusterView { nodes: vec![node], ..ClusterView::default() };
        assert_eq!(Subject::of("beef", &view), Ok(Subject::Node("beef".into())));
        assert_eq!(Subject::of("inc-7", &view), Ok(Subject::Node("inc-7".into())));
        assert!(matches!(Subject::of("bee", &view), Ok(Subject::Tasks(_))));
        let object = ObjectId::default();
        assert_eq!(Subject::of(&object.to_string(), &view), Ok(Subject::Object(object)));
        assert!(Subject::of("node-9", &view).expect_err("neither").contains("no node is called so"));
    }

    #[test]
    fn a_death_is_told_with_its_cause_its_evidence_and_what_ran_again() {
        let died = Event {
            seq: 4,
            unix_ms: 1_000,
            kind: EventKind::EventNodeDied.into(),
            cause: mobula_proto::EventCause::CauseSilence.into(),
            evidence: "nothing for 1500 ms".into(),
            incarnation: 7,
            name: "a".into(),
            ..Event::default()
        };
        let span = TaskSpan {
            attempt: 2,
            began_us: 1_100_000,
            ended_us: 1_200_000,
            count: 3,
            ..TaskSpan::default()
        };
        let early = TaskSpan { ended_us: 900_000, ..span.clone() };
        let told = of_life(7, &ClusterView::default(), std::slice::from_ref(&died), &[span, early]);
        assert_eq!((told.what.as_str(), told.state.as_str()), ("inc-7 (a)", "dead"));
        let all = told.because.join("\n");
        assert!(
            all.contains("silence") && all.contains("nothing for 1500 ms") && all.contains("3 tasks"),
            "{all}"
        );
        assert!(node_of(7, &Names::of(&ClusterView::default()), &[died]).contains("declared dead"));
    }
}
