//! A network that can fall silent: wraps another [`Net`] and, while its [`Switch`] is on, lets
//! nothing through. No connection ends and nobody is told, as when packets are dropped.
//!
//! What was sent during a cut arrives after it, as TCP sends again: a stream never loses bytes in
//! its middle. The far side's dial may still succeed, since its kernel and ours agree without us.
//! A network without a switch costs nothing: production does not wrap its own.

use crate::auth::Token;
use crate::calls::Calls;
use crate::seam::{BoxFuture, Listener, Net, SharedNet, Stream};
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// Bytes that a cut connection takes from its writer before the writer has to wait, as a socket's
/// send buffer does.
const BUFFER: usize = 256 * 1024;
/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

/// What does not get through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Everything gets through.
    #[default]
    None,
    /// Nothing arrives and nothing leaves.
    Both,
    /// Nothing arrives.
    Inbound,
    /// Nothing leaves.
    Outbound,
}

impl Cut {
    fn stops(self, direction: Direction) -> bool {
        match direction {
            Direction::In => matches!(self, Cut::Both | Cut::Inbound),
            Direction::Out => matches!(self, Cut::Both | Cut::Outbound),
            // A handshake takes both ways.
            Direction::Handshake => self != Cut::None,
        }
    }
}

impl FromStr for Cut {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Cut::None),
            "both" => Ok(Cut::Both),
            "inbound" => Ok(Cut::Inbound),
            "outbound" => Ok(Cut::Outbound),
            other => Err(format!("\"{other}\" is no cut; there are none, both, inbound and outbound")),
        }
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Cut::None => "none",
            Cut::Both => "both",
            Cut::Inbound => "inbound",
            Cut::Outbound => "outbound",
        })
    }
}

/// Cuts and heals the networks made with it.
#[derive(Clone, Debug, Default)]
pub struct Switch(watch::Sender<Cut>);

impl Switch {
    /// From now on.
    pub fn set(&self, cut: Cut) {
        self.0.send_replace(cut);
    }

    /// What does not get through now.
    pub fn cut(&self) -> Cut {
        *self.0.borrow()
    }

    /// `inner`, cut by this switch.
    pub fn wrap(&self, inner: SharedNet) -> SharedNet {
        Arc::new(Faulty { inner, switch: self.clone() })
    }

    fn gate(&self, direction: Direction) -> Gate {
        Gate { cut: self.0.subscribe(), direction }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
    Handshake,
}

struct Gate {
    cut: watch::Receiver<Cut>,
    direction: Direction,
}

impl Gate {
    /// Waits until this direction is open.
    async fn pass(&mut self) {
        let direction = self.direction;
        if self.cut.wait_for(|cut| !cut.stops(direction)).await.is_err() {
            // The switch is gone and left the network cut.
            std::future::pending::<()>().await;
        }
    }
}

struct Faulty {
    inner: SharedNet,
    switch: Switch,
}

impl Net for Faulty {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let inner = self.inner.listen(address).await?;
            let gate = self.switch.gate(Direction::Handshake);
            Ok(Box::new(FaultyListener { inner, gate, switch: self.switch.clone(), held: None })
                as Box<dyn Listener>)
        })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            self.switch.gate(Direction::Handshake).pass().await;
            let stream = self.inner.dial(address).await?;
            Ok(through(&self.switch, stream))
        })
    }

    fn token(&self) -> Option<&Token> {
        self.inner.token()
    }

    fn calls(&self) -> Option<Arc<dyn Calls>> {
        self.inner.calls()
    }
}

struct FaultyListener {
    inner: Box<dyn Listener>,
    gate: Gate,
    switch: Switch,
    /// Accepted during a cut; kept here, since the future that waits may be dropped.
    held: Option<(Stream, String)>,
}

impl Listener for FaultyListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async move {
            if self.held.is_none() {
                self.held = Some(self.inner.accept().await?);
            }
            self.gate.pass().await;
            let (stream, from) = self.held.take().expect("set above");
            Ok((through(&self.switch, stream), from))
        })
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

/// The near end of a connection whose far end is `stream`, with gates in between.
fn through(switch: &Switch, stream: Stream) -> Stream {
    let (near, middle) = tokio::io::duplex(BUFFER);
    let (inbound, outbound) = (switch.gate(Direction::In), switch.gate(Direction::Out));
    tokio::spawn(async move {
        let (from_far, to_far) = tokio::io::split(stream);
        let (from_near, to_near) = tokio::io::split(middle);
        let arrive = async {
            carry(from_far, to_near, inbound).await;
            // The far side has closed its half; ours may still have something to say.
            std::future::pending::<()>().await;
        };
        // Once the near side is done, nobody is left to read.
        tokio::select! {
            biased;
            () = carry(from_near, to_far, outbound) => {}
            () = arrive => {}
        }
    });
    Box::new(near)
}

/// Moves bytes through a gate until one side ends, then says so to the other.
async fn carry<R, W>(mut from: R, mut to: W, mut gate: Gate)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        // An error ends the connection as an end of file does.
        let read = from.read(&mut chunk).await.unwrap_or(0);
        gate.pass().await;
        if read == 0 || to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    // It may be closed already.
    to.shutdown().await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::TcpNet;
    use std::sync::Arc;
    use std::time::Duration;

    /// Long enough for loopback to deliver what it will; the tests that use it expect silence.
    const SILENCE: Duration = Duration::from_millis(60);

    async fn pair(switch: &Switch) -> (Stream, Stream) {
        let listener = TcpNet.listen("127.0.0.1:0").await.expect("a port");
        let address = listener.address();
        let accepted = tokio::spawn(async move {
            let mut listener = listener;
            listener.accept().await.expect("a connection").0
        });
        let ours = switch.wrap(Arc::new(TcpNet)).dial(&address).await.expect("it listens");
        (ours, accepted.await.expect("no panic"))
    }

    async fn is_silent(stream: &mut Stream) -> bool {
        tokio::time::timeout(SILENCE, stream.read_u8()).await.is_err()
    }

    #[tokio::test]
    async fn each_cut_stops_its_direction_and_healing_delivers_what_was_sent() {
        for (cut, stops_out, stops_in) in
            [(Cut::Both, true, true), (Cut::Inbound, false, true), (Cut::Outbound, true, false)]
        {
            let switch = Switch::default();
            let (mut ours, mut theirs) = pair(&switch).await;
            switch.set(cut);
            ours.write_all(b"o").await.expect("a cut is silent");
            theirs.write_all(b"t").await.expect("a cut is silent");
            assert_eq!(is_silent(&mut theirs).await, stops_out, "{cut} outbound");
            assert_eq!(is_silent(&mut ours).await, stops_in, "{cut} inbound");
            switch.set(Cut::None);
            if stops_out {
                assert_eq!(theirs.read_u8().await.expect("healed"), b'o');
            }
            if stops_in {
                assert_eq!(ours.read_u8().await.expect("healed"), b't');
            }
        }
    }

    #[tokio::test]
    async fn an_end_is_not_seen_through_a_cut() {
        let switch = Switch::default();
        let (mut ours, theirs) = pair(&switch).await;
        switch.set(Cut::Inbound);
        drop(theirs);
        assert!(is_silent(&mut ours).await);
        switch.set(Cut::None);
        ours.read_u8().await.expect_err("the end, now");
    }

    #[tokio::test]
    async fn dials_and_accepts_wait_for_the_end_of_a_cut() {
        let switch = Switch::default();
        let net = switch.wrap(Arc::new(TcpNet));
        let mut listener = net.listen("127.0.0.1:0").await.expect("a port");
        let address = listener.address();
        switch.set(Cut::Outbound);
        // A dial that nobody listens to must not be refused either.
        assert!(tokio::time::timeout(SILENCE, net.dial("127.0.0.1:1")).await.is_err());
        let mut plain = TcpNet.dial(&address).await.expect("the kernel answers");
        assert!(tokio::time::timeout(SILENCE, listener.accept()).await.is_err());
        switch.set(Cut::None);
        let (mut accepted, _) = listener.accept().await.expect("held, not lost");
        plain.write_all(b"x").await.expect("open");
        assert_eq!(accepted.read_u8().await.expect("open"), b'x');
    }

    #[tokio::test]
    async fn closing_ends_the_other_side() {
        let switch = Switch::default();
        let (ours, mut theirs) = pair(&switch).await;
        drop(ours);
        theirs.read_u8().await.expect_err("closed");
    }

    #[test]
    fn cuts_have_names() {
        for cut in [Cut::None, Cut::Both, Cut::Inbound, Cut::Outbound] {
            assert_eq!(cut.to_string().parse(), Ok(cut));
        }
        assert!("all".parse::<Cut>().expect_err("no such cut").contains("inbound"));
    }
}
