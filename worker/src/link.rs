//! The connection to the node daemon.
//!
//! In production two threads pump a Unix socket; the shared memory comes with its first byte. In
//! simulation two async tasks pump any byte stream.
#![allow(unsafe_code)]

use crate::client::Client;
use crate::error::Error;
use crate::function::Function;
use crate::options::ConnectOptions;
use bytes::BytesMut;
use mobula_net::Stream;
use mobula_net::frame::{Decoder, FrameReader, encode};
use mobula_net::written::{Written, emptied};
use mobula_objstore::Region;
use mobula_proto::{
    ClientMsg, DaemonMsg, Hello, JobStart, MAGIC, ToClient, ToDaemon, WIRE_VERSION, Welcome, client_msg,
    daemon_msg,
};
use rustix::fd::OwnedFd;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn entropy() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The hello of a driver. Which build it is its node finds out by itself, but where processes are simulated.
pub fn driver_hello(options: &ConnectOptions, job: u64, executable: String, executable_hash: u64) -> Hello {
    Hello {
        magic: MAGIC,
        version: WIRE_VERSION,
        driver: true,
        executable_hash,
        pid: std::process::id(),
        worker_token: 0,
        job: Some(JobStart {
            name: options.job_name.clone(),
            executable,
            executable_hash,
            functions: Function::names(),
            incarnation: 0,
            args: options.args.clone(),
            job,
            counted: false,
            program: None,
            runtime: Some(options.runtime.wire()),
            tasks_per_worker: options.tasks_per_worker.map_or(0, u32::from),
            hedge_permille: options.hedge_permille,
        }),
        files: options.runtime.sources(),
    }
}

/// The hello of a worker that was started with `token`.
pub fn worker_hello(token: u64, executable_hash: u64) -> Hello {
    Hello {
        magic: MAGIC,
        version: WIRE_VERSION,
        driver: false,
        executable_hash,
        pid: std::process::id(),
        worker_token: token,
        job: None,
        files: Vec::new(),
    }
}

pub(crate) fn connect_driver(options: &ConnectOptions) -> Result<Client, Error> {
    let unreachable = |e: io::Error| Error::Unreachable {
        socket: options.socket.display().to_string(),
        cause: e.to_string(),
    };
    // A daemon waits only so long for the hello: what takes time comes before the connection.
    let options = &ConnectOptions { runtime: options.runtime.gather()?, ..options.clone() };
    let deadline = Instant::now() + options.connect_timeout;
    let stream = loop {
        match UnixStream::connect(&options.socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() >= deadline => return Err(unreachable(error)),
            // The daemon may be starting: poll until the deadline.
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let executable = std::env::current_exe().map_err(unreachable)?.display().to_string();
    let job = entropy().map_err(unreachable)?;
    let hello = driver_hello(options, job, executable, 0);
    let client = connect_unix(stream, hello, options.connect_timeout)?;
    Ok(client.with_divergence(options.on_divergence).with_durability(options.durability))
}

/// Says hello over a Unix socket and starts the two threads that pump it.
///
/// # Errors
/// The daemon refused, closed, or is not a Mobula daemon.
pub fn connect_unix(mut stream: UnixStream, hello: Hello, timeout: Duration) -> Result<Client, Error> {
    let lost = |e: io::Error| Error::Disconnected(e.to_string());
    stream.set_read_timeout(Some(timeout)).map_err(lost)?;
    let fd = receive_fd(&stream).map_err(lost)?;
    let mut out = BytesMut::new();
    let msgs = vec![ClientMsg { msg: Some(client_msg::Msg::Hello(hello)) }];
    encode(&ToDaemon { msgs }, &mut out);
    stream.write_all(&out).map_err(lost)?;
    let mut decoder = Decoder::default();
    let (welcome, rest) = read_welcome(&mut stream, &mut decoder)?;
    stream.set_read_timeout(None).map_err(lost)?;
    let region = Region::map(fd, welcome.arena_bytes).map_err(lost)?;
    let outbox = Written::default();
    let client = Client::new(welcome, region, outbox.clone());
    client.receive(ToClient { msgs: rest });
    let writer = stream.try_clone().map_err(lost)?;
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(lost)
    };
    let line = Arc::new(Mutex::new(Line::new(writer)));
    let _ = client.shell.line.set(line.clone());
    spawn("mobula-write", Box::new(move || write_loop(&outbox, &line)))?;
    let reader = client.clone();
    spawn("mobula-read", Box::new(move || read_loop(&reader, stream, decoder)))?;
    Ok(client)
}

fn read_welcome(stream: &mut UnixStream, decoder: &mut Decoder) -> Result<(Welcome, Vec<DaemonMsg>), Error> {
    loop {
        if let Some(frame) =
            decoder.next_message::<ToClient>().map_err(|e| Error::Disconnected(e.to_string()))?
        {
            return welcome_of(frame);
        }
        fill(stream, decoder).map_err(|e| Error::Disconnected(e.to_string()))?;
    }
}

fn welcome_of(frame: ToClient) -> Result<(Welcome, Vec<DaemonMsg>), Error> {
    let mut msgs = frame.msgs.into_iter();
    match msgs.next().and_then(|m| m.msg) {
        Some(daemon_msg::Msg::Welcome(welcome)) => Ok((welcome, msgs.collect())),
        Some(daemon_msg::Msg::Refused(failure)) => Err(Error::Refused(failure.message)),
        _ => Err(Error::Disconnected("the first message was no welcome".into())),
    }
}

/// Reads what there is into the decoder.
fn fill(stream: &mut UnixStream, decoder: &mut Decoder) -> io::Result<()> {
    let buffer = decoder.buffer();
    let start = buffer.len();
    buffer.resize(buffer.capacity(), 0);
    let read = stream.read(&mut buffer[start..]);
    buffer.truncate(start + *read.as_ref().unwrap_or(&0));
    match read? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection")),
        _ => Ok(()),
    }
}

fn read_loop(client: &Client, mut stream: UnixStream, mut decoder: Decoder) {
    let why = loop {
        match decoder.next_message::<ToClient>() {
            Ok(Some(frame)) => client.receive(frame),
            Ok(None) => {
                if let Err(error) = fill(&mut stream, &mut decoder) {
                    break error.to_string();
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    client.close(&why);
}

/// The way to the daemon. Whoever holds it takes what is queued and writes it: messages keep their order.
pub(crate) struct Line {
    stream: UnixStream,
    /// What is left in the place of what is taken.
    empty: BytesMut,
}

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Line { stream, empty: BytesMut::new() }
    }

    /// Writes what is queued by now. Of a daemon that is gone the reading thread hears.
    pub(crate) fn flush(&mut self, outbox: &Written<ClientMsg>) -> io::Result<()> {
        for frame in outbox.try_take(&mut self.empty) {
            self.stream.write_all(&frame)?;
            self.empty = emptied(frame);
        }
        Ok(())
    }
}

/// Writes what nobody has written who waits for an answer.
fn write_loop(outbox: &Written<ClientMsg>, line: &Mutex<Line>) {
    let line = || line.lock().expect("never poisoned: nothing panics under this lock");
    while futures::executor::block_on(outbox.wait()) {
        if line().flush(outbox).is_err() {
            return;
        }
    }
    let _ = line().stream.shutdown(std::net::Shutdown::Write);
}

/// The daemon's first byte carries the descriptor of the shared memory.
fn receive_fd(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection"));
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "no shared memory came: this is not a Mobula daemon's socket",
    ))
}

/// Says hello over any byte stream and pumps it by async tasks: for simulated drivers and workers.
///
/// # Errors
/// The daemon refused or closed.
pub async fn connect_stream(stream: Stream, region: Region, hello: Hello) -> Result<Client, Error> {
    let lost = |e: io::Error| Error::Disconnected(e.to_string());
    let (read, mut write) = tokio::io::split(stream);
    let msgs = vec![ClientMsg { msg: Some(client_msg::Msg::Hello(hello)) }];
    mobula_net::frame::send(&mut write, &ToDaemon { msgs }).await.map_err(lost)?;
    let mut reader = FrameReader::new(read);
    let frame: ToClient = reader
        .next()
        .await
        .map_err(lost)?
        .ok_or_else(|| Error::Disconnected("closed before the welcome".into()))?;
    let (welcome, rest) = welcome_of(frame)?;
    let outbox = Written::default();
    let client = Client::new(welcome, region, outbox.clone());
    client.receive(ToClient { msgs: rest });
    tokio::spawn(async move {
        let _ = outbox.write_to(write).await;
    });
    let pump = client.clone();
    tokio::spawn(async move {
        let why = loop {
            match reader.next::<ToClient>().await {
                Ok(Some(frame)) => pump.receive(frame),
                Ok(None) => break "the daemon closed the connection".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        pump.close(&why);
    });
    Ok(client)
}
