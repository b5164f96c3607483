//! Worker processes.

use crate::packages::runtime::Prepared;
use mobula_net::BoxFuture;
use mobula_proto::EnvVar;
use std::path::PathBuf;
use std::process::Stdio;

/// What to start.
pub struct SpawnOrder {
    /// What it is started with, once that is here.
    pub prepared: BoxFuture<'static, Result<Prepared, String>>,
    /// Variables of its environment beside those of the daemon.
    pub env: Vec<EnvVar>,
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

/// Starts the job's own binary as a process. What it returns must be polled on a thread that lives as long as the
/// daemon: a worker's parent-death signal follows the thread that spawned it.
pub struct ProcessSpawner {
    /// The socket the workers connect to.
    pub socket: PathBuf,
}

impl Spawner for ProcessSpawner {
    fn spawn(&mut self, order: SpawnOrder) -> BoxFuture<'static, String> {
        let socket = self.socket.clone();
        Box::pin(async move {
            let prepared = match order.prepared.await {
                Ok(prepared) => prepared,
                Err(why) => return why,
            };
            let executable = prepared.executable.display();
            let mut command = tokio::process::Command::new(&prepared.executable);
            command.envs(order.env.iter().map(|var| (&var.name, &var.value)));
            command.env("MOBULA_WORKER_SOCKET", &socket).env("MOBULA_WORKER_TOKEN", order.token.to_string());
            if let Some(directory) = &prepared.directory {
                command.current_dir(directory);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
            match command.spawn() {
                Err(error) => format!("{executable} cannot be started: {error}"),
                Ok(mut child) => match child.wait().await {
                    Ok(status) => format!("{executable} ended: {status}"),
                    Err(error) => format!("{executable} is lost: {error}"),
                },
            }
        })
    }
}
