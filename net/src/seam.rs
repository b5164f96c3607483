//! The network seam. Addresses are `host:port` strings: a name in simulation, an IP in production.

use crate::auth::Token;
use crate::calls::Calls;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// A boxed, sendable future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Anything that carries bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A boxed connection.
pub type Stream = Box<dyn ByteStream>;

/// Opens connections. Cloned handles share one network.
pub trait Net: Send + Sync + 'static {
    /// Accepts connections at `address`; port 0 picks a free one.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
    /// Connects to `address`. The caller sets the deadline.
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
    /// What callers must show here, and what this process shows to others.
    fn token(&self) -> Option<&Token> {
        None
    }
    /// Who decides which calls go wrong; nobody in production.
    fn calls(&self) -> Option<Arc<dyn Calls>> {
        None
    }
}

/// Accepts connections.
pub trait Listener: Send {
    /// The next connection and where it came from.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>>;
    /// The address that was really bound.
    fn address(&self) -> String;
}

/// A shared network.
pub type SharedNet = Arc<dyn Net>;
