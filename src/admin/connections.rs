//! The connections of the admin port: bounded, each for one request. When there are as many as there may be, the oldest
//! gives way to a new one: connections that say nothing cannot keep out a probe, which sends its request at once.

use std::collections::BTreeMap;
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

use super::Port;

/// Open connections. Too high: file descriptors and memory. Too low: a slow scraper gives way under a flood.
const MAX_CONNECTIONS: usize = 64;
/// For the request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the whole connection: a peer that does not read its answer is gone then.
const LONGEST: Duration = Duration::from_secs(30);
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// The connections that are served. They are polled with the loop that accepts them, and end with it.
#[derive(Default)]
pub(super) struct AdminConnections {
    serving: FuturesUnordered<BoxFuture<'static, u64>>,
    /// By the order in which they came: what ends each early.
    displaced: BTreeMap<u64, Arc<Notify>>,
    accepted: u64,
}

impl AdminConnections {
    /// Serves one more. When there are too many, the oldest is closed first.
    pub(super) async fn serve(&mut self, port: Arc<Port>, socket: TcpStream) {
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
                _ = tokio::time::timeout(LONGEST, connection(port, socket)) => {}
            }
            number
        }));
    }

    /// Serves until one has ended; at once when there is none.
    pub(super) async fn ended(&mut self) -> Option<()> {
        let number = self.serving.next().await?;
        self.displaced.remove(&number);
        Some(())
    }
}

async fn connection(port: Arc<Port>, socket: TcpStream) {
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
        tracing::debug!(%error, "a connection to the admin port broke");
    }
}
