//! The least that a gRPC server on hyper can do: it reads every request to its end, and sends the same reply.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::Failure;

/// Serves `message` as the reply to every call.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, message: &[u8]) -> Result<(), Failure> {
    let frame = framed(message);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let frame = frame.clone();
        let service = service_fn(move |request| reply(request, frame.clone()));
        let calls = AcceptedCalls::default();
        let connection = http2::Builder::new(calls.clone())
            .max_concurrent_streams(1_024)
            .serve_connection(Coalescing::new(socket), service);
        tokio::spawn(drive(connection, calls));
    }
}

/// Like hotshelf's edge: accepts every call that has arrived, answers all of them, and then writes the responses together.
async fn drive(connection: impl Future, calls: AcceptedCalls) {
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        loop {
            let polled = connection.as_mut().poll(cx).map(drop);
            if polled.is_ready() || !calls.poll_each_once() {
                return polled;
            }
        }
    })
    .await;
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

async fn reply(
    mut request: Request<Incoming>,
    frame: Bytes,
) -> Result<Response<Reply>, Infallible> {
    let body = request.body_mut();
    while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {}
    let mut response = Response::new(Reply::Message(frame));
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// One message and the trailers.
enum Reply {
    Message(Bytes),
    Trailers,
    End,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (frame, next) = match std::mem::replace(&mut *self, Self::End) {
            Self::Message(bytes) => (Frame::data(bytes), Self::Trailers),
            Self::Trailers => (Frame::trailers(ok()), Self::End),
            Self::End => return Poll::Ready(None),
        };
        *self = next;
        Poll::Ready(Some(Ok(frame)))
    }
}

fn ok() -> HeaderMap {
    let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
    HeaderMap::from_iter([status])
}

/// Calls that were accepted since the connection was last polled.
#[derive(Clone, Default)]
struct AcceptedCalls(Arc<Mutex<Vec<Call>>>);

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for AcceptedCalls {
    fn execute(&self, call: F) {
        self.0.lock().expect("no holder of the lock panics").push(Box::pin(call));
    }
}

impl AcceptedCalls {
    /// Polls each call once, and spawns those that are pending. Returns whether there was any call.
    fn poll_each_once(&self) -> bool {
        let calls = std::mem::take(&mut *self.0.lock().expect("no holder of the lock panics"));
        let any = !calls.is_empty();
        for mut call in calls {
            if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                drop(tokio::spawn(call));
            }
        }
        any
    }
}

/// Like hotshelf's edge. h2 calls `is_write_vectored` when the connection is made: `false` lets it copy small frames into one
/// buffer. It calls it again for each write: `true` then saves the copy of larger frames.
struct Coalescing {
    socket: TokioIo<TcpStream>,
    made: AtomicBool,
}

impl Coalescing {
    fn new(socket: TcpStream) -> Self {
        Self { socket: TokioIo::new(socket), made: AtomicBool::new(false) }
    }
}

impl Read for Coalescing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl Write for Coalescing {
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
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.made.swap(true, Ordering::Relaxed)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
