//! The loss audit: everything that was acknowledged is read back, fresh, at the end.

use super::monitor::Written;
use mobula::TaskId;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use mobula_proto::task_bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Records asked for in one request.
const BATCH_MAX: usize = 2000;
/// How long one read is tried.
const PATIENCE: Duration = Duration::from_secs(20);
/// Losses named in full.
const NAMED_MAX: usize = 20;

/// What the audit found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Audit {
    /// Lineage records that were acknowledged.
    pub records_acknowledged: u64,
    /// Lineage records that were submitted.
    pub records_submitted: u64,
    /// Other writes that were acknowledged.
    pub keys_acknowledged: u64,
    /// Of all these, how many are not there, or not as acknowledged.
    pub lost: u64,
    /// The first of the lost ones.
    pub lost_named: Vec<String>,
    /// Tasks that ran more than once.
    pub tasks_run_again: u64,
    /// Bytes of their outputs.
    pub bytes_run_again: u64,
}

impl Audit {
    fn lose(&mut self, what: String) {
        self.lost += 1;
        if self.lost_named.len() < NAMED_MAX {
            self.lost_named.push(what);
        }
    }
}

/// Reads back what was acknowledged, from the cluster of `heads`.
///
/// # Errors
/// The control store cannot be read: the audit has no result.
pub fn run(
    heads: Vec<String>,
    submitted: u64,
    records: &[(TaskId, u64)],
    keys: &[Written],
) -> Result<Audit, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot audit: {e}"))?;
    let mut audit = Audit {
        records_acknowledged: records.len() as u64,
        records_submitted: submitted,
        keys_acknowledged: keys.len() as u64,
        ..Audit::default()
    };
    let read = async {
        // A client that has seen nothing so far: what it reads comes from the store alone.
        let client = Client::new(Arc::new(TcpNet), heads, 3);
        client.connect(PATIENCE).await?;
        read_records(&client, records, &mut audit).await?;
        read_keys(&client, keys, &mut audit).await
    };
    runtime.block_on(read).map_err(|e: mobula_gcs::Error| format!("cannot audit: {e}"))?;
    Ok(audit)
}

async fn read_records(
    client: &Client,
    records: &[(TaskId, u64)],
    audit: &mut Audit,
) -> Result<(), mobula_gcs::Error> {
    let mut by_shard: BTreeMap<u32, Vec<(TaskId, u64)>> = BTreeMap::new();
    for (task, revision) in records {
        by_shard.entry(client.slots().of_run(task.run).0).or_default().push((*task, *revision));
    }
    for (shard, records) in by_shard {
        for batch in records.chunks(BATCH_MAX) {
            let ids = batch.iter().map(|(task, _)| task_bytes(*task)).collect();
            let views = client.read_tasks(shard, ids, false, PATIENCE).await?;
            let found: BTreeMap<_, _> = views.iter().map(|v| (v.task.clone(), v)).collect();
            for (task, revision) in batch {
                match found.get(&task_bytes(*task)) {
                    Some(view) if view.revision == *revision => {
                        if view.attempt > 1 {
                            audit.tasks_run_again += 1;
                            audit.bytes_run_again += view.outputs.iter().map(|o| o.size).sum::<u64>();
                        }
                    }
                    Some(view) => audit.lose(format!(
                        "task {task}: acknowledged at revision {revision}, found at {}",
                        view.revision
                    )),
                    None => {
                        audit.lose(format!("task {task}: acknowledged at revision {revision}, not found"))
                    }
                }
            }
        }
    }
    Ok(())
}

async fn read_keys(client: &Client, keys: &[Written], audit: &mut Audit) -> Result<(), mobula_gcs::Error> {
    for written in keys {
        let found = client.read_kv(&written.key, PATIENCE).await?;
        if found.as_ref().is_none_or(|e| e.revision != written.revision || e.value != written.key) {
            let name = String::from_utf8_lossy(&written.key);
            let at = found.map_or_else(|| "not found".into(), |e| format!("found at {}", e.revision));
            audit.lose(format!("key {name}: acknowledged at revision {}, {at}", written.revision));
        }
    }
    Ok(())
}
