//! How patient a cluster is. Simulation chooses shorter times than production.

use crate::error::Error;
use mobula_base::mutant;
use openraft::{Config, SnapshotPolicy};
use std::sync::Arc;
use std::time::Duration;

/// Entries after which a machine is asked whether a snapshot is due.
const ASK_EVERY: u64 = 256;

/// Times and sizes of the consensus.
#[derive(Clone, Debug)]
pub struct RaftTiming {
    /// A leader speaks at least this often, in ms.
    pub heartbeat_ms: u64,
    /// A follower waits at least this long before it stands for election, in ms.
    pub election_min_ms: u64,
    /// And at most this long, in ms.
    pub election_max_ms: u64,
    /// Entries between snapshots.
    pub snapshot_entries: u64,
    /// And at least this many bytes of commands, so that small entries do not cause many
    /// snapshots; nor is one made before the log has grown as much as the last one was large.
    pub snapshot_bytes: u64,
    /// With so many bytes of commands since the last one a snapshot is made, however few entries
    /// they are: it bounds the log.
    pub snapshot_max_bytes: u64,
    /// Entries kept below a snapshot, for followers that lag a little.
    pub keep_entries: u64,
    /// Entries per replication message.
    pub payload_entries: u64,
    /// Leave leadership where it falls until it has been stable this long, in ms; then move it to
    /// the head it is meant for. 0 never moves it.
    pub rebalance_ms: u64,
}

impl Default for RaftTiming {
    fn default() -> Self {
        RaftTiming {
            heartbeat_ms: 100,
            // A follower first lets the lease of its leader run out, which is as long as the longest
            // timeout, so that silence is answered between 1.3 and 2 s after the last word. An heir may also
            // take this long to flush its log before a planned hand-over comes to nothing.
            election_min_ms: 300,
            election_max_ms: 1000,
            snapshot_entries: 20_000,
            snapshot_bytes: 16 << 20,
            snapshot_max_bytes: 64 << 20,
            keep_entries: 128,
            payload_entries: 256,
            rebalance_ms: 2000,
        }
    }
}

impl RaftTiming {
    /// The longest a follower waits before it stands for election.
    pub fn election(&self) -> Duration {
        Duration::from_millis(self.election_max_ms)
    }

    pub(crate) fn config(&self) -> Result<Arc<Config>, Error> {
        let config = Config {
            cluster_name: "mobula".into(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: 10_000,
            max_payload_entries: self.payload_entries,
            // How often the machine is asked; it decides, since only it knows bytes.
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries.min(ASK_EVERY)),
            // Must be above the snapshot distance, or a follower is always "too far behind".
            replication_lag_threshold: self.snapshot_entries * 2 + self.keep_entries,
            // `duties::recycle` purges. openraft's own rule would take back a purge that went further than
            // it and still waits for a follower.
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(!mutant!("M18")),
            enable_leader_restore: Some(false),
            backoff: "20ms 40ms ..200ms".into(),
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|error| Error::Config(error.to_string()))
    }
}
