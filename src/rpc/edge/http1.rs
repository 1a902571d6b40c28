//! Connections that speak HTTP/1.1: one call at a time, in the task of the connection.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready as now};
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Status;

use super::begun::Begun;
use super::lifetime::{self, Ending};
use super::streams::CallHandler;
use super::{EdgeOptions, MAX_HEADER_BYTES};
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::rpc::call::{CallBody, IncomingCall};
use crate::rpc::protocol::RequestHead;
use crate::rpc::reply::Chunk;

/// Fields of one head.
const MAX_HEADERS: usize = 100;
/// Bytes that are read ahead.
const MAX_BUFFERED: usize = 64 * 1024;
/// The limits of time are checked this often within the shortest of them.
const CHECKS: u32 = 4;

pub(super) async fn serve(
    socket: Begun<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    options: EdgeOptions,
    service: impl CallHandler,
    drain: Drain,
    metrics: &Metrics,
) {
    let phases = Phases::default();
    let socket = Watched { socket, phases: phases.clone() };
    let calls = Calls { service: RefCell::new(service), phases: phases.clone() };
    let connection = http1().serve_connection(TokioIo::new(socket), calls);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        ending = ending(options, &phases, &drain) => {
            if let Some(counted) = ending.counted() {
                metrics.connections_closed.inc(counted);
            }
            let is_waiting = matches!(*phases.0.lock(), Phase::Head(_));
            // A request that has not arrived is not waited for when the instance stops.
            if matches!(ending, Ending::Silent | Ending::Unread)
                || (ending == Ending::Drain && is_waiting)
            {
                return;
            }
            // The call in flight finishes; its response says that the connection closes.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                counted = lifetime::cut_off(ending, options.age_grace, &drain) => {
                    if let Some(counted) = counted {
                        metrics.connections_closed.inc(counted);
                    }
                    return;
                }
                late = overdue(EdgeOptions { max_idle: None, ..options }, &phases) => {
                    if let Some(counted) = late.counted() {
                        metrics.connections_closed.inc(counted);
                    }
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed and was closed");
    }
}

/// Sets every limit, also those that equal hyper's defaults, because defaults may change.
fn http1() -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .keep_alive(true)
        .half_close(false)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES as usize)
        .max_buf_size(MAX_BUFFERED)
        // It would count the time between two requests, too: see `Phase`.
        .header_read_timeout(None);
    http1
}

/// Resolves when the server has to close the connection.
async fn ending(options: EdgeOptions, phases: &Phases, drain: &Drain) -> Ending {
    tokio::select! {
        ending = lifetime::aged(options, drain) => ending,
        ending = overdue(options, phases) => ending,
    }
}

/// What the connection waits for, and since when.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// For a request.
    Idle(Instant),
    /// For the rest of a request's head.
    Head(Instant),
    /// For the request or the answer of a call.
    Call(Instant),
    /// That the client reads the rest of an answer; since its call began.
    Sending(Instant),
    /// For the end of a stream.
    Stream,
}

// Its lock is never contended, because only the task of the connection uses it.
#[derive(Clone, Debug)]
struct Phases(Arc<Mutex<Phase>>);

impl Default for Phases {
    fn default() -> Self {
        // The first bytes have been read.
        Self(Arc::new(Mutex::new(Phase::Head(Instant::now()))))
    }
}

/// Resolves when a phase has taken too long.
async fn overdue(options: EdgeOptions, phases: &Phases) -> Ending {
    let EdgeOptions { keepalive_timeout, max_call_time, max_idle, .. } = options;
    // Once to make the response, and once to send it.
    let most = max_call_time * 2;
    let shortest = keepalive_timeout.min(most).min(max_idle.unwrap_or(Duration::MAX));
    loop {
        tokio::time::sleep(shortest / CHECKS).await;
        let phase = *phases.0.lock();
        match phase {
            Phase::Idle(since) if max_idle.is_some_and(|limit| since.elapsed() >= limit) => {
                return Ending::Idle;
            }
            Phase::Head(since) if since.elapsed() >= keepalive_timeout => return Ending::Silent,
            Phase::Call(since) | Phase::Sending(since) if since.elapsed() >= most => {
                return Ending::Unread;
            }
            _ => {}
        }
    }
}

/// hyper's view of the tower service of one connection.
struct Calls<S> {
    // A RefCell, because hyper calls through `&self` and tower needs `&mut`.
    service: RefCell<S>,
    phases: Phases,
}

impl<S: CallHandler> hyper::service::Service<Request<Incoming>> for Calls<S> {
    type Response = Response<WatchedBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if !has_one_host(&request) || !has_plain_encoding(&request) {
            let mut response = Response::new(CallBody::default());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            let mut response = watched(response, self.phases.clone());
            // What follows may be part of a body.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return now(Ok(response)).boxed();
        }
        // Its status is in trailers, which HTTP/1.1 clients of gRPC do not get.
        if RequestHead::of(&request).is_grpc {
            let mut response = Response::new(CallBody::default());
            *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
            return now(Ok(watched(response, self.phases.clone()))).boxed();
        }
        let call = IncomingCall::new(request);
        let lasting = call.method.is_lasting();
        *self.phases.0.lock() = if lasting { Phase::Stream } else { Phase::Call(Instant::now()) };
        let (phases, answer) = (self.phases.clone(), self.service.borrow_mut().call(call));
        let watched = move |answer: Result<Response<CallBody>, Infallible>| {
            answer.map(|response| watched(response, phases))
        };
        answer.map(watched).boxed()
    }
}

fn watched(response: Response<CallBody>, phases: Phases) -> Response<WatchedBody> {
    response.map(|body| WatchedBody { body, phases })
}

/// A body is plain or chunked once; other codings are read differently by other programs. hyper closes the connection after a
/// request that has both lengths, the chunks' and `Content-Length`.
fn has_plain_encoding<B>(request: &Request<B>) -> bool {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// HTTP/1.1 requests name their host once (RFC 9112, 3.2): proxies may decide by it.
fn has_one_host<B>(request: &Request<B>) -> bool {
    let hosts = request.headers().get_all(HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() == Version::HTTP_10)
}

/// A response body; when it is dropped all of it is in hyper's buffer.
struct WatchedBody {
    body: CallBody,
    phases: Phases,
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        let mut phase = self.phases.0.lock();
        *phase = Phase::Sending(match *phase {
            Phase::Call(since) => since,
            _ => Instant::now(),
        });
    }
}

impl Body for WatchedBody {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket; what it receives while the connection is idle is the head of a request, and once an answer is sent it is idle.
struct Watched<S> {
    socket: S,
    phases: Phases,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        let mut phase = self.phases.0.lock();
        if let Phase::Idle(_) = *phase {
            *phase = Phase::Head(Instant::now());
        }
        drop(phase);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// hyper flushes the socket when it has nothing more to write to it.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        let mut phase = self.phases.0.lock();
        if let Phase::Sending(_) = *phase {
            *phase = Phase::Idle(Instant::now());
        }
        drop(phase);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
