//! Tasks that end before they are done, and tasks that run again after a failure of their own.

use crate::client::Client;
use crate::reference::ObjectRef;
use crate::task::Task;
use mobula_proto::{Cancel, client_msg, task_bytes};
use std::time::Duration;

/// What is cancelled with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The task alone. What it has submitted goes on.
    Alone,
    /// Also what it has submitted, and what that has, as far as it has not ended.
    WithChildren,
}

/// After which failures of its own a task runs again. A worker or node that dies is always retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryOn {
    /// Errors that it returns.
    Errors,
    /// Errors that it returns with this text in them.
    ErrorsWith(String),
    /// Panics.
    Panics,
    /// It took longer than [`Task::timeout`].
    Timeouts,
    /// It took more memory than [`Task::memory_limit_mb`].
    OutOfMemory,
}

impl Client {
    /// Cancels the task that is to make a value; with an element of what it returns in parts, all of them. One that has not begun will not; one that runs is told to stop
    /// ([`Client::is_cancelled`]), and its worker is killed if it has not after five seconds. It ends with
    /// `FailureKind::FailureCancelled`, for whoever asks. Does not wait, and changes nothing for a task that has
    /// ended, nor for a value that was put.
    pub fn cancel<T>(&self, reference: &ObjectRef<T>, scope: Scope) {
        let id = reference.id();
        if !id.is_put() || id.element().is_some() {
            let (tasks, recursive) = (vec![task_bytes(id.task)], scope == Scope::WithChildren);
            self.send(client_msg::Msg::Cancel(Cancel { tasks, recursive }));
        }
    }

    /// Whether the task that runs here has been told to stop, cancelled or out of time: a function that computes
    /// for long should look now and then, and return. What it returns does not count any more. A `get` in
    /// it fails from then on, and an `async` function is dropped where it waits.
    pub fn is_cancelled(&self) -> bool {
        self.context.attempt > 0 && self.state().stopped
    }
}

impl<T> Task<T> {
    /// How long an attempt may run on its worker. Then it is stopped as if it were cancelled, and ends with
    /// `FailureKind::FailureTimedOut`.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options().timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        self
    }

    /// Says that it only computes: the same value of the same arguments, and nothing else is done, submitted or put. Should
    /// it take far longer on a slow node than others of its function, a second attempt may begin elsewhere while the
    /// first runs, and whichever ends first counts: within [`ConnectOptions::hedge_permille`](crate::ConnectOptions),
    /// and unless it may not be repeated, must run somewhere, needs more than CPUs, or returns several values. One
    /// that submits, puts or returns references all the same ends with `FailureKind::FailureBadArguments`.
    pub fn pure(mut self) -> Self {
        self.options().pure = true;
        self
    }

    /// How much memory the worker of an attempt may have for itself, in millions of bytes: objects in shared memory do not
    /// count, what earlier tasks have left in the process does. A worker that has more is killed, and the task ends with
    /// `FailureKind::FailureOutOfMemory`. It is looked at four times a second: what is shorter may have more. That a
    /// node has so much is not asked for, see [`Task::memory_mb`].
    pub fn memory_limit_mb(mut self, mb: u64) -> Self {
        self.options().memory_limit = mb.saturating_mul(1_000_000).max(1);
        self
    }

    /// Runs again after such a failure, too, within [`Task::retries`]. May be said several times. Without it
    /// a failure of the task's own is its end.
    pub fn retry_on(mut self, failures: RetryOn) -> Self {
        let retry = self.options().retry_on.get_or_insert_default();
        match failures {
            RetryOn::Errors => {
                retry.errors = true;
                retry.containing.clear();
            }
            RetryOn::ErrorsWith(text) => {
                if !retry.errors || !retry.containing.is_empty() {
                    retry.containing.push(text);
                }
                retry.errors = true;
            }
            RetryOn::Panics => retry.panics = true,
            RetryOn::Timeouts => retry.timeouts = true,
            RetryOn::OutOfMemory => retry.out_of_memory = true,
        }
        self
    }
}
