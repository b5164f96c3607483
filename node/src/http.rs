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
use mobula_net::http::{self, HealthReporter, Pages, ReflectionError};
use mobula_net::{Listener, Stream};
use mobula_proto::node_server::{Node, NodeServer};
use mobula_proto::{ExplainReply, ExplainRequest, ExplainedTask, LookReply, LookRequest};
use mobula_scheduler::explain::Explained;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::{Request, Status};

/// A node that no head has answered for this long may have been declared dead.
const UNHEARD: Duration = Duration::from_secs(2);
/// The daemon's loop must answer a question within this.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// Serves one life of a node until the task is dropped.
pub async fn serve(peers: Arc<Peers>, pages: Pages, listener: Box<dyn Listener>) {
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
        served = http::serve(pages.beside(router), peers.net.clone(), front) => if let Err(error) = served {
            tracing::error!(%error, "server ended");
        },
        () = http::report(reporter, &[""], || readiness(&peers)) => {}
    }
}

fn routes(peers: &Arc<Peers>, reporter: &HealthReporter) -> Result<Router, ReflectionError> {
    let explain =
        NodeServer::new(Explainer(peers.clone())).max_encoding_message_size(mobula_net::grpc::MESSAGE_MAX);
    let pages = Router::new()
        .route(http::HEALTH, get(|| async { "ok\n" }))
        .route(http::READY, get(async |State(peers): State<Arc<Peers>>| http::ready(readiness(&peers))))
        .route(http::METRICS, get(exposition))
        .with_state(peers.clone());
    Ok(http::add_usual(Routes::new(explain), reporter, &[mobula_proto::DESCRIPTORS])?
        .into_axum_router()
        .merge(pages))
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
    ask(peers, |reply| Input::Count { reply }).await
}

/// Asks the daemon's loop.
async fn ask<T>(peers: &Peers, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, String> {
    let ask = async {
        let (reply, answer) = oneshot::channel();
        peers.inbox.send(input(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ASK_DEADLINE, ask).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err("this node is shutting down\n".into()),
        Err(_) => Err(format!("this node's loop has not answered within {ASK_DEADLINE:?}\n")),
    }
}

/// Says what tasks wait for, and what there is.
struct Explainer(Arc<Peers>);

#[tonic::async_trait]
impl Node for Explainer {
    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<tonic::Response<ExplainReply>, Status> {
        let prefix = request.into_inner().prefix.parse().map_err(Status::invalid_argument)?;
        let (tasks, more) =
            ask(&self.0, |reply| Input::Explain { prefix, reply }).await.map_err(Status::unavailable)?;
        let told = |Explained { task, state, because }: Explained| ExplainedTask {
            task: task.to_string(),
            state: state.to_owned(),
            because,
        };
        Ok(tonic::Response::new(ExplainReply { tasks: tasks.into_iter().map(told).collect(), more }))
    }

    async fn look(&self, request: Request<LookRequest>) -> Result<tonic::Response<LookReply>, Status> {
        let asked = Box::new(request.into_inner());
        let prefix = asked.prefix.parse().map_err(Status::invalid_argument)?;
        let answer = ask(&self.0, |reply| Input::Look { prefix, asked, reply }).await;
        answer.map(tonic::Response::new).map_err(Status::unavailable)
    }
}
