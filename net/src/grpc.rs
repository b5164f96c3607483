//! tonic over a [`crate::Net`]: lazily connected channels, and servers on our listeners.

use crate::auth::ShowToken;
use crate::calls::Bent;
use crate::seam::{Listener, SharedNet, Stream};
use http::Uri;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, server::Connected};

/// How long a dial may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest gRPC message either side accepts.
pub const MESSAGE_MAX: usize = 64 << 20;
/// A silent HTTP/2 peer is pinged this often, so that a half-open connection ends.
pub const KEEPALIVE: Duration = Duration::from_millis(1000);

/// A connection to one server; every call on it shows the network's token.
pub type Channel = InterceptedService<Bent, ShowToken>;

/// A channel that connects when first used and reconnects by itself.
///
/// # Errors
/// `address` is not `host:port`.
pub fn channel(net: SharedNet, address: &str) -> Result<Channel, tonic::transport::Error> {
    let target = address.to_owned();
    let (show, calls) = (ShowToken::new(net.token()), net.calls());
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (net, target) = (net.clone(), target.clone());
            async move { net.dial(&target).await.map(TokioIo::new) }
        }));
    Ok(InterceptedService::new(Bent::new(channel, address, calls), show))
}

/// A server connection as tonic wants it.
pub struct Incoming(Stream);

impl Connected for Incoming {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The connections of a listener as a stream for `serve_with_incoming`. A failed accept (out of
/// file descriptors, say) is retried after a pause instead of ending the server.
pub fn incoming(listener: Box<dyn Listener>) -> impl futures::Stream<Item = io::Result<Incoming>> + Send {
    futures::stream::unfold(listener, |mut listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Incoming(stream)), listener)),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
}
