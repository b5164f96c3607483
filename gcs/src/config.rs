//! What a head is told and what it runs on.

use crate::core::silence::SILENT_AFTER;
use crate::hook::{SharedHook, Unhooked};
use crate::level::Formats;
use crate::raft::timing::RaftTiming;
use mobula_base::disk::Disk;
use mobula_net::http::Pages;
use mobula_net::seam::SharedNet;
use std::sync::Arc;

/// How a head is to run.
#[derive(Clone, Debug)]
pub struct HeadConfig {
    /// Where to listen, `host:port`.
    pub address: String,
    /// The address others use; empty for the one that was bound.
    pub advertise: String,
    /// Addresses of all heads, this one's included; empty for a head alone.
    pub join: Vec<String>,
    /// Number of shards; the same on every head, for ever.
    pub shards: u32,
    /// Everything random comes from this.
    pub seed: u64,
    /// How patient the consensus is.
    pub timing: RaftTiming,
    /// A node daemon that has been silent for this long is declared dead, in ms.
    pub node_silence_ms: u64,
    /// A node that has not reported to the new leader of a shard for this long holds it up (R9), in ms.
    pub report_silence_ms: u64,
    /// The records of a job stay this long after its end, in ms.
    pub forget_after_ms: u64,
    /// What this program reads; tests stand in for another one.
    pub formats: Formats,
    /// A head whose disk was damaged or emptied asks to be taken back, under a new id.
    pub repair: bool,
    /// What its port answers beside.
    pub pages: Pages,
}

impl Default for HeadConfig {
    fn default() -> Self {
        HeadConfig {
            address: "127.0.0.1:0".into(),
            advertise: String::new(),
            join: Vec::new(),
            shards: 4,
            seed: 0,
            timing: RaftTiming::default(),
            node_silence_ms: 1500,
            report_silence_ms: SILENT_AFTER.as_millis() as u64,
            forget_after_ms: 60_000,
            formats: Formats::default(),
            repair: true,
            pages: Pages::default(),
        }
    }
}

/// What a head runs on.
#[derive(Clone)]
pub struct Parts {
    /// The network.
    pub net: SharedNet,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// Who watches.
    pub hook: SharedHook,
}

impl Parts {
    /// A network and a disk, and nobody who watches.
    pub fn new(net: SharedNet, disk: Arc<dyn Disk>) -> Self {
        Parts { net, disk, hook: Arc::new(Unhooked) }
    }
}
