//! The admin port: `/metrics` for Prometheus, `/livez` and `/readyz` for the orchestrator, `/callers` for the operator, and the
//! gRPC services that are moved here (`grpc.rs`).

mod connections;
mod exposition;
mod grpc;
pub mod health;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};
use crate::refusals::Refusals;
use crate::supervisor::Supervisor;
use connections::AdminConnections;
use exposition::Exposition;
pub use grpc::{AdminGrpc, ServeGrpc};

/// Accept fails when file descriptors run out, for example; without a pause the loop would spin.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Why this instance is not ready for calls, if it is not, and notes on what is degraded.
#[derive(Clone)]
pub struct Readiness {
    reason: Arc<ArcSwapOption<String>>,
    notes: Arc<ArcSwapOption<Notes>>,
}

/// Makes lines for the operator.
type Notes = Box<dyn Fn() -> Vec<String> + Send + Sync>;

impl Readiness {
    #[must_use]
    pub fn not_yet(reason: &str) -> Self {
        let reason = Arc::new(ArcSwapOption::from_pointee(reason.to_owned()));
        Self { reason, notes: Arc::default() }
    }

    pub fn set_ready(&self) {
        self.reason.store(None);
    }

    pub fn set_not_ready(&self, reason: &str) {
        self.reason.store(Some(Arc::new(reason.to_owned())));
    }

    /// Adds the lines of `notes` to `/readyz`, whether ready or not. Holds `part` weakly, so that it does not outlive its owner.
    pub fn set_degraded<T: Send + Sync + 'static>(
        &self,
        part: &Arc<T>,
        notes: impl Fn(&T) -> Vec<String> + Send + Sync + 'static,
    ) {
        let part = Arc::downgrade(part);
        let notes = move || part.upgrade().map_or_else(Vec::new, |part| notes(&part));
        self.notes.store(Some(Arc::new(Box::new(notes))));
    }

    fn notes(&self) -> String {
        let notes = self.notes.load();
        notes.iter().flat_map(|notes| notes()).map(|note| note + "\n").collect()
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.reason).finish()
    }
}

#[derive(Debug)]
struct AdminPort {
    exposition: Exposition,
    readiness: Readiness,
    supervisor: Supervisor,
    refusals: Arc<Refusals>,
    grpc: AdminGrpc,
}

/// Serves the admin port until the drain has finished, so that the drain can be observed.
pub fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    refusals: Arc<Refusals>,
    grpc: AdminGrpc,
    drain: &Drain,
) {
    let supervisor = drain.supervisor().clone();
    let exposition = Exposition::new(metrics);
    let port = AdminPort { exposition, readiness, supervisor, refusals, grpc };
    let (port, listener) = (Arc::new(port), Arc::new(listener));
    drain.spawn_loop(BackgroundTask::AdminPort, move || {
        accept(Arc::clone(&port), Arc::clone(&listener))
    });
}

async fn accept(
    port: Arc<AdminPort>,
    listener: Arc<TcpListener>,
) -> Result<Infallible, Infallible> {
    let mut connections = AdminConnections::default();
    loop {
        tokio::select! {
            Some(()) = connections.ended() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => connections.serve(Arc::clone(&port), socket, peer).await,
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "a connection to the admin port could not be accepted; trying again"
                    );
                    tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                }
            },
        }
    }
}

impl AdminPort {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"));
        }
        Ok(match request.uri().path() {
            "/metrics" => self.metrics().await,
            // Must not depend on Redis or Postgres: a restart of this process would repair neither.
            "/livez" => plain(StatusCode::OK, "alive\n"),
            "/readyz" => self.readyz(),
            "/callers" => plain(StatusCode::OK, self.refusals.most_refused()),
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /livez, /readyz and /callers\n"),
        })
    }

    async fn metrics(&self) -> Response<Full<Bytes>> {
        match self.exposition.text().await {
            Ok(text) => response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error + "\n"),
        }
    }

    /// One line for each reason not to be ready, followed by the notes on what is degraded.
    fn readyz(&self) -> Response<Full<Bytes>> {
        let mut reasons: Vec<String> =
            self.readiness.reason.load().as_deref().cloned().into_iter().collect();
        reasons.extend(self.supervisor.down());
        let notes = self.readiness.notes();
        match reasons.is_empty() {
            true => plain(StatusCode::OK, format!("ready\n{notes}")),
            false => {
                let reasons = reasons.join("\n");
                plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reasons}\n{notes}"))
            }
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text.into())
}

fn response(status: StatusCode, content_type: &'static str, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
