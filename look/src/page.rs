//! The web page, and what it asks for: HTTP on the port that heads serve anyway.
//!
//! The page itself says nothing of the cluster and needs no token; everything under `/api` does, where there is one. When
//! the head that it talks to dies, the page goes on with another: so heads let pages of each other's addresses ask.

use crate::filter::{Filter, admitted};
use crate::gather::Look;
use crate::happened;
use crate::records::parse_object;
use crate::rows::{self, Listed, Row};
use crate::story::Subject;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mobula_base::TaskPrefix;
use mobula_net::http::{PAGE, PAGE_PARTS};
use mobula_proto::LookRequest;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Rows that are sent without a limit.
const ROWS: u32 = 1_000;
/// Spans of each node that a page is sent at once.
const SPANS: u32 = 4_000;
/// What a page may load: what it came with, and answers of heads.
const POLICY: &str =
    "default-src 'self'; connect-src http: https:; style-src 'self' 'unsafe-inline'; img-src 'self' data:";

const HTML: &str = include_str!("../ui/index.html");
const SCRIPT: &str = include_str!("../ui/app.js");
const STYLE: &str = include_str!("../ui/style.css");

/// Everything that is served.
pub fn router(look: Look) -> Router {
    let api = Router::new()
        .route("/api/version", get(version))
        .route(
            "/api/v0/state",
            get(async |State(look): State<Look>| answer(Ok::<_, String>(look.state().await))),
        )
        .route("/api/v0/nodes", get(nodes))
        .route("/api/v0/jobs", get(jobs))
        .route("/api/v0/workers", get(workers))
        .route("/api/v0/tasks", get(tasks))
        .route("/api/v0/objects", get(objects))
        .route("/api/v0/tasks/summarize", get(summary))
        .route("/api/v0/tasks/timeline", get(timeline))
        .route("/api/v0/cluster_events", get(events))
        .route("/api/v0/lineage", get(lineage))
        .route("/api/v0/explain", get(explain))
        .layer(from_fn_with_state(look.clone(), neighbours))
        .with_state(look);
    Router::new()
        .route(PAGE, get(|| async { file("text/html; charset=utf-8", HTML) }))
        .route(&part("app.js"), get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }))
        .route(&part("style.css"), get(|| async { file("text/css; charset=utf-8", STYLE) }))
        .merge(api)
}

fn part(name: &str) -> String {
    format!("{PAGE_PARTS}{name}")
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache"), (CONTENT_SECURITY_POLICY, POLICY)];
    (headers, text).into_response()
}

/// Lets the pages of other heads of this cluster ask, and nobody else's.
async fn neighbours(State(look): State<Look>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(ORIGIN).cloned();
    let authority =
        origin.as_ref().and_then(|origin| origin.to_str().ok()?.split_once("://")).map(|(_, rest)| rest);
    let is_own = match authority {
        Some(authority) => look.knows_head(authority).await,
        None => false,
    };
    let allowed = origin.clone().filter(|_| is_own);
    let mut answer = match *request.method() {
        Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    if let Some(origin) = allowed {
        let headers: &mut HeaderMap = answer.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization"));
        headers.insert(VARY, HeaderValue::from_static("origin"));
    }
    answer
}

/// JSON, or why there is none.
fn answer<T: Serialize>(result: Result<T, impl ToString>) -> Response {
    let (code, body) = match result
        .map_err(|why| why.to_string())
        .and_then(|value| serde_json::to_vec(&value).map_err(|error| error.to_string()))
    {
        Ok(body) => (StatusCode::OK, body),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": why }).to_string().into_bytes()),
    };
    (code, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body).into_response()
}

fn wrong(why: impl ToString) -> Response {
    let body = json!({ "error": why.to_string() }).to_string();
    (StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn version() -> Response {
    answer(Ok::<_, String>(json!({ "program": "mobula", "version": env!("CARGO_PKG_VERSION") })))
}

/// What lists take: one filter, as on the command line, a limit, and the beginning of ids.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListQuery {
    filter: Option<String>,
    limit: Option<u32>,
    prefix: Option<String>,
}

impl ListQuery {
    fn filters(&self) -> Result<Vec<Filter>, String> {
        self.filter.iter().map(|text| text.parse()).collect()
    }

    /// # Errors
    /// No id begins so.
    fn request(&self) -> Result<LookRequest, String> {
        let prefix = self.prefix.clone().unwrap_or_default();
        let _: TaskPrefix = prefix.parse()?;
        Ok(LookRequest { limit: self.limit.unwrap_or(ROWS).max(1), prefix, ..LookRequest::default() })
    }
}

fn list<R: Row>(query: &ListQuery, listed: Result<Listed<R>, impl ToString>) -> Response {
    let Listed { rows, silent, more } = match listed {
        Ok(listed) => listed,
        Err(why) => return answer(Err::<(), _>(why)),
    };
    match query.filters().and_then(|filters| admitted(rows, &filters)) {
        Ok(rows) => answer(Ok::<_, String>(Listed { rows, silent, more })),
        Err(why) => wrong(why),
    }
}

async fn nodes(State(look): State<Look>, Query(query): Query<ListQuery>) -> Response {
    list(&query, look.busy_view().await.map(|view| rows::nodes(&view).into()))
}

async fn jobs(State(look): State<Look>, Query(query): Query<ListQuery>) -> Response {
    list(&query, look.view().await.map(|view| rows::jobs(&view).into()))
}

async fn workers(State(look): State<Look>, Query(query): Query<ListQuery>) -> Response {
    list(&query, look.workers().await)
}

async fn tasks(State(look): State<Look>, Query(query): Query<ListQuery>) -> Response {
    match query.request() {
        Ok(asked) => list(&query, look.tasks(asked).await),
        Err(why) => wrong(why),
    }
}

async fn objects(State(look): State<Look>, Query(query): Query<ListQuery>) -> Response {
    match query.request() {
        Ok(asked) => list(&query, look.objects(asked).await),
        Err(why) => wrong(why),
    }
}

async fn summary(State(look): State<Look>) -> Response {
    let told = look.summary().await;
    answer(
        told.map(
            |Listed { rows, silent, more }| json!({ "functions": rows, "silent": silent, "more": more }),
        ),
    )
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TimelineQuery {
    since_ms: u64,
    /// `chrome`: as Chrome's trace viewer has it.
    format: String,
}

async fn timeline(State(look): State<Look>, Query(query): Query<TimelineQuery>) -> Response {
    let timeline = look.timeline(query.since_ms, SPANS).await;
    match query.format.as_str() {
        "chrome" => answer(timeline.map(|timeline| timeline.chrome())),
        _ => answer(timeline),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EventsQuery {
    above: u64,
}

async fn events(State(look): State<Look>, Query(query): Query<EventsQuery>) -> Response {
    let told = |event: &mobula_proto::Event| {
        let mut told = serde_json::to_value(happened::json(event)).unwrap_or_default();
        told["what"] = happened::what(event).into();
        told
    };
    let events = look.events(query.above).await;
    answer(events.map(|events| json!({ "events": events.iter().map(told).collect::<Vec<_>>() })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdQuery {
    id: String,
}

async fn lineage(State(look): State<Look>, Query(query): Query<IdQuery>) -> Response {
    let object = match parse_object(&query.id) {
        Ok(object) => object,
        Err(why) => return wrong(why),
    };
    let view = match look.view().await {
        Ok(view) => view,
        Err(error) => return answer(Err::<(), _>(error)),
    };
    answer(look.lineage(object, &view).await)
}

async fn explain(State(look): State<Look>, Query(query): Query<IdQuery>) -> Response {
    let view = match look.view().await {
        Ok(view) => view,
        Err(error) => return answer(Err::<(), _>(error)),
    };
    match Subject::of(&query.id, &view) {
        Ok(subject) => {
            let story = look.explain(&subject, &query.id, &view).await;
            answer(
                story.map(|story| json!({ "told": story.told, "silent": story.silent, "more": story.more })),
            )
        }
        Err(why) => wrong(why),
    }
}
