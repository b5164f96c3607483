//! The fault switch of a daemon: a Unix socket that takes a line of weather ([`Weather`]) and answers `ok` once this
//! daemon's network is like that. There is none unless the daemon was started with one. Where the cluster has a token,
//! the line begins with `Bearer TOKEN`.

use crate::exit::Failure;
use mobula_net::auth::{NEEDED, SCHEME, Token};
use mobula_net::faults::{Switch, Weather};
use mobula_net::seam::SharedNet;
use std::io::{self, BufRead, BufReader as StdReader, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longer lines are no orders.
const LINE_MAX: u64 = 16 << 10;

/// Listens at `socket`; what it switches is `net`.
///
/// # Errors
/// The socket cannot be made.
pub fn install(socket: &Path, net: SharedNet, seed: u64) -> Result<SharedNet, Failure> {
    // Of an earlier daemon with this data directory, which is locked, so it is gone.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .map_err(|e| format!("cannot listen for the fault switch at {}: {e}", socket.display()))?;
    let (switch, token) = (Switch::new(seed), net.token().cloned());
    let faulty = switch.wrap(net);
    tracing::warn!(socket = %socket.display(), "this daemon's network can go wrong by its fault switch");
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(obey(stream, switch.clone(), token.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(faulty)
}

async fn obey(stream: UnixStream, switch: Switch, token: Option<Token>) {
    let (orders, mut answers) = stream.into_split();
    let mut orders = BufReader::new(orders.take(LINE_MAX)).lines();
    while let Ok(Some(order)) = orders.next_line().await {
        let answer = match read(&order, token.as_ref()) {
            Ok(weather) => {
                tracing::warn!(%weather, "fault switch");
                switch.set(weather);
                "ok\n".to_owned()
            }
            Err(why) => format!("error: {why}\n"),
        };
        if answers.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What an order asks for.
///
/// # Errors
/// It lacks the cluster's token, or is none.
fn read(order: &str, token: Option<&Token>) -> Result<Weather, String> {
    let (shown, order) = match order.trim().strip_prefix(SCHEME) {
        Some(rest) => rest.split_once(' ').map_or((Some(rest), ""), |(word, rest)| (Some(word), rest)),
        None => (None, order),
    };
    match token {
        Some(token) if !shown.is_some_and(|word| token.matches(word.as_bytes())) => Err(NEEDED.into()),
        _ => order.parse(),
    }
}

/// Has the daemon at the other end of `socket` make its network like this.
///
/// # Errors
/// It does not answer, or refuses.
pub fn order(socket: &Path, weather: &Weather, token: Option<&Token>) -> Result<(), String> {
    let shown = token.map_or_else(String::new, |token| format!("{SCHEME}{} ", token.reveal()));
    let ask = || -> io::Result<String> {
        let mut stream = StdStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        writeln!(stream, "{shown}{weather}")?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_net::faults::Cut;

    #[test]
    fn an_order_needs_the_token_where_there_is_one() {
        let token = Token::new("0123456789abcdef").expect("long enough");
        let both = Ok(Weather::of(Cut::Both));
        assert_eq!(read("both", None), both);
        assert_eq!(read("Bearer 0123456789abcdef both", Some(&token)), both);
        assert_eq!(read("Bearer 0123456789abcdef both", None), both);
        for wrong in ["both", "Bearer 0123456789abcdeX both", "Bearer both", "Bearer"] {
            assert_eq!(read(wrong, Some(&token)), Err(NEEDED.to_owned()), "{wrong}");
        }
        assert!(read("rain=1", None).is_err());
    }
}
