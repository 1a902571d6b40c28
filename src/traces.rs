//! Traces of sampled calls, exported as OTLP over HTTP.
//!
//! A call, a load and each command to Redis or statement to Postgres is a span. A span is sent to the exporter when its last clone
//! is dropped, so a call that is cancelled has one, too. Calls are found by a number, because a [`CallContext`] is copied often;
//! for a call that is not sampled, and when traces are off, it is zero and nothing else is done.
//!
//! [`CallContext`]: crate::caller::CallContext

mod context;
mod export;
mod otlp;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::caller::SpanKey;
pub use context::Sampler;
pub use context::SpanContext;
pub use export::{Endpoint, ExportOptions};
use otlp::{Link, SpanExt, Status, StatusCode};
pub use otlp::{SpanKind, Value};

/// Spans that wait for the exporter, about 1 kB each. Too high: memory while the collector does not answer. Too low: spans of a burst
/// are dropped.
const QUEUED: usize = 4_096;
/// Bytes of a `tracestate`, as the specification asks for; a longer one is left out.
const LONGEST_STATE: usize = 512;
/// Links of one span, as in the SDKs of OpenTelemetry: a batch may join many loads.
const MAX_LINKS: usize = 128;
/// The longest that a stop waits for the last spans to be exported.
const FLUSH: Duration = Duration::from_secs(2);

/// Where spans go. Off, unless it was started.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Tracer>>);

#[derive(Debug)]
struct Tracer {
    sampler: Sampler,
    queue: mpsc::Sender<otlp::Span>,
    counts: Arc<SpanCounts>,
    /// The sampled calls in flight.
    calls: Mutex<HashMap<SpanKey, Span>>,
    stopping: CancellationToken,
    flushed: Mutex<Option<oneshot::Receiver<()>>>,
}

/// What became of the spans.
#[derive(Debug, Default)]
pub struct SpanCounts {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl SpanCounts {
    #[must_use]
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// The queue was full, or the collector did not take them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A span that has begun, or none.
#[derive(Clone, Debug, Default)]
pub struct Span(Option<Arc<OpenSpan>>);

#[derive(Debug)]
struct OpenSpan {
    tracer: Arc<Tracer>,
    context: SpanContext,
    /// For lines of the log; none for the leaves of the tree.
    log: tracing::Span,
    data: Mutex<otlp::Span>,
}

impl Traces {
    /// Starts the exporter, a thread of its own: neither a slow collector nor a busy runtime delays the other.
    ///
    /// # Errors
    /// One sentence for the operator.
    pub fn start(sampler: Sampler, options: ExportOptions) -> Result<Self, String> {
        let (queue, spans) = mpsc::channel(QUEUED);
        let (done, flushed) = oneshot::channel();
        let (counts, stopping) = (Arc::<SpanCounts>::default(), CancellationToken::new());
        export::start(options, spans, Arc::clone(&counts), stopping.clone(), done)?;
        let (calls, flushed) = (Mutex::default(), Mutex::new(Some(flushed)));
        Ok(Self(Some(Arc::new(Tracer { sampler, queue, counts, calls, stopping, flushed }))))
    }

    /// `None` when traces are off.
    #[must_use]
    pub fn counts(&self) -> Option<&Arc<SpanCounts>> {
        self.0.as_ref().map(|tracer| &tracer.counts)
    }

    /// Exports what is queued, and ends the thread.
    pub async fn stop(&self) {
        let Some(tracer) = &self.0 else { return };
        tracer.stopping.cancel();
        let flushed = tracer.flushed.lock().take();
        if let Some(flushed) = flushed
            && tokio::time::timeout(FLUSH, flushed).await.is_err()
        {
            tracing::warn!(limit = ?FLUSH, "the last spans were not exported in time");
        }
    }

    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the span of a call, if the call is sampled. `parent` and `state` are the headers `traceparent` and `tracestate`.
    #[must_use]
    pub fn begin_call(&self, name: &str, parent: Option<&[u8]>, state: Option<&[u8]>) -> SpanKey {
        let Some(tracer) = &self.0 else { return SpanKey::NONE };
        let parent = parent.and_then(SpanContext::parse);
        let trace = parent.map_or_else(|| fastrand::u128(1..), |(parent, _)| parent.trace);
        if !tracer.sampler.samples(trace, parent.map(|(_, sampled)| sampled)) {
            return SpanKey::NONE;
        }
        let context = SpanContext { trace, span: fastrand::u64(1..) };
        let parent = parent.map(|(parent, _)| parent.span);
        let mut data = otlp::Span::begin(context, parent, name, SpanKind::Server);
        if let (Some(_), Some(state)) = (parent, state.filter(|state| state.len() <= LONGEST_STATE))
        {
            data.trace_state = String::from_utf8_lossy(state).into_owned();
        }
        data.flags |= if parent.is_some() { otlp::PARENT_IS_REMOTE } else { 0 };
        let (trace_id, span_id) = (context.trace_hex(), context.span_hex());
        let log = tracing::error_span!("call", %trace_id, %span_id);
        let key = SpanKey::new(context.span);
        let data = Mutex::new(data);
        let open = OpenSpan { tracer: Arc::clone(tracer), context, log, data };
        tracer.calls.lock().insert(key, Span(Some(Arc::new(open))));
        key
    }

    /// The span of a call in flight.
    #[must_use]
    pub fn call(&self, key: SpanKey) -> Span {
        match &self.0 {
            Some(tracer) if key.is_some() => {
                tracer.calls.lock().get(&key).cloned().unwrap_or_default()
            }
            _ => Span::default(),
        }
    }

    /// The span of a call that has ended. It is sent when it is dropped.
    #[must_use]
    pub fn end_call(&self, key: SpanKey) -> Span {
        let ended = self.0.as_ref().and_then(|tracer| tracer.calls.lock().remove(&key));
        let ended = ended.unwrap_or_default();
        if let Some(open) = &ended.0 {
            // A write of this call may still run, and hold a clone.
            open.data.lock().end_time_unix_nano = otlp::nanos(SystemTime::now());
        }
        ended
    }
}

impl Span {
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    #[must_use]
    pub fn context(&self) -> Option<SpanContext> {
        self.0.as_ref().map(|open| open.context)
    }

    /// A part of what this span is about.
    #[must_use]
    pub fn child(&self, name: &str, kind: SpanKind) -> Self {
        self.begin(name, kind, |_| tracing::Span::none())
    }

    /// What is asked of a server.
    #[must_use]
    pub fn client(&self, system: &str, operation: &str) -> Self {
        if !self.is_some() {
            return Self(None);
        }
        let span = self.child(&format!("{system} {operation}"), SpanKind::Client);
        span.set("db.system.name", system);
        span.set("db.operation.name", operation);
        span
    }

    /// A part of it that logs lines of its own, in another task.
    #[must_use]
    pub fn task(&self, name: &str) -> Self {
        self.begin(name, SpanKind::Internal, |context| {
            let (trace_id, span_id) = (context.trace_hex(), context.span_hex());
            tracing::error_span!("load", %trace_id, %span_id)
        })
    }

    fn begin(
        &self,
        name: &str,
        kind: SpanKind,
        log: impl FnOnce(SpanContext) -> tracing::Span,
    ) -> Self {
        let Some(parent) = &self.0 else { return Self(None) };
        let context = SpanContext { span: fastrand::u64(1..), ..parent.context };
        let data = otlp::Span::begin(context, Some(parent.context.span), name, kind);
        let (tracer, data, log) = (Arc::clone(&parent.tracer), Mutex::new(data), log(context));
        Self(Some(Arc::new(OpenSpan { tracer, context, log, data })))
    }

    pub fn set(&self, key: &str, value: impl Into<Value>) {
        if let Some(open) = &self.0 {
            open.data.lock().set(key, value.into());
        }
    }

    /// The span that did the work that this one waited for.
    pub fn link(&self, to: SpanContext) {
        if let Some(open) = &self.0 {
            let (trace_id, span_id) = (to.trace.to_be_bytes().into(), to.span.to_be_bytes().into());
            let links = &mut open.data.lock().links;
            if links.len() < MAX_LINKS {
                links.push(Link { trace_id, span_id, ..Link::default() });
            }
        }
    }

    /// It failed on the side of this server.
    pub fn fail(&self, message: &str) {
        if let Some(open) = &self.0 {
            let (code, message) = (StatusCode::Error.into(), message.to_owned());
            open.data.lock().status = Some(Status { message, code });
        }
    }

    /// Not for a parent: it was not needed, and is not sent.
    pub fn forget(self) {
        if let Some(open) = &self.0 {
            open.data.lock().trace_id.clear();
        }
    }

    /// The span of the log, which gives its lines the ids.
    #[must_use]
    pub fn log(&self) -> tracing::Span {
        self.0.as_ref().map_or_else(tracing::Span::none, |open| open.log.clone())
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let mut span = std::mem::take(self.data.get_mut());
        if span.trace_id.is_empty() {
            return;
        }
        if span.end_time_unix_nano == 0 {
            span.end_time_unix_nano = otlp::nanos(SystemTime::now());
        }
        if self.tracer.queue.try_send(span).is_err() {
            self.tracer.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
