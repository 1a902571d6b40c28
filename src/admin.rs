//! The admin port: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs the instance.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};

use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};
use crate::supervisor::Supervisor;

/// Out of file descriptors, say: accepting again at once would only spin.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

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

/// A listener that outlives the loop that accepts from it.
#[derive(Clone)]
struct Shared(Arc<TcpListener>);

impl Listener for Shared {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin port could not be accepted");
                    tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Serves the admin port until the drain has finished, so that it can be watched.
pub fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: Readiness, drain: &Drain) {
    let routes = Router::new()
        .route("/metrics", get(exposition).with_state(metrics))
        // Answering at all is being alive. It must not depend on Redis or Postgres: restarting this
        // process would mend neither.
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz).with_state((readiness, drain.supervisor().clone())));
    let listener = Shared(Arc::new(listener));
    drain.spawn_loop(BackgroundTask::AdminPort, move || {
        let serving = axum::serve(listener.clone(), routes.clone());
        async move {
            match serving.await {
                Ok(()) => Err(io::Error::other("the admin port was closed")),
                Err(error) => Err::<Infallible, _>(error),
            }
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

/// One line for each reason not to be ready.
async fn readyz(State((readiness, supervisor)): State<(Readiness, Supervisor)>) -> Response {
    let mut reasons: Vec<String> = readiness.0.load().as_deref().cloned().into_iter().collect();
    reasons.extend(supervisor.down());
    match reasons.is_empty() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response(),
    }
}
