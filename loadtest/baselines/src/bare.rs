//! The least that a gRPC server can do on hyper: every request is read to its end, and gets the same reply.

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
        let answering = Answering::default();
        let connection = http2::Builder::new(answering.clone())
            .max_concurrent_streams(1_024)
            .serve_connection(Coalescing::new(socket), service);
        tokio::spawn(served(connection, answering));
    }
}

/// As in hotshelf's edge: accepts every call that has come, answers them all, and then writes the answers together.
async fn served(connection: impl Future, answering: Answering) {
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        loop {
            let polled = connection.as_mut().poll(cx).map(drop);
            if polled.is_ready() || !answering.poll_each_once() {
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

/// The calls that were accepted since the connection was polled.
#[derive(Clone, Default)]
struct Answering(Arc<Mutex<Vec<Call>>>);

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Answering {
    fn execute(&self, call: F) {
        self.0.lock().expect("nothing panics").push(Box::pin(call));
    }
}

impl Answering {
    /// What has to wait gets a task of its own. Returns whether there was any call.
    fn poll_each_once(&self) -> bool {
        let calls = std::mem::take(&mut *self.0.lock().expect("nothing panics"));
        let any = !calls.is_empty();
        for mut call in calls {
            if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                drop(tokio::spawn(call));
            }
        }
        any
    }
}

/// As in hotshelf's edge: h2 asks when the connection is made, and copies small frames together when the answer
/// is no; it asks again when it writes, and then yes spares it a copy of what is larger.
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
