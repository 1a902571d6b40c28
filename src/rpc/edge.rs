//! The connections: accepted up to a limit, served by hyper's HTTP/2 server, and closed gracefully when the
//! drain begins.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Service;
use crate::drain::Drain;
use crate::metrics::{Metrics, Shed};

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct EdgeOptions {
    /// Connections at once; more are closed as they come.
    pub max_connections: usize,
    /// Calls at once on one connection.
    pub max_streams: u32,
    /// After this long without a sign of life the peer is pinged.
    pub keepalive_interval: Duration,
    /// A peer that does not answer a ping for this long is gone.
    pub keepalive_timeout: Duration,
}

/// Most bytes of a request's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Out of file descriptors, say: accepting again at once would only spin.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Accepts connections until the drain begins.
#[derive(Debug)]
pub(super) struct Edge {
    drain: Drain,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    http2: http2::Builder<OnDrain>,
}

/// Every stream is a task that the drain waits for.
#[derive(Clone, Debug)]
struct OnDrain(Drain);

impl<F> Executor<F> for OnDrain
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        drop(self.0.spawn(stream));
    }
}

impl Edge {
    pub(super) fn new(options: EdgeOptions, drain: Drain, metrics: Arc<Metrics>) -> Self {
        let places = Arc::new(Semaphore::new(options.max_connections));
        metrics.gauge("hotshelf.connections", "Open gRPC connections.", &places, move |places| {
            options.max_connections.saturating_sub(places.available_permits()) as u64
        });
        let mut http2 = http2::Builder::new(OnDrain(drain.clone()));
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(options.max_streams)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(options.keepalive_interval)
            .keep_alive_timeout(options.keepalive_timeout);
        Self { drain, metrics, places, http2 }
    }

    pub(super) async fn accept(self, listener: TcpListener, service: Service) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.drain.announced() => return,
            };
            match accepted {
                Ok((socket, _)) => self.admit(socket, &service),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                }
            }
        }
    }

    fn admit(&self, socket: TcpStream, service: &Service) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.shed.inc(Shed::Connections);
            return;
        };
        // Without it a lone stream waits for delayed acknowledgements. A socket that refuses is closing.
        let _ = socket.set_nodelay(true);
        let connection =
            serve(socket, place, self.http2.clone(), service.clone(), self.drain.clone());
        drop(self.drain.spawn(connection));
    }
}

async fn serve(
    socket: TcpStream,
    _place: OwnedSemaphorePermit,
    http2: http2::Builder<OnDrain>,
    service: Service,
    drain: Drain,
) {
    let connection =
        http2.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.announced() => {
            // GOAWAY: the calls in flight finish, new ones go elsewhere.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = drain.ended() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
