//! How a driver connects, and what its job is like.

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
        }
    }
}
