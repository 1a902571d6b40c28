//! The admin port: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs the instance.

use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::drain::Drain;
use crate::metrics::Metrics;

/// Why an instance does not want calls now, if it does not.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<ArcSwapOption<String>>);

impl Readiness {
    /// Not ready, and why.
    #[must_use]
    pub fn not_yet(reason: &str) -> Self {
        Self(Arc::new(ArcSwapOption::from_pointee(reason.to_owned())))
    }

    /// Ready from now on.
    pub fn set_ready(&self) {
        self.0.store(None);
    }

    /// Not ready from now on, and why.
    pub fn set_not_ready(&self, reason: &str) {
        self.0.store(Some(Arc::new(reason.to_owned())));
    }
}

/// Serves the admin port until the drain has finished, so that it can be watched.
pub fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: Readiness, drain: &Drain) {
    let routes = Router::new()
        .route("/metrics", get(exposition).with_state(metrics))
        // Answering at all is being alive. It must not depend on Redis or Postgres: restarting this
        // process would mend neither.
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz).with_state(readiness));
    drain.spawn_loop("admin port", async move {
        match axum::serve(listener, routes).await {
            Ok(()) => Err(std::io::Error::other("the admin port was closed")),
            Err(error) => Err::<Infallible, _>(error),
        }
    });
}

async fn exposition(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.exposition() {
        Ok(text) => {
            ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    match &*readiness.0.load() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
