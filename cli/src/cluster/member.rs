//! One process of a local cluster.

use super::{log, spawner};
use crate::datadir::{DataDir, Ready};
use crate::exit;
use crate::process::Process;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Longest path of a Unix socket, in bytes, without the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// Why a member does not serve.
#[derive(Debug)]
pub enum NotUp {
    /// Somebody else has its port; another may be free.
    PortInUse(String),
    /// It will not come up.
    Failed(String),
}

/// A member to be started.
pub struct Order {
    label: String,
    dir: DataDir,
    address: String,
    command: Command,
}

/// A member that was started.
pub struct Member {
    label: String,
    dir: DataDir,
    /// A head's address; empty for a node.
    pub address: String,
    /// Its process.
    pub process: Process,
    /// What it said when it came up.
    pub ready: Option<Ready>,
    child: Child,
    is_killed: bool,
}

/// What the heads of a cluster have in common.
#[derive(Clone, Debug, Default)]
pub struct Heads {
    /// Their addresses.
    pub addresses: Vec<String>,
    /// Shards of the control store.
    pub shards: u32,
    /// Leaderships go back to where they belong after this time, unless it is the default.
    pub rebalance_ms: Option<u64>,
    /// Each, and each node, has a switch by which its network goes wrong.
    pub with_switches: bool,
}

/// Head `number`. It offers no CPU.
pub fn head(dir: &Path, number: usize, heads: &Heads) -> Order {
    let address = &heads.addresses[number - 1];
    let mut order = order(dir, "head", number, address);
    order.command.args(["--head", "--cpus", "0", "--listen", address, "--join", &heads.addresses.join(",")]);
    order.command.arg("--shards").arg(heads.shards.to_string());
    if let Some(ms) = heads.rebalance_ms {
        order.command.arg("--rebalance-ms").arg(ms.to_string());
    }
    if heads.with_switches {
        order.command.arg("--fault-switch").arg(order.dir.fault_switch());
    }
    order
}

/// Node `number`.
pub fn node(
    dir: &Path,
    number: usize,
    heads: &Heads,
    workers: u32,
    store_mb: u64,
    options: &[String],
) -> Order {
    let mut order = order(dir, "node", number, "");
    if heads.with_switches {
        order.command.arg("--fault-switch").arg(order.dir.fault_switch());
    }
    order.command.env(spawner::LEAN_ALLOCATOR.0, spawner::LEAN_ALLOCATOR.1);
    order.command.args(["--listen", "127.0.0.1:0", "--join", &heads.addresses.join(",")]);
    order.command.arg("--cpus").arg(workers.to_string());
    order.command.arg("--store-mb").arg(store_mb.to_string());
    order.command.arg("--resource").arg(format!("node-{number}=1000"));
    order.command.args(options);
    order
}

fn order(dir: &Path, kind: &str, number: usize, address: &str) -> Order {
    let name = format!("{kind}-{number}");
    let dir = DataDir(dir.join(&name));
    let mut command = spawner::this_program();
    command.arg("daemon").arg("--data-dir").arg(&dir.0);
    command.args(["--name", &name, "--die-with-parent", &std::process::id().to_string()]);
    // Options of this process's environment are not meant for its members.
    for (variable, _) in std::env::vars_os() {
        let is_ours = variable.to_string_lossy().starts_with("MOBULA_");
        if is_ours && variable != "MOBULA_LOG" && variable != "MOBULA_LOG_FORMAT" {
            command.env_remove(variable);
        }
    }
    Order { label: format!("{kind} {number}"), dir, address: address.to_owned(), command }
}

impl Order {
    /// Starts the process.
    pub fn start(mut self) -> Result<Member, NotUp> {
        let failed = |what: &str, e: std::io::Error| {
            NotUp::Failed(format!("cannot start {}: {what}: {e}", self.label))
        };
        if self.dir.socket().as_os_str().len() > SOCKET_PATH_MAX {
            return Err(NotUp::Failed(format!(
                "cannot use {}: a socket in it would have a path of more than {SOCKET_PATH_MAX} bytes; set TMPDIR \
                 to a shorter one",
                self.dir.0.display()
            )));
        }
        fs::create_dir_all(&self.dir.0).map_err(|e| failed("its directory", e))?;
        let out = File::options().create(true).append(true).open(self.dir.log());
        let out = out.map_err(|e| failed("its log", e))?;
        let err = out.try_clone().map_err(|e| failed("its log", e))?;
        // Members must outlive a Ctrl-C, which goes to the whole group: we end them in order.
        self.command.process_group(0).current_dir(&self.dir.0);
        self.command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawner::spawn(self.command)
            .map_err(|e| NotUp::Failed(format!("cannot start {}: {e}", self.label)))?;
        let gone = || NotUp::Failed(format!("{} ended at once", self.label));
        Ok(Member {
            // A child is in /proc until it is waited for.
            process: Process::of(child.id()).ok_or_else(gone)?,
            label: self.label,
            dir: self.dir,
            address: self.address,
            ready: None,
            child,
            is_killed: false,
        })
    }
}

impl Member {
    /// Whether it serves by now. With `is_late`, not serving is an error.
    pub fn poll(&mut self, is_late: bool) -> Result<bool, NotUp> {
        if self.ready.is_some() {
            return Ok(true);
        }
        self.ready = self.dir.serving().filter(|r| r.process == self.process);
        if self.ready.is_some() {
            return Ok(true);
        }
        if let Ok(Some(status)) = self.child.try_wait() {
            let said = log::tail(&self.dir.log(), 0);
            let why = format!("{} ended while it was starting ({status}): {said}", self.label);
            let is_port = status.code() == Some(i32::from(exit::PORT_IN_USE));
            return Err(if is_port { NotUp::PortInUse(why) } else { NotUp::Failed(why) });
        }
        if is_late {
            let said = log::tail(&self.dir.log(), 0);
            return Err(NotUp::Failed(format!("{} did not come up in time: {said}", self.label)));
        }
        Ok(false)
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        if !self.is_killed {
            self.is_killed = true;
            // It may have ended by itself; then there is only the waiting to do.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// The directory it runs from.
    pub fn dir(&self) -> &DataDir {
        &self.dir
    }

    /// That it ended although nobody killed it.
    pub fn casualty(&mut self) -> Option<String> {
        if self.is_killed {
            return None;
        }
        let status = self.child.try_wait().ok()??;
        Some(format!("{} ended by itself ({status}): {}", self.label, log::tail(&self.dir.log(), 0)))
    }
}
