//! What runs while things go wrong. Each workload knows what every answer must be.
//!
//! - [`programs`] — random programs; [`task`] — a task of theirs, in a worker process.
//! - [`tasks`] — short tasks, always so many in flight.
//! - [`writes`] — writes to the control store.

pub mod programs;
pub mod task;
pub mod tasks;
pub mod writes;

use crate::chaos::judge::Judged;
use crate::chaos::pulse::Pulse;
use crate::cluster::LocalCluster;
use mobula_chaos::scenario::Work;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Everything is answered so long after the last fault, on any machine that moves at all.
pub const BOUND: Duration = Duration::from_secs(90);
/// What goes goes within this.
pub const SETTLES: Duration = Duration::from_secs(60);
/// Pause between looks.
pub const LOOK: Duration = Duration::from_millis(50);

/// What whoever strikes and whoever works tell each other.
#[derive(Debug, Default)]
pub struct Shared {
    /// No more faults come, and all have healed.
    pub calm: AtomicBool,
    /// Faults so far that may have killed what ran.
    pub lethal: AtomicU64,
    /// The workload is over: nobody need be struck any more.
    pub over: AtomicBool,
}

impl Shared {
    /// Whether all has healed for good.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }
}

/// A workload to be run.
pub struct Order<'a> {
    /// What.
    pub work: Work,
    /// Decides everything.
    pub seed: u64,
    /// No more is begun after this.
    pub ends: Duration,
    /// Steps of a program that are left out.
    pub without: BTreeSet<usize>,
    /// Where.
    pub cluster: &'a LocalCluster,
    /// Shards of the control store.
    pub shards: u32,
    /// Its answers.
    pub pulse: Arc<Pulse>,
    /// What is known of the faults.
    pub shared: Arc<Shared>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Done {
    /// Tasks that were submitted, or writes.
    pub submitted: u64,
    /// Answers with a value.
    pub values: u64,
    /// Answers with a failure.
    pub failures: u64,
    /// Executions, and those of them that were not the first of their task.
    pub executions: (u64, u64),
    /// Lives of nodes in which there were executions, as far as that is known.
    pub places: usize,
    /// What judges say of it.
    pub judged: Vec<Judged>,
}

/// Runs a workload until its end, which comes when all that was begun is answered.
///
/// # Errors
/// It cannot be run: that says nothing about the cluster.
pub fn run(order: &Order<'_>) -> Result<Done, String> {
    match order.work {
        Work::Programs | Work::Objects => programs::run(order),
        Work::Tasks => tasks::run(order),
        Work::Writes => writes::run(order),
    }
}

/// Waits for something, no longer than `patience`; why it is not so, if it is not.
pub fn until(patience: Duration, mut lacks: impl FnMut() -> Option<String>) -> Option<String> {
    let since = Instant::now();
    loop {
        match lacks() {
            Some(why) if since.elapsed() >= patience => return Some(why),
            None => return None,
            Some(_) => std::thread::sleep(LOOK),
        }
    }
}
