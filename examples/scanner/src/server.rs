//! HTTP: `/classify` for users, `/healthz` and `/readyz` for the kubelet, `/metrics` for Prometheus.
//!
//! Decides status codes. Alive means that the process answers; ready means that a model kept the contract, and nothing else.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task;

use crate::model::Model;

/// Most files that wait for the model at a time; a further one is sent away with 503.
const MAX_WAITING: usize = 64;
/// Upper bounds of the latency histogram in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.512, 2.048];

/// What all requests share.
#[derive(Debug)]
pub struct Server {
    model: OnceLock<Result<Model, String>>,
    waiting: Semaphore,
    registry: Registry,
    requests: IntCounterVec,
    latency: HistogramVec,
    info: IntGaugeVec,
    ready: IntGauge,
}

/// The answer of `POST /classify`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Classified<'a> {
    /// Label of the file's kind.
    label: &'a str,
    /// Score of that class; null where the file was too small for a model.
    score: Option<f32>,
    /// Whether the score reaches the label's threshold.
    confident: bool,
    /// The model that answered, as Assayer's evidence names it.
    model_digest: &'a str,
}

impl Server {
    /// A server without a model: alive, not ready.
    ///
    /// # Errors
    /// When two metrics share a name.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let server = Self {
            model: OnceLock::new(),
            waiting: Semaphore::new(MAX_WAITING),
            registry: Registry::new(),
            requests: IntCounterVec::new(
                Opts::new("http_requests_total", "Requests answered."),
                &["path", "code"],
            )?,
            latency: HistogramVec::new(
                HistogramOpts::new("http_request_duration_seconds", "Time to answer a request.")
                    .buckets(BUCKETS.to_vec()),
                &["path"],
            )?,
            info: IntGaugeVec::new(
                Opts::new("scanner_model_info", "The loaded model: always 1."),
                &["model_digest", "file_sha256"],
            )?,
            ready: IntGauge::new("scanner_ready", "1 when a model kept the contract.")?,
        };
        server.registry.register(Box::new(server.requests.clone()))?;
        server.registry.register(Box::new(server.latency.clone()))?;
        server.registry.register(Box::new(server.info.clone()))?;
        server.registry.register(Box::new(server.ready.clone()))?;
        Ok(Arc::new(server))
    }

    /// Takes the model, or the reason why there is none, for good: another model is another pod.
    pub fn decide(&self, model: Result<Model, String>) {
        if let Ok(model) = &model {
            self.info
                .with_label_values(&[model.digest().as_str(), model.file_digest().as_str()])
                .set(1);
            self.ready.set(1);
        }
        if self.model.set(model).is_err() {
            tracing::warn!("a second model was offered and is not used");
        }
    }

    /// The routes, with files of at most `max_body` bytes.
    pub fn router(self: Arc<Self>, max_body: usize) -> Router {
        Router::new()
            .route("/classify", post(classify))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .layer(DefaultBodyLimit::max(max_body))
            .layer(middleware::from_fn_with_state(Arc::clone(&self), observe))
            .with_state(self)
    }

    /// The model, or why there is none (yet).
    fn model(&self) -> Result<&Model, &str> {
        match self.model.get() {
            Some(model) => model.as_ref().map_err(String::as_str),
            None => Err("the model is being loaded"),
        }
    }
}

fn refusal(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({"error": reason}))).into_response()
}

async fn readyz(State(server): State<Arc<Server>>) -> Response {
    match server.model() {
        Ok(model) => Json(json!({"modelDigest": model.digest()})).into_response(),
        Err(reason) => refusal(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn classify(State(server): State<Arc<Server>>, content: Bytes) -> Response {
    let Ok(_place) = server.waiting.try_acquire() else {
        return (
            [(header::RETRY_AFTER, "1")],
            refusal(StatusCode::SERVICE_UNAVAILABLE, "too many files are waiting"),
        )
            .into_response();
    };
    let shared = Arc::clone(&server);
    // Inference would hold up every other request of this thread, the probes' too.
    let answered = task::spawn_blocking(move || answer(&shared, &content)).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(%error, "classification panicked");
        refusal(StatusCode::INTERNAL_SERVER_ERROR, "the file could not be classified")
    })
}

fn answer(server: &Server, content: &[u8]) -> Response {
    let model = match server.model() {
        Ok(model) => model,
        Err(reason) => return refusal(StatusCode::SERVICE_UNAVAILABLE, reason),
    };
    match model.classify(content) {
        Ok(answer) => Json(Classified {
            label: &answer.label,
            score: answer.score,
            confident: answer.confident,
            model_digest: model.digest().as_str(),
        })
        .into_response(),
        Err(error) => {
            tracing::error!(%error, bytes = content.len(), "classification failed");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "the file could not be classified")
        }
    }
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let (encoder, mut text) = (TextEncoder::new(), Vec::new());
    match encoder.encode(&server.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Counts and times every request, under one of five paths, so that strangers can't grow the series.
async fn observe(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let path = match request.uri().path() {
        "/classify" => "/classify",
        "/healthz" => "/healthz",
        "/readyz" => "/readyz",
        "/metrics" => "/metrics",
        _ => "other",
    };
    let start = Instant::now();
    let response = next.run(request).await;
    server
        .latency
        .with_label_values(&[path])
        .observe(start.elapsed().as_secs_f64());
    server
        .requests
        .with_label_values(&[path, response.status().as_str()])
        .inc();
    response
}
