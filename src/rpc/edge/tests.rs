//! Tests of one connection over an in-memory pipe.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::handshake;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};
use tower::ServiceBuilder;

use super::*;
use crate::rpc::call::{Call, CallLayer};
use crate::rpc::per_connection;
use crate::rpc::reply::{Reply, headers};
use crate::rpc::shed::{CallAdmission, CallPlaces};

/// Counts writes, each of which would be a system call.
struct Counting {
    pipe: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// A socket that fails every write.
struct Unwritable(DuplexStream);

impl AsyncRead for Unwritable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unwritable {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn served(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    options: EdgeOptions,
    service: impl CallHandler,
    drain: Drain,
    metrics: Arc<Metrics>,
) {
    serve(socket, options, service, drain, &metrics).await;
}

/// Responds with `bytes` bytes. A path with "late" makes it wait first; one with "panic" makes it panic.
fn handler(bytes: usize) -> impl CallHandler {
    let metrics = Metrics::new();
    let admission = CallAdmission::new(&CallPlaces::new(1_000, &metrics));
    let layer =
        CallLayer { metrics: per_connection(&metrics), max_call_time: OPTIONS.max_call_time };
    ServiceBuilder::new().layer(layer).service_fn(move |call: Call<Incoming>| {
        let place = admission.take().expect("free");
        async move {
            let query = call.request.uri().query().unwrap_or_default().to_owned();
            if query.contains("late") {
                wait_many_turns().await;
            }
            assert!(!query.contains("panic"), "injected");
            Ok(Reply::message(Bytes::from(vec![7; bytes]), headers("test"), place))
        }
    })
}

/// Returns Pending, and wakes itself, more often than the driver polls in one go ([`streams`]: `MAX_TURNS`).
async fn wait_many_turns() {
    let mut left = 1_000;
    poll_fn(|cx| {
        left -= 1;
        cx.waker().wake_by_ref();
        if left > 0 { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

const OPTIONS: EdgeOptions = EdgeOptions {
    http1: false,
    max_connections: 1,
    max_streams: 100,
    keepalive_interval: Duration::from_secs(60),
    keepalive_timeout: Duration::from_secs(60),
    max_call_time: Duration::from_secs(60),
    max_age: None,
    age_grace: Duration::from_secs(60),
    max_idle: None,
};

/// Bytes that a pipe takes before a write has to wait: more than any test here writes.
const WIDE: usize = 1 << 20;

/// Calls all `paths` at once over a pipe of `width` bytes. Returns the size of each response, and the number of writes that all
/// of them took.
async fn call(width: usize, bytes: usize, paths: &[&str]) -> (Vec<Option<usize>>, usize) {
    let (pipe, client) = tokio::io::duplex(width);
    let writes = Arc::new(AtomicUsize::new(0));
    let socket = Counting { pipe, writes: Arc::clone(&writes) };
    let drain = Drain::default();
    drop(drain.spawn(served(socket, OPTIONS, handler(bytes), drain.clone(), Metrics::new())));
    let (sender, connection) =
        handshake(TokioExecutor::new(), TokioIo::new(client)).await.expect("a connection");
    drop(drain.spawn(connection));
    let one = |path: &str| {
        let mut sender = sender.clone();
        let request = Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .body(Empty::<Bytes>::new());
        async move {
            let response = sender.send_request(request.expect("a request")).await.ok()?;
            Some(response.into_body().collect().await.ok()?.to_bytes().len())
        }
    };
    one("/").await.expect("a response");
    let before = writes.load(Ordering::Relaxed);
    let responses = join_all(paths.iter().map(|path| one(path))).await;
    (responses, writes.load(Ordering::Relaxed) - before)
}

#[tokio::test]
async fn small_responses_of_one_turn_share_writes() {
    let (responses, writes) = call(WIDE, 300, &["/"; 32]).await;
    assert_eq!(responses, [Some(300); 32]);
    assert!(writes <= 8, "{writes} writes for 32 responses");
}

#[tokio::test]
async fn large_responses_of_one_turn_share_writes() {
    let (responses, writes) = call(WIDE, 40_000, &["/"; 8]).await;
    assert_eq!(responses, [Some(40_000); 8]);
    assert!(writes <= 12, "{writes} writes for 24 frames");
}

#[tokio::test]
async fn large_responses_are_complete_over_a_narrow_pipe() {
    for width in [1_000, WIDE] {
        let (responses, _) = call(width, 100_000, &["/"; 8]).await;
        assert_eq!(responses, [Some(100_000); 8]);
    }
}

#[tokio::test]
async fn a_connection_whose_writes_fail_is_closed() {
    // The peer neither closes the connection nor sends anything more.
    let (socket, mut client) = tokio::io::duplex(WIDE);
    let drain = Drain::default();
    let served =
        drain.spawn(served(Unwritable(socket), OPTIONS, handler(1), drain.clone(), Metrics::new()));
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("read");
    let ended = tokio::time::timeout(Duration::from_secs(30), served).await;
    assert!(ended.is_ok(), "it waits for a read");
}

/// One that waits in the task of its connection, and one that waits in a task of its own.
const METHODS: [&str; 2] =
    ["/hotshelf.v1.ProductService/GetProduct", "/hotshelf.v1.ProductService/BatchGetProducts"];

#[tokio::test]
async fn waiting_calls_are_answered() {
    for method in METHODS {
        let (responses, _) = call(WIDE, 300, &[format!("{method}?late").as_str(); 32]).await;
        assert_eq!(responses, [Some(300); 32], "{method}");
    }
}

#[tokio::test]
async fn a_panic_ends_only_its_own_call() {
    for method in METHODS {
        for panics in ["panic", "late-panic"] {
            let [late, panics] = ["late", panics].map(|query| format!("{method}?{query}"));
            let (responses, _) = call(WIDE, 300, &[method, &late, &panics, &late]).await;
            assert_eq!(responses, [Some(300), Some(300), None, Some(300)], "{panics}");
        }
    }
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_disconnected() {
    const A_WHILE: Duration = Duration::from_millis(5);
    let options =
        EdgeOptions { keepalive_interval: A_WHILE, keepalive_timeout: A_WHILE, ..OPTIONS };
    let (socket, mut client) = tokio::io::duplex(WIDE);
    let drain = Drain::default();
    let served = drain.spawn(served(socket, options, handler(1), drain.clone(), Metrics::new()));
    // The preface, and an empty SETTINGS frame.
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]];
    client.write_all(&preface.concat()).await.expect("the server reads");
    for _ in 0..10 {
        // A WINDOW_UPDATE by one byte: any frame postpones the ping.
        let window_update = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        // Fails on a busy machine, where the server may have disconnected already.
        let _ = client.write_all(&window_update).await;
        tokio::time::sleep(A_WHILE / 5).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), served).await;
    assert!(ended.is_ok(), "it is not disconnected");
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.expect("the frames of the server");
    assert_eq!(frames(&sent).filter(|kind| *kind == PING).count(), 1);
}

const PING: u8 = 6;

/// The types of the frames in `bytes` (RFC 9113, 4.1).
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<9>()?;
        let [_, high, low, kind, ..] = head;
        bytes = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
        Some(*kind)
    })
}
