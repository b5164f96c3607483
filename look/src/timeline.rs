//! What ran where, when, and what befell the cluster meanwhile.

use crate::gather::{Look, silent};
use crate::happened;
use crate::names::{self, Names};
use mobula_base::Incarnation;
use mobula_gcs::{Error, clock};
use mobula_proto::{Event, EventKind, LookRequest, NodeView, TaskSpan, WorkerRow};
use serde::Serialize;
use serde_json::{Value, json};

/// Attempts of one function that one worker ran.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    pub node: String,
    pub worker: u64,
    pub name: String,
    /// The last task of them.
    pub task: String,
    pub attempt: u32,
    /// Unix time, microseconds.
    pub began_us: u64,
    /// 0: it runs.
    pub ended_us: u64,
    pub count: u32,
    pub failed: bool,
}

/// Something that befell the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// Unix time, milliseconds.
    pub unix_ms: u64,
    pub kind: &'static str,
    pub what: String,
}

/// A stretch of time.
#[derive(Clone, Debug, Serialize)]
pub struct Timeline {
    pub now_ms: u64,
    pub bars: Vec<Bar>,
    pub marks: Vec<Mark>,
    pub silent: Vec<String>,
    /// Some node had more than it told.
    pub more: bool,
}

impl Look {
    /// What ended at `since_ms` (unix) or later, or runs now, as far as the living nodes remember, and the events of that
    /// time. `limit`: of each node, 0 for as many as it tells.
    ///
    /// # Errors
    /// No head answers.
    pub async fn timeline(&self, since_ms: u64, limit: u32) -> Result<Timeline, Error> {
        let view = self.view().await?;
        let asked = LookRequest { spans: true, workers: true, since_ms, limit, ..LookRequest::default() };
        let (answers, events) = tokio::join!(self.nodes(&view, &asked), self.events(0));
        let names = Names::of(&view);
        let mut bars = Vec::new();
        for answer in &answers {
            let Ok(reply) = &answer.reply else { continue };
            bars.extend(reply.spans.iter().map(|span| ended(span, &answer.node, &names)));
            let running = reply.workers.iter().filter(|worker| !worker.task.is_empty());
            bars.extend(running.map(|worker| running_now(worker, &answer.node, &names)));
        }
        bars.sort_by(|a, b| (&a.node, a.worker, a.began_us).cmp(&(&b.node, b.worker, b.began_us)));
        let marks = events?.iter().filter(|event| event.unix_ms >= since_ms).filter_map(mark).collect();
        let more = answers.iter().filter_map(|answer| answer.reply.as_ref().ok()).any(|reply| reply.more);
        Ok(Timeline { now_ms: clock::unix_ms(), bars, marks, silent: silent(&answers), more })
    }
}

fn ended(span: &TaskSpan, node: &NodeView, names: &Names) -> Bar {
    Bar {
        node: node.name.clone(),
        worker: span.worker,
        name: names.function(span.job, span.function),
        task: names::task(&span.task),
        attempt: span.attempt,
        began_us: span.began_us,
        ended_us: span.ended_us,
        count: span.count,
        failed: span.failed,
    }
}

fn running_now(worker: &WorkerRow, node: &NodeView, names: &Names) -> Bar {
    Bar {
        node: node.name.clone(),
        worker: worker.worker,
        name: names.function(worker.job, worker.function),
        task: names::task(&worker.task),
        attempt: worker.attempt,
        began_us: worker.since_us,
        ended_us: 0,
        count: 1,
        failed: false,
    }
}

/// Deaths, elections and the like; joining and jobs are no marks.
fn mark(event: &Event) -> Option<Mark> {
    use EventKind::{EventElection, EventHeadDrained, EventNodeDied, EventNodeLeft, EventTransfer};
    let tells = matches!(
        event.kind(),
        EventElection | EventNodeDied | EventNodeLeft | EventTransfer | EventHeadDrained
    );
    let what = match event.kind() {
        EventNodeDied => format!("node {} ({}) died", event.name, Incarnation(event.incarnation)),
        _ => happened::what(event),
    };
    tells.then(|| Mark { unix_ms: event.unix_ms, kind: happened::name_of(event.kind()), what })
}

impl Timeline {
    /// As Chrome's trace viewer and Perfetto read it.
    pub fn chrome(&self) -> Value {
        let now_us = self.now_ms * 1000;
        let mut rows: Vec<(&str, u64)> =
            self.bars.iter().map(|bar| (bar.node.as_str(), bar.worker)).collect();
        rows.dedup();
        let mut nodes: Vec<&str> = rows.iter().map(|(node, _)| *node).collect();
        nodes.dedup();
        let pid = |node: &str| nodes.iter().position(|known| *known == node).unwrap_or(0) + 1;
        let mut events = Vec::new();
        for node in &nodes {
            events.push(json!({"ph": "M", "name": "process_name", "pid": pid(node), "args": {"name": node}}));
        }
        for (node, worker) in &rows {
            let name = format!("worker {worker}");
            events.push(json!({
                "ph": "M", "name": "thread_name", "pid": pid(node), "tid": worker, "args": {"name": name}
            }));
        }
        for bar in &self.bars {
            let ended_us = if bar.ended_us == 0 { now_us } else { bar.ended_us };
            let category = if bar.attempt > 1 { "again" } else { "task" };
            events.push(json!({
                "ph": "X", "name": bar.name, "cat": category, "pid": pid(&bar.node), "tid": bar.worker,
                "ts": bar.began_us, "dur": ended_us.saturating_sub(bar.began_us),
                "args": {"task": bar.task, "attempt": bar.attempt, "tasks": bar.count, "failed": bar.failed}
            }));
        }
        for mark in &self.marks {
            events.push(json!({
                "ph": "i", "s": "g", "name": mark.what, "cat": mark.kind, "pid": 0, "tid": 0, "ts": mark.unix_ms * 1000
            }));
        }
        json!({"traceEvents": events, "displayTimeUnit": "ms"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_names_its_rows_and_a_running_task_reaches_to_now() {
        let bar = |node: &str, worker, ended_us| Bar {
            node: node.into(),
            worker,
            name: "f".into(),
            task: String::new(),
            attempt: 2,
            began_us: 1_000,
            ended_us,
            count: 1,
            failed: false,
        };
        let marks = vec![Mark { unix_ms: 2, kind: "node-died", what: "node a died".into() }];
        let bars = vec![bar("a", 1, 1_500), bar("a", 1, 0), bar("b", 1, 1_500)];
        let timeline = Timeline { now_ms: 5, bars, marks, silent: Vec::new(), more: false };
        let trace = timeline.chrome();
        let events = trace["traceEvents"].as_array().expect("a list");
        let durations: Vec<u64> = events.iter().filter_map(|event| event["dur"].as_u64()).collect();
        assert_eq!(durations, [500, 4_000, 500]);
        assert_eq!(events.iter().filter(|event| event["ph"] == "M").count(), 4);
        assert!(events.iter().any(|event| event["ph"] == "i" && event["cat"] == "node-died"));
    }
}
