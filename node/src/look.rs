//! What this node shows of itself to those who look: rows of tasks, objects and workers, and what ran when.

use crate::daemon::Life;
use mobula_base::{Incarnation, Instant, JobId, TaskPrefix};
use mobula_gcs::clock;
use mobula_objstore::depot::Kept;
use mobula_proto::{
    LookReply, LookRequest, ObjectRow, TaskCount, TaskRow, TaskSpan, WorkerRow, object_bytes, task_bytes,
};
use mobula_scheduler::{ClientId, rows, trace};

/// Rows of each kind that are told at once. The loop is busy meanwhile, and for longer the more tasks or objects there are
/// among which they are found.
pub const ROWS_MAX: usize = 10_000;

/// The clock of the core beside that of the world.
#[derive(Clone, Copy)]
struct Clocks {
    now: Instant,
    unix_us: u64,
}

impl Clocks {
    fn unix_us(self, at: Instant) -> u64 {
        self.unix_us.saturating_sub(self.now.since(at).as_micros() as u64)
    }

    fn instant(self, unix_ms: u64) -> Instant {
        let ago_us = self.unix_us.saturating_sub(unix_ms.saturating_mul(1000));
        Instant(self.now.0.saturating_sub(ago_us.saturating_mul(1000)))
    }
}

impl Life {
    /// Answers, up to [`ROWS_MAX`] rows of each kind.
    pub(crate) fn show(&self, prefix: TaskPrefix, asked: &LookRequest) -> LookReply {
        let limit = match asked.limit as usize {
            0 => ROWS_MAX,
            limit => limit.min(ROWS_MAX),
        };
        let clocks = Clocks { now: self.now(), unix_us: clock::unix_ms() * 1000 };
        let totals = self.core.totals();
        let mut reply = LookReply {
            ended: totals.ended,
            again: totals.again,
            failed: totals.failed,
            resident_bytes: mobula_gcs::server::resident_bytes(),
            ..LookReply::default()
        };
        if asked.tasks {
            self.look_at_tasks(prefix, limit, asked, &mut reply);
        }
        if asked.objects {
            self.look_at_objects(prefix, limit, asked, &mut reply);
        }
        if asked.workers {
            reply.workers = self.core.worker_rows().iter().map(|row| self.worker_row(row, clocks)).collect();
        }
        if asked.spans {
            let (spans, more) = self.core.spans(clocks.instant(asked.since_ms), limit);
            reply.spans = spans.iter().map(|span| span_of(span, clocks)).collect();
            reply.more |= more;
        }
        if asked.counts {
            let (counts, more) = self.core.task_counts();
            reply.more |= more;
            let count = |((job, function, state), tasks): ((JobId, u64, &str), u64)| TaskCount {
                job: job.0,
                function,
                state: state.to_owned(),
                tasks,
            };
            reply.counts = counts.into_iter().map(count).collect();
        }
        reply
    }

    fn look_at_tasks(&self, prefix: TaskPrefix, limit: usize, asked: &LookRequest, reply: &mut LookReply) {
        let tells = |row: &rows::TaskRow| {
            is_among(&asked.states, row.state) && asked.job.is_none_or(|job| job == row.job.0)
        };
        let (tasks, more) = self.core.task_rows(prefix, limit, tells);
        reply.more |= more;
        reply.tasks = tasks
            .into_iter()
            .map(|row| TaskRow {
                task: task_bytes(row.task),
                job: row.job.0,
                function: row.function,
                state: row.state.to_owned(),
                attempt: row.attempt,
                kept: row.kept,
                node: row.node.unwrap_or(Incarnation(0)).0,
                pid: row.worker.map_or(0, |worker| self.pid_of(worker)),
                parent: row.parent,
            })
            .collect();
    }

    fn look_at_objects(&self, prefix: TaskPrefix, limit: usize, asked: &LookRequest, reply: &mut LookReply) {
        let tells = |row: &rows::ObjectRow| {
            is_among(&asked.states, row.state) && asked.job.is_none_or(|job| job == row.job.0)
        };
        let (objects, more) = self.core.object_rows(prefix, limit, tells);
        reply.more |= more;
        reply.objects = objects
            .into_iter()
            .map(|row| ObjectRow {
                object: object_bytes(row.object),
                job: row.job.0,
                state: row.state.to_owned(),
                size: row.size,
                holders: row.holders.iter().map(|node| node.0).collect(),
                clients: row.clients,
                tasks: row.tasks,
                used: row.used,
                waiting: row.waiting,
                idle: row.idle,
                spilled: matches!(self.store.get(row.object), Some(Kept::File(_))),
            })
            .collect();
    }

    fn worker_row(&self, row: &rows::WorkerRow, clocks: Clocks) -> WorkerRow {
        let pid = self.pid_of(row.worker);
        let (task, attempt, function, since_us) = match row.runs {
            Some((task, attempt, function, began)) => {
                (task_bytes(task), attempt, function, clocks.unix_us(began))
            }
            None => Default::default(),
        };
        WorkerRow {
            worker: row.worker,
            job: row.job.0,
            pid,
            state: row.state.to_owned(),
            task,
            attempt,
            function,
            since_us,
            line: row.line,
            own_bytes: self.memory.as_ref().and_then(|memory| memory.of_process(pid)).unwrap_or(0),
        }
    }

    fn pid_of(&self, worker: ClientId) -> u32 {
        self.open.get(&worker).and_then(|link| link.pid).unwrap_or(0)
    }
}

fn is_among(states: &[String], state: &str) -> bool {
    states.is_empty() || states.iter().any(|asked| asked == state)
}

fn span_of(span: &trace::Span, clocks: Clocks) -> TaskSpan {
    TaskSpan {
        task: task_bytes(span.task),
        attempt: span.attempt,
        job: span.job.0,
        function: span.function,
        worker: span.worker,
        began_us: clocks.unix_us(span.began),
        ended_us: clocks.unix_us(span.ended),
        count: span.count,
        failed: span.failed,
    }
}
