//! The exporter: a thread with a runtime of its own, which posts batches of spans to a collector.
//!
//! A collector that is slow or down costs nothing but spans: the queue is bounded, and a batch that is not accepted is dropped and
//! counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

use super::SpanCounts;
use super::otlp::{self, Span};

/// Spans in one request.
const BATCH: usize = 512;
/// The longest that a span waits for others. Too high: traces are seen later. Too low: more requests.
const LINGER: Duration = Duration::from_secs(1);
/// After a request failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Bytes of a response that are read.
const LARGEST_RESPONSE: usize = 65_536;

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub tls: bool,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// As in the header `host`.
    pub authority: String,
    pub path: String,
}

#[derive(Clone, Debug)]
pub struct ExportOptions {
    pub endpoint: Endpoint,
    pub headers: HeaderMap,
    /// Of one request.
    pub timeout: Duration,
    /// The attributes of this process.
    pub resource: Vec<(String, String)>,
}

struct Exporter {
    options: ExportOptions,
    resource: Resource,
    tls: Option<TlsConnector>,
    counts: Arc<SpanCounts>,
    /// Spans that were dropped since requests fail; `None`: they do not fail.
    dropped: Option<usize>,
}

/// Starts the thread. It ends after `stopping`, when it has exported what is queued, and then drops `done`.
pub(super) fn start(
    options: ExportOptions,
    spans: mpsc::Receiver<Span>,
    counts: Arc<SpanCounts>,
    stopping: CancellationToken,
    done: oneshot::Sender<()>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("traces cannot be exported: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let tls = options.endpoint.tls.then(connector).transpose()?;
    let resource = otlp::resource(options.resource.clone());
    let mut exporter = Exporter { options, resource, tls, counts, dropped: None };
    let run = move || {
        runtime.block_on(exporter.run(spans, stopping));
        drop(done);
    };
    thread::Builder::new().name("traces".to_owned()).spawn(run).map_err(failed)?;
    Ok(())
}

/// The authorities of the system, or of SSL_CERT_FILE and SSL_CERT_DIR, if these are set.
fn connector() -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("traces cannot be exported over TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Exporter {
    async fn run(&mut self, mut spans: mpsc::Receiver<Span>, stopping: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut is_last = false;
        while !is_last {
            is_last = tokio::select! {
                is_closed = collect(&mut spans, &mut batch) => is_closed,
                () = stopping.cancelled() => true,
            };
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
            if !batch.is_empty() {
                // At the end, too, there may be more than one batch.
                is_last &= batch.len() < BATCH;
                self.export(std::mem::take(&mut batch)).await;
            }
            if self.dropped.is_some() && !is_last {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE_AFTER_FAILURE) => {}
                    () = stopping.cancelled() => {}
                }
            }
        }
    }

    async fn export(&mut self, spans: Vec<Span>) {
        let count = spans.len();
        let resource_spans = vec![otlp::of_resource(self.resource.clone(), spans)];
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let sent = tokio::time::timeout(self.options.timeout, self.send(message.into())).await;
        let sent = sent.unwrap_or_else(|_| Err("no response in time".to_owned()));
        let (rejected, failure) = match sent {
            Ok(0) => (0, None),
            Ok(rejected) => {
                (rejected.min(count), Some(format!("{rejected} spans of a batch were rejected")))
            }
            Err(why) => (count, Some(why)),
        };
        self.counts.exported.fetch_add((count - rejected) as u64, Ordering::Relaxed);
        self.counts.dropped.fetch_add(rejected as u64, Ordering::Relaxed);
        self.log(rejected, failure);
    }

    /// One line when requests begin to fail, and one when they succeed again.
    fn log(&mut self, rejected: usize, failure: Option<String>) {
        let endpoint = &self.options.endpoint.authority;
        match (failure, self.dropped) {
            (None, None) => {}
            (None, Some(spans)) => {
                self.dropped = None;
                tracing::info!(
                    endpoint,
                    spans,
                    "traces are exported again; these spans were dropped"
                );
            }
            (Some(_), Some(spans)) => self.dropped = Some(spans + rejected),
            (Some(why), None) => {
                self.dropped = Some(rejected);
                tracing::warn!(
                    endpoint,
                    why,
                    "traces cannot be exported; spans are dropped until they can (OTEL_EXPORTER_OTLP_ENDPOINT)"
                );
            }
        }
    }

    /// Returns how many spans the collector rejected.
    async fn send(&self, body: Bytes) -> Result<usize, String> {
        let Endpoint { host, port, .. } = &self.options.endpoint;
        let socket = TcpStream::connect((host.as_str(), *port)).await;
        let socket = socket.map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return self.post(socket, body).await };
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let socket = tls.connect(name, socket).await.map_err(|error| error.to_string())?;
        self.post(socket, body).await
    }

    /// A connection for each batch: a batch is rare, and no connection can be stale.
    async fn post(
        &self,
        socket: impl AsyncRead + AsyncWrite + Unpin,
        body: Bytes,
    ) -> Result<usize, String> {
        let handshake = http1::handshake(TokioIo::new(socket)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let request = self.request(body)?;
        let response = async move {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            if !response.status().is_success() {
                return Err(format!("the collector answers with HTTP {}", response.status()));
            }
            let body = Limited::new(response.into_body(), LARGEST_RESPONSE).collect().await;
            Ok(body.map(http_body_util::Collected::to_bytes).unwrap_or_default())
        };
        // The connection ends when the response is read and the sender dropped, or when it fails, and with it the request.
        let (response, _) = futures_util::future::join(response, connection).await;
        let answer = ExportTraceServiceResponse::decode(response?).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or(0))
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let Endpoint { authority, path, .. } = &self.options.endpoint;
        let mut request = Request::post(path.as_str()).body(Full::new(body));
        let request = request.as_mut().map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        let fixed = |value| HeaderValue::from_static(value);
        headers.insert(USER_AGENT, fixed(concat!("hotshelf/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.options.headers.clone());
        headers.insert(CONTENT_TYPE, fixed("application/x-protobuf"));
        headers.insert(CONNECTION, fixed("close"));
        let host = HeaderValue::from_str(authority).map_err(|error| error.to_string())?;
        headers.insert(HOST, host);
        Ok(std::mem::take(request))
    }
}

/// Waits for a batch: full, or after [`LINGER`]. Returns whether no more spans will come. Can be cancelled without losing any.
async fn collect(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) -> bool {
    if spans.recv_many(batch, BATCH).await == 0 {
        return true;
    }
    let full = async {
        while batch.len() < BATCH {
            if spans.recv_many(batch, BATCH - batch.len()).await == 0 {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(LINGER, full).await.unwrap_or(false)
}
