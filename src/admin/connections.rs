//! The connections of the admin port: bounded, each for one request, or for gRPC calls for a while. At the bound the oldest
//! connection is closed for a new one, so that idle connections cannot keep out a health probe, which sends its request at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::AdminPort;
use super::grpc::begins_http2;

/// Open connections. Too high: file descriptors and memory. Too low: a flood closes the connection of a slow scraper.
const MAX_CONNECTIONS: usize = 64;
/// For the head of the request to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the whole connection, so that a peer that does not read its response cannot keep it open.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// The connections being served. The accept loop polls them, and they are closed when it ends.
#[derive(Default)]
pub(super) struct AdminConnections {
    serving: FuturesUnordered<BoxFuture<'static, u64>>,
    /// Closes a connection early; keyed by the number of the connection, so the oldest is first.
    displaced: BTreeMap<u64, Arc<Notify>>,
    accepted: u64,
}

impl AdminConnections {
    /// Serves one more connection; at the bound it closes the oldest first.
    pub(super) async fn serve(
        &mut self,
        port: Arc<AdminPort>,
        socket: TcpStream,
        peer: SocketAddr,
    ) {
        while self.serving.len() >= MAX_CONNECTIONS {
            if let Some((_, oldest)) = self.displaced.pop_first() {
                oldest.notify_one();
            }
            self.ended().await;
        }
        self.accepted += 1;
        let (number, displaced) = (self.accepted, Arc::new(Notify::new()));
        self.displaced.insert(number, Arc::clone(&displaced));
        self.serving.push(Box::pin(async move {
            tokio::select! {
                () = displaced.notified() => {}
                _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(port, socket, peer)) => {}
            }
            number
        }));
    }

    /// Polls the connections until one has ended. Returns `None` at once when there is none.
    pub(super) async fn ended(&mut self) -> Option<()> {
        let number = self.serving.next().await?;
        self.displaced.remove(&number);
        Some(())
    }
}

async fn connection(port: Arc<AdminPort>, socket: TcpStream, peer: SocketAddr) {
    if let Some(serve) = port.grpc.get() {
        match tokio::time::timeout(HEAD_TIMEOUT, begins_http2(&socket)).await {
            Ok(true) => return serve(socket, peer).await,
            Ok(false) => {}
            Err(_) => return,
        }
    }
    let service = service_fn(move |request| {
        let port = Arc::clone(&port);
        async move { port.answer(request).await }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin port failed and was closed");
    }
}
