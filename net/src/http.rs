//! What every port answers beside the protocol of its own: gRPC with its health and reflection, metrics,
//! probes. Behind the token, where there is one.

use crate::auth::NEEDED;
use crate::grpc;
use crate::seam::{Listener, SharedNet};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use std::fmt;
use std::time::Duration;
use tonic::Status;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

pub use tonic_health::server::HealthReporter;
pub use tonic_reflection::server::Error as ReflectionError;

/// Whether the process lives. Says only what the open port says already, so it needs no token.
pub const HEALTH: &str = "/healthz";
/// Whether the process is of use.
pub const READY: &str = "/readyz";
/// For Prometheus.
pub const METRICS: &str = "/metrics";
/// The web page, and the folder of what it is made of: the same for every cluster, so it needs no token either.
pub const PAGE: &str = "/";
/// See [`PAGE`].
pub const PAGE_PARTS: &str = "/ui/";
/// Where what the page asks for begins.
pub const PAGE_API: &str = "/api/";

/// What [`METRICS`] is answered with.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Pause between looks at how the process is.
const HEALTH_TICK: Duration = Duration::from_millis(500);
/// The date of every gRPC answer.
const NO_DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// What a daemon answers beside its own protocol: whoever starts it hands that in.
#[derive(Clone, Default)]
pub struct Pages(pub Option<Router>);

impl Pages {
    /// `router` and these.
    pub fn beside(&self, router: Router) -> Router {
        match &self.0 {
            Some(pages) => router.merge(pages.clone()),
            None => router,
        }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Pages" } else { "no pages" })
    }
}

/// Adds gRPC's own health, as `reporter` has it, and reflection of the services in `described`.
///
/// # Errors
/// Not encoded descriptors.
pub fn add_usual(
    routes: Routes,
    reporter: &HealthReporter,
    described: &[&'static [u8]],
) -> Result<Routes, ReflectionError> {
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let mut reflection = tonic_reflection::server::Builder::configure();
    for descriptors in described.iter().chain([&tonic_health::pb::FILE_DESCRIPTOR_SET]) {
        reflection = reflection.register_encoded_file_descriptor_set(descriptors);
    }
    Ok(routes.add_service(health).add_service(reflection.build_v1()?))
}

/// Says on [`READY`] what `readiness` came to.
pub fn ready(readiness: Result<(), String>) -> Response {
    match readiness {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// An exposition of metrics.
pub fn exposition(text: Result<String, impl ToString>) -> Response {
    match text {
        Ok(text) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Keeps gRPC health of `services` up to date. Never ends.
pub async fn report(
    reporter: HealthReporter,
    services: &[&str],
    readiness: impl Fn() -> Result<(), String> + Send,
) {
    loop {
        let status = if readiness().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in services {
            reporter.set_service_status(*service, status).await;
        }
        tokio::time::sleep(HEALTH_TICK).await;
    }
}

/// Whether a request or answer is gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Serves `router` behind the token of `net`, if it has one, until the future is dropped.
///
/// # Errors
/// The server could not go on.
pub async fn serve(
    router: Router,
    net: SharedNet,
    listener: Box<dyn Listener>,
) -> Result<(), tonic::transport::Error> {
    let mut router = router.layer(from_fn(undated));
    // Outermost: what lies behind it does not even see a stranger's request.
    if net.token().is_some() {
        router = router.layer(from_fn_with_state(net, guarded));
    }
    tonic::transport::Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .add_routes(Routes::from(router))
        .serve_with_incoming(grpc::incoming(listener))
        .await
}

/// What says nothing of the cluster. Browsers ask with OPTIONS whether they may show the token; a service of gRPC would
/// take that for a call.
fn is_open(request: &Request) -> bool {
    let path = request.uri().path();
    let may_ask = request.method() == Method::OPTIONS && path.starts_with(PAGE_API);
    path == HEALTH || path == PAGE || path.starts_with(PAGE_PARTS) || may_ask
}

/// Turns away whoever does not show the token.
async fn guarded(State(net): State<SharedNet>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    let is_known = net.token().is_none_or(|token| token.is_in(header));
    if is_known || is_open(&request) {
        next.run(request).await
    } else if is_grpc(request.headers()) {
        Status::unauthenticated(NEEDED).into_http::<Body>()
    } else {
        let headers = [(WWW_AUTHENTICATE, "Bearer")];
        (StatusCode::UNAUTHORIZED, headers, format!("{NEEDED}\n")).into_response()
    }
}

/// Nobody reads the date of a gRPC answer, and hyper would put the wall clock there: bytes on the wire,
/// and with them a simulated run, would depend on it.
async fn undated(request: Request, next: Next) -> Response {
    let is_grpc = is_grpc(request.headers());
    let mut answer = next.run(request).await;
    if is_grpc {
        answer.headers_mut().insert(DATE, HeaderValue::from_static(NO_DATE));
    }
    answer
}
