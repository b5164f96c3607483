//! One port for everything: gRPC, its health and reflection, metrics, probes. Behind the token,
//! where there is one.

use super::health::{self, readiness};
use super::{Service, Site};
use crate::metrics;
use crate::raft::failover::Front;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mobula_net::auth::NEEDED;
use mobula_net::grpc;
use mobula_net::seam::Listener;
use mobula_proto as proto;
use proto::admin_server::AdminServer;
use proto::control_store_server::ControlStoreServer;
use proto::raft_server::RaftServer;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::Status;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

/// Says only what the open port says already, so it needs no token.
const HEALTH: &str = "/healthz";

/// The date of every gRPC answer.
const NO_DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// Serves until the task is dropped.
pub async fn serve(site: Arc<Site>, listener: Box<dyn Listener>) {
    let reporter = HealthReporter::new();
    let routes = match routes(&site, &reporter) {
        Ok(routes) => routes,
        Err(error) => return tracing::error!(%error, "this build's own descriptors are broken"),
    };
    let served = tonic::transport::Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .add_routes(routes)
        .serve_with_incoming(grpc::incoming(Box::new(Front::new(listener))));
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "server ended");
        },
        () = health::report(site.clone(), reporter) => {}
    }
}

fn routes(site: &Arc<Site>, reporter: &HealthReporter) -> Result<Routes, tonic_reflection::server::Error> {
    let service = Service(site.clone());
    let store = ControlStoreServer::new(service.clone())
        .max_decoding_message_size(grpc::MESSAGE_MAX)
        .max_encoding_message_size(grpc::MESSAGE_MAX);
    let admin = AdminServer::new(service.clone());
    let raft = RaftServer::new(service)
        .max_decoding_message_size(grpc::MESSAGE_MAX)
        .max_encoding_message_size(grpc::MESSAGE_MAX);
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(reporter.clone()),
    );
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let pages = Router::new()
        .route(HEALTH, get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .with_state(site.clone());
    let all =
        Routes::new(store).add_service(raft).add_service(admin).add_service(health).add_service(reflection);
    let mut router = all.into_axum_router().merge(pages).layer(from_fn_with_state(site.clone(), measured));
    // Outermost: what lies behind it does not even see a stranger's request.
    if site.net.token().is_some() {
        router = router.layer(from_fn_with_state(site.clone(), guarded));
    }
    Ok(Routes::from(router))
}

async fn ready(State(site): State<Arc<Site>>) -> Response {
    match readiness(&site) {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn exposition(State(site): State<Arc<Site>>) -> Response {
    match metrics::exposition(&site) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Turns away whoever does not show the token.
async fn guarded(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    let is_known = site.net.token().is_none_or(|token| token.is_in(header));
    if is_known || request.uri().path() == HEALTH {
        next.run(request).await
    } else if is_grpc(request.headers()) {
        Status::unauthenticated(NEEDED).into_http::<Body>()
    } else {
        let headers = [(WWW_AUTHENTICATE, "Bearer")];
        (StatusCode::UNAUTHORIZED, headers, format!("{NEEDED}\n")).into_response()
    }
}

/// Counts calls and how long they took until their answer began.
async fn measured(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    if !is_grpc(request.headers()) {
        return next.run(request).await;
    }
    let (uri, since) = (request.uri().clone(), Instant::now());
    let mut answer = next.run(request).await;
    // Nobody reads it, and hyper would put the wall clock there: bytes on the wire, and with them a
    // simulated run, would depend on it.
    answer.headers_mut().insert(DATE, HeaderValue::from_static(NO_DATE));
    let code = Status::from_header_map(answer.headers()).map_or(tonic::Code::Ok, |status| status.code());
    site.meters.called(uri.path(), code, since.elapsed());
    answer
}
