//! Streams between nodes: each direction its own connection, sequenced, kept until acknowledged.
//!
//! A connection that breaks is dialled again and continues where the receiver stopped, so that a
//! broken connection loses nothing and repeats nothing. When the connection ended *and* a new one
//! is refused, the kernel has proved that the process is gone: the control store is told at once.

use crate::control::Control;
use crate::input::{Inbox, Input};
use crate::packages::Packages;
use mobula_base::{Incarnation, mutant};
use mobula_net::frame::{BATCH_BYTES_MAX, FrameReader, Outbox};
use mobula_net::{Net, Stream};
use mobula_proto::{MAGIC, PeerAck, PeerHello, PeerMsg, ToPeer, WIRE_VERSION, peer_msg};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long a dial, a hello or an acknowledgement may take before the connection is given up.
const PEER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause before a node that does not answer is dialled again.
const REDIAL_AFTER: Duration = Duration::from_millis(25);
/// Messages in one frame.
const FRAME_MESSAGES_MAX: usize = 256;

/// What all connections of a life share.
pub struct Peers {
    /// The network.
    pub net: Arc<dyn Net>,
    /// The daemon's loop.
    pub inbox: Inbox,
    /// The control store.
    pub control: Control,
    /// The cluster; others are refused.
    pub cluster: u64,
    /// Executables and files of jobs.
    pub packages: Option<Arc<Packages>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    dead: BTreeSet<Incarnation>,
    /// Highest sequence number seen from each sender.
    seen: BTreeMap<Incarnation, u64>,
}

impl Peers {
    /// Nobody known yet.
    pub fn new(
        net: Arc<dyn Net>,
        inbox: Inbox,
        control: Control,
        cluster: u64,
        packages: Option<Arc<Packages>>,
    ) -> Arc<Self> {
        Arc::new(Peers { net, inbox, control, cluster, packages, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: nothing panics under this lock")
    }

    /// The dead are heard no more (R10). Whether this one was still alive.
    pub fn bury(&self, dead: Incarnation) -> bool {
        self.state().dead.insert(dead)
    }

    /// Whether its death is known.
    pub fn is_dead(&self, node: Incarnation) -> bool {
        self.state().dead.contains(&node)
    }

    /// The hello of this node.
    pub fn hello(&self, to: Incarnation, data: bool) -> PeerHello {
        PeerHello {
            magic: MAGIC,
            version: WIRE_VERSION,
            cluster: self.cluster,
            incarnation: self.control.incarnation.0,
            to: to.0,
            data,
            token: self.net.token().map_or_else(String::new, |token| token.reveal().to_owned()),
        }
    }

    /// Keeps one outgoing stream alive until the outbox closes or the peer is dead.
    pub async fn run_outgoing(self: Arc<Self>, to: Incarnation, address: String, outbox: Outbox<PeerMsg>) {
        let mut unacked: VecDeque<PeerMsg> = VecDeque::new();
        let mut acked = 0u64;
        let mut was_up = false;
        while !self.is_dead(to) {
            match tokio::time::timeout(PEER_TIMEOUT, self.net.dial(&address)).await {
                Ok(Ok(stream)) => {
                    was_up = true;
                    if self.speak(stream, to, &outbox, &mut unacked, &mut acked).await == Ended::Closed {
                        return;
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused && was_up => {
                    was_up = false;
                    let evidence = format!("its connection ended and {address} refuses new ones");
                    self.control.suspect(to, evidence).await;
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(REDIAL_AFTER).await;
        }
    }

    /// Speaks over one connection until it breaks.
    async fn speak(
        &self,
        stream: Stream,
        to: Incarnation,
        outbox: &Outbox<PeerMsg>,
        unacked: &mut VecDeque<PeerMsg>,
        acked: &mut u64,
    ) -> Ended {
        let (read, mut write) = tokio::io::split(stream);
        let mut acks = FrameReader::new(read);
        if mobula_net::frame::send(&mut write, &self.hello(to, false)).await.is_err() {
            return Ended::Broken;
        }
        // What the last connection may have lost goes first.
        let mut sent = 0usize;
        let mut progress = tokio::time::Instant::now();
        loop {
            while sent < unacked.len() {
                let msgs = next_frame(unacked, sent);
                let frame = ToPeer { first_seq: *acked + sent as u64 + 1, msgs };
                sent += frame.msgs.len();
                let write = mobula_net::frame::send(&mut write, &frame);
                if !matches!(tokio::time::timeout(PEER_TIMEOUT, write).await, Ok(Ok(()))) {
                    return Ended::Broken;
                }
            }
            tokio::select! {
                biased;
                ack = acks.next::<PeerAck>() => match ack {
                    Ok(Some(ack)) => {
                        let newly = ack.mark.saturating_sub(*acked).min(unacked.len() as u64);
                        unacked.drain(..newly as usize);
                        sent -= (newly as usize).min(sent);
                        *acked += newly;
                        progress = tokio::time::Instant::now();
                    }
                    Ok(None) | Err(_) => return Ended::Broken,
                },
                msgs = outbox.take() => match msgs {
                    Some(msgs) => {
                        if unacked.is_empty() {
                            progress = tokio::time::Instant::now();
                        }
                        unacked.extend(msgs);
                    }
                    None => return Ended::Closed,
                },
                // A network that swallows bytes never says so.
                () = tokio::time::sleep_until(progress + PEER_TIMEOUT), if !unacked.is_empty() => return Ended::Broken,
            }
        }
    }

    /// Takes another node's stream or bulk requests from one connection.
    pub async fn listen(self: Arc<Self>, stream: Stream) {
        let (read, mut write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read);
        let hello = match tokio::time::timeout(PEER_TIMEOUT, reader.next::<PeerHello>()).await {
            Ok(Ok(Some(hello))) => hello,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a peer that is not a Mobula node was turned away");
                return;
            }
        };
        // First of all: whoever does not know the token learns nothing from the rest.
        if self.net.token().is_some_and(|token| !token.matches(hello.token.as_bytes())) {
            tracing::warn!("a peer without this cluster's token was turned away");
            return;
        }
        let from = Incarnation(hello.incarnation);
        if hello.magic != MAGIC || hello.version != WIRE_VERSION || hello.cluster != self.cluster {
            tracing::warn!(
                "turned away a node of cluster {:016x}, protocol {}: this is cluster {:016x}, protocol {WIRE_VERSION}",
                hello.cluster,
                hello.version,
                self.cluster
            );
            return;
        }
        // Meant for an earlier life at this address: its sequence numbers mean nothing here.
        if hello.to != self.control.incarnation.0 {
            return;
        }
        if hello.data {
            crate::transfer::serve(&self, reader, write).await;
            return;
        }
        while let Ok(Some(frame)) = reader.next::<ToPeer>().await {
            if self.is_dead(from) {
                return;
            }
            let (fresh, mark) = self.fresh(from, frame);
            if !fresh.is_empty() && self.inbox.send(Input::FromPeer { from, msgs: fresh }).await.is_err() {
                return;
            }
            if mobula_net::frame::send(&mut write, &PeerAck { mark }).await.is_err() {
                return;
            }
        }
    }

    /// What of a frame has not been seen, and the new mark. A frame from beyond the mark comes
    /// from a receiver's earlier life and is not taken.
    fn fresh(&self, from: Incarnation, frame: ToPeer) -> (Vec<PeerMsg>, u64) {
        let mut state = self.state();
        let seen = state.seen.entry(from).or_default();
        if frame.first_seq > *seen + 1 {
            return (Vec::new(), *seen);
        }
        let skip = if mutant!("M04") { 0 } else { (*seen + 1 - frame.first_seq) as usize };
        let fresh: Vec<PeerMsg> = frame.msgs.into_iter().skip(skip).collect();
        *seen += fresh.len() as u64;
        (fresh, *seen)
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Closed,
    Broken,
}

/// The messages from `sent` on that make one frame: bounded by count and by bytes, never empty.
fn next_frame(unacked: &VecDeque<PeerMsg>, sent: usize) -> Vec<PeerMsg> {
    let mut bytes = 0;
    let fits = |msg: &&PeerMsg| {
        let first = bytes == 0;
        bytes += prost::Message::encoded_len(*msg) + 8;
        first || bytes <= BATCH_BYTES_MAX
    };
    unacked.iter().skip(sent).take(FRAME_MESSAGES_MAX).take_while(fits).cloned().collect()
}

/// A message for a peer.
pub fn msg(msg: peer_msg::Msg) -> PeerMsg {
    PeerMsg { msg: Some(msg) }
}
