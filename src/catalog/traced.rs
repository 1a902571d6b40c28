//! Spans of traced calls: the load that a call has started or joined, and what it asks of Redis and Postgres.

use std::sync::Arc;
use std::time::Duration;

use super::Catalog;
use super::load::Load;
use super::singleflight::Waiter;
use crate::caller::CallContext;
use crate::traces::Span;

impl Catalog {
    /// The span of the loads that a call starts.
    pub(super) fn begin_load_span(&self, call: CallContext) -> Span {
        self.metrics.traces.call(call.span).task("load")
    }

    /// Starts the loads that a call leads, if there are any.
    pub(super) fn start_traced(self: &Arc<Self>, call: CallContext, span: Span, loads: Vec<Load>) {
        if loads.is_empty() {
            return span.forget();
        }
        self.metrics.traces.call(call.span).set("hotshelf.load", "led");
        // Every load has a clone.
        drop(span);
        self.start_loads(loads);
    }

    /// A call has joined a load in flight.
    pub(super) fn joined(&self, call: CallContext, waiter: Option<&Waiter>) {
        self.metrics.singleflight_joined.inc(());
        if !call.span.is_some() {
            return;
        }
        let span = self.metrics.traces.call(call.span);
        span.set("hotshelf.load", "joined");
        if let Some(load) = waiter.and_then(Waiter::trace) {
            span.link(load);
        }
    }

    /// Records how long loads have waited, in their spans and in those of the calls that started them.
    pub(super) fn record_wait(&self, loads: &[Load], name: &str, waited: Duration) {
        for load in loads.iter().filter(|load| load.span.is_some()) {
            let milliseconds = waited.as_secs_f64() * 1e3;
            load.span.set(name, milliseconds);
            self.metrics.traces.call(load.call).set(name, milliseconds);
        }
    }
}

/// A span for each traced call that has a load in a shared command or statement. They end when they are dropped.
pub(super) fn client_spans(loads: &[Load], system: &str, operation: &str) -> Vec<Span> {
    let mut parents: Vec<&Span> = loads.iter().map(|load| &load.span).collect();
    parents.retain(|span| span.is_some());
    parents.dedup_by_key(|span| span.context());
    parents.into_iter().map(|span| span.client(system, operation)).collect()
}
