//! Nodes, jobs, workers, tasks and objects of a cluster, a row each: for lists, filters and pages.

use crate::gather::{Answer, Look, silent};
use crate::names::{self, Names};
use mobula_base::Incarnation;
use mobula_gcs::{Error, clock};
use mobula_proto::{
    ClusterView, JobView, LookReply, LookRequest, NodeView, ObjectRow as RawObject, TaskRow as RawTask,
    WorkerRow as RawWorker,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// A row of a list, with what it is found by.
pub trait Row: Serialize {
    /// What is shown in a table, in this order.
    const COLUMNS: &'static [&'static str];
    /// What it is called by: the beginning of the first, or any of the others whole.
    fn ids(&self) -> Vec<String>;
}

/// A node daemon.
#[derive(Clone, Debug, Serialize)]
pub struct NodeRow {
    pub node: String,
    pub incarnation: String,
    pub state: &'static str,
    pub address: String,
    pub cpus: f64,
    pub cpus_free: f64,
    pub queued: u32,
    pub store_bytes: u64,
    pub store_bytes_used: u64,
    pub resources: BTreeMap<String, f64>,
    pub labels: BTreeMap<String, String>,
}

/// A job.
#[derive(Clone, Debug, Serialize)]
pub struct JobRow {
    pub job: String,
    pub name: String,
    pub state: &'static str,
    /// Where its driver is attached.
    pub node: String,
    pub executable: String,
}

/// A worker process.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerRow {
    pub node: String,
    pub pid: u32,
    pub state: String,
    pub job: String,
    /// What it runs, and how long it has.
    pub name: String,
    pub task: String,
    pub attempt: u32,
    pub for_ms: u64,
    /// Tasks behind that.
    pub line: u32,
    /// Memory that is its alone.
    pub own_bytes: u64,
}

/// A task. One that a node keeps and another runs is one row, as the runner has it.
#[derive(Clone, Debug, Serialize)]
pub struct TaskRow {
    pub task: String,
    pub name: String,
    pub state: String,
    pub attempt: u32,
    pub job: String,
    /// Where it was placed.
    pub node: String,
    /// Who keeps it.
    pub keeper: String,
    pub pid: u32,
    pub parent: String,
}

/// An object. What all nodes know of it is one row.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectRow {
    pub object: String,
    /// `here` and `inline`: some node has it; else what the node that knows best says.
    pub state: String,
    pub size: u64,
    /// Nodes that have it.
    pub nodes: Vec<String>,
    pub job: String,
    /// Programs that refer to it, tasks that name it, attempts that use it, and who waits for it, of all nodes.
    pub clients: u32,
    pub tasks: u32,
    pub used: u32,
    pub waiting: u32,
    /// Nodes with a copy that nobody there has a use for.
    pub idle: u32,
    /// Nodes that have it on disk only.
    pub spilled: u32,
}

impl Row for NodeRow {
    const COLUMNS: &'static [&'static str] =
        &["node", "incarnation", "state", "address", "cpus", "cpus_free", "queued", "store_bytes_used"];
    fn ids(&self) -> Vec<String> {
        vec![self.incarnation.clone(), self.node.clone(), self.address.clone()]
    }
}

impl Row for JobRow {
    const COLUMNS: &'static [&'static str] = &["job", "name", "state", "node"];
    fn ids(&self) -> Vec<String> {
        vec![self.job.clone(), self.name.clone()]
    }
}

impl Row for WorkerRow {
    const COLUMNS: &'static [&'static str] =
        &["node", "pid", "state", "job", "name", "for_ms", "line", "own_bytes"];
    fn ids(&self) -> Vec<String> {
        vec![self.pid.to_string()]
    }
}

impl Row for TaskRow {
    const COLUMNS: &'static [&'static str] = &["task", "name", "state", "attempt", "node", "keeper", "pid"];
    fn ids(&self) -> Vec<String> {
        vec![self.task.clone()]
    }
}

impl Row for ObjectRow {
    const COLUMNS: &'static [&'static str] =
        &["object", "state", "size", "nodes", "clients", "tasks", "used", "waiting"];
    fn ids(&self) -> Vec<String> {
        vec![self.object.clone()]
    }
}

/// Rows, who did not answer, and whether some node had more than it told.
#[derive(Debug, Serialize)]
pub struct Listed<R> {
    /// The rows, sorted.
    pub rows: Vec<R>,
    /// Nodes that did not answer.
    pub silent: Vec<String>,
    /// There are more.
    pub more: bool,
}

/// Rows that came with the cluster's view: no node was asked.
impl<R> From<Vec<R>> for Listed<R> {
    fn from(rows: Vec<R>) -> Self {
        Listed { rows, silent: Vec::new(), more: false }
    }
}

/// Nodes of a view.
pub fn nodes(view: &ClusterView) -> Vec<NodeRow> {
    view.nodes.iter().map(node).collect()
}

fn node(node: &NodeView) -> NodeRow {
    NodeRow {
        node: node.name.clone(),
        incarnation: Incarnation(node.incarnation).to_string(),
        state: if node.alive { "alive" } else { "gone" },
        address: node.address.clone(),
        cpus: f64::from(node.cpu_milli) / 1000.0,
        cpus_free: f64::from(node.cpu_milli_free) / 1000.0,
        queued: node.queued,
        store_bytes: node.store_bytes,
        store_bytes_used: node.store_bytes_used,
        resources: node.resources.iter().map(|r| (r.name.clone(), r.milli as f64 / 1000.0)).collect(),
        labels: node.labels.iter().map(|l| (l.key.clone(), l.value.clone())).collect(),
    }
}

/// Jobs of a view.
pub fn jobs(view: &ClusterView) -> Vec<JobRow> {
    let names = Names::of(view);
    let row = |job: &JobView| JobRow {
        job: names::job(job.job),
        name: job.start.as_ref().map_or_else(String::new, |start| start.name.clone()),
        state: match (job.ended, job.succeeded) {
            (false, _) => "running",
            (true, true) => "succeeded",
            (true, false) => "failed",
        },
        node: job.start.as_ref().map_or_else(String::new, |start| names.node(start.incarnation)),
        executable: job.start.as_ref().map_or_else(String::new, |start| start.executable.clone()),
    };
    view.jobs.iter().map(row).collect()
}

impl Look {
    /// Worker processes of all nodes.
    ///
    /// # Errors
    /// No head answers.
    pub async fn workers(&self) -> Result<Listed<WorkerRow>, Error> {
        let view = self.view().await?;
        let asked = LookRequest { workers: true, ..LookRequest::default() };
        let answers = self.nodes(&view, &asked).await;
        let (names, now_us) = (Names::of(&view), clock::unix_ms() * 1000);
        Ok(whole(&answers, workers(&answers, &names, now_us)))
    }

    /// Tasks of all nodes that `asked` admits.
    ///
    /// # Errors
    /// No head answers.
    pub async fn tasks(&self, asked: LookRequest) -> Result<Listed<TaskRow>, Error> {
        let view = self.view().await?;
        let answers = self.nodes(&view, &LookRequest { tasks: true, ..asked }).await;
        let names = Names::of(&view);
        let mut rows: BTreeMap<String, TaskRow> = BTreeMap::new();
        for (node, reply) in answered(&answers) {
            for raw in &reply.tasks {
                let row = task_row(raw, node, &names);
                match rows.get_mut(&row.task) {
                    // Who runs it knows more of it than who keeps it.
                    Some(known) if raw.kept => known.keeper = row.keeper,
                    Some(known) => *known = TaskRow { keeper: known.keeper.clone(), ..row },
                    None => {
                        rows.insert(row.task.clone(), row);
                    }
                }
            }
        }
        Ok(whole(&answers, rows.into_values().collect()))
    }

    /// Objects of all nodes that `asked` admits.
    ///
    /// # Errors
    /// No head answers.
    pub async fn objects(&self, asked: LookRequest) -> Result<Listed<ObjectRow>, Error> {
        let view = self.view().await?;
        let answers = self.nodes(&view, &LookRequest { objects: true, ..asked }).await;
        let mut rows: BTreeMap<String, ObjectRow> = BTreeMap::new();
        for (node, reply) in answered(&answers) {
            for raw in &reply.objects {
                let fresh = || object_row(raw);
                add(rows.entry(names::object(&raw.object)).or_insert_with(fresh), raw, &node.name);
            }
        }
        Ok(whole(&answers, rows.into_values().collect()))
    }
}

fn answered<T>(answers: &[Answer<T>]) -> impl Iterator<Item = (&NodeView, &T)> {
    answers.iter().filter_map(|answer| Some((&answer.node, answer.reply.as_ref().ok()?)))
}

pub(crate) fn whole<R>(answers: &[Answer<LookReply>], rows: Vec<R>) -> Listed<R> {
    Listed { rows, silent: silent(answers), more: answered(answers).any(|(_, reply)| reply.more) }
}

/// Worker processes of the nodes that answered.
pub(crate) fn workers(answers: &[Answer<LookReply>], names: &Names, now_us: u64) -> Vec<WorkerRow> {
    let of_node = |(node, reply): (_, &LookReply)| -> Vec<WorkerRow> {
        reply.workers.iter().map(|worker| worker_row(worker, node, names, now_us)).collect()
    };
    answered(answers).flat_map(of_node).collect()
}

fn worker_row(raw: &RawWorker, node: &NodeView, names: &Names, now_us: u64) -> WorkerRow {
    let busy = !raw.task.is_empty();
    WorkerRow {
        node: node.name.clone(),
        pid: raw.pid,
        state: raw.state.clone(),
        job: names::job(raw.job),
        name: if busy { names.function(raw.job, raw.function) } else { String::new() },
        task: names::task(&raw.task),
        attempt: raw.attempt,
        for_ms: if busy { now_us.saturating_sub(raw.since_us) / 1000 } else { 0 },
        line: raw.line,
        own_bytes: raw.own_bytes,
    }
}

fn task_row(raw: &RawTask, node: &NodeView, names: &Names) -> TaskRow {
    TaskRow {
        task: names::task(&raw.task),
        name: names.function(raw.job, raw.function),
        state: raw.state.clone(),
        attempt: raw.attempt,
        job: names::job(raw.job),
        node: if raw.node == 0 { String::new() } else { names.node(raw.node) },
        keeper: if raw.kept { node.name.clone() } else { String::new() },
        pid: raw.pid,
        parent: names::task(&raw.parent),
    }
}

fn object_row(raw: &RawObject) -> ObjectRow {
    ObjectRow {
        object: names::object(&raw.object),
        state: String::new(),
        size: 0,
        nodes: Vec::new(),
        job: names::job(raw.job),
        clients: 0,
        tasks: 0,
        used: 0,
        waiting: 0,
        idle: 0,
        spilled: 0,
    }
}

/// What knows more of an object goes before what knows less.
const STATES: [&str; 7] = ["here", "inline", "failed", "elsewhere", "pending", "locating", "unknown"];

fn add(row: &mut ObjectRow, raw: &RawObject, node: &str) {
    let rank = |state: &str| STATES.iter().position(|known| *known == state).unwrap_or(STATES.len());
    if row.state.is_empty() || rank(&raw.state) < rank(&row.state) {
        row.state.clone_from(&raw.state);
    }
    if matches!(raw.state.as_str(), "here" | "inline") {
        row.nodes.push(node.to_owned());
    }
    row.size = row.size.max(raw.size);
    row.clients += raw.clients;
    row.tasks += raw.tasks;
    row.used += raw.used;
    row.waiting += raw.waiting;
    row.idle += u32::from(raw.idle);
    row.spilled += u32::from(raw.spilled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_know_of_an_object_adds_up() {
        let raw = |state: &str, clients| RawObject {
            object: vec![0; 22].into(),
            state: state.into(),
            size: if state == "here" { 70 } else { 0 },
            clients,
            ..RawObject::default()
        };
        let mut row = object_row(&raw("pending", 1));
        add(&mut row, &raw("pending", 1), "a");
        assert!(row.state == "pending" && row.nodes.is_empty());
        add(&mut row, &RawObject { spilled: true, ..raw("here", 2) }, "b");
        add(&mut row, &raw("elsewhere", 0), "c");
        assert_eq!((row.state.as_str(), row.size, row.clients, row.spilled), ("here", 70, 3, 1));
        assert_eq!(row.nodes, ["b"]);
    }
}
