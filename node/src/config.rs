//! What a node is told, and the seams it runs on.

use crate::local::LocalListener;
use crate::memory::Memory;
use crate::packages::Packages;
use crate::spawn::Spawner;
use mobula_base::disk::Disk;
use mobula_net::Net;
use mobula_net::http::Pages;
use mobula_objstore::Region;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a node is told.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// What people call it.
    pub name: String,
    /// Addresses of the heads.
    pub heads: Vec<String>,
    /// Where it listens for other nodes; port 0 picks a free one.
    pub listen: String,
    /// The Unix socket for drivers and workers.
    pub socket: PathBuf,
    /// CPUs it offers, and worker processes per job.
    pub workers: u32,
    /// Named resources it offers.
    pub resources: Vec<(String, f64)>,
    /// What it is, for tasks that choose their node by that.
    pub labels: Vec<(String, String)>,
    /// Shared memory for objects, bytes.
    pub store_bytes: u64,
    /// How long a lineage record lingers that nobody waits for: a task that comes and goes meanwhile never
    /// reaches the control store.
    pub linger: Duration,
    /// For experiments: what the control store answers to records counts only so much later.
    pub late: Duration,
    /// Where objects go that find no room in memory; `None` refuses whoever finds none.
    pub spill_dir: Option<PathBuf>,
    /// Where executables and files of jobs are kept; `None` where processes are simulated.
    pub packages_dir: Option<PathBuf>,
    /// Of its machine's memory, and of its control group's, this part may be in use (1: all). Beyond it workers end,
    /// one after the other.
    pub memory_full: f64,
    /// What its port answers beside.
    pub pages: Pages,
    /// Seed of its random streams; production draws it from the system.
    pub seed: u64,
}

/// The seams. Production and simulation differ here and nowhere else.
pub struct Parts {
    /// The network.
    pub net: Arc<dyn Net>,
    /// Accepts drivers and workers.
    pub local: Box<dyn LocalListener>,
    /// Starts workers.
    pub spawner: Box<dyn Spawner>,
    /// The memory of the object store.
    pub region: Region,
    /// The disk for objects that leave memory; `None` if they never do.
    pub spill: Option<Arc<dyn Disk>>,
    /// Executables and files of jobs; `None` where processes are simulated.
    pub packages: Option<Arc<Packages>>,
    /// Measures what workers have of memory; `None` where processes are simulated.
    pub memory: Option<Arc<dyn Memory>>,
}

/// A node that has joined.
#[derive(Debug, Clone)]
pub struct Ready {
    /// This life of it.
    pub incarnation: u64,
    /// Where other nodes reach it.
    pub address: String,
}

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener or the shared memory could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The control store did not take the node.
    #[error("cannot join the cluster: {0}")]
    Join(#[from] mobula_gcs::Error),
    /// The control store answered something else than asked.
    #[error("cannot join the cluster: the control store answered {0}")]
    Refused(String),
}
