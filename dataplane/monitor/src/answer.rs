//! The routes, and what is answered on them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::time::timeout;

use crate::{Check, Subject, Version, scrape::Scrapes, text::Form, visitor};

/// How long a daemon may take to say how it is.
const CHECKING: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    subject: Arc<dyn Subject>,
    scrapes: Arc<Scrapes>,
}

/// The routes for `subject`. `GET` and `HEAD` only; no request's body is read. For a listener that this machine alone reaches
/// strangers' pages in its browser are told apart.
pub(crate) fn routes(subject: Arc<dyn Subject>, for_this_machine: bool) -> Router {
    let scrapes = Arc::new(Scrapes::new(Arc::clone(&subject)));
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(readyz))
        .route("/version", get(version))
        .with_state(Shared { subject, scrapes });
    if for_this_machine { routes.layer(from_fn(visitor::only_of_this_machine)) } else { routes }
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let form = Form::of(&accept.join(","));
    match shared.scrapes.page().await {
        Ok(page) => ([(header::CONTENT_TYPE, form.content_type())], form.write(&page)).into_response(),
        Err(failure) => (StatusCode::SERVICE_UNAVAILABLE, format!("{failure}\n")).into_response(),
    }
}

/// What `/livez` and `/readyz` answer.
#[derive(Debug, Serialize)]
struct Health {
    ok: bool,
    checks: Vec<Check>,
}

async fn livez(State(shared): State<Shared>) -> Response {
    health(timeout(CHECKING, shared.subject.live()).await.ok())
}

async fn readyz(State(shared): State<Shared>) -> Response {
    health(timeout(CHECKING, shared.subject.ready()).await.ok())
}

fn health(checks: Option<Vec<Check>>) -> Response {
    let checks = checks.unwrap_or_else(|| {
        let detail = format!("no answer within {} s", CHECKING.as_secs());
        vec![Check { name: "answers", ok: false, detail }]
    });
    let ok = checks.iter().all(|check| check.ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(Health { ok, checks })).into_response()
}

async fn version(State(shared): State<Shared>) -> Json<Version> {
    Json(shared.subject.version())
}
