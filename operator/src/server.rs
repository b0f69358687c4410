//! `/healthz`, `/readyz`, `/metrics`, `/inventory` and the page at `/`. Reads what others keep current; decides nothing and writes nothing.
//!
//! Series about models come from the leader alone, or every model would be there twice; JSON and page come from every replica, since
//! each watches the cluster itself.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::inventory::{Caches, page, render};
use crate::leader::fence::Fence;

/// Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// No script, no request elsewhere, no frame: the page is text with a style.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the routes read.
#[derive(Clone)]
pub struct Parts {
    /// Metrics and health.
    pub ctx: Arc<Context>,
    /// The inventory's facts.
    pub caches: Arc<Caches>,
    /// Tells whether this process leads.
    pub fence: Fence,
}

/// Serves until `stop`, then lets open requests end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, parts: Parts, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(parts))
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

fn router(parts: Parts) -> Router {
    Router::new()
        .route("/", get(front))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/inventory", get(inventory))
        .with_state(parts)
}

async fn healthz(State(parts): State<Parts>) -> Response {
    let stuck = parts.ctx.health.stuck(Instant::now());
    if stuck.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, stuck.join("\n") + "\n").into_response()
}

async fn readyz(State(parts): State<Parts>) -> Response {
    match waiting_for(&parts) {
        None if parts.fence.permits(Instant::now()) => (StatusCode::OK, "ok: leading\n").into_response(),
        None => (StatusCode::OK, "ok: standby\n").into_response(),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing).into_response(),
    }
}

async fn metrics(State(parts): State<Parts>) -> Response {
    let leads = parts.fence.permits(Instant::now());
    parts.ctx.metrics.leading(leads);
    let mut text = match parts.ctx.metrics.text() {
        Ok(text) => text,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    if leads && let Some(inventory) = parts.caches.inventory() {
        text.push_str(&render::render(&inventory));
    }
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

async fn inventory(State(parts): State<Parts>) -> Response {
    match parts.caches.inventory() {
        Some(inventory) => (guarded(), Json(inventory)).into_response(),
        None => not_yet(&parts),
    }
}

async fn front(State(parts): State<Parts>) -> Response {
    let Some(inventory) = parts.caches.inventory() else {
        return not_yet(&parts);
    };
    let html = page::page(&inventory, parts.ctx.clock.now(), parts.fence.permits(Instant::now()));
    let kind = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    ];
    (guarded(), kind, html).into_response()
}

fn guarded() -> [(HeaderName, &'static str); 3] {
    [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ]
}

fn not_yet(parts: &Parts) -> Response {
    let missing = waiting_for(parts).unwrap_or_else(|| "just synced: try again\n".to_owned());
    (StatusCode::SERVICE_UNAVAILABLE, missing).into_response()
}

fn waiting_for(parts: &Parts) -> Option<String> {
    let missing = parts.caches.missing();
    (!missing.is_empty()).then(|| format!("waiting for the first list of {}\n", missing.join(", ")))
}
