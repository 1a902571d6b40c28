//! The composition root: creates the parts, connects them, starts and stops them. Decides nothing about products.

mod page;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::admin::{self, AdminGrpc, PageProducts, Readiness};
use crate::catalog::{Catalog, Parts};
use crate::config::{PostgresArgs, ServeArgs, TraceOptions};
use crate::controls::Controls;
use crate::drain::Drain;
use crate::findings::Section;
use crate::hot_cache::HotCache;
use crate::hot_keys::HotKeys;
use crate::metrics::{self, BackgroundTask, Metrics};
use crate::pause::PausePoints;
use crate::postgres::{self, ChangeReader, Postgres};
use crate::recent_changes::RecentChanges;
use crate::redis::Redis;
use crate::refusals::Refusals;
use crate::relay::{self, Relay};
use crate::rpc::{self, Health, Identity, ServedOn};
#[cfg(feature = "test-hooks")]
use crate::supervisor::Fault;
use crate::traces::{ExportOptions, Traces};

/// The longest that a start waits for Redis; then it goes on without Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that a start spends on checks of a server that only warn.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that a start waits until its connections to Postgres are open; then it goes on with fewer.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a start waits for its first poll of the outbox; then it serves, with memory that is not trusted yet.
const FIRST_POLL_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two attempts to reach Postgres at a start.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Why an instance could not start: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting, or a file that it names, cannot be used.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

/// A running instance. The public fields are for tests that look inside.
#[derive(Debug)]
pub struct App {
    /// The address that the gRPC port is bound to, also when port 0 was asked for.
    pub grpc_addr: SocketAddr,
    /// The same of the admin port.
    pub admin_addr: SocketAddr,
    pub catalog: Arc<Catalog>,
    pub hot: Arc<HotCache>,
    pub metrics: Arc<Metrics>,
    pub pauses: PausePoints,
    pub controls: Controls,
    relay: Arc<Relay>,
    redis: Arc<Redis>,
    postgres: Arc<Postgres>,
    drain: Drain,
    health: Health,
    identity: Arc<Identity>,
    readiness: Readiness,
    drain_delay: Duration,
    drain_grace: Duration,
}

impl App {
    /// Starts an instance. When this returns the instance is ready: it has joined the epoch, polled the outbox and loaded the
    /// hottest products, or the timeouts of these steps have passed.
    ///
    /// # Errors
    /// One line for the operator: a port in use, a URL that cannot be parsed, Postgres unreachable for longer than
    /// `startup_timeout`, a schema of a newer version.
    pub async fn start(args: &ServeArgs) -> Result<Self, StartError> {
        let metrics = Metrics::with_traces(traces(args)?);
        let identity = Identity::load(&args.identity().map_err(StartError::Usage)?, &metrics).await;
        let identity = identity.map_err(StartError::Usage)?;
        let grpc = bind(args.serving.grpc_addr, "GRPC_ADDR").await?;
        let admin = bind(args.serving.admin_addr, "ADMIN_ADDR").await?;
        let (grpc_addr, admin_addr) = (address(&grpc)?, address(&admin)?);

        let (pauses, controls) = (pauses(args), Controls::default());
        let drain = Drain::new(Arc::clone(&metrics));
        let readiness = Readiness::not_yet("starting");
        let refusals = Refusals::new(&metrics);
        let (scraped, listed) = (Arc::clone(&metrics), Arc::clone(&refusals));
        let (admin_grpc, products) = (AdminGrpc::default(), PageProducts::default());
        let later = (admin_grpc.clone(), products.clone());
        admin::serve(admin, scraped, readiness.clone(), listed, later, &drain);

        let postgres = Postgres::new(&args.postgres(), Arc::clone(&metrics));
        let postgres = postgres.map_err(StartError::Usage)?;
        let redis = Redis::connect(args.redis(), Arc::clone(&metrics), controls.clone())
            .map_err(StartError::Usage)?;
        identity.warn_if_open(grpc_addr);
        let (postgres, redis) = (Arc::new(postgres), Arc::new(redis));
        migrate(&postgres, &args.postgres, &readiness).await?;
        let mut change_reader = postgres.change_reader();
        let entered = enter_epoch(&mut change_reader, &redis, &metrics).await;
        entered.map_err(|error| StartError::Failed(format!("DATABASE_URL: {error}")))?;
        let checked = tokio::time::timeout(CHECK_TIMEOUT, postgres.check(args.checks())).await;
        checked.iter().for_each(Section::log);
        postgres.warm(POSTGRES_TIMEOUT).await;
        let maintained = Arc::clone(&postgres);
        drain.spawn_loop(BackgroundTask::PostgresConnections, move || {
            Arc::clone(&maintained).maintain()
        });
        readiness.set_degraded(&redis, Redis::refusal_lines);

        fail_always(args, &drain);
        let recent = Arc::new(RecentChanges::new(args.caching.max_recent_changes));
        let hot = HotCache::supervised(
            args.hot_cache(),
            Arc::clone(&recent),
            Arc::clone(&metrics),
            drain.supervisor(),
        );
        let hot = Arc::new(hot.with_controls(controls.clone()));
        let relay_lease_free = Arc::default();
        let parts = Parts {
            hot: Arc::clone(&hot),
            recent,
            hot_keys: Arc::new(HotKeys::new()),
            redis: Arc::clone(&redis),
            postgres: Arc::clone(&postgres),
            change_reader,
            relay_lease_free: Arc::clone(&relay_lease_free),
            metrics: Arc::clone(&metrics),
            drain: drain.clone(),
            pauses: pauses.clone(),
            controls: controls.clone(),
        };
        observe(&parts);
        let catalog = Catalog::start(parts, args.catalog());
        let explains = match args.switches.admin_service {
            ServedOn::GrpcPort => !identity.is_required(),
            ServedOn::AdminPort => true,
            ServedOn::Nowhere => false,
        };
        page::show(&products, &catalog, explains);
        let relay = Relay::start(
            Arc::clone(&postgres),
            Arc::clone(&redis),
            Arc::clone(&metrics),
            (pauses.clone(), controls.clone()),
            relay_lease_free,
            args.relay(),
            &drain,
        );
        let served = Arc::clone(&catalog);
        let (options, verifier) = (args.rpc(), Arc::clone(&identity));
        let (health, on_admin_port) =
            rpc::serve(grpc, served, options, verifier, &drain, &metrics, &refusals).await;
        if let Some(serve) = on_admin_port {
            admin_grpc.set(serve);
        }
        readiness.set_not_ready("loading the hottest products");
        // Entries of a Redis node are suspect until a probe has read its replication id.
        let _ = tokio::time::timeout(REDIS_TIMEOUT, catalog.probe_redis()).await;
        if let Ok(checked) = tokio::time::timeout(CHECK_TIMEOUT, redis.check_connected()).await {
            checked.iter().for_each(Section::log);
        }
        wait_for_first_poll(&hot).await;
        catalog.warm(args.caching.warm_timeout).await;
        health.set(true).await;
        readiness.set_ready();
        tracing::info!(%grpc_addr, %admin_addr, "serving");
        let (drain_delay, drain_grace) = (args.serving.drain_delay, args.serving.drain_grace);
        Ok(Self {
            grpc_addr,
            admin_addr,
            catalog,
            hot,
            metrics,
            pauses,
            controls,
            relay,
            redis,
            postgres,
            drain,
            health,
            identity,
            readiness,
            drain_delay,
            drain_grace,
        })
    }

    /// Reads certificates and keys again, as SIGHUP asks for.
    pub fn reload(&self) {
        self.identity.reload();
    }

    /// Resolves when a background task cannot be kept running, with one sentence for the operator. The caller then stops the
    /// instance.
    pub async fn failed(&self) -> String {
        self.drain.supervisor().failed().await
    }

    /// Drains and stops: reports NOT_SERVING, serves on for `drain_delay`, ends streams, and waits at most `drain_grace` for
    /// calls in flight. Returns whether all of them ended in time.
    pub async fn stop(mut self) -> bool {
        self.readiness.set_not_ready("draining");
        self.health.set(false).await;
        tokio::time::sleep(self.drain_delay).await;
        self.drain.announce();
        self.health.end_watches().await;
        let in_time = self.drain.finish(self.drain_grace).await;
        if !in_time {
            tracing::warn!(grace = ?self.drain_grace, "calls were still in flight after DRAIN_GRACE; they were cut off");
        }
        self.relay.release_lease().await;
        let (redis, postgres) = (self.redis.close(), self.postgres.close());
        tokio::join!(redis, postgres, self.metrics.traces.stop());
        in_time
    }
}

#[cfg(feature = "test-hooks")]
impl App {
    /// Stops everything at once, as near to SIGKILL as a test in one process comes: no call is finished, no lease released,
    /// nothing logged.
    pub async fn crash(self) {
        self.drain.abandon();
        self.postgres.close().await;
    }

    /// Makes a background task fail `times` times.
    pub fn inject(&self, task: BackgroundTask, fault: Fault, times: usize) {
        self.drain.supervisor().faults().inject(task, fault, times);
    }
}

#[cfg(feature = "test-hooks")]
fn pauses(args: &ServeArgs) -> PausePoints {
    PausePoints::held_forever(args.hold_at)
}

#[cfg(not(feature = "test-hooks"))]
fn pauses(_args: &ServeArgs) -> PausePoints {
    PausePoints::default()
}

#[cfg(feature = "test-hooks")]
fn fail_always(args: &ServeArgs, drain: &Drain) {
    if let Some(task) = args.fail_always {
        drain.supervisor().faults().inject(task, Fault::Error, usize::MAX);
    }
}

#[cfg(not(feature = "test-hooks"))]
fn fail_always(_args: &ServeArgs, _drain: &Drain) {}

fn traces(args: &ServeArgs) -> Result<Traces, StartError> {
    let Some(options) = args.traces().map_err(StartError::Usage)? else {
        return Ok(Traces::default());
    };
    let TraceOptions { sampler, endpoint, headers, timeout } = options;
    let resource = metrics::process_attributes();
    let options = ExportOptions { endpoint, headers, timeout, resource };
    Traces::start(sampler, options).map_err(StartError::Failed)
}

async fn bind(address: SocketAddr, name: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let flag = name.to_lowercase().replace('_', "-");
        let cure = match error.kind() {
            ErrorKind::AddrInUse => format!(
                "is in use by another process; stop that one, or choose another port with --{flag}"
            ),
            ErrorKind::AddrNotAvailable => {
                format!("is not an address of this machine; choose another with --{flag}")
            }
            ErrorKind::PermissionDenied => {
                format!("needs privileges; choose a port above 1023 with --{flag}")
            }
            _ => format!("cannot be bound ({error}); choose another with --{flag}"),
        };
        StartError::Failed(format!("{name} {address} {cure}"))
    })
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| {
        StartError::Failed(format!("the address of a port cannot be read: {error}"))
    })
}

/// Brings the schema up to date. While Postgres cannot be reached it retries, for at most `startup_timeout`.
async fn migrate(
    postgres: &Postgres,
    args: &PostgresArgs,
    readiness: &Readiness,
) -> Result<(), StartError> {
    let began = Instant::now();
    loop {
        let ready = async {
            postgres.check_sessions().await?;
            postgres.migrate(args.migrate).await?;
            postgres.open_catalogue().await?;
            postgres.check_triggers().await
        };
        let why = match ready.await {
            Ok(()) => return Ok(()),
            Err(postgres::Error::Unavailable(why)) => why,
            Err(error) => return Err(StartError::Failed(format!("DATABASE_URL: {error}"))),
        };
        if began.elapsed() >= args.startup_timeout {
            return Err(StartError::Failed(postgres.unreachable_message(&why)));
        }
        readiness.set_not_ready(&format!("waiting for PostgreSQL: {why}"));
        tracing::warn!(%why, "PostgreSQL cannot be reached; waiting for PostgreSQL");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Sets the catalogue and epoch that every key in Redis begins with. Before that Redis must not be read: its entries may be of
/// another catalogue, or of versions that PostgreSQL lost while no instance ran.
async fn enter_epoch(
    reader: &mut ChangeReader,
    redis: &Redis,
    metrics: &Metrics,
) -> Result<(), postgres::Error> {
    let (scope, catalogue) = reader.scope().await?;
    redis.set_scope(&scope, &catalogue);
    // An instance serves without Redis, too. The Redis module logs why it cannot connect.
    redis.wait_until_connected(REDIS_TIMEOUT).await;
    if relay::compare_marks(redis, reader, metrics).await? {
        reader.start_over();
        let (scope, catalogue) = reader.scope().await?;
        redis.set_scope(&scope, &catalogue);
    }
    reader.start_over();
    Ok(())
}

/// Waits for the first poll of the outbox, at most [`FIRST_POLL_TIMEOUT`]: memory that is filled before is trusted only for half
/// of `max_staleness`.
async fn wait_for_first_poll(hot: &HotCache) {
    let began = Instant::now();
    while !hot.has_valid_lease() && began.elapsed() < FIRST_POLL_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Registers the gauges that read the parts.
fn observe(parts: &Parts) {
    let Parts { metrics, hot, redis, postgres, .. } = parts;
    metrics.build_info();
    let help = "Entries in this process' memory.";
    metrics.bounded("hotshelf.hot.entries", help, hot, HotCache::len, HotCache::capacity);
    let help =
        "Bytes of memory that those entries take: their encoded size and about 250 bytes each.";
    metrics.bounded("hotshelf.hot.bytes", help, hot, HotCache::bytes, HotCache::most_bytes);
    let help =
        "1 while the last read of the outbox is recent enough that memory is trusted, else 0.";
    metrics.gauge("hotshelf.hot.lease.valid", help, hot, |hot| hot.has_valid_lease().into());
    redis.observe();
    postgres.observe();
}
