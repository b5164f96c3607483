//! RPC faults: a connection that swallows what is asked, or what is answered, or reports an error
//! while the other side goes on. Below HTTP/2 there is no retransmission, so once a byte is gone
//! nothing more passes in that direction: callers must notice by their deadlines.

use crate::net::SimNet;
use mobula_base::random::Random;
use mobula_net::{BoxFuture, Listener, Net, Stream};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How likely each fault is, per write or read, in thousandths; shared by the connections of a host.
#[derive(Clone, Copy, Default, Debug)]
pub struct Odds {
    /// Requests vanish from here on.
    pub request: u64,
    /// Answers vanish from here on.
    pub response: u64,
    /// The caller is told of an error at once; what was sent before arrives.
    pub in_flight: u64,
}

struct State {
    odds: Odds,
    random: Random,
}

/// The odds of a host's connections, changed while they are open.
#[derive(Clone)]
pub struct Mood(Arc<Mutex<State>>);

impl Mood {
    /// Nothing goes wrong yet.
    pub fn new(seed: u64) -> Self {
        Mood(Arc::new(Mutex::new(State { odds: Odds::default(), random: Random::new(seed) })))
    }

    /// From now on these odds.
    pub fn set(&self, odds: Odds) {
        self.0.lock().expect("one thread").odds = odds;
    }

    fn rolls(&self, odds: impl Fn(&Odds) -> u64) -> bool {
        let mut state = self.0.lock().expect("one thread");
        let odds = odds(&state.odds);
        odds > 0 && state.random.below(1000) < odds
    }
}

/// A simulated network whose dialled connections have moods.
pub struct MoodyNet {
    /// The network.
    pub net: SimNet,
    /// The mood.
    pub mood: Mood,
}

impl Net for MoodyNet {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.net.listen(address)
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = self.net.dial(address).await?;
            Ok(Box::new(Moody { stream, mood: self.mood.clone(), deaf: false, mute: false }) as Stream)
        })
    }
}

struct Moody {
    stream: Stream,
    mood: Mood,
    /// Answers vanish.
    deaf: bool,
    /// Requests vanish.
    mute: bool,
}

impl AsyncRead for Moody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            let read = Pin::new(&mut self.stream).poll_read(cx, buf);
            let some = matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() > before;
            if !some {
                return read;
            }
            self.deaf |= self.mood.rolls(|odds| odds.response);
            if !self.deaf {
                return read;
            }
            // Read and forgotten, until the connection ends.
            buf.set_filled(before);
        }
    }
}

impl AsyncWrite for Moody {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.mute |= self.mood.rolls(|odds| odds.request);
        if self.mute {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() && self.mood.rolls(|odds| odds.in_flight) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
