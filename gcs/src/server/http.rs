//! One port for everything: gRPC, its health and reflection, metrics, probes of other heads. Behind the
//! token, where there is one.

use super::health::readiness;
use super::{Service, Site};
use crate::metrics;
use crate::raft::failover::{answer_probes, is_probe};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use mobula_net::front::Front;
use mobula_net::grpc;
use mobula_net::http::{self, HealthReporter};
use mobula_net::seam::Listener;
use mobula_proto as proto;
use proto::admin_server::AdminServer;
use proto::control_store_server::ControlStoreServer;
use proto::raft_server::RaftServer;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::Status;
use tonic::service::Routes;

/// What gRPC health is told of: the server, and the service that clients use.
const SERVICES: [&str; 2] = ["", "mobula.v1.ControlStore"];

/// Serves until the task is dropped.
pub async fn serve(site: Arc<Site>, listener: Box<dyn Listener>) {
    let reporter = HealthReporter::new();
    let router = match routes(&site, &reporter) {
        Ok(router) => router,
        Err(error) => return tracing::error!(%error, "this build's own descriptors are broken"),
    };
    let front = Box::new(Front::new(listener, is_probe, answer_probes));
    tokio::select! {
        served = http::serve(site.pages.beside(router), site.net.clone(), front) => if let Err(error) = served {
            tracing::error!(%error, "server ended");
        },
        () = http::report(reporter, &SERVICES, || readiness(&site)) => {}
    }
}

fn routes(site: &Arc<Site>, reporter: &HealthReporter) -> Result<Router, http::ReflectionError> {
    let service = Service(site.clone());
    let store = ControlStoreServer::new(service.clone())
        .max_decoding_message_size(grpc::MESSAGE_MAX)
        .max_encoding_message_size(grpc::MESSAGE_MAX);
    let admin = AdminServer::new(service.clone());
    let raft = RaftServer::new(service)
        .max_decoding_message_size(grpc::MESSAGE_MAX)
        .max_encoding_message_size(grpc::MESSAGE_MAX);
    let all = Routes::new(store).add_service(raft).add_service(admin);
    let all = http::add_usual(all, reporter, &[proto::DESCRIPTORS])?;
    let pages = Router::new()
        .route(http::HEALTH, get(|| async { "ok\n" }))
        .route(http::READY, get(ready))
        .route(http::METRICS, get(exposition))
        .with_state(site.clone());
    Ok(all.into_axum_router().merge(pages).layer(from_fn_with_state(site.clone(), measured)))
}

async fn ready(State(site): State<Arc<Site>>) -> Response {
    http::ready(readiness(&site))
}

async fn exposition(State(site): State<Arc<Site>>) -> Response {
    http::exposition(metrics::exposition(&site))
}

/// Counts calls and how long they took until their answer began.
async fn measured(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    if !http::is_grpc(request.headers()) {
        return next.run(request).await;
    }
    let (uri, since) = (request.uri().clone(), Instant::now());
    let answer = next.run(request).await;
    let code = Status::from_header_map(answer.headers()).map_or(tonic::Code::Ok, |status| status.code());
    site.meters.called(uri.path(), code, since.elapsed());
    answer
}
