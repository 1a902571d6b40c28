//! The admin port: `/metrics` for Prometheus, `/livez` and `/readyz` for the orchestrator, `/callers` and a live page (`page.rs`) for
//! the operator, and the gRPC services that are moved here (`grpc.rs`).

mod connections;
mod exposition;
mod grpc;
pub mod health;
mod page;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};
use crate::refusals::Refusals;
use crate::supervisor::Supervisor;
use connections::AdminConnections;
use exposition::Exposition;
pub use grpc::{AdminGrpc, ServeGrpc};
use page::Page;
pub use page::PageProducts;

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

    fn notes(&self) -> Vec<String> {
        let notes = self.notes.load();
        notes.iter().flat_map(|notes| notes()).collect()
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.reason).finish()
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Debug)]
struct AdminPort {
    metrics: Arc<Metrics>,
    exposition: Exposition,
    page: Page,
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
    (grpc, products): (AdminGrpc, PageProducts),
    drain: &Drain,
) {
    let supervisor = drain.supervisor().clone();
    let (exposition, page) = (Exposition::new(Arc::clone(&metrics)), Page::new(products));
    let port = AdminPort { metrics, exposition, page, readiness, supervisor, refusals, grpc };
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
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Result<Answer, Infallible> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"));
        }
        let mut answer = self.route(request.uri()).await;
        page::restrict(&mut answer);
        Ok(answer)
    }

    async fn route(self: &Arc<Self>, uri: &Uri) -> Answer {
        match uri.path() {
            "/metrics" => self.metrics().await,
            // Must not depend on Redis or Postgres: a restart of this process would repair neither.
            "/livez" => plain(StatusCode::OK, "alive\n"),
            "/readyz" => self.readyz(),
            "/callers" => plain(StatusCode::OK, self.refusals.most_refused()),
            "/events" => Page::watch(self),
            "/explain" => self.page.explain(uri.query()).await,
            path => Page::file(path).unwrap_or_else(|| {
                plain(
                    StatusCode::NOT_FOUND,
                    "there are /, /metrics, /livez, /readyz and /callers\n",
                )
            }),
        }
    }

    async fn metrics(&self) -> Answer {
        match self.exposition.text().await {
            Ok(text) => response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error + "\n"),
        }
    }

    /// Why this instance is not ready.
    fn reasons(&self) -> Vec<String> {
        let reason = self.readiness.reason.load();
        reason.as_deref().cloned().into_iter().chain(self.supervisor.down()).collect()
    }

    /// One line for each reason not to be ready, followed by the notes on what is degraded.
    fn readyz(&self) -> Answer {
        let reasons = self.reasons();
        let notes: String = self.readiness.notes().into_iter().map(|note| note + "\n").collect();
        match reasons.is_empty() {
            true => plain(StatusCode::OK, format!("ready\n{notes}")),
            false => {
                let reasons = reasons.join("\n");
                plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reasons}\n{notes}"))
            }
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    response(status, "text/plain; charset=utf-8", text.into())
}

fn response(status: StatusCode, content_type: &'static str, text: Bytes) -> Answer {
    let mut response = Response::new(Full::new(text).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
