//! What people call things: nodes, functions, jobs, times.

use mobula_base::Incarnation;
use mobula_proto::{ClusterView, object_id, task_id};
use std::collections::BTreeMap;

/// Names of a view.
pub struct Names {
    nodes: BTreeMap<u64, String>,
    functions: BTreeMap<(u64, u64), String>,
}

impl Names {
    /// All that a view knows.
    pub fn of(view: &ClusterView) -> Names {
        let nodes = view.nodes.iter().map(|node| (node.incarnation, node.name.clone())).collect();
        let functions = view.jobs.iter().flat_map(|job| {
            let functions = job.start.iter().flat_map(|start| &start.functions);
            functions.map(|function| ((job.job, function.id), function.name.clone()))
        });
        Names { nodes, functions: functions.collect() }
    }

    /// A node's name; its incarnation, if the view no longer knows it.
    pub fn node(&self, incarnation: u64) -> String {
        self.nodes.get(&incarnation).cloned().unwrap_or_else(|| Incarnation(incarnation).to_string())
    }

    /// A function's name without the path to it; its number, if the job is gone.
    pub fn function(&self, job: u64, function: u64) -> String {
        match self.functions.get(&(job, function)) {
            Some(name) => name.rsplit("::").next().unwrap_or(name).to_owned(),
            None => format!("{function:016x}"),
        }
    }
}

/// The id of a job, as it is written.
pub fn job(job: u64) -> String {
    format!("{job:016x}")
}

/// The id of a task, as it is written; empty for none.
pub fn task(bytes: &[u8]) -> String {
    task_id(bytes).map_or_else(|_| String::new(), |task| task.to_string())
}

/// The id of an object, as it is written.
pub fn object(bytes: &[u8]) -> String {
    object_id(bytes).map_or_else(|_| String::new(), |object| object.to_string())
}

/// `2026-01-31 17:04:05.678`, in UTC.
pub fn time(unix_ms: u64) -> String {
    let ns = i128::from(unix_ms) * 1_000_000;
    let Ok(at) = time::OffsetDateTime::from_unix_timestamp_nanos(ns) else { return "?".into() };
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}
