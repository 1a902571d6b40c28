//! The connections: accepted up to a limit, served by hyper's HTTP/2 server, and closed gracefully when the
//! drain begins.

mod clock;
mod io;
mod lifetime;
mod streams;
#[cfg(test)]
mod tests;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::server::TlsStream;

use super::identity::Identity;
use crate::drain::Drain;
use crate::metrics::{AuthRefusal, ConnectionEnd, Metrics, Shed};
use crate::refusals::Refusals;
use clock::TurnClock;
use io::gathering;
use lifetime::Ending;
use streams::{Answers, Inline};
pub(super) use tls::ServerTls;
pub use tls::TlsOptions;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The name in its certificate, if it has shown one that is valid.
    pub(super) certificate: Option<Arc<str>>,
}

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub struct EdgeOptions {
    /// Connections at once; more are closed as they come.
    pub max_connections: usize,
    /// Calls at once on one connection.
    pub max_streams: u32,
    /// After this long without a sign of life the peer is pinged.
    pub keepalive_interval: Duration,
    /// A peer that does not answer a ping, or does not begin to speak, for this long is gone.
    pub keepalive_timeout: Duration,
    /// The longest that a unary call may take, its answer's way to a slow reader included.
    pub max_call_time: Duration,
    /// How long a connection lives, give or take a tenth.
    pub max_age: Option<Duration>,
    /// After that, how long its calls in flight may take.
    pub age_grace: Duration,
    /// How long a connection without calls lives.
    pub max_idle: Option<Duration>,
}

/// Most bytes of a request's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// How much of requests that nobody has read yet a stream and a connection may hold. A request is below 70 kB.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// What h2 charges to half of the connection's window for a small request that nobody has read yet; past that it
/// takes the peer for a flooder, and closes the connection.
const CHARGE: u32 = 256;
/// Requests that were taken back before hyper saw them, at least; see [`resets`].
const LEAST_RESETS: usize = 64;
/// Out of file descriptors, say: accepting again at once would only spin.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Accepts connections.
pub(super) struct Edge {
    drain: Drain,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    options: EdgeOptions,
    identity: Arc<Identity>,
    refusals: Arc<Refusals>,
}

impl Edge {
    pub(super) fn new(
        options: EdgeOptions,
        identity: Arc<Identity>,
        drain: Drain,
        metrics: Arc<Metrics>,
        refusals: Arc<Refusals>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(options.max_connections));
        metrics.gauge("hotshelf.connections", "Open gRPC connections.", &places, move |places| {
            options.max_connections.saturating_sub(places.available_permits()) as u64
        });
        Self { drain, metrics, places, options, identity, refusals }
    }

    pub(super) async fn accept<S: Answers>(
        self: Arc<Self>,
        listener: Arc<TcpListener>,
        service: Arc<impl Fn(Peer) -> S + Send + Sync + 'static>,
    ) -> Result<Infallible, Infallible> {
        loop {
            match listener.accept().await {
                Ok((socket, address)) => self.admit(socket, address, &service),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                }
            }
        }
    }

    fn admit<S: Answers>(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        service: &Arc<impl Fn(Peer) -> S + Send + Sync + 'static>,
    ) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.refusals.record(address, None, Shed::Connections);
            return;
        };
        // Without it a lone stream waits for delayed acknowledgements. A socket that refuses is closing.
        let _ = socket.set_nodelay(true);
        let (options, service, drain) = (self.options, Arc::clone(service), self.drain.clone());
        let (tls, metrics) = (self.identity.acceptor(), Arc::clone(&self.metrics));
        drop(self.drain.spawn(async move {
            match tls {
                None => {
                    let service = service(Peer { address, certificate: None });
                    serve(socket, options, service, drain, &metrics).await;
                }
                Some(tls) => match handshake(&tls, socket, &options, &metrics).await {
                    Ok((socket, certificate)) => {
                        let service = service(Peer { address, certificate });
                        serve(socket, options, service, drain, &metrics).await;
                    }
                    Err(why) => tracing::debug!(why, "a connection did not become one"),
                },
            }
            drop(place);
        }));
    }
}

async fn handshake(
    tls: &TlsAcceptor,
    socket: TcpStream,
    options: &EdgeOptions,
    metrics: &Metrics,
) -> Result<(TlsStream<TcpStream>, Option<Arc<str>>), String> {
    let accepted = tokio::time::timeout(options.keepalive_timeout, tls.accept(socket)).await;
    let accepted = accepted.map_err(|_| "no handshake in time".to_owned())?;
    let socket = accepted.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) =
            inner
        {
            metrics.auth_refused.inc(AuthRefusal::Certificate);
        }
        error.to_string()
    })?;
    let shown = socket.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.and_then(tls::subject);
    Ok((socket, certificate))
}

async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    options: EdgeOptions,
    service: impl Answers,
    drain: Drain,
    metrics: &Metrics,
) {
    let (io, outgoing) = gathering(socket);
    let spoke = io.spoke();
    let longest = options.max_call_time;
    let clock = TurnClock::new();
    let (calls, inline, mut driver) =
        streams::driven(service, longest, drain.clone(), clock.clone());
    let activity = driver.activity();
    let connection = http2(options, inline, clock).serve_connection(TokioIo::new(io), calls);
    let mut connection = pin!(connection);
    let mut endings = woken_once(lifetime::ending(options, &spoke, &activity, &drain));
    let ended = tokio::select! {
        ended = driver.drive(connection.as_mut(), &outgoing) => ended,
        Some(ending) = endings.next() => {
            if let Some(counted) = ending.counted() {
                metrics.connections_closed.inc(counted);
            }
            if ending == Ending::Silent {
                return;
            }
            // GOAWAY: the calls in flight finish, new ones go elsewhere.
            connection.as_mut().graceful_shutdown();
            let mut cut_off = woken_once(lifetime::cut_off(ending, options.age_grace, &drain));
            tokio::select! {
                ended = driver.drive(connection, &outgoing) => ended,
                Some(counted) = cut_off.next() => {
                    if let Some(counted) = counted {
                        metrics.connections_closed.inc(counted);
                    }
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        if lifetime::is_flood(&error) {
            metrics.connections_closed.inc(ConnectionEnd::Flood);
        }
        tracing::debug!(%error, "a connection broke");
    }
}

/// The limits are said here also where they are hyper's defaults, which may change.
fn http2(options: EdgeOptions, inline: Inline, clock: TurnClock) -> http2::Builder<Inline> {
    let mut http2 = http2::Builder::new(inline);
    http2
        .timer(clock)
        // No caller of gRPC reads it.
        .auto_date_header(false)
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(options.max_streams))
        // Rapid reset, CVE-2023-44487, and its like: past these the connection is closed.
        .max_pending_accept_reset_streams(resets(options.max_streams))
        .max_local_error_reset_streams(64)
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout);
    http2
}

/// Enough for as many calls at once as a connection may have: they come so after any pause.
fn connection_window(max_streams: u32) -> u32 {
    const LARGEST: u32 = i32::MAX.cast_unsigned();
    CONNECTION_WINDOW.max(max_streams.saturating_mul(2 * CHARGE)).min(LARGEST)
}

/// How many requests may be taken back in one turn of a connection, before hyper has seen them. A page that is left cancels
/// all of its calls at once, as many as its connection may have. Rapid reset needs more than that: without a limit it would
/// have a stream accepted, and forgotten, for every 30 bytes that it sends.
fn resets(max_streams: u32) -> usize {
    LEAST_RESETS.max(max_streams as usize)
}

/// A future that is polled when it has been woken, and not whenever its neighbours are: the drain's is behind
/// a lock that all connections share.
fn woken_once<F: Future>(future: F) -> FuturesUnordered<F> {
    std::iter::once(future).collect()
}
