//! The files of a daemon's data directory that other processes look at.

use crate::process::Process;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A data directory.
#[derive(Debug, Clone)]
pub struct DataDir(pub PathBuf);

/// What a daemon that is up says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The daemon.
    pub process: Process,
    /// `head`, `node` or `head+node`.
    pub role: String,
    /// What people call it.
    pub name: String,
    /// Where clients and other heads reach its head.
    pub head_address: Option<String>,
    /// All heads it knows.
    pub heads: Vec<String>,
    /// Where other nodes reach its node.
    pub peer_address: Option<String>,
    /// The Unix socket for drivers.
    pub socket: Option<PathBuf>,
    /// The incarnation of its node.
    pub incarnation: Option<u64>,
}

impl DataDir {
    /// The replica's own directory.
    pub fn head(&self) -> PathBuf {
        self.0.join("head")
    }

    /// Objects that left memory.
    pub fn spill(&self) -> PathBuf {
        self.0.join("spill")
    }

    /// The Unix socket for drivers and workers.
    pub fn socket(&self) -> PathBuf {
        self.0.join("node.sock")
    }

    /// The Unix socket of a daemon's fault switch, where it has one.
    pub fn fault_switch(&self) -> PathBuf {
        self.0.join("fault.sock")
    }

    /// Where the daemon's output goes.
    pub fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// Held by the daemon while it runs.
    pub fn lock(&self) -> PathBuf {
        self.0.join("daemon.lock")
    }

    /// Written by a daemon when it serves, removed when it stops in order.
    pub fn ready(&self) -> PathBuf {
        self.0.join("ready.json")
    }

    /// Written by a daemon as its first act: pid and start time.
    pub fn process(&self) -> PathBuf {
        self.0.join("daemon.pid")
    }

    /// The daemon that was started here and still runs.
    pub fn running(&self) -> Option<Process> {
        read::<Process>(&self.process()).filter(|p| p.is_alive())
    }

    /// What the running daemon says about itself, once it serves.
    pub fn serving(&self) -> Option<Ready> {
        read::<Ready>(&self.ready()).filter(|ready| ready.process.is_alive())
    }
}

/// Reads a file; `None` when it is missing or no such record.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a file so that a reader sees all of it or nothing.
///
/// # Errors
/// The disk refuses.
pub fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec_pretty(record).expect("records have only text keys"))?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_dead_process_does_not_count() {
        let dir = DataDir(std::env::temp_dir().join(format!("mobula-datadir-test-{}", std::process::id())));
        fs::create_dir_all(&dir.0).expect("writable");
        assert_eq!(dir.running(), None);
        let me = Process::current();
        write(&dir.process(), &me).expect("writable");
        assert_eq!(dir.running(), Some(me));
        // The same pid, reused since.
        write(&dir.process(), &Process { started_ticks: me.started_ticks + 1, ..me }).expect("writable");
        assert_eq!(dir.running(), None);
        fs::write(dir.process(), "garbage").expect("writable");
        assert_eq!(dir.running(), None);
        fs::remove_dir_all(&dir.0).expect("removable");
    }
}
