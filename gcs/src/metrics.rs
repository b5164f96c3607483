//! What a head tells Prometheus. Most of it is read from what there is when somebody asks; the rest
//! is counted once per call, which costs a look into a small table.
//!
//! Labels name shards, heads, methods and codes, never single objects.

use crate::raft::group::Group;
use crate::server::{Running, Site};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proto::propose_reply::Result as Proposed;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

use mobula_proto as proto;

/// Pause between looks at who leads.
const TICK: Duration = Duration::from_millis(100);
/// The methods that are measured. A name that a stranger made up must not become a label.
const METHODS: [&str; 14] = [
    "/mobula.v1.ControlStore/Propose",
    "/mobula.v1.ControlStore/ProposeStream",
    "/mobula.v1.ControlStore/Locate",
    "/mobula.v1.ControlStore/Holding",
    "/mobula.v1.ControlStore/Heartbeat",
    "/mobula.v1.ControlStore/Suspect",
    "/mobula.v1.ControlStore/Watch",
    "/mobula.v1.ControlStore/Read",
    "/mobula.v1.ControlStore/Status",
    "/mobula.v1.Raft/Append",
    "/mobula.v1.Raft/Vote",
    "/mobula.v1.Raft/PreVote",
    "/mobula.v1.Raft/Snapshot",
    "/mobula.v1.Raft/Transfer",
];

/// A histogram of durations, in seconds.
pub(crate) fn seconds() -> Histogram {
    Histogram::new([0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.3, 1.0, 5.0])
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Shard {
    shard: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Member {
    shard: u32,
    member: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    shard: u32,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Table {
    shard: u32,
    table: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

/// What is counted on the way.
#[derive(Debug)]
pub struct Meters {
    rpc_seconds: Family<Call, Histogram, fn() -> Histogram>,
    propose_seconds: Family<Shard, Histogram, fn() -> Histogram>,
    proposals: Family<Outcome, Counter>,
    elections: Family<Shard, Counter>,
    unavailable: Family<Shard, Counter<f64, std::sync::atomic::AtomicU64>>,
    snapshot_seconds: Histogram,
    stale_epoch_rejected: Counter,
}

impl Default for Meters {
    fn default() -> Self {
        Meters {
            rpc_seconds: Family::new_with_constructor(seconds),
            propose_seconds: Family::new_with_constructor(seconds),
            proposals: Family::default(),
            elections: Family::default(),
            unavailable: Family::default(),
            snapshot_seconds: seconds(),
            stale_epoch_rejected: Counter::default(),
        }
    }
}

impl Meters {
    /// A call of the method at `path` was answered.
    pub fn called(&self, path: &str, code: Code, time: Duration) {
        let Some(method) = METHODS.iter().find(|method| **method == path) else { return };
        let method = method.trim_start_matches("/mobula.v1.");
        self.rpc_seconds.get_or_create(&Call { method, code: name_of(code) }).observe(time.as_secs_f64());
    }

    /// A life that was declared over spoke, and was refused.
    pub fn rejected(&self) {
        self.stale_epoch_rejected.inc();
    }

    /// How long snapshots took; all shards share it.
    pub fn snapshot_seconds(&self) -> Histogram {
        self.snapshot_seconds.clone()
    }

    /// A client's proposal was answered.
    pub fn proposed(&self, shard: u32, result: &Proposed, time: Duration) {
        if matches!(result, Proposed::Reply(proto::Reply { reply: Some(proto::reply::Reply::Fenced(_)) })) {
            self.rejected();
        }
        let outcome = match result {
            Proposed::Reply(_) => "applied",
            Proposed::NotLeader(_) => "not_leader",
            Proposed::Busy(_) => "busy",
            Proposed::Unknown(_) => "unknown",
            // The shard may be one that does not exist.
            Proposed::Refused(_) => return,
        };
        self.proposals.get_or_create(&Outcome { shard, outcome }).inc();
        if outcome == "applied" {
            self.propose_seconds.get_or_create(&Shard { shard }).observe(time.as_secs_f64());
        }
    }
}

fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::ResourceExhausted => "resource_exhausted",
        Code::Aborted => "aborted",
        Code::Unimplemented => "unimplemented",
        Code::Unavailable => "unavailable",
        Code::Unauthenticated => "unauthenticated",
        Code::Internal => "internal",
        _ => "other",
    }
}

/// Counts elections and the time without a leader. Never ends.
pub async fn observe(site: Arc<Site>, running: Arc<Running>) {
    let mut terms = vec![0; running.groups.len()];
    // A counter that is not there yet is missed by whoever asks for its rate.
    for group in running.groups.iter() {
        let shard = Shard { shard: group.shard };
        drop(site.meters.elections.get_or_create(&shard));
        drop(site.meters.unavailable.get_or_create(&shard));
    }
    let mut before = Instant::now();
    loop {
        tokio::time::sleep(TICK).await;
        let passed = std::mem::replace(&mut before, Instant::now()).elapsed();
        for (group, term) in running.groups.iter().zip(&mut terms) {
            let (shard, leadership) = (Shard { shard: group.shard }, group.leadership());
            if leadership.leader.is_none() {
                site.meters.unavailable.get_or_create(&shard).inc_by(passed.as_secs_f64());
            } else if leadership.term != *term {
                site.meters.elections.get_or_create(&shard).inc();
                *term = leadership.term;
            }
        }
    }
}

/// Everything, as OpenMetrics text.
///
/// # Errors
/// Never in practice: the text goes to memory.
pub fn exposition(site: &Site) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("mobula");
    let meters = &site.meters;
    registry.register("rpc_seconds", "Time until the answer to a call began", meters.rpc_seconds.clone());
    registry.register(
        "raft_propose_seconds",
        "Time from a client's proposal to its application, where this head leads",
        meters.propose_seconds.clone(),
    );
    registry.register("raft_proposals", "Proposals of clients, by how they ended", meters.proposals.clone());
    registry.register(
        "raft_elections",
        "Terms with a leader that this head has seen begin",
        meters.elections.clone(),
    );
    registry.register(
        "shard_unavailable_seconds",
        "Time in which this head knew of no leader",
        meters.unavailable.clone(),
    );
    registry.register(
        "raft_snapshot_seconds",
        "Time to write a snapshot of a shard",
        meters.snapshot_seconds.clone(),
    );
    registry.register(
        "stale_epoch_rejected",
        "Requests of nodes that were declared dead",
        meters.stale_epoch_rejected.clone(),
    );
    let resident: Gauge = Gauge::default();
    resident.set(crate::server::resident_bytes() as i64);
    registry.register("resident_bytes", "Resident memory of this process", resident);
    if let Some(running) = site.running.get() {
        shards(&mut registry, running);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What is read from the replicas.
fn shards(registry: &mut Registry, running: &Running) {
    let syncs: Counter = Counter::default();
    syncs.inc_by(running.log.syncs());
    registry.register("raft_fsyncs", "Syncs of the log of all shards", syncs);
    let log_bytes: Gauge = Gauge::default();
    log_bytes.set(running.log.bytes() as i64);
    registry.register("raft_log_bytes", "Bytes of the segments of the log of all shards", log_bytes);
    registry.register(
        "raft_fsync_seconds",
        "Time of a sync of the log of all shards",
        running.log.sync_seconds(),
    );
    let stopped: Gauge = Gauge::default();
    let is_stopped = |group: &Arc<Group>| group.progress().stopped.is_some();
    stopped.set(i64::from(running.log.stopped().is_some() || running.groups.iter().any(is_stopped)));
    registry.register("head_stopped", "1 if a replica or the log of this head has stopped", stopped);
    let gauge = || Family::<Shard, Gauge>::default();
    let (leads, term, applied, last) = (gauge(), gauge(), gauge(), gauge());
    let (commit, snapshot, snapshot_bytes) = (gauge(), gauge(), gauge());
    let lag = Family::<Member, Gauge>::default();
    let keys = Family::<Table, Gauge>::default();
    for group in running.groups.iter() {
        let shard = group.shard;
        let set = |family: &Family<Shard, Gauge>, value: u64| {
            family.get_or_create(&Shard { shard }).set(value as i64);
        };
        let (leadership, progress) = (group.leadership(), group.progress());
        set(&leads, u64::from(leadership.here));
        set(&term, leadership.term);
        set(&applied, progress.applied);
        set(&last, progress.last_log);
        set(&commit, group.commit_index());
        set(&snapshot, group.snapshot_index());
        set(&snapshot_bytes, group.replica.snapshot_bytes());
        for (member, behind) in group.lags() {
            lag.get_or_create(&Member { shard, member }).set(behind as i64);
        }
        let count = |table: &'static str, rows: u64| {
            keys.get_or_create(&Table { shard, table }).set(rows as i64);
        };
        group.replica.with(|state| {
            count("tasks", state.tasks.len());
            count("puts", state.puts.len() as u64);
            count("kv", state.kv.count());
            count("outbox", state.counting.outbox().len() as u64);
            count("to_prune", state.counting.waiting() as u64);
            if shard == 0 {
                count("jobs", state.cluster.jobs.len() as u64);
                count("members", state.cluster.members.len() as u64);
            }
        });
    }
    registry.register("raft_is_leader", "1 if this head leads the shard and a majority follows", leads);
    registry.register("raft_term", "Current term", term);
    registry.register("raft_commit_index", "Last entry known to be committed", commit);
    registry.register("raft_applied_index", "Last entry applied to the tables", applied);
    registry.register("raft_last_log_index", "Last entry in the log", last);
    registry.register("raft_snapshot_index", "Last entry that the newest snapshot covers", snapshot);
    registry.register("raft_snapshot_bytes", "Bytes of the newest snapshot without lineage", snapshot_bytes);
    registry.register("raft_replication_lag_entries", "On the leader: entries that a member lacks", lag);
    registry.register("store_keys", "Rows of the tables", keys);
}
