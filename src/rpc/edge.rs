//! The connections of the gRPC port: accepted up to a limit, served by hyper in HTTP/2 or HTTP/1.1, and closed gracefully when the
//! drain begins.

mod begun;
mod clock;
mod http1;
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
use begun::Begun;
use clock::TurnClock;
use io::buffered;
use streams::{CallHandler, InlineExecutor};
pub(super) use tls::ServerTls;
pub use tls::TlsOptions;

/// The client end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The name in its certificate, if it has presented a valid one.
    pub(super) certificate: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
pub struct EdgeOptions {
    /// Whether connections may speak HTTP/1.1.
    pub http1: bool,
    /// Open connections; further ones are closed as soon as they are accepted.
    pub max_connections: usize,
    /// Open streams (calls) on one connection.
    pub max_streams: u32,
    /// A connection that has received nothing for this long sends a ping.
    pub keepalive_interval: Duration,
    /// A connection is closed when a ping is not answered, or when the TLS handshake or the first bytes have not come, within
    /// this time.
    pub keepalive_timeout: Duration,
    /// Bounds the deadlines of unary calls. A call with an unread response is dropped after twice this time.
    pub max_call_time: Duration,
    /// A connection is closed gracefully at this age, jittered by a tenth. `None`: no limit.
    pub max_age: Option<Duration>,
    /// How long the calls in flight may take after that.
    pub age_grace: Duration,
    /// A connection without calls is closed gracefully after this time. `None`: no limit.
    pub max_idle: Option<Duration>,
}

const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Flow-control windows: the bytes of unread requests that a stream and a connection may hold. Requests are below 70 kB.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Bytes that h2 charges for an unread small request. When the charges exceed half of the connection's window h2 treats the
/// peer as a flooder and closes the connection.
const SMALL_REQUEST_CHARGE: u32 = 256;
/// Lower bound of [`max_resets`].
const MIN_RESETS: usize = 64;
/// Accept fails when file descriptors run out, for example; without a pause the loop would spin.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

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
        let limit = options.max_connections;
        metrics.bounded(
            "hotshelf.connections",
            "Open gRPC connections.",
            &places,
            move |places| limit.saturating_sub(places.available_permits()) as u64,
            move |_| limit as u64,
        );
        Self { drain, metrics, places, options, identity, refusals }
    }

    pub(super) async fn accept<S: CallHandler>(
        self: Arc<Self>,
        listener: Arc<TcpListener>,
        service: Arc<impl Fn(Peer) -> S + Send + Sync + 'static>,
    ) -> Result<Infallible, Infallible> {
        loop {
            match listener.accept().await {
                Ok((socket, address)) => self.admit(socket, address, &service),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted; trying again");
                    tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                }
            }
        }
    }

    fn admit<S: CallHandler>(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        service: &Arc<impl Fn(Peer) -> S + Send + Sync + 'static>,
    ) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.refusals.record(address, None, Shed::Connections);
            return;
        };
        // With Nagle's algorithm a response could wait for a delayed acknowledgement. It fails only on a closed socket.
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
                    Err(why) => {
                        tracing::debug!(why, "TLS handshake failed; the connection is closed")
                    }
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
    let accepted = accepted.map_err(|_| "timeout".to_owned())?;
    let socket = accepted.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) =
            inner
        {
            metrics.auth_refused.inc(AuthRefusal::Certificate);
        }
        error.to_string()
    })?;
    let presented = socket.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = presented.and_then(tls::subject);
    Ok((socket, certificate))
}

/// Serves a connection to its end, in the version of HTTP with which it begins.
pub(super) async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    options: EdgeOptions,
    service: impl CallHandler,
    drain: Drain,
    metrics: &Metrics,
) {
    let begun = tokio::time::timeout(options.keepalive_timeout, Begun::read(socket));
    let begun = tokio::select! {
        begun = begun => begun,
        () = drain.announced() => return,
    };
    match begun {
        Ok(Ok(Some(socket))) if socket.is_http2() => {
            serve_http2(socket, options, service, drain, metrics).await;
        }
        Ok(Ok(Some(socket))) if options.http1 => {
            http1::serve(socket, options, service, drain, metrics).await;
        }
        Ok(_) => tracing::debug!("a connection did not begin with HTTP and was closed"),
        Err(_) => metrics.connections_closed.inc(ConnectionEnd::Silent),
    }
}

async fn serve_http2(
    socket: Begun<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    options: EdgeOptions,
    service: impl CallHandler,
    drain: Drain,
    metrics: &Metrics,
) {
    let (io, outgoing) = buffered(socket);
    let max_call_time = options.max_call_time;
    let clock = TurnClock::new();
    let (calls, executor, mut driver) =
        streams::driven(service, max_call_time, drain.clone(), clock.clone());
    let activity = driver.activity();
    let connection = http2(options, executor, clock).serve_connection(TokioIo::new(io), calls);
    let mut connection = pin!(connection);
    let mut endings = woken_once(lifetime::ending(options, &activity, &drain));
    let ended = tokio::select! {
        ended = driver.drive(connection.as_mut(), &outgoing) => ended,
        Some(ending) = endings.next() => {
            if let Some(counted) = ending.counted() {
                metrics.connections_closed.inc(counted);
            }
            // Sends GOAWAY: calls in flight finish, and the client opens a new connection for further ones.
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
        tracing::debug!(%error, "a connection failed and was closed");
    }
}

/// Sets every limit, also those that equal hyper's defaults, because defaults may change.
fn http2(
    options: EdgeOptions,
    executor: InlineExecutor,
    clock: TurnClock,
) -> http2::Builder<InlineExecutor> {
    let mut http2 = http2::Builder::new(executor);
    http2
        .timer(clock)
        // gRPC clients do not read it.
        .auto_date_header(false)
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(options.max_streams))
        // Against rapid reset (CVE-2023-44487) and similar attacks: above these limits the connection is closed.
        .max_pending_accept_reset_streams(max_resets(options.max_streams))
        .max_local_error_reset_streams(max_resets(options.max_streams))
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout);
    http2
}

/// Large enough that `max_streams` calls sent at once, as after a pause of the client, are not taken for a flood.
fn connection_window(max_streams: u32) -> u32 {
    const LARGEST: u32 = i32::MAX.cast_unsigned();
    CONNECTION_WINDOW.max(max_streams.saturating_mul(2 * SMALL_REQUEST_CHARGE)).min(LARGEST)
}

/// The most streams that a client may reset, in one turn of the connection, before hyper has accepted them. A web page that is
/// closed cancels all its calls at once, up to `max_streams`. A rapid reset attack needs more: without a limit every 30 bytes
/// that it sends would make the server accept and drop a stream. It also bounds the streams of a connection that were answered
/// before their requests had arrived, as when a limit is reached.
fn max_resets(max_streams: u32) -> usize {
    MIN_RESETS.max(max_streams as usize)
}

/// Polls `future` only when it has been woken, and not each time the task is. Polling the drain's future takes a lock that
/// all connections share.
fn woken_once<F: Future>(future: F) -> FuturesUnordered<F> {
    std::iter::once(future).collect()
}
