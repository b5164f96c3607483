//! Calls that go wrong, method by method: lost on the way, unanswered, or failing for their caller while
//! the other side goes on. A network without them costs a boxed future per call; production has none.
//!
//! What is lost stays lost, as after a cut: callers must notice by their deadlines.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::Service;

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is made and answered.
    Pass,
    /// It does not arrive, and nobody says so.
    RequestLost,
    /// It is executed, and nothing comes back.
    AnswerLost,
    /// Its caller is told of an error at once, while it is executed.
    InFlight,
}

/// Decides the fate of calls.
pub trait Calls: Send + Sync {
    /// The fate of the next call of `method` (`/package.Service/Method`) to `address`.
    fn fate(&self, address: &str, method: &str) -> Fate;
}

/// A channel whose calls may go wrong.
#[derive(Clone)]
pub struct Bent {
    channel: Channel,
    address: Arc<str>,
    calls: Option<Arc<dyn Calls>>,
}

impl Bent {
    /// A channel to `address`; without `calls` nothing goes wrong.
    pub fn new(channel: Channel, address: &str, calls: Option<Arc<dyn Calls>>) -> Self {
        Bent { channel, address: address.into(), calls }
    }
}

type Answer = Result<http::Response<Body>, Error>;

impl Service<http::Request<Body>> for Bent {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fate = |calls: &Arc<dyn Calls>| calls.fate(&self.address, request.uri().path());
        match self.calls.as_ref().map_or(Fate::Pass, fate) {
            Fate::Pass => Box::pin(self.channel.call(request)),
            Fate::RequestLost => Box::pin(std::future::pending()),
            Fate::AnswerLost => {
                let answer = self.channel.call(request);
                Box::pin(async move {
                    // It goes on whatever becomes of its caller.
                    tokio::spawn(answer);
                    std::future::pending().await
                })
            }
            Fate::InFlight => {
                let answer = self.channel.call(request);
                Box::pin(async move {
                    tokio::spawn(answer);
                    Ok(Status::unavailable("the connection broke while the call was under way").into_http())
                })
            }
        }
    }
}
