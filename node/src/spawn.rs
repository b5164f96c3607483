//! Worker processes.

use mobula_net::BoxFuture;
use std::path::PathBuf;
use std::process::Stdio;

/// What to start.
#[derive(Debug, Clone)]
pub struct SpawnOrder {
    /// The job's binary.
    pub executable: String,
    /// The job.
    pub job: u64,
    /// By which the worker says which start it answers.
    pub token: u64,
}

/// Starts workers.
pub trait Spawner: Send {
    /// Starts one. The future ends when the worker has ended, saying how; dropping it kills the
    /// worker.
    fn spawn(&mut self, order: SpawnOrder) -> BoxFuture<'static, String>;
}

/// Starts the job's own binary as a process. Must be called on a thread that lives as long as the
/// daemon: a worker's parent-death signal follows the thread that spawned it.
pub struct ProcessSpawner {
    /// The socket the workers connect to.
    pub socket: PathBuf,
}

impl Spawner for ProcessSpawner {
    fn spawn(&mut self, order: SpawnOrder) -> BoxFuture<'static, String> {
        let child = tokio::process::Command::new(&order.executable)
            .env("MOBULA_WORKER_SOCKET", &self.socket)
            .env("MOBULA_WORKER_TOKEN", order.token.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        Box::pin(async move {
            match child {
                Err(error) => format!("{} cannot be started: {error}", order.executable),
                Ok(mut child) => match child.wait().await {
                    Ok(status) => format!("{} ended: {status}", order.executable),
                    Err(error) => format!("{} is lost: {error}", order.executable),
                },
            }
        })
    }
}
