//! The simulated worker link: workers and drivers are tasks of the daemon's host, joined to it by
//! pipes; the memory is the host's heap.

use mobula::link::{connect_stream, driver_hello, worker_hello};
use mobula::{Client, ConnectOptions, Error};
use mobula_net::{BoxFuture, Stream};
use mobula_node::local::LocalListener;
use mobula_node::spawn::{SpawnOrder, Spawner};
use mobula_objstore::Region;
use std::io;
use tokio::sync::mpsc;

/// Bytes a pipe holds.
const PIPE_BYTES: usize = 1 << 20;
/// Stands for the hash of the one binary that everything here is.
pub const BUILD: u64 = 0xb1d;

/// Where drivers and workers of a host knock.
#[derive(Clone)]
pub struct Door {
    knock: mpsc::UnboundedSender<Stream>,
    region: Region,
}

/// The daemon's side of the door.
pub struct SimLocal(mpsc::UnboundedReceiver<Stream>);

/// A door and the listener behind it.
pub fn door(region: Region) -> (Door, SimLocal) {
    let (knock, listener) = mpsc::unbounded_channel();
    (Door { knock, region }, SimLocal(listener))
}

impl LocalListener for SimLocal {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            match self.0.recv().await {
                Some(stream) => Ok(stream),
                None => std::future::pending().await,
            }
        })
    }
}

impl Door {
    fn pipe(&self) -> Stream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        // A closed door shows as a closed pipe.
        let _ = self.knock.send(Box::new(theirs));
        Box::new(ours)
    }

    /// Connects a driver of this host.
    pub async fn driver(&self, job: u64) -> Result<Client, Error> {
        let options =
            ConnectOptions { job_name: "simulated".into(), args: vec![], ..ConnectOptions::default() };
        let hello = driver_hello(&options, job, "simulated".into(), BUILD);
        connect_stream(self.pipe(), self.region.clone(), hello).await
    }
}

/// Starts workers as tasks of the host.
pub struct SimSpawner(pub Door);

impl Spawner for SimSpawner {
    fn spawn(&mut self, order: SpawnOrder) -> BoxFuture<'static, String> {
        let door = self.0.clone();
        Box::pin(async move {
            // A process takes a moment to start.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let hello = worker_hello(order.token, BUILD);
            match connect_stream(door.pipe(), door.region.clone(), hello).await {
                Ok(client) => {
                    mobula::exec::run_tasks_async(&client).await;
                    "its link closed".into()
                }
                Err(error) => error.to_string(),
            }
        })
    }
}
