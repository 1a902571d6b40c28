//! Every instrument of an instance, its help next to its name.
//!
//! The hot path adds to sharded counters (`sharded.rs`), which takes about 2 ns; through an OpenTelemetry counter it takes 133 to
//! 298 ns. OpenTelemetry's observable instruments read the sharded counters at a scrape.

mod counters;
mod gauges;
mod histogram;
mod labels;
#[cfg(target_os = "linux")]
mod process;
mod resource;
mod sharded;
mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::{Key, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder, Registry, TextEncoder};

pub use counters::Counters;
use counters::key_values;
pub use histogram::Histogram;
pub use labels::{
    AuthRefusal, BackgroundTask, BreakerMove, BreakerState, ConnectionEnd, FillRejection, HeardBy,
    LeaseOutcome, Lookup, Method, PostgresOperation, PostgresShare, RedisCapability,
    RedisDependency, RedisOperation, RedisRefusal, RefreshRequest, ServedBy, ShadowCheck, Shed,
    Staleness, WebProtocol,
};
use labels::{CODES, LabelSet, UNKNOWN_CODE};
use resource::readable;
use sharded::Cells;
pub(crate) use sharded::thread_number;

use crate::traces::{SpanCounts, Traces};

/// The instruments of one instance. [`Metrics::new`] says what each of them counts.
pub struct Metrics {
    pub lookups: Counters<Lookup>,
    pub reads: Counters<ServedBy>,
    pub leases: Counters<LeaseOutcome>,
    pub fills_rejected: Counters<FillRejection>,
    pub refresh_requests: Counters<RefreshRequest>,
    pub redis_errors: Counters<RedisOperation>,
    pub breaker_moves: Counters<BreakerMove>,
    pub shed: Counters<Shed>,
    pub connections_closed: Counters<ConnectionEnd>,
    pub auth_refused: Counters<AuthRefusal>,
    pub web_requests: Counters<WebProtocol>,
    pub shadow_checks: Counters<ShadowCheck>,
    pub postgres_loads: Counters<()>,
    pub singleflight_joined: Counters<()>,
    pub redis_corrupt: Counters<()>,
    pub redis_replication_changes: Counters<()>,
    pub served_stale: Counters<()>,
    pub refreshed: Counters<()>,
    pub relayed: Counters<()>,
    pub relay_removed: Counters<()>,
    pub relay_set_aside: Counters<()>,
    pub feed_gaps: Counters<()>,
    pub epochs_raised: Counters<()>,
    pub redis_impossible: Counters<()>,
    pub task_restarts: Counters<BackgroundTask>,
    pub log_lines_dropped: Counters<()>,
    pub staleness: Histogram<Staleness>,
    /// Here, because every part that has a span to add has the metrics.
    pub traces: Traces,
    pub postgres_seconds: Histogram<PostgresOperation>,
    pub redis_seconds: Histogram<RedisOperation>,
    started: Counters<Method>,
    handled: Arc<Cells>,
    durations: Histogram<Method>,
    registry: Registry,
    meter: Meter,
    // Dropping the provider would stop the collection.
    _provider: SdkMeterProvider,
}

impl Metrics {
    /// Instruments in a registry of their own, all at zero. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` become labels of
    /// `target_info`.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_traces(Traces::default())
    }

    #[must_use]
    pub fn with_traces(traces: Traces) -> Arc<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .expect("the registry is new, so no name collides");
        let provider = SdkMeterProvider::builder()
            .with_reader(exporter)
            .with_resource(readable(&resource()))
            .build();
        let meter = provider.meter("hotshelf");
        register_process(&registry);
        spans(&meter, traces.counts());
        Arc::new(Self {
            lookups: Counters::new(
                &meter,
                "hotshelf.cache.lookups",
                "Lookups in a cache tier, by result.",
            ),
            reads: Counters::new(
                &meter,
                "hotshelf.reads",
                "Products read, by the tier that answered.",
            ),
            leases: Counters::new(
                &meter,
                "hotshelf.lease",
                "Leases requested or held, by outcome.",
            ),
            fills_rejected: Counters::new(
                &meter,
                "hotshelf.fills.rejected",
                "Loaded entries that a tier did not keep, by reason.",
            ),
            refresh_requests: Counters::new(
                &meter,
                "hotshelf.refresh.requests",
                "Refreshes requested by reads of entries past their soft TTL.",
            ),
            redis_errors: Counters::new(
                &meter,
                "hotshelf.redis.errors",
                "Commands that failed in Redis or got no response in time.",
            ),
            breaker_moves: Counters::new(
                &meter,
                "hotshelf.redis.breaker.moves",
                "Changes of state of the circuit breakers of Redis.",
            ),
            shed: Counters::new(
                &meter,
                "hotshelf.shed",
                "Calls and connections refused because a limit was reached, by limit.",
            ),
            connections_closed: Counters::new(
                &meter,
                "hotshelf.connections.closed",
                "gRPC connections that this instance closed, by reason.",
            ),
            auth_refused: Counters::new(
                &meter,
                "hotshelf.auth.refused",
                "Handshakes and calls refused by authentication or scope, by reason.",
            ),
            web_requests: Counters::new(
                &meter,
                "hotshelf.web.requests",
                "Requests in other protocols than gRPC, by protocol.",
            ),
            shadow_checks: Counters::new(
                &meter,
                "hotshelf.shadow.checks",
                "Products in memory that were compared with PostgreSQL, by result.",
            ),
            postgres_loads: Counters::new(
                &meter,
                "hotshelf.postgres.loads",
                "Products that loads requested from PostgreSQL; a batch counts each of its products.",
            ),
            singleflight_joined: Counters::new(
                &meter,
                "hotshelf.singleflight.joined",
                "Reads that joined a load already in flight.",
            ),
            redis_corrupt: Counters::new(
                &meter,
                "hotshelf.redis.corrupt",
                "Values in Redis that are no valid entry; each counts as a miss.",
            ),
            redis_replication_changes: Counters::new(
                &meter,
                "hotshelf.redis.replication.changes",
                "Redis servers found with another replication id: restarts and failovers.",
            ),
            served_stale: Counters::new(
                &meter,
                "hotshelf.served.stale",
                "Stale answers, served because PostgreSQL was unreachable or had no budget left.",
            ),
            refreshed: Counters::new(
                &meter,
                "hotshelf.refreshed",
                "Hot products that the refresh task loaded ahead of their soft TTL.",
            ),
            relayed: Counters::new(
                &meter,
                "hotshelf.relayed",
                "Changes that this instance's relay applied to Redis.",
            ),
            relay_removed: Counters::new(
                &meter,
                "hotshelf.relay.removed",
                "Changes among hotshelf_relayed_total that came from bulk jobs; their entries were removed from Redis.",
            ),
            relay_set_aside: Counters::new(
                &meter,
                "hotshelf.relay.set.aside",
                "Changed products that the API cannot express; the relay removed their entries from Redis.",
            ),
            feed_gaps: Counters::new(
                &meter,
                "hotshelf.change.feed.gaps",
                "Times that this instance may have missed changes; what memory holds is then loaded again.",
            ),
            epochs_raised: Counters::new(
                &meter,
                "hotshelf.epochs.raised",
                "Times that this instance raised the epoch because PostgreSQL had lost commits; all caches then start empty.",
            ),
            redis_impossible: Counters::new(
                &meter,
                "hotshelf.redis.impossible",
                "Entries removed from Redis because PostgreSQL has never assigned their version.",
            ),
            task_restarts: Counters::new(
                &meter,
                "hotshelf.background.task.restarts",
                "Restarts of background tasks that ended by an error or a panic.",
            ),
            log_lines_dropped: Counters::new(
                &meter,
                "hotshelf.log.lines.dropped",
                "Log lines dropped because the queue of the log writer was full.",
            ),
            staleness: Histogram::new(
                &registry,
                "hotshelf_staleness_seconds",
                "Time from the commit of a change until this instance could serve no older version of the product from the tier, in seconds.",
            ),
            postgres_seconds: Histogram::new(
                &registry,
                "hotshelf_postgres_seconds",
                "Time from sending a statement to PostgreSQL until its response, in seconds.",
            ),
            redis_seconds: Histogram::new(
                &registry,
                "hotshelf_redis_seconds",
                "Time from sending a command to Redis until its response, in seconds.",
            ),
            started: Counters::new(&meter, "grpc.server.started", "Calls started."),
            handled: handled(&meter),
            durations: Histogram::new(
                &registry,
                "grpc_server_handling_seconds",
                "Time from the start of a call until its last byte was handed to the connection, in seconds.",
            ),
            traces,
            registry,
            meter,
            _provider: provider,
        })
    }

    pub fn call_started(&self, method: Method) {
        self.started.inc(method);
    }

    /// Counts a call that ended with the gRPC status `code`; a code outside the specification counts as UNKNOWN, as in gRPC clients.
    pub fn call_handled(&self, method: Method, code: u8, took: Duration) {
        let code = match usize::from(code) {
            known if known < CODES.len() => known,
            _ => UNKNOWN_CODE,
        };
        self.handled.add(method.index() * CODES.len() + code, 1);
        self.durations.record(method, took);
    }

    /// All instruments in the Prometheus text format.
    ///
    /// # Errors
    /// When an instrument cannot be encoded, which is a defect of this module.
    pub fn exposition(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The attributes of this process (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`).
#[must_use]
pub fn process_attributes() -> Vec<(String, String)> {
    let text = |(key, value): (&Key, &Value)| (key.as_str().to_owned(), value.to_string());
    resource().iter().map(text).collect()
}

fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    Resource::builder().with_attribute(version).build()
}

/// CPU time, memory, file descriptors and start of the process, which only Linux tells.
fn register_process(registry: &Registry) {
    #[cfg(target_os = "linux")]
    registry
        .register(Box::new(process::ProcessMetrics::new()))
        .expect("OpenTelemetry has no instrument of these names");
    #[cfg(not(target_os = "linux"))]
    let _ = registry;
}

/// What became of the spans of traced calls.
fn spans(meter: &Meter, counts: Option<&Arc<SpanCounts>>) {
    let counts = counts.cloned().unwrap_or_default();
    meter
        .u64_observable_counter("hotshelf.trace.spans")
        .with_description("Spans of traced calls, by outcome.")
        .with_callback(move |observer| {
            observer.observe(counts.exported(), &[KeyValue::new("outcome", "exported")]);
            observer.observe(counts.dropped(), &[KeyValue::new("outcome", "dropped")]);
        })
        .build();
}

/// Calls that ended, by method and code. Every series is there from the start, so that a rate counts its first call.
fn handled(meter: &Meter) -> Arc<Cells> {
    let cells = Arc::new(Cells::new(Method::ALL.len() * CODES.len()));
    let read = Arc::clone(&cells);
    meter
        .u64_observable_counter("grpc.server.handled")
        .with_description(
            "Calls that ended, by status code; calls that the caller cancelled are CANCELLED.",
        )
        .with_callback(move |observer| {
            for method in Method::ALL {
                for (code, name) in CODES.iter().enumerate() {
                    let mut labels = key_values(*method);
                    labels.push(KeyValue::new("grpc_code", *name));
                    observer.observe(read.sum(method.index() * CODES.len() + code), &labels);
                }
            }
        })
        .build();
    cells
}
