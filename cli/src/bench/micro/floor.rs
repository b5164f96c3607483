//! The floor below the rows of tasks: what their messages cost with no runtime behind them.
//!
//! Three processes as in production, with the product's frames, queues and sockets: a submission goes from
//! the driver through a daemon to a worker, which answers at once; the answer goes back the same way. The
//! daemon looks at nothing and keeps nothing; there is no control store.

use crate::args::{BareArgs, BareRole};
use crate::cluster::{LocalCluster, spawner};
use crate::commands::machine::die_with_parent;
use crate::exit::{self, Failure, Outcome};
use crate::process::Process;
use bytes::{Bytes, BytesMut};
use mobula_base::ids::RUN_LEN;
use mobula_base::{JobId, TaskId};
use mobula_net::frame::{Decoder, FrameReader, Outbox, batches, encode};
use mobula_proto::{
    ClientMsg, DaemonMsg, ObjectReady, RunTask, TaskResult, TaskSpec, ToClient, ToDaemon, Value, client_msg,
    daemon_msg, object_bytes, task_bytes, task_id, value as wire_value,
};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long the daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read at a time, as a driver does.
const READ: usize = 64 * 1024;

/// The driver's end of a bare transport.
pub struct Floor {
    outbox: Outbox<ClientMsg>,
    /// Ids of what has been answered, a frame at a time.
    answers: Receiver<Vec<Bytes>>,
    next: u64,
    sent: Ids,
    expected: Ids,
    _daemon: Ended,
    _worker: Ended,
}

/// A child that ends with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself; then there is only the waiting to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Floor {
    /// Starts a daemon and a worker.
    ///
    /// # Errors
    /// They do not come up.
    pub fn start(place: &LocalCluster) -> Result<Floor, Failure> {
        let socket = place.dir().join("bare.sock");
        let daemon = child(place, "daemon", &socket)?;
        // The worker is the first to connect, the driver the second: the daemon counts.
        let failed = |e: io::Error| format!("the bare daemon does not answer: {e}");
        let worker = child(place, "worker", &socket)?;
        let mut stream = connect(&socket).map_err(failed)?;
        let mut word = [0u8];
        stream.write_all(b"D").map_err(failed)?;
        stream.read_exact(&mut word).map_err(failed)?;
        let outbox: Outbox<ClientMsg> = Outbox::default();
        let (tell, answers) = channel();
        let (queue, writer) = (outbox.clone(), stream.try_clone().map_err(failed)?);
        let wrap = |msgs| ToDaemon { msgs };
        std::thread::spawn(move || write_loop(&queue, writer, wrap));
        std::thread::spawn(move || {
            read_loop(stream, |frame: ToClient| {
                let _ = tell.send(frame.msgs.into_iter().filter_map(ready).collect());
            });
        });
        Ok(Floor {
            outbox,
            answers,
            next: 0,
            sent: Ids::default(),
            expected: Ids::default(),
            _daemon: daemon,
            _worker: worker,
        })
    }

    /// Messages to and fro, `in_flight` at a time, for so long; how many in a second.
    ///
    /// # Errors
    /// An answer is missing or wrong.
    pub fn rate(&mut self, seconds: Duration, in_flight: u64) -> Result<f64, Failure> {
        let (at, first) = (Instant::now(), self.next);
        let mut answered = first;
        self.send(in_flight);
        while answered < self.next {
            let count = self.take(answered)?;
            answered += count;
            if at.elapsed() < seconds {
                self.send(count);
            }
        }
        Ok((answered - first) as f64 / at.elapsed().as_secs_f64())
    }

    /// Single messages to and fro: how long each took.
    ///
    /// # Errors
    /// An answer is missing or wrong.
    pub fn singly(&mut self, count: usize) -> Result<Vec<Duration>, Failure> {
        let one = |_| {
            let at = Instant::now();
            self.send(1);
            self.take(self.next - 1)?;
            Ok(at.elapsed())
        };
        (0..count).map(one).collect()
    }

    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let spec = spec(self.sent.of(self.next));
            self.next += 1;
            self.outbox.push(ClientMsg { msg: Some(client_msg::Msg::Submit(spec)) });
        }
    }

    /// Takes answers, the next of which must be that of submission `expected`; how many came.
    fn take(&mut self, expected: u64) -> Result<u64, Failure> {
        let frame = self.answers.recv_timeout(PATIENCE).map_err(|_| "the bare transport has stopped")?;
        for (number, object) in (expected..).zip(&frame) {
            if *object != object_bytes(self.expected.of(number).output(0)) {
                return Err("the bare transport answered something that was not asked".into());
            }
        }
        Ok(frame.len() as u64)
    }
}

/// Ids in their order; the hash of a run is computed once.
#[derive(Default)]
struct Ids(TaskId);

impl Ids {
    fn of(&mut self, number: u64) -> TaskId {
        let place = number % RUN_LEN;
        if place == 0 {
            self.0 = TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, number);
        }
        TaskId { place: place as u16, ..self.0 }
    }
}

/// A submission of the size that those of no-op tasks have.
fn spec(id: TaskId) -> TaskSpec {
    TaskSpec {
        id: task_bytes(id),
        job: 1,
        parent: task_bytes(TaskId::root(JobId(1))),
        function: 7,
        cpu_milli: 1000,
        max_retries: 3,
        digest: 7,
        ..TaskSpec::default()
    }
}

fn ready(msg: DaemonMsg) -> Option<Bytes> {
    match msg.msg {
        Some(daemon_msg::Msg::Ready(ready)) => Some(ready.object),
        _ => None,
    }
}

fn child(place: &LocalCluster, role: &str, socket: &Path) -> Result<Ended, Failure> {
    let mut command = spawner::this_program();
    command.args(["bare", "--role", role, "--die-with-parent", &std::process::id().to_string()]);
    command.arg("--socket").arg(socket).stdin(Stdio::null()).stdout(Stdio::null());
    let child = spawner::spawn(command).map_err(|e| format!("cannot start a process: {e}"))?;
    if let Some(process) = Process::of(child.id()) {
        place.adopt(process);
    }
    Ok(Ended(child))
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            connected => return connected,
        }
    }
}

/// Writes what is pushed, as a driver does.
fn write_loop<T: prost::Message, M: prost::Message>(
    outbox: &Outbox<T>,
    mut stream: UnixStream,
    wrap: impl Fn(Vec<T>) -> M,
) {
    let mut out = BytesMut::with_capacity(READ);
    while let Some(msgs) = futures::executor::block_on(outbox.take()) {
        for msgs in batches(msgs) {
            encode(&wrap(msgs), &mut out);
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

/// Reads until the other side closes, as a driver does.
fn read_loop<M: prost::Message + Default>(mut stream: UnixStream, mut take: impl FnMut(M)) {
    let mut decoder = Decoder::default();
    loop {
        while let Ok(Some(frame)) = decoder.next_message() {
            take(frame);
        }
        let buffer = decoder.buffer();
        let start = buffer.len();
        buffer.resize(start + READ, 0);
        let read = stream.read(&mut buffer[start..]).unwrap_or(0);
        buffer.truncate(start + read);
        if read == 0 {
            return;
        }
    }
}

/// One of the other two processes.
pub fn run(args: &BareArgs) -> Outcome {
    die_with_parent(args.die_with_parent)?;
    let cannot = |e: io::Error| format!("cannot use {}: {e}", args.socket.display());
    match args.role {
        BareRole::Daemon => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(cannot)?.block_on(daemon(&args.socket)).map_err(cannot)?;
        }
        BareRole::Worker => worker(connect(&args.socket).map_err(cannot)?).map_err(cannot)?,
    }
    Ok(exit::OK)
}

/// Answers whatever it is given to run, at once.
fn worker(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(b"W")?;
    let outbox: Outbox<ClientMsg> = Outbox::default();
    let (queue, writer) = (outbox.clone(), stream.try_clone()?);
    std::thread::spawn(move || write_loop(&queue, writer, |msgs| ToDaemon { msgs }));
    read_loop(stream, |frame: ToClient| {
        for msg in frame.msgs {
            let Some(daemon_msg::Msg::Run(run)) = msg.msg else { continue };
            let task = run.spec.unwrap_or_default().id;
            let value = Value { value: Some(wire_value::Value::Inline(Bytes::from_static(b"ok"))) };
            let result =
                TaskResult { task, attempt: run.attempt, value: Some(value), ..TaskResult::default() };
            outbox.push(ClientMsg { msg: Some(client_msg::Msg::Finished(result)) });
        }
    });
    Ok(())
}

/// Hands on what comes from either side to the other, on one thread as a node daemon does.
async fn daemon(socket: &Path) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::UnixListener::bind(socket)?;
    let (mut worker, mut driver) = (None, None);
    while worker.is_none() || driver.is_none() {
        let (mut stream, _) = listener.accept().await?;
        match stream.read_u8().await? {
            b'W' => worker = Some(stream),
            _ => driver = Some(stream),
        }
    }
    let (Some(worker), Some(mut driver)) = (worker, driver) else { return Ok(()) };
    driver.write_all(b"M").await?;
    let (to_worker, to_driver): (Outbox<DaemonMsg>, Outbox<DaemonMsg>) = Default::default();
    let (from_driver, driver) = tokio::io::split(driver);
    let (from_worker, worker) = tokio::io::split(worker);
    let out = [(to_worker.clone(), worker), (to_driver.clone(), driver)];
    for (queue, write) in out {
        tokio::spawn(async move { queue.write_to(write, |msgs| ToClient { msgs }).await });
    }
    let answers = tokio::spawn(hand_on(from_worker, to_driver));
    hand_on(from_driver, to_worker).await;
    answers.abort();
    Ok(())
}

async fn hand_on<R: tokio::io::AsyncRead + Unpin>(read: R, to: Outbox<DaemonMsg>) {
    let mut reader = FrameReader::new(read);
    while let Ok(Some(frame)) = reader.next::<ToDaemon>().await {
        to.extend(
            frame.msgs.into_iter().filter_map(|msg| answer(msg.msg?)).map(|msg| DaemonMsg { msg: Some(msg) }),
        );
    }
}

/// What the other side is told.
fn answer(msg: client_msg::Msg) -> Option<daemon_msg::Msg> {
    match msg {
        client_msg::Msg::Submit(spec) => {
            Some(daemon_msg::Msg::Run(RunTask { spec: Some(spec), attempt: 1, ..RunTask::default() }))
        }
        client_msg::Msg::Finished(result) => {
            let object = object_bytes(task_id(&result.task).ok()?.output(0));
            Some(daemon_msg::Msg::Ready(ObjectReady { object, value: result.value }))
        }
        _ => None,
    }
}
