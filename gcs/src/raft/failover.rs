//! A dead leader is replaced at once (R15).
//!
//! Each head keeps a probe connection to each other head. When it ends *and* dialling again is
//! refused, the kernel at the other end has said that the process is gone; nothing less counts,
//! since a false alarm would cost a healthy leader its office. Then every survivor hands the dead
//! head's leaderships on, going round the survivors, since the first may lack an entry.
//!
//! A dying process may still accept for a moment, so only a byte that it wrote itself shows life.

use super::group::Group;
use mobula_net::seam::{BoxFuture, Listener, SharedNet, Stream};
use mobula_proto as proto;
use openraft::raft::TransferLeaderRequest;
use openraft::vote::RaftLeaderId;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// What a prober says first: no HTTP/2 connection starts like this.
const PROBE: [u8; 4] = *b"MPRB";
/// What shows life.
const ALIVE: u8 = b'!';
/// A probe must be answered within this; also how long an accepted connection may stay silent.
const ANSWER: Duration = Duration::from_millis(200);
/// A quiet probe connection is asked for a sign of life this often; one that misses it is dialled
/// anew, which by itself proves nothing.
const QUESTION: Duration = Duration::from_secs(1);
/// Longest pause between dials.
const PAUSE: Duration = Duration::from_millis(20);
/// First pause after a connection has ended: the other end may be dying, not dead.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Pause between candidates: about one failed election among survivors.
const NEXT_CANDIDATE: Duration = Duration::from_millis(12);
/// Candidates tried before plain elections take over.
const CANDIDATES: usize = 40;
/// Accepted connections that may wait to be looked at.
const ACCEPT_QUEUE: usize = 256;

/// The heads that were proven dead, how often, and when last.
#[derive(Clone, Default)]
pub struct Alarms(Arc<Mutex<BTreeMap<u64, (u64, Instant)>>>);

impl Alarms {
    fn raise(&self, head: u64) {
        let mut known = self.0.lock().expect("nothing panics under this lock");
        let count = known.get(&head).map_or(0, |(count, _)| *count);
        known.insert(head, (count + 1, Instant::now()));
    }

    /// For a status report.
    pub fn list(&self) -> Vec<proto::HeadAlarm> {
        let known = self.0.lock().expect("nothing panics under this lock");
        let alarm = |(head, (count, at)): (&u64, &(u64, Instant))| proto::HeadAlarm {
            head: *head,
            count: *count,
            age_us: at.elapsed().as_micros() as u64,
        };
        known.iter().map(alarm).collect()
    }
}

/// Watches other heads.
pub struct Watcher {
    /// The network.
    pub net: SharedNet,
    /// This head.
    pub me: u64,
    /// The shards whose leaderships it may hand on.
    pub groups: Arc<Vec<Arc<Group>>>,
    /// Where deaths are noted.
    pub alarms: Alarms,
}

impl Watcher {
    /// Watches the head `dead` at `address`; hands on its leaderships when it is proven dead. Never ends.
    pub async fn watch(self, address: String, dead: u64) {
        let (mut was_alive, mut pause) = (false, PAUSE);
        loop {
            match tokio::time::timeout(ANSWER, self.net.dial(&address)).await {
                Ok(Ok(stream)) => {
                    if hold(stream).await {
                        (was_alive, pause) = (true, FIRST_PAUSE);
                        continue;
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    if std::mem::take(&mut was_alive) {
                        tracing::info!(
                            head = dead,
                            address,
                            "head is dead: its connection ended and dialling is refused"
                        );
                        self.alarms.raise(dead);
                        for group in self.groups.iter() {
                            tokio::spawn(hand_on(group.clone(), dead));
                        }
                    }
                }
                // Silence proves nothing; the next end of a connection must be seen anew.
                Ok(Err(_)) | Err(_) => was_alive = false,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }
}

/// Whether the other head showed life before the connection ended.
async fn hold(mut stream: Stream) -> bool {
    let mut byte = [0];
    let hello = async {
        stream.write_all(&PROBE).await?;
        stream.read_exact(&mut byte).await
    };
    if !matches!(tokio::time::timeout(ANSWER, hello).await, Ok(Ok(_))) || byte != [ALIVE] {
        return false;
    }
    // Ends with the other process, or with the path to it. The questions are for a machine that lost
    // power: it will not say goodbye, and once it is back it knows nothing of this connection.
    let mut unanswered = false;
    loop {
        match tokio::time::timeout(QUESTION, stream.read(&mut byte)).await {
            Ok(Ok(1..)) => unanswered = false,
            Ok(Ok(_) | Err(_)) => return true,
            Err(_) if unanswered => return true,
            Err(_) => {
                unanswered = true;
                if !matches!(tokio::time::timeout(ANSWER, stream.write_all(&PROBE)).await, Ok(Ok(()))) {
                    return true;
                }
            }
        }
    }
}

/// Gives the shard a leader other than `dead`, if that is who this replica follows.
async fn hand_on(group: Arc<Group>, dead: u64) {
    let state = || {
        group.raft.with_raft_state(|state| {
            let voters: Vec<u64> = state.membership_state.effective().voter_ids().collect();
            (*state.vote_ref(), state.log_ids.last().cloned(), voters)
        })
    };
    let Ok((followed, _, voters)) = state().await else { return };
    if followed.leader_id().node_id() != &dead {
        return;
    }
    let survivors = voters.iter().filter(|voter| **voter != dead);
    for candidate in survivors.cycle().take(CANDIDATES) {
        let Ok((vote, last, _)) = state().await else { return };
        if vote != followed {
            return;
        }
        let transfer = TransferLeaderRequest::new(vote, *candidate, last);
        // Refused when the candidate is this head and its log is not flushed: the next one then.
        group.raft.handle_transfer_leader(transfer).await.ok();
        tokio::time::sleep(NEXT_CANDIDATE).await;
    }
}

/// A listener that answers probes itself and passes every other connection on.
pub struct Front {
    address: String,
    passed: mpsc::Receiver<(Stream, String)>,
    accepting: tokio::task::JoinHandle<()>,
    /// Dropped with this: every connection passed on ends then.
    _open: watch::Sender<()>,
}

impl Front {
    /// Takes over `listener`.
    pub fn new(mut listener: Box<dyn Listener>) -> Self {
        let address = listener.address();
        let (pass, passed) = mpsc::channel(ACCEPT_QUEUE);
        let (_open, open) = watch::channel(());
        let accepting = tokio::spawn(async move {
            let mut looked_at = tokio::task::JoinSet::new();
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => _ = looked_at.spawn(sort(stream, from, pass.clone(), open.clone())),
                    // Out of file descriptors, say.
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
                while looked_at.try_join_next().is_some() {}
            }
        });
        Front { address, passed, accepting, _open }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for Front {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async move { self.passed.recv().await.ok_or_else(|| io::Error::other("listener closed")) })
    }
    fn address(&self) -> String {
        self.address.clone()
    }
}

async fn sort(
    mut stream: Stream,
    from: String,
    pass: mpsc::Sender<(Stream, String)>,
    mut open: watch::Receiver<()>,
) {
    let mut first = [0; PROBE.len()];
    match tokio::time::timeout(ANSWER * 10, stream.read_exact(&mut first)).await {
        Ok(Ok(_)) if first == PROBE => {
            while stream.write_all(&[ALIVE]).await.is_ok() {
                if stream.read_exact(&mut first).await.is_err() {
                    return;
                }
            }
        }
        Ok(Ok(_)) => {
            let closed = Box::pin(async move { while open.changed().await.is_ok() {} });
            // An error means that the head is shutting down.
            pass.send((Box::new(Replayed { first, given: 0, stream, closed }), from)).await.ok();
        }
        Ok(Err(_)) | Err(_) => {}
    }
}

/// A connection whose first bytes have been looked at, and that ends with its listener: gRPC alone
/// would go on serving it after the head has shut down.
struct Replayed {
    closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    first: [u8; PROBE.len()],
    given: usize,
    stream: Stream,
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.first[self.given..];
        if !left.is_empty() {
            let take = left.len().min(buf.remaining());
            buf.put_slice(&left[..take]);
            self.given += take;
            return Poll::Ready(Ok(()));
        }
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
