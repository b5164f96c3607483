//! One port, several protocols: the first bytes of a connection say which of them it speaks.

use crate::seam::{BoxFuture, Listener, Stream};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};

/// The first bytes of a connection.
pub type First = [u8; 4];

/// How long an accepted connection may stay silent.
const SILENT: Duration = Duration::from_secs(2);
/// Pause after an accept that failed.
const PAUSE: Duration = Duration::from_millis(20);
/// Accepted connections that may wait to be passed on.
const ACCEPT_QUEUE: usize = 256;

/// A listener that serves connections of this process's own protocol itself and passes every other one
/// on: those are what [`Listener::accept`] returns.
pub struct Front {
    address: String,
    passed: mpsc::Receiver<(Stream, String)>,
    accepting: tokio::task::JoinHandle<()>,
    /// Dropped with this: every connection passed on ends then.
    _open: watch::Sender<()>,
}

impl Front {
    /// Takes over `listener`. Connections whose first bytes are `own` go to `serve`, which reads these
    /// bytes again, and ends with this.
    pub fn new<F>(
        mut listener: Box<dyn Listener>,
        own: fn(First) -> bool,
        serve: impl Fn(Stream) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.address();
        let (pass, passed) = mpsc::channel(ACCEPT_QUEUE);
        let (_open, open) = watch::channel(());
        let accepting = tokio::spawn(async move {
            let mut looked_at = tokio::task::JoinSet::new();
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let (pass, open, serve) = (pass.clone(), open.clone(), serve.clone());
                        looked_at.spawn(async move {
                            let Some((first, stream)) = look_at(stream).await else { return };
                            if own(first) {
                                return serve(Box::new(stream)).await;
                            }
                            let stream: Stream = Box::new(stream.until(open));
                            // An error means that this process is shutting down.
                            pass.send((stream, from)).await.ok();
                        });
                    }
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

/// Reads the first bytes; nothing from who says less in time.
async fn look_at(mut stream: Stream) -> Option<(First, Replayed)> {
    let mut first = First::default();
    let read = tokio::time::timeout(SILENT, stream.read_exact(&mut first)).await;
    matches!(read, Ok(Ok(_))).then(|| (first, Replayed { first, given: 0, stream, closed: None }))
}

/// A connection whose first bytes have been looked at.
struct Replayed {
    first: First,
    given: usize,
    stream: Stream,
    /// When it is to end: gRPC alone would go on serving it after the process has shut down.
    closed: Option<BoxFuture<'static, ()>>,
}

impl Replayed {
    /// The same, ended when the other end of `open` is dropped.
    fn until(self, mut open: watch::Receiver<()>) -> Self {
        let closed = async move { while open.changed().await.is_ok() {} };
        Replayed { closed: Some(Box::pin(closed)), ..self }
    }
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
        if self.closed.as_mut().is_some_and(|closed| closed.as_mut().poll(cx).is_ready()) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::Net;
    use crate::tcp::TcpNet;
    use tokio::io::AsyncWriteExt;

    async fn echo(mut stream: Stream) {
        let mut word = [0; 8];
        while stream.read_exact(&mut word).await.is_ok() && stream.write_all(&word).await.is_ok() {}
    }

    #[tokio::test]
    async fn own_connections_are_served_and_others_passed_on_whole_until_the_end() {
        let listener = TcpNet.listen("127.0.0.1:0").await.expect("a free port");
        let mut front = Front::new(listener, |first| first == *b"OURS", echo);
        let address = front.address();
        let say = async |word: &[u8]| {
            let mut stream = TcpNet.dial(&address).await.expect("listening");
            stream.write_all(word).await.expect("open");
            stream
        };
        // Who says nothing holds up nobody.
        let _silent = say(b"").await;
        let mut ours = say(b"OURS too").await;
        let mut word = [0; 8];
        ours.read_exact(&mut word).await.expect("echoed");
        assert_eq!(&word, b"OURS too");
        let mut theirs = say(b"GET /abc").await;
        let (mut passed, _) = front.accept().await.expect("passed on");
        passed.read_exact(&mut word).await.expect("all of it");
        assert_eq!(&word, b"GET /abc");
        passed.write_all(b"answered").await.expect("open");
        theirs.read_exact(&mut word).await.expect("open");
        drop(front);
        let error = passed.read_exact(&mut word).await.expect_err("it ends with the listener");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(ours.read(&mut word).await.expect("closed in order"), 0, "so does what it served itself");
    }
}
