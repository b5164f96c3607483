//! Limits: *an attempt is told to stop when it was cancelled, or has had all the time that it may take; and one that
//! has been told to stop, or counts no more, does not go on for ever.* The second half shows as work that never
//! ends ([`super::leak`]).

use super::{Found, object};
use mobula_base::{Instant, TaskId};
use mobula_proto::{TaskSpec, task_id};
use std::collections::BTreeMap;
use std::time::Duration;

/// Knows when attempts with a limit were given to workers.
#[derive(Default)]
pub struct Limits {
    pub(super) found: Found,
    /// Of each node: when it last gave a task to a worker, and how long that may run.
    given: BTreeMap<(TaskId, u64), (Instant, Duration)>,
}

impl Limits {
    /// A node gives an attempt to a worker.
    pub fn given(&mut self, spec: &TaskSpec, node: u64, now: Instant) {
        let limit = spec.options.as_deref().map_or(0, |options| options.timeout_ms);
        if let (1.., Ok(task)) = (limit, task_id(&spec.id)) {
            self.given.insert((task, node), (now, Duration::from_millis(limit)));
        }
    }

    /// A node tells an attempt to stop, which nobody has cancelled.
    pub fn stopped(&mut self, task: TaskId, node: u64, now: Instant) {
        let Some((given, limit)) = self.given.get(&(task, node)) else {
            return object(&mut self.found, || {
                format!("at {now:?} {node} stops {task}, which has no limit, and which nobody has cancelled")
            });
        };
        let ran = now.since(*given);
        if ran < *limit {
            object(&mut self.found, || {
                format!("at {now:?} {node} stops {task} after {ran:?}, and it may take {limit:?}")
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::RunId;
    use mobula_proto::{TaskOptions, task_bytes};

    const TASK: TaskId = TaskId { run: RunId(1), place: 0 };

    fn given(limit_ms: u64) -> Limits {
        let options = TaskOptions { timeout_ms: limit_ms, ..TaskOptions::default() };
        let spec = TaskSpec { id: task_bytes(TASK), options: Some(Box::new(options)), ..TaskSpec::default() };
        let mut limits = Limits::default();
        limits.given(&spec, 1, Instant(5));
        limits
    }

    #[test]
    fn time_runs_from_when_it_was_given_there() {
        let mut limits = given(1);
        limits.stopped(TASK, 1, Instant(1_000_005));
        assert_eq!(limits.found, None);
        limits.stopped(TASK, 1, Instant(1_000_004));
        assert!(limits.found.is_some());
    }

    #[test]
    fn what_has_no_limit_is_not_stopped() {
        let mut limits = given(0);
        limits.stopped(TASK, 1, Instant(9_000_000));
        assert!(limits.found.is_some());
    }
}
