//! What must hold, a file each: `election`, `commit`, `digest`, `guess` watch the replicas while they
//! run; `linear`, `watch`, `once`, `durable` look at what clients were told. This file: verdicts, and
//! what is asked of a whole cluster at the end.

pub mod commit;
pub mod digest;
pub mod durable;
pub mod election;
pub mod guess;
pub mod linear;
pub mod once;
pub mod slots;
pub mod watch;

use mobula::TaskId;
use mobula_gcs::Client;
use mobula_proto::task_bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// Why a run did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All held.
    Pass,
    /// Something wrong happened.
    Safety(String),
    /// Something that must happen did not.
    Liveness(String),
    /// A judge could not tell.
    Unknown(String),
    /// The simulator itself failed.
    Harness(String),
}

impl Verdict {
    /// The exit code of the contract in `docs/cli.md`.
    pub fn code(&self) -> u8 {
        match self {
            Verdict::Pass => 0,
            Verdict::Safety(_) => 1,
            Verdict::Unknown(_) => 2,
            Verdict::Liveness(_) => 3,
            Verdict::Harness(_) => 5,
        }
    }
}

/// Reads every acknowledged record back: it must be there, at the revision that was acknowledged.
pub async fn audit(store: &Client, acknowledged: &[(TaskId, u64)]) -> Verdict {
    let mut by_shard: BTreeMap<u32, Vec<(TaskId, u64)>> = BTreeMap::new();
    for (task, revision) in acknowledged {
        by_shard.entry(store.slots().of_run(task.run).0).or_default().push((*task, *revision));
    }
    for (shard, records) in by_shard {
        let ids = records.iter().map(|(t, _)| task_bytes(*t)).collect();
        let views = match store.read_tasks(shard, ids, false, Duration::from_secs(30)).await {
            Ok(views) => views,
            Err(error) => return Verdict::Liveness(format!("shard {shard} cannot be read: {error}")),
        };
        let found: BTreeMap<&[u8], u64> = views.iter().map(|v| (&v.task[..], v.revision)).collect();
        for (task, revision) in records {
            let id = task.to_bytes();
            if found.get(&id[..]) != Some(&revision) {
                return Verdict::Safety(format!(
                    "the record of {task} was acknowledged at revision {revision} and is {:?} now",
                    found.get(&id[..])
                ));
            }
        }
    }
    Verdict::Pass
}
