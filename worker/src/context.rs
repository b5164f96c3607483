//! Inside which task the code runs. Ids of what it submits and puts follow from it (R1).

use crate::client::Client;
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{JobId, ObjectId, TaskId, mutant};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The submitting side of a running task, or of the driver.
pub struct Context {
    /// The job.
    pub job: JobId,
    /// The task that runs; the job's root for the driver.
    pub task: TaskId,
    /// Which attempt of it; 0 for the driver.
    pub attempt: u32,
    /// GPUs that the task may use, by their numbers.
    pub devices: Vec<u32>,
    /// In so many parts it is to return what it makes; 0: as one value.
    pub elements: u32,
    /// It is to return a stream, of which so many items may wait to be taken; 0: a value.
    pub window: u32,
    /// Submissions are looked up before they are scheduled (R7).
    pub replay: bool,
    next_index: AtomicU64,
    next_put: AtomicU32,
}

/// The strand of a task's own thread.
const STRAND: u64 = 0;

impl Context {
    /// A fresh context: the first submission has index 0.
    pub fn new(job: JobId, task: TaskId, attempt: u32, replay: bool) -> Arc<Self> {
        Context::of_task(job, task, attempt, replay, Vec::new(), (0, 0))
    }

    /// The same for a task that may use these GPUs, and returns so many elements, or a stream with this window.
    pub fn of_task(
        job: JobId,
        task: TaskId,
        attempt: u32,
        replay: bool,
        devices: Vec<u32>,
        (elements, window): (u32, u32),
    ) -> Arc<Self> {
        let first = u64::from(replay && mutant!("R1"));
        Arc::new(Context {
            job,
            task,
            attempt,
            devices,
            elements,
            window,
            replay,
            next_index: AtomicU64::new(first),
            next_put: AtomicU32::new(0),
        })
    }

    /// The id of the next submission.
    pub fn next_task(&self) -> TaskId {
        TaskId::new(self.job, self.task, STRAND, self.next_index.fetch_add(1, Ordering::Relaxed))
    }

    /// The id of the next `put`.
    pub fn next_put(&self) -> ObjectId {
        self.task.output(FIRST_PUT_SLOT + self.next_put.fetch_add(1, Ordering::Relaxed))
    }
}

tokio::task_local! {
    static CURRENT: Client;
}

/// The client of the task that runs on this thread or async task.
///
/// # Panics
/// Outside a task: a driver uses the [`Client`] it connected.
pub fn current() -> Client {
    try_current().expect("there is a current client only inside a task; a driver submits with its Client")
}

pub(crate) fn try_current() -> Option<Client> {
    CURRENT.try_with(Clone::clone).ok()
}

/// In so many parts the task that runs here is to return what it makes, or as a stream with this window; 0: as one value.
pub(crate) fn returns() -> (u32, u32) {
    CURRENT.try_with(|client| (client.context.elements, client.context.window)).unwrap_or((0, 0))
}

pub(crate) fn enter<R>(client: Client, run: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(client, run)
}

pub(crate) async fn enter_async<F: Future>(client: Client, run: F) -> F::Output {
    CURRENT.scope(client, run).await
}
