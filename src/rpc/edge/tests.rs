//! A connection over a pipe, whose writes are counted.

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
use crate::caller::Caller;
use crate::rpc::call::{Call, CallLayer};
use crate::rpc::connection::ClientConnection;
use crate::rpc::local;
use crate::rpc::reply::{Reply, headers};
use crate::rpc::shed::{CallAdmission, CallPlaces};

/// Counts what would be system calls.
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

/// Takes no bytes.
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
    service: impl Answers,
    drain: Drain,
    metrics: Arc<Metrics>,
) {
    serve(socket, options, service, drain, &metrics).await;
}

/// Answers with `bytes` bytes, at once or "late", unless it is asked to "panic".
fn answers(bytes: usize) -> impl Answers {
    let metrics = Metrics::new();
    let address = ([127, 0, 0, 1], 1).into();
    let connection = ClientConnection::new(address, Caller::BACKGROUND, Refusals::new(&metrics));
    let admission = CallAdmission::new(&CallPlaces::new(1_000, &metrics), &connection);
    let layer = CallLayer { metrics: local(&metrics), longest: OPTIONS.max_call_time };
    ServiceBuilder::new().layer(layer).service_fn(move |call: Call<Incoming>| {
        let place = admission.take().expect("free");
        async move {
            let asked = call.request.uri().query().unwrap_or_default().to_owned();
            if asked.contains("late") {
                pause_often().await;
            }
            assert!(!asked.contains("panic"), "as asked");
            Ok(Reply::message(Bytes::from(vec![7; bytes]), headers("test"), place))
        }
    })
}

/// Waits as often as no turn of a connection goes on by itself, and lets nobody but itself end that.
async fn pause_often() {
    let mut left = 1_000;
    poll_fn(|cx| {
        left -= 1;
        cx.waker().wake_by_ref();
        if left > 0 { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

const OPTIONS: EdgeOptions = EdgeOptions {
    max_connections: 1,
    max_streams: 100,
    keepalive_interval: Duration::from_secs(60),
    keepalive_timeout: Duration::from_secs(60),
    max_call_time: Duration::from_secs(60),
    max_age: None,
    age_grace: Duration::from_secs(60),
    max_idle: None,
};

/// So wide that it takes whatever is written.
const WIDE: usize = 1 << 20;

/// Calls each of `paths` at once over a pipe that is so wide; how many bytes each answer had, and the writes that all of
/// them took.
async fn call(width: usize, bytes: usize, paths: &[&str]) -> (Vec<Option<usize>>, usize) {
    let (pipe, client) = tokio::io::duplex(width);
    let writes = Arc::new(AtomicUsize::new(0));
    let socket = Counting { pipe, writes: Arc::clone(&writes) };
    let drain = Drain::default();
    drop(drain.spawn(served(socket, OPTIONS, answers(bytes), drain.clone(), Metrics::new())));
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
    one("/").await.expect("an answer");
    let before = writes.load(Ordering::Relaxed);
    let answers = join_all(paths.iter().map(|path| one(path))).await;
    (answers, writes.load(Ordering::Relaxed) - before)
}

#[tokio::test]
async fn small_answers_that_are_ready_together_leave_together() {
    let (answers, writes) = call(WIDE, 300, &["/"; 32]).await;
    assert_eq!(answers, [Some(300); 32]);
    assert!(writes <= 8, "{writes} writes for 32 answers");
}

#[tokio::test]
async fn large_answers_that_are_ready_together_leave_together() {
    let (answers, writes) = call(WIDE, 40_000, &["/"; 8]).await;
    assert_eq!(answers, [Some(40_000); 8]);
    assert!(writes <= 12, "{writes} writes for 24 frames");
}

#[tokio::test]
async fn large_answers_arrive_whole_however_little_the_socket_takes() {
    for width in [1_000, WIDE] {
        let (answers, _) = call(width, 100_000, &["/"; 8]).await;
        assert_eq!(answers, [Some(100_000); 8]);
    }
}

#[tokio::test]
async fn a_connection_that_cannot_be_written_to_ends() {
    // Its peer neither closes it nor says anything more.
    let (socket, mut client) = tokio::io::duplex(WIDE);
    let drain = Drain::default();
    let served =
        drain.spawn(served(Unwritable(socket), OPTIONS, answers(1), drain.clone(), Metrics::new()));
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("read");
    let ended = tokio::time::timeout(Duration::from_secs(30), served).await;
    assert!(ended.is_ok(), "it waits for ever to read");
}

/// One that waits in its connection's task, and one that waits in a task of its own.
const METHODS: [&str; 2] =
    ["/hotshelf.v1.ProductService/GetProduct", "/hotshelf.v1.ProductService/BatchGetProducts"];

#[tokio::test]
async fn calls_that_wait_are_answered() {
    for method in METHODS {
        let (answers, _) = call(WIDE, 300, &[format!("{method}?late").as_str(); 32]).await;
        assert_eq!(answers, [Some(300); 32], "{method}");
    }
}

#[tokio::test]
async fn a_call_that_panics_ends_alone() {
    for method in METHODS {
        for panics in ["panic", "late-panic"] {
            let [late, panics] = ["late", panics].map(|asked| format!("{method}?{asked}"));
            let (answers, _) = call(WIDE, 300, &[method, &late, &panics, &late]).await;
            assert_eq!(answers, [Some(300), Some(300), None, Some(300)], "{panics}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_pinged_and_given_up() {
    const A_WHILE: Duration = Duration::from_millis(5);
    let options =
        EdgeOptions { keepalive_interval: A_WHILE, keepalive_timeout: A_WHILE, ..OPTIONS };
    let (socket, mut client) = tokio::io::duplex(WIDE);
    let drain = Drain::default();
    let served = drain.spawn(served(socket, options, answers(1), drain.clone(), Metrics::new()));
    // The preface, and settings of no bytes.
    let begins = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]];
    client.write_all(&begins.concat()).await.expect("it listens");
    for _ in 0..10 {
        // A window that grows by one: a sign of life, so the ping is put off.
        let sign = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        // On a busy machine it has given up already.
        let _ = client.write_all(&sign).await;
        tokio::time::sleep(A_WHILE / 5).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), served).await;
    assert!(ended.is_ok(), "it waits for ever");
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.expect("what it said");
    assert_eq!(frames(&said).filter(|kind| *kind == PING).count(), 1);
}

const PING: u8 = 6;

/// The types of some frames (RFC 9113, 4.1).
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<9>()?;
        let [_, high, low, kind, ..] = head;
        bytes = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
        Some(*kind)
    })
}
