//! A network that can go wrong: wraps another [`Net`], and what its [`Switch`] says, bytes, dials and calls undergo: they
//! do not get through, are late, or slow; calls are lost, unanswered, or fail while they go on ([`Weather`]). No
//! connection ends and nobody is told, as when packets are dropped.
//!
//! What was sent during a cut arrives after it, as TCP sends again: a stream never loses bytes in
//! its middle. The far side's dial may still succeed, since its kernel and ours agree without us.
//! A network without a switch costs nothing: production does not wrap its own.

use crate::auth::Token;
use crate::calls::{Calls, Fate};
use crate::seam::{BoxFuture, Listener, Net, SharedNet, Stream};
pub use crate::weather::{Cut, Weather};
use mobula_base::random::Random;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Bytes that a cut connection takes from its writer before the writer has to wait, as a socket's
/// send buffer does.
const BUFFER: usize = 256 * 1024;
/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;
/// Chunks on their way at once, while they are late.
const ON_THEIR_WAY: usize = 64;

fn stops(cut: Cut, direction: Direction) -> bool {
    match direction {
        Direction::In => matches!(cut, Cut::Both | Cut::Inbound),
        Direction::Out => matches!(cut, Cut::Both | Cut::Outbound),
        // A handshake takes both ways.
        Direction::Handshake => cut != Cut::None,
    }
}

/// Orders the weather of the networks made with it.
#[derive(Clone, Debug)]
pub struct Switch {
    weather: watch::Sender<Weather>,
    /// Decides which calls go wrong.
    random: Arc<Mutex<Random>>,
}

impl Switch {
    /// Fair weather, for now; `seed` decides which calls go wrong when some shall.
    pub fn new(seed: u64) -> Self {
        let random = Arc::new(Mutex::new(Random::new(seed).fork("calls that go wrong")));
        Switch { weather: watch::Sender::new(Weather::default()), random }
    }

    /// From now on.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// How it is now.
    pub fn weather(&self) -> Weather {
        self.weather.borrow().clone()
    }

    /// `inner`, under this switch.
    pub fn wrap(&self, inner: SharedNet) -> SharedNet {
        Arc::new(Faulty { inner, switch: self.clone() })
    }

    fn gate(&self, direction: Direction, address: Option<&str>) -> Gate {
        Gate { weather: self.weather.subscribe(), direction, address: address.map(str::to_owned) }
    }
}

impl Calls for Switch {
    fn fate(&self, address: &str, _method: &str) -> Fate {
        let weather = self.weather.borrow();
        if weather.calls == [0; 3] || !weather.concerns(Some(address)) {
            return Fate::Pass;
        }
        let mut drawn = self.random.lock().unwrap_or_else(PoisonError::into_inner).below(1000) as u32;
        for (permille, fate) in
            weather.calls.iter().zip([Fate::RequestLost, Fate::AnswerLost, Fate::InFlight])
        {
            if drawn < *permille {
                return fate;
            }
            drawn -= permille;
        }
        Fate::Pass
    }
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
    Handshake,
}

struct Gate {
    weather: watch::Receiver<Weather>,
    direction: Direction,
    /// Where the connection was dialed to, if it was.
    address: Option<String>,
}

impl Gate {
    /// Waits until this direction is open.
    async fn pass(&mut self) {
        let (direction, address) = (self.direction, self.address.as_deref());
        let is_open = |now: &Weather| !(stops(now.cut, direction) && now.concerns(address));
        if self.weather.wait_for(is_open).await.is_err() {
            // The switch is gone and left the network cut.
            std::future::pending::<()>().await;
        }
    }

    /// How late bytes are now, and how long so many take.
    fn takes(&self, bytes: usize) -> (Duration, Duration) {
        let now = self.weather.borrow();
        if !now.concerns(self.address.as_deref()) {
            return (Duration::ZERO, Duration::ZERO);
        }
        let each = if now.rate == 0 { 0.0 } else { bytes as f64 / now.rate as f64 };
        (now.delay, Duration::from_secs_f64(each))
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
            let gate = self.switch.gate(Direction::Handshake, None);
            Ok(Box::new(FaultyListener { inner, gate, switch: self.switch.clone(), held: None })
                as Box<dyn Listener>)
        })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            self.switch.gate(Direction::Handshake, Some(address)).pass().await;
            let stream = self.inner.dial(address).await?;
            Ok(through(&self.switch, stream, Some(address)))
        })
    }

    fn token(&self) -> Option<&Token> {
        self.inner.token()
    }

    fn calls(&self) -> Option<Arc<dyn Calls>> {
        Some(Arc::new(self.switch.clone()))
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
            Ok((through(&self.switch, stream, None), from))
        })
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

/// The near end of a connection whose far end is `stream`, with gates in between.
fn through(switch: &Switch, stream: Stream, dialed: Option<&str>) -> Stream {
    let (near, middle) = tokio::io::duplex(BUFFER);
    let (inbound, outbound) = (switch.gate(Direction::In, dialed), switch.gate(Direction::Out, dialed));
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
async fn carry<R, W>(from: R, to: W, gate: Gate)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (send, receive) = mpsc::channel(ON_THEIR_WAY);
    // Over when all has arrived, or nobody reads any more.
    tokio::select! {
        biased;
        () = arrive(receive, to) => {}
        () = async { leave(from, send, gate).await; std::future::pending().await } => {}
    }
}

/// Bytes on their way, and when they are due.
type OnTheirWay = (Instant, Vec<u8>);

/// A connection of a rate may be behind it by so much, and catch up: timers are no finer than a millisecond, and a wait
/// of one for each chunk would be a rate of its own.
const CATCHES_UP: Duration = Duration::from_millis(5);

/// When a connection is free for the next chunk.
struct Pace(Instant);

impl Pace {
    /// A chunk takes so long from now on: until when whoever sends it waits, if that lies ahead.
    fn takes(&mut self, now: Instant, each: Duration) -> Option<Instant> {
        let least = now.checked_sub(CATCHES_UP).unwrap_or(now);
        self.0 = self.0.max(least) + each;
        (!each.is_zero() && self.0 > now).then_some(self.0)
    }
}

async fn leave<R: AsyncRead + Unpin>(mut from: R, send: mpsc::Sender<OnTheirWay>, mut gate: Gate) {
    let mut chunk = vec![0; CHUNK];
    let mut pace = Pace(Instant::now());
    loop {
        // An error ends the connection as an end of file does.
        let read = from.read(&mut chunk).await.unwrap_or(0);
        gate.pass().await;
        let (late, each) = gate.takes(read);
        if let Some(free) = pace.takes(Instant::now(), each) {
            tokio::time::sleep_until(free).await;
        }
        if read == 0 || send.send((Instant::now() + late, chunk[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn arrive<W: AsyncWrite + Unpin>(mut receive: mpsc::Receiver<OnTheirWay>, mut to: W) {
    while let Some((due, bytes)) = receive.recv().await {
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        if to.write_all(&bytes).await.is_err() {
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

    #[test]
    fn a_rate_holds_though_every_wait_is_too_long() {
        let begin = Instant::now();
        let (mut now, mut pace) = (begin, Pace(begin));
        for _ in 0..1_000 {
            if let Some(free) = pace.takes(now, Duration::from_micros(100)) {
                now = free.max(now) + Duration::from_millis(1);
            }
        }
        let took = now.duration_since(begin);
        assert!((Duration::from_millis(94)..Duration::from_millis(102)).contains(&took), "{took:?}");
        // What was idle does not send all it might have sent at once.
        now += Duration::from_secs(1);
        let waited = (0..100).filter_map(|_| pace.takes(now, Duration::from_millis(1))).count();
        assert_eq!(waited, 95);
    }

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
            let switch = Switch::new(1);
            let (mut ours, mut theirs) = pair(&switch).await;
            switch.set(Weather::of(cut));
            ours.write_all(b"o").await.expect("a cut is silent");
            theirs.write_all(b"t").await.expect("a cut is silent");
            assert_eq!(is_silent(&mut theirs).await, stops_out, "{cut} outbound");
            assert_eq!(is_silent(&mut ours).await, stops_in, "{cut} inbound");
            switch.set(Weather::of(Cut::None));
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
        let switch = Switch::new(1);
        let (mut ours, theirs) = pair(&switch).await;
        switch.set(Weather::of(Cut::Inbound));
        drop(theirs);
        assert!(is_silent(&mut ours).await);
        switch.set(Weather::of(Cut::None));
        ours.read_u8().await.expect_err("the end, now");
    }

    #[tokio::test]
    async fn dials_and_accepts_wait_for_the_end_of_a_cut() {
        let switch = Switch::new(1);
        let net = switch.wrap(Arc::new(TcpNet));
        let mut listener = net.listen("127.0.0.1:0").await.expect("a port");
        let address = listener.address();
        switch.set(Weather::of(Cut::Outbound));
        // A dial that nobody listens to must not be refused either.
        assert!(tokio::time::timeout(SILENCE, net.dial("127.0.0.1:1")).await.is_err());
        let mut plain = TcpNet.dial(&address).await.expect("the kernel answers");
        assert!(tokio::time::timeout(SILENCE, listener.accept()).await.is_err());
        switch.set(Weather::of(Cut::None));
        let (mut accepted, _) = listener.accept().await.expect("held, not lost");
        plain.write_all(b"x").await.expect("open");
        assert_eq!(accepted.read_u8().await.expect("open"), b'x');
    }

    #[tokio::test]
    async fn closing_ends_the_other_side() {
        let switch = Switch::new(1);
        let (ours, mut theirs) = pair(&switch).await;
        drop(ours);
        theirs.read_u8().await.expect_err("closed");
    }

    #[tokio::test]
    async fn bytes_are_late_or_slow_and_arrive_whole_and_in_order() {
        for weather in ["delay=30ms", "rate=400000"] {
            let switch = Switch::new(1);
            let (mut ours, mut theirs) = pair(&switch).await;
            switch.set(weather.parse().expect("it is right"));
            let sent: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
            let began = Instant::now();
            ours.write_all(&sent).await.expect("open");
            drop(ours);
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).await.expect("an end in order");
            assert!(got == sent, "{weather}");
            assert!(began.elapsed() >= Duration::from_millis(30), "{weather}");
        }
    }

    #[tokio::test]
    async fn a_cut_between_two_leaves_the_others_alone() {
        let switch = Switch::new(1);
        let (mut meant, mut far) = pair(&switch).await;
        let (mut other, mut others_far) = pair(&switch).await;
        // Nobody is dialed there: neither connection is meant.
        switch.set(Weather { only: vec!["10.0.0.1:1".into()], ..Weather::of(Cut::Both) });
        meant.write_all(b"m").await.expect("open");
        assert_eq!(far.read_u8().await.expect("it is not meant"), b'm');
        other.write_all(b"o").await.expect("open");
        assert_eq!(others_far.read_u8().await.expect("it is not meant"), b'o');
        switch.set(Weather::of(Cut::Both));
        meant.write_all(b"m").await.expect("a cut is silent");
        assert!(is_silent(&mut far).await);
    }

    #[test]
    fn calls_go_wrong_as_often_as_is_said_and_only_where_they_shall() {
        let switch = Switch::new(7);
        assert_eq!(switch.fate("a:1", "/x"), Fate::Pass);
        switch.set("request=200 answer=300 in-flight=100 only=a:1".parse().expect("it is right"));
        let fates: Vec<Fate> = (0..10_000).map(|_| switch.fate("a:1", "/x")).collect();
        let share = |of: Fate| fates.iter().filter(|fate| **fate == of).count() / 100;
        assert!((17..=23).contains(&share(Fate::RequestLost)), "{}", share(Fate::RequestLost));
        assert!((27..=33).contains(&share(Fate::AnswerLost)), "{}", share(Fate::AnswerLost));
        assert!((8..=12).contains(&share(Fate::InFlight)), "{}", share(Fate::InFlight));
        assert!((0..100).all(|_| switch.fate("b:1", "/x") == Fate::Pass));
    }
}
