//! The fault switch of a daemon: a Unix socket that takes `none`, `both`, `inbound` or `outbound`
//! on a line and answers `ok` once this head's network is cut that way. There is none unless the
//! daemon was started with one.

use crate::exit::Failure;
use mobula_net::faults::{Cut, Switch};
use mobula_net::seam::SharedNet;
use std::io::{self, BufRead, BufReader as StdReader, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens at `socket`; what it switches is `net`.
///
/// # Errors
/// The socket cannot be made.
pub fn install(socket: &Path, net: SharedNet) -> Result<SharedNet, Failure> {
    // Of an earlier daemon with this data directory, which is locked, so it is gone.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .map_err(|e| format!("cannot listen for the fault switch at {}: {e}", socket.display()))?;
    let switch = Switch::default();
    let cut = switch.wrap(net);
    tracing::warn!(socket = %socket.display(), "this head's network can be cut through its fault switch");
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(obey(stream, switch.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(cut)
}

async fn obey(stream: UnixStream, switch: Switch) {
    let (orders, mut answers) = stream.into_split();
    let mut orders = BufReader::new(orders).lines();
    while let Ok(Some(order)) = orders.next_line().await {
        let answer = match order.trim().parse::<Cut>() {
            Ok(cut) => {
                switch.set(cut);
                tracing::warn!(%cut, "fault switch");
                "ok\n".to_owned()
            }
            Err(why) => format!("error: {why}\n"),
        };
        if answers.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Has the daemon at the other end of `socket` cut its network.
///
/// # Errors
/// It does not answer, or refuses.
pub fn order(socket: &Path, cut: Cut) -> Result<(), String> {
    let ask = || -> io::Result<String> {
        let mut stream = StdStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{cut}")?;
        let mut answer = String::new();
        StdReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) if answer == "ok\n" => Ok(()),
        Ok(answer) => Err(format!("the fault switch at {} said: {}", socket.display(), answer.trim())),
        Err(error) => Err(format!("the fault switch at {} does not answer: {error}", socket.display())),
    }
}
