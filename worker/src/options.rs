//! How a driver connects, and what its job is like.

use crate::runtime::Runtime;
use mobula_proto::TaskSpec;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// How a driver connects.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The node daemon's Unix socket.
    pub socket: PathBuf,
    /// What the job is called in lists.
    pub job_name: String,
    /// The program's arguments, for lists.
    pub args: Vec<String>,
    /// How long to wait for the daemon.
    pub connect_timeout: Duration,
    /// What happens when a task that runs again makes something else than before.
    pub on_divergence: OnDivergence,
    /// When the lineage of what tasks make is durable.
    pub durability: Durability,
    /// What the workers of the job find around them, on all nodes.
    pub runtime: Runtime,
    /// A worker process that has had so many tasks ends, and another one starts: for functions that leak.
    pub tasks_per_worker: Option<NonZeroU32>,
    /// Of a thousand [pure](crate::Task::pure) tasks that came back from other nodes so many may begin once more
    /// elsewhere, because they take far longer than is usual of their function. 0: none.
    pub hedge_permille: u32,
}

/// When the lineage of what a task makes is durable: what its value could be made again from, whatever dies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Soon after the task was submitted, and off its way: its latency does not depend on the control store. Until
    /// then whoever submitted it would submit it again. Of what comes and goes meanwhile no record is made.
    #[default]
    Stash,
    /// Before the task begins: whatever the outside is told of its value rests on lineage that cannot be lost. A
    /// round trip to the control store for each task, and for each step of a chain.
    Commit,
}

/// What a job has chosen for all its tasks, also for those that its tasks submit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct JobOptions {
    pub on_divergence: OnDivergence,
    pub durability: Durability,
}

impl JobOptions {
    /// As a task's record has them.
    pub fn of(spec: &TaskSpec) -> Self {
        JobOptions {
            on_divergence: if spec.accept_divergence { OnDivergence::Accept } else { OnDivergence::Fail },
            durability: if spec.commit_first { Durability::Commit } else { Durability::Stash },
        }
    }

    /// Notes them in a task's record.
    pub fn note(self, spec: &mut TaskSpec) {
        spec.accept_divergence = self.on_divergence == OnDivergence::Accept;
        spec.commit_first = self.durability == Durability::Commit;
    }
}

/// What becomes of an object whose task, run again, makes other bytes than were recorded: an id denotes
/// one value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnDivergence {
    /// It fails with `FailureKind::FailureDiverged`.
    #[default]
    Fail,
    /// What was made last stands, unless what was made first is still there.
    Accept,
}

impl Default for ConnectOptions {
    /// The socket in `$MOBULA_SOCKET`, else `~/.mobula/node.sock`.
    fn default() -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let socket =
            std::env::var_os("MOBULA_SOCKET").map_or_else(|| home.join(".mobula/node.sock"), PathBuf::from);
        let mut args = std::env::args();
        let job_name = args.next().unwrap_or_default();
        ConnectOptions {
            socket,
            job_name,
            args: args.collect(),
            connect_timeout: Duration::from_secs(10),
            on_divergence: OnDivergence::default(),
            durability: Durability::default(),
            runtime: Runtime::default(),
            tasks_per_worker: None,
            hedge_permille: 0,
        }
    }
}
