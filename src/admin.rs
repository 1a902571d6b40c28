//! The admin port: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever runs the instance.

use std::convert::Infallible;
use std::fmt;
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

/// Why an instance does not want calls now, if it does not; and what it has to do without.
#[derive(Clone)]
pub struct Readiness {
    reason: Arc<ArcSwapOption<String>>,
    notes: Arc<ArcSwapOption<Notes>>,
}

/// Lines for the operator.
type Notes = Box<dyn Fn() -> Vec<String> + Send + Sync>;

impl Readiness {
    /// Not ready, and why.
    #[must_use]
    pub fn not_yet(reason: &str) -> Self {
        let reason = Arc::new(ArcSwapOption::from_pointee(reason.to_owned()));
        Self { reason, notes: Arc::default() }
    }

    /// Ready from now on.
    pub fn set_ready(&self) {
        self.reason.store(None);
    }

    /// Not ready from now on, and why.
    pub fn set_not_ready(&self, reason: &str) {
        self.reason.store(Some(Arc::new(reason.to_owned())));
    }

    /// What `part` lacks is told in further lines. It does not keep `part` alive.
    pub fn set_notes<T: Send + Sync + 'static>(
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

/// One line for each reason not to be ready, and then for what it has to do without.
async fn readyz(State((readiness, supervisor)): State<(Readiness, Supervisor)>) -> Response {
    let mut reasons: Vec<String> =
        readiness.reason.load().as_deref().cloned().into_iter().collect();
    reasons.extend(supervisor.down());
    let notes = readiness.notes();
    match reasons.is_empty() {
        true => format!("ready\n{notes}").into_response(),
        false => {
            let reasons = reasons.join("\n");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reasons}\n{notes}")).into_response()
        }
    }
}
