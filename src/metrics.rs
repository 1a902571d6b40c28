//! Every instrument, its name next to its help.
//!
//! Recording goes to counters of our own that cores do not share; OpenTelemetry's observable instruments
//! read them when somebody scrapes. A counter recorded through OpenTelemetry costs 133 to 298 ns, one of
//! these about 2.

mod counters;
mod histogram;
mod labels;
mod sharded;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder, Registry, TextEncoder};

pub use counters::Counters;
use counters::key_values;
use histogram::{CallDurations, Collected};
pub use labels::{
    AuthRefusal, BackgroundTask, BreakerMove, BreakerState, ConnectionEnd, FillRejection,
    LeaseOutcome, Lookup, Method, PostgresShare, RedisCapability, RedisDependency, RedisOperation,
    RedisRefusal, RefreshRequest, ServedBy, Shed,
};
use labels::{CODES, LabelSet};
use sharded::Cells;
pub(crate) use sharded::thread_number;

/// The instruments of one instance.
pub struct Metrics {
    /// Lookups in a cache tier.
    pub lookups: Counters<Lookup>,
    /// Reads of a product, by where the answer came from.
    pub reads: Counters<ServedBy>,
    /// Leases.
    pub leases: Counters<LeaseOutcome>,
    /// Fills that were not kept.
    pub fills_rejected: Counters<FillRejection>,
    /// Refreshes asked for by reads.
    pub refresh_requests: Counters<RefreshRequest>,
    /// Failed commands to Redis.
    pub redis_errors: Counters<RedisOperation>,
    /// Circuit breakers of Redis that opened, were probed, or closed.
    pub breaker_moves: Counters<BreakerMove>,
    /// Calls and connections refused to stay within limits.
    pub shed: Counters<Shed>,
    /// Connections that the server closed.
    pub connections_closed: Counters<ConnectionEnd>,
    /// Callers and calls refused for who they are.
    pub auth_refused: Counters<AuthRefusal>,
    /// Products asked of Postgres, one for each product of a batch.
    pub postgres_loads: Counters<()>,
    /// Readers that joined a load in flight.
    pub singleflight_joined: Counters<()>,
    /// Entries in Redis that could not be read.
    pub redis_corrupt: Counters<()>,
    /// Redis servers that were found with another replication id than before.
    pub redis_replication_changes: Counters<()>,
    /// Answers past their time, or that nobody could say are current, given because nothing better could be had.
    pub served_stale: Counters<()>,
    /// Products that the refresh task had loaded again.
    pub refreshed: Counters<()>,
    /// Rows of the outbox that the relay applied.
    pub relayed: Counters<()>,
    /// Changes that were bulk jobs', whose entries the relay removed instead of replacing them.
    pub relay_removed: Counters<()>,
    /// Products whose changes the relay could not apply, because PostgreSQL holds what cannot be served.
    pub relay_set_aside: Counters<()>,
    /// Times that changes may have been missed, each of which invalidates memory.
    pub feed_gaps: Counters<()>,
    /// Times that PostgreSQL was found to have gone back.
    pub epochs_raised: Counters<()>,
    /// Entries in Redis that claimed a version that PostgreSQL has not given out.
    pub redis_impossible: Counters<()>,
    /// Restarts of loops and threads that ended.
    pub task_restarts: Counters<BackgroundTask>,
    /// Lines of the log that were dropped because the queue to its writer was full.
    pub log_lines_dropped: Counters<()>,
    started: Counters<Method>,
    handled: Arc<Cells>,
    durations: Arc<CallDurations>,
    registry: Registry,
    meter: Meter,
    // Dropping it would end the collection.
    _provider: SdkMeterProvider,
}

impl Metrics {
    /// The instruments, with a registry of their own. `OTEL_SERVICE_NAME` and
    /// `OTEL_RESOURCE_ATTRIBUTES` are in `target_info`.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .expect("a new registry holds no name that could collide");
        let resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkMeterProvider::builder()
            .with_reader(exporter)
            .with_resource(resource.build())
            .build();
        let meter = provider.meter("hotshelf");
        let durations = CallDurations::new();
        registry
            .register(Box::new(Collected(Arc::clone(&durations))))
            .expect("a new registry holds no name that could collide");
        Arc::new(Self {
            lookups: Counters::new(
                &meter,
                "hotshelf.cache.lookups",
                "Lookups in a cache tier, by what they came to.",
            ),
            reads: Counters::new(
                &meter,
                "hotshelf.reads",
                "Products read, by the tier that answered.",
            ),
            leases: Counters::new(
                &meter,
                "hotshelf.lease",
                "Leases asked for or held, by what became of them.",
            ),
            fills_rejected: Counters::new(
                &meter,
                "hotshelf.fills.rejected",
                "Loaded entries that a tier did not keep, by reason.",
            ),
            refresh_requests: Counters::new(
                &meter,
                "hotshelf.refresh.requests",
                "Refreshes asked for by reads past the soft TTL.",
            ),
            redis_errors: Counters::new(
                &meter,
                "hotshelf.redis.errors",
                "Commands that Redis failed or did not answer in time.",
            ),
            breaker_moves: Counters::new(
                &meter,
                "hotshelf.redis.breaker.moves",
                "Circuit breakers in front of Redis that opened, were probed, or closed.",
            ),
            shed: Counters::new(
                &meter,
                "hotshelf.shed",
                "Calls and connections refused to stay within limits.",
            ),
            connections_closed: Counters::new(
                &meter,
                "hotshelf.connections.closed",
                "gRPC connections that this instance closed, by reason.",
            ),
            auth_refused: Counters::new(
                &meter,
                "hotshelf.auth.refused",
                "Handshakes and calls refused because of who the caller is, or is not known to be.",
            ),
            postgres_loads: Counters::new(
                &meter,
                "hotshelf.postgres.loads",
                "Products asked of Postgres to fill the caches.",
            ),
            singleflight_joined: Counters::new(
                &meter,
                "hotshelf.singleflight.joined",
                "Reads that joined a load already in flight.",
            ),
            redis_corrupt: Counters::new(
                &meter,
                "hotshelf.redis.corrupt",
                "Values under our keys in Redis that could not be read.",
            ),
            redis_replication_changes: Counters::new(
                &meter,
                "hotshelf.redis.replication.changes",
                "Times that a Redis server was found restarted, or replaced by a replica.",
            ),
            served_stale: Counters::new(
                &meter,
                "hotshelf.served.stale",
                "Answers past their time, or that nobody could say are current, given because nothing better could be had.",
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
                "Changes of bulk jobs among them, whose entries were removed from Redis.",
            ),
            relay_set_aside: Counters::new(
                &meter,
                "hotshelf.relay.set.aside",
                "Products that PostgreSQL holds in a form that cannot be served; the relay removed their entries.",
            ),
            feed_gaps: Counters::new(
                &meter,
                "hotshelf.change.feed.gaps",
                "Times that changes may have been missed; each invalidates memory.",
            ),
            epochs_raised: Counters::new(
                &meter,
                "hotshelf.epochs.raised",
                "Times that this instance found that PostgreSQL had gone back; all caches start empty then.",
            ),
            redis_impossible: Counters::new(
                &meter,
                "hotshelf.redis.impossible",
                "Entries in Redis with a version that PostgreSQL has not given out; they are removed.",
            ),
            task_restarts: Counters::new(
                &meter,
                "hotshelf.background.task.restarts",
                "Restarts of background tasks that ended, by error or panic.",
            ),
            log_lines_dropped: Counters::new(
                &meter,
                "hotshelf.log.lines.dropped",
                "Lines of the log that were dropped, because the queue to its writer was full.",
            ),
            started: Counters::new(&meter, "grpc.server.started", "Calls begun."),
            handled: handled(&meter),
            durations,
            registry,
            meter,
            _provider: provider,
        })
    }

    /// A gauge that is read from `part` when somebody scrapes.
    ///
    /// It does not keep `part` alive: parts own the metrics, and a circle would never be freed.
    pub fn gauge<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        part: &Arc<T>,
        read: impl Fn(&T) -> u64 + Send + Sync + 'static,
    ) {
        let part = Arc::downgrade(part);
        self.meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| {
                if let Some(part) = part.upgrade() {
                    observer.observe(read(&part), &[]);
                }
            })
            .build();
    }

    /// The same, of each member of a closed set.
    #[expect(private_bounds, reason = "the label sets are closed on purpose")]
    pub fn gauges<T: Send + Sync + 'static, L: LabelSet + Send + Sync>(
        &self,
        name: &'static str,
        help: &'static str,
        part: &Arc<T>,
        read: impl Fn(&T, L) -> u64 + Send + Sync + 'static,
    ) {
        let part = Arc::downgrade(part);
        self.meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| {
                let Some(part) = part.upgrade() else { return };
                for member in L::ALL {
                    observer.observe(read(&part, *member), &key_values(*member));
                }
            })
            .build();
    }

    /// The same, of seconds.
    pub fn seconds<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        part: &Arc<T>,
        read: impl Fn(&T) -> Duration + Send + Sync + 'static,
    ) {
        let part = Arc::downgrade(part);
        self.meter
            .f64_observable_gauge(name)
            .with_unit("s")
            .with_description(help)
            .with_callback(move |observer| {
                if let Some(part) = part.upgrade() {
                    observer.observe(read(&part).as_secs_f64(), &[]);
                }
            })
            .build();
    }

    /// A gauge of 1 whose labels say what runs here.
    pub fn build_info(&self) {
        let labels = [KeyValue::new("version", env!("CARGO_PKG_VERSION"))];
        self.meter
            .u64_observable_gauge("hotshelf.build.info")
            .with_description("The version that runs here; always 1.")
            .with_callback(move |observer| observer.observe(1, &labels))
            .build();
    }

    /// A call begins.
    pub fn call_started(&self, method: Method) {
        self.started.inc(method);
    }

    /// A call ended with the gRPC status `code`.
    pub fn call_handled(&self, method: Method, code: u8, took: Duration) {
        let code = usize::from(code).min(CODES.len() - 1);
        self.handled.add(method.index() * CODES.len() + code, 1);
        self.durations.record(method, took);
    }

    /// The exposition text of all instruments, for Prometheus.
    ///
    /// # Errors
    /// When an instrument cannot be encoded, which would be a fault in this module.
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

/// Calls that ended, by method and code. Only what happened is shown, except that every method has
/// its OK, so that rates start at zero.
fn handled(meter: &Meter) -> Arc<Cells> {
    let cells = Arc::new(Cells::new(Method::ALL.len() * CODES.len()));
    let read = Arc::clone(&cells);
    meter
        .u64_observable_counter("grpc.server.handled")
        .with_description(
            "Calls that ended, by status code; calls that the caller gave up are CANCELLED.",
        )
        .with_callback(move |observer| {
            for method in Method::ALL {
                for (code, name) in CODES.iter().enumerate() {
                    let count = read.sum(method.index() * CODES.len() + code);
                    if count > 0 || code == 0 {
                        let mut labels = key_values(*method);
                        labels.push(KeyValue::new("grpc_code", *name));
                        observer.observe(count, &labels);
                    }
                }
            }
        })
        .build();
    cells
}
