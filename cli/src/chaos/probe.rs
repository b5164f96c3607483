//! A node's metrics, asked over its one port.

pub use mobula_chaos::probe::Metrics;
use mobula_chaos::probe::answered;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The metrics of the daemon at an address.
///
/// # Errors
/// It does not answer, or with something else.
pub fn metrics(address: &str) -> Result<Metrics, String> {
    let ask = || -> std::io::Result<String> {
        let mut addresses = address.to_socket_addrs()?;
        let first = addresses.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        let mut stream = TcpStream::connect_timeout(&first, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    ask().map_err(|error| format!("{address} does not answer: {error}")).and_then(|answer| answered(&answer))
}
