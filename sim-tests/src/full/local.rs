//! The simulated worker link: workers and drivers are tasks of the daemon's host, joined to it by pipes; the
//! memory is the host's heap. A worker can die like a process: what it has not written is never heard.

use super::state;
use mobula::link::{connect_stream, driver_hello, worker_hello};
use mobula::{Client, ConnectOptions, Error};
use mobula_net::{BoxFuture, Stream};
use mobula_node::local::LocalListener;
use mobula_node::spawn::{SpawnOrder, Spawner};
use mobula_objstore::Region;
use mobula_sim_tests::core::worker::Doom;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};

/// Bytes a pipe holds.
const PIPE_BYTES: usize = 1 << 20;
/// Stands for the hash of the one binary that everything here is.
const BUILD: u64 = 0xb1d;
/// A process takes a moment to start.
const STARTS: Duration = Duration::from_millis(20);

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

tokio::task_local! {
    /// The worker process that this code runs in.
    pub static WORKER: Worker;
}

/// A worker process.
#[derive(Clone)]
pub struct Worker(Arc<Process>);

struct Process {
    node: u64,
    number: u64,
    dead: AtomicBool,
    ended: Notify,
    doom: Mutex<Option<Doom>>,
    /// Who reads and who writes its link.
    waits: Mutex<[Option<Waker>; 2]>,
}

impl Worker {
    fn start(node: u64) -> Self {
        let worker = |number| {
            Worker(Arc::new(Process {
                node,
                number,
                dead: AtomicBool::new(false),
                ended: Notify::new(),
                doom: Mutex::new(None),
                waits: Mutex::default(),
            }))
        };
        state::with(|state| {
            state.next_worker += 1;
            let worker = worker(state.next_worker);
            state.workers.insert(worker.0.number, worker.clone());
            worker
        })
    }

    /// The node's number for this life of its process.
    pub fn node(&self) -> u64 {
        self.0.node
    }

    /// It is to die at a point.
    pub fn doom(&self, doom: Doom) {
        *self.0.doom.lock().expect("one thread") = Some(doom);
    }

    /// Whether this is where it is to die.
    pub fn is_doomed(&self, at: Doom) -> bool {
        *self.0.doom.lock().expect("one thread") == Some(at)
    }

    /// It is gone, at once: nothing it had to say is heard.
    pub fn kill(&self) {
        if self.0.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        self.0.ended.notify_one();
        let waits = std::mem::take(&mut *self.0.waits.lock().expect("one thread"));
        waits.into_iter().flatten().for_each(Waker::wake);
    }

    /// Dies, in its own code.
    pub async fn die(&self) {
        self.kill();
        std::future::pending().await
    }

    /// Whether it is dead; else who asks is woken when it dies.
    fn is_dead(&self, side: usize, cx: &Context<'_>) -> bool {
        if self.0.dead.load(Ordering::Relaxed) {
            return true;
        }
        self.0.waits.lock().expect("one thread")[side] = Some(cx.waker().clone());
        false
    }
}

/// Its end, whoever brings it about.
struct Ends(Worker);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.kill();
        state::with(|state| state.workers.remove(&self.0.0.number));
    }
}

/// A worker's link, cut when it dies.
struct Cable {
    stream: Stream,
    worker: Worker,
}

impl AsyncRead for Cable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.worker.is_dead(0, cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.worker.is_dead(1, cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Starts workers as tasks of the host.
pub struct SimSpawner {
    /// Where they knock.
    pub door: Door,
    /// The node's number for this life of its process.
    pub node: u64,
}

impl Spawner for SimSpawner {
    fn spawn(&mut self, order: SpawnOrder) -> BoxFuture<'static, String> {
        let (door, node) = (self.door.clone(), self.node);
        Box::pin(async move {
            tokio::time::sleep(STARTS).await;
            let worker = Worker::start(node);
            let _ends = Ends(worker.clone());
            let cable = Box::new(Cable { stream: door.pipe(), worker: worker.clone() });
            let work = async {
                match connect_stream(cable, door.region.clone(), worker_hello(order.token, BUILD)).await {
                    Ok(client) => {
                        mobula::exec::run_tasks_async(&client).await;
                        "its link closed".to_owned()
                    }
                    Err(error) => error.to_string(),
                }
            };
            tokio::select! {
                biased;
                () = worker.0.ended.notified() => "killed".into(),
                how = WORKER.scope(worker.clone(), work) => how,
            }
        })
    }
}
