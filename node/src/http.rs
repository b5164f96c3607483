//! What a node answers people and their tools, on the port that other nodes use: metrics, probes, gRPC
//! health. The first bytes of a connection tell which it is; the token is asked of both.

use crate::input::{Counts, Input};
use crate::metrics;
use crate::peers::Peers;
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use mobula_net::frame::may_begin;
use mobula_net::front::Front;
use mobula_net::http::{self, HealthReporter, ReflectionError};
use mobula_net::{Listener, Stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::service::Routes;

/// A node that no head has answered for this long may have been declared dead.
const UNHEARD: Duration = Duration::from_secs(2);
/// The daemon's loop must say its counts within this.
const COUNT_DEADLINE: Duration = Duration::from_secs(2);

/// Serves one life of a node until the task is dropped.
pub async fn serve(peers: Arc<Peers>, listener: Box<dyn Listener>) {
    let reporter = HealthReporter::new();
    let router = match routes(&peers, &reporter) {
        Ok(router) => router,
        Err(error) => return tracing::error!(%error, "this build's own descriptors are broken"),
    };
    let node = peers.clone();
    let listen = move |stream: Stream| {
        // It ends when the other node or this life does, not with the listener.
        tokio::spawn(node.clone().listen(stream));
        std::future::ready(())
    };
    let front = Box::new(Front::new(listener, may_begin, listen));
    tokio::select! {
        served = http::serve(router, peers.net.clone(), front) => if let Err(error) = served {
            tracing::error!(%error, "server ended");
        },
        () = http::report(reporter, &[""], || readiness(&peers)) => {}
    }
}

fn routes(peers: &Arc<Peers>, reporter: &HealthReporter) -> Result<Router, ReflectionError> {
    let pages = Router::new()
        .route(http::HEALTH, get(|| async { "ok\n" }))
        .route(http::READY, get(async |State(peers): State<Arc<Peers>>| http::ready(readiness(&peers))))
        .route(http::METRICS, get(exposition))
        .with_state(peers.clone());
    Ok(http::add_usual(Routes::default(), reporter, &[])?.into_axum_router().merge(pages))
}

/// Why this node is of no use now, if it is not.
fn readiness(peers: &Peers) -> Result<(), String> {
    let silence = peers.control.heard.age();
    if silence < UNHEARD {
        return Ok(());
    }
    Err(format!("no head has answered its heartbeats for {:.1} s", silence.as_secs_f64()))
}

async fn exposition(State(peers): State<Arc<Peers>>) -> Response {
    http::exposition(match counts(&peers).await {
        Ok(counts) => {
            metrics::exposition(&counts, &peers.control.client.retries()).map_err(|e| e.to_string())
        }
        Err(why) => Err(why),
    })
}

async fn counts(peers: &Peers) -> Result<Counts, String> {
    let ask = async {
        let (reply, counts) = oneshot::channel();
        peers.inbox.send(Input::Count { reply }).await.ok()?;
        counts.await.ok()
    };
    match tokio::time::timeout(COUNT_DEADLINE, ask).await {
        Ok(Some(counts)) => Ok(counts),
        Ok(None) => Err("this node is shutting down\n".into()),
        Err(_) => Err(format!("this node's loop has not answered within {COUNT_DEADLINE:?}\n")),
    }
}
