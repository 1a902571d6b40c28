//! A load generator in which each call may ask for another product: h2load sends only one body.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

use crate::backends;
use crate::cores::Cores;
use crate::h2load::Shape;
use crate::load::Outcome;
use crate::stats::{percentile, sorted};

/// Calls of GetProduct.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) port: u16,
    /// The products in the order of the calls, repeated from the start.
    pub(crate) ids: Arc<[i64]>,
    pub(crate) shape: Shape,
    /// Of the load generator.
    pub(crate) cores: Cores,
    /// The next index into `ids`. It outlives a run, so that the next run reads products that were not read yet.
    pub(crate) next: Arc<AtomicU64>,
}

impl Keys {
    /// In a thread and a runtime of its own: like h2load, the generator uses one core.
    pub(crate) async fn run(&self, requests: u64) -> Result<Outcome> {
        let keys = self.clone();
        let (sender, outcome) = oneshot::channel();
        thread::spawn(move || sender.send(keys.run_here(requests)));
        outcome.await.context("the load generator panicked")?
    }

    fn run_here(self, requests: u64) -> Result<Outcome> {
        self.cores.pin_thread()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, self.generate(requests))
    }

    async fn generate(self, requests: u64) -> Result<Outcome> {
        let first = self.next.fetch_add(requests, Ordering::Relaxed);
        let queue = Arc::new(Queue { next: AtomicU64::new(first), end: first + requests });
        let mut callers = JoinSet::new();
        let began = Instant::now();
        for _ in 0..self.shape.connections {
            let socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
            socket.set_nodelay(true)?;
            let (client, connection) = h2::client::handshake(socket).await?;
            // The connection ends when the last client handle is dropped.
            tokio::task::spawn_local(async move { drop(connection.await) });
            for _ in 0..self.shape.streams {
                let caller =
                    call_on(client.clone(), self.port, Arc::clone(&self.ids), Arc::clone(&queue));
                callers.spawn_local(caller);
            }
        }
        let mut times = Vec::new();
        while let Some(called) = callers.join_next().await {
            times.extend(called??);
        }
        let (seconds, times) = (began.elapsed().as_secs_f64(), sorted(&times));
        Ok(Outcome { seconds, p50_us: percentile(&times, 0.5), p99_us: percentile(&times, 0.99) })
    }
}

#[derive(Debug)]
struct Queue {
    next: AtomicU64,
    end: u64,
}

async fn call_on(
    client: SendRequest<Bytes>,
    port: u16,
    ids: Arc<[i64]>,
    queue: Arc<Queue>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    loop {
        let number = queue.next.fetch_add(1, Ordering::Relaxed);
        if number >= queue.end {
            return Ok(times);
        }
        let body = backends::framed(&backends::get(ids[number as usize % ids.len()]));
        let began = Instant::now();
        call(&client, port, body).await?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
}

async fn call(client: &SendRequest<Bytes>, port: u16, body: Bytes) -> Result<()> {
    let request = Request::post(format!("http://127.0.0.1:{port}{}", backends::GET_PRODUCT))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut client = client.clone().ready().await?;
    let (response, mut stream) = client.send_request(request, false)?;
    stream.send_data(body, true)?;
    let response = response.await?;
    // A refusal without a message has its status in the headers.
    let headers = response.headers().clone();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = poll_fn(|cx| body.poll_trailers(cx)).await?.unwrap_or(headers);
    check(&trailers)
}

fn check(trailers: &HeaderMap) -> Result<()> {
    let status = trailers.get("grpc-status").context("a reply without a status")?;
    ensure!(status == "0", "a call failed: {trailers:?}");
    Ok(())
}
