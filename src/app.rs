//! The composition root: makes the parts, connects them, starts and stops them. It knows everything, and
//! decides nothing about products.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::admin::{self, Readiness};
use crate::catalog::{Catalog, Parts};
use crate::config::{PostgresArgs, ServeArgs};
use crate::controls::Controls;
use crate::drain::Drain;
use crate::hot_cache::HotCache;
use crate::hot_keys::HotKeys;
use crate::metrics::{BackgroundTask, Metrics};
use crate::pause::PausePoints;
use crate::postgres::{self, ChangeReader, Postgres};
use crate::recent_changes::RecentChanges;
use crate::redis::Redis;
use crate::refusals::Refusals;
use crate::relay::{self, Relay};
use crate::rpc::{self, Health, Identity};
#[cfg(feature = "test-hooks")]
use crate::supervisor::Fault;

/// How long a start waits for Redis before it goes on without.
const REDIS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a start waits for its connections to Postgres to be opened.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach Postgres when starting.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Why an instance could not start: one line for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

/// An instance that serves.
#[derive(Debug)]
pub struct App {
    /// Where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// Where the admin port is.
    pub admin_addr: SocketAddr,
    /// The catalogue, for tests that look inside.
    pub catalog: Arc<Catalog>,
    /// The hot tier, for tests that look inside.
    pub hot: Arc<HotCache>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Where tests may hold it.
    pub pauses: PausePoints,
    /// Which of its protections tests may turn off.
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
    /// Starts an instance; it is ready when this returns.
    ///
    /// # Errors
    /// One line for the operator: a port in use, a URL that cannot be read, Postgres out of reach for
    /// longer than the startup timeout, a schema that this program does not know.
    pub async fn start(args: &ServeArgs) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let identity = Identity::load(&args.identity().map_err(StartError)?, &metrics).await;
        let identity = identity.map_err(StartError)?;
        let grpc = bind(args.serving.grpc_addr, "GRPC_ADDR").await?;
        let admin = bind(args.serving.admin_addr, "ADMIN_ADDR").await?;
        let (grpc_addr, admin_addr) = (address(&grpc)?, address(&admin)?);
        identity.warn_if_open(grpc_addr);

        let (pauses, controls) = (pauses(args), Controls::default());
        let drain = Drain::new(Arc::clone(&metrics));
        let readiness = Readiness::not_yet("starting");
        let refusals = Refusals::new(&metrics);
        let (observed, noted) = (Arc::clone(&metrics), Arc::clone(&refusals));
        admin::serve(admin, observed, readiness.clone(), noted, &drain);

        let postgres = Postgres::new(&args.postgres(), Arc::clone(&metrics)).map_err(StartError)?;
        let redis = Redis::connect(args.redis(), Arc::clone(&metrics), controls.clone())
            .map_err(StartError)?;
        let (postgres, redis) = (Arc::new(postgres), Arc::new(redis));
        migrate(&postgres, &args.postgres, &readiness).await?;
        let mut change_reader = postgres.change_reader();
        let entered = enter_epoch(&mut change_reader, &redis, &metrics).await;
        entered.map_err(|error| StartError(format!("DATABASE_URL: {error}")))?;
        postgres.warm(POSTGRES_PATIENCE).await;
        let maintained = Arc::clone(&postgres);
        drain.spawn_loop(BackgroundTask::PostgresConnections, move || {
            Arc::clone(&maintained).maintain()
        });
        readiness.set_notes(&redis, Redis::trouble);

        fail_always(args, &drain);
        let recent = Arc::new(RecentChanges::new(args.caching.max_recent_changes));
        let hot = HotCache::supervised(
            args.hot_cache(),
            Arc::clone(&recent),
            Arc::clone(&metrics),
            drain.supervisor(),
        );
        let hot = Arc::new(hot.with_controls(controls.clone()));
        let relay_vacancy = Arc::default();
        let parts = Parts {
            hot: Arc::clone(&hot),
            recent,
            hot_keys: Arc::new(HotKeys::new()),
            redis: Arc::clone(&redis),
            postgres: Arc::clone(&postgres),
            change_reader,
            relay_vacancy: Arc::clone(&relay_vacancy),
            metrics: Arc::clone(&metrics),
            drain: drain.clone(),
            pauses: pauses.clone(),
            controls: controls.clone(),
        };
        observe(&parts);
        let catalog = Catalog::start(parts, args.catalog());
        let relay = Relay::start(
            Arc::clone(&postgres),
            Arc::clone(&redis),
            Arc::clone(&metrics),
            (pauses.clone(), controls.clone()),
            relay_vacancy,
            args.relay(),
            &drain,
        );
        let served = Arc::clone(&catalog);
        let (rpc, proofs) = (args.rpc(), Arc::clone(&identity));
        let health = rpc::serve(grpc, served, rpc, proofs, &drain, &metrics, &refusals).await;
        readiness.set_not_ready("loading the hottest products");
        // What a node holds is of use only when the age of its data is known.
        let _ = tokio::time::timeout(REDIS_PATIENCE, catalog.probe_redis()).await;
        follow_changes(&hot).await;
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

    /// Certificates and keys are read again.
    pub fn reload(&self) {
        self.identity.reload();
    }

    /// Resolves when a background task cannot be kept running, with one sentence for the operator: this instance is to be
    /// stopped then.
    pub async fn failed(&self) -> String {
        self.drain.supervisor().failed().await
    }

    /// Drains and stops: reports NOT_SERVING, ends streams, lets calls in flight finish within the grace
    /// time. Returns whether all of them did.
    pub async fn stop(mut self) -> bool {
        self.readiness.set_not_ready("draining");
        self.health.set(false).await;
        tokio::time::sleep(self.drain_delay).await;
        self.drain.announce();
        self.health.end_watches().await;
        let in_time = self.drain.finish(self.drain_grace).await;
        if !in_time {
            tracing::warn!(grace = ?self.drain_grace, "calls were still in flight after the grace time");
        }
        self.relay.let_go().await;
        self.redis.close().await;
        self.postgres.close().await;
        in_time
    }
}

#[cfg(feature = "test-hooks")]
impl App {
    /// Stops everything where it is, as near to SIGKILL as a test in one process comes: nothing is finished,
    /// given back or said.
    pub async fn crash(self) {
        self.drain.abandon();
        self.postgres.close().await;
    }

    /// Makes a background task fail so many times.
    pub fn inject(&self, task: BackgroundTask, fault: Fault, times: usize) {
        self.drain.supervisor().faults().inject(task, fault, times);
    }
}

#[cfg(feature = "test-hooks")]
fn pauses(args: &ServeArgs) -> PausePoints {
    PausePoints::held_for_ever(args.hold_at)
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

async fn bind(address: SocketAddr, name: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let flag = name.to_lowercase().replace('_', "-");
        let cure = match error.kind() {
            ErrorKind::AddrInUse => format!(
                "is in use by another process; stop that one, or choose another port with --{flag}"
            ),
            ErrorKind::AddrNotAvailable => {
                format!("is no address of this machine; choose another with --{flag}")
            }
            ErrorKind::PermissionDenied => {
                format!("needs privileges; choose a port above 1023 with --{flag}")
            }
            _ => format!("cannot be listened on ({error}); choose another with --{flag}"),
        };
        StartError(format!("{name} {address} {cure}"))
    })
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|error| StartError(format!("a listener without an address: {error}")))
}

/// Brings the schema up to date, and waits for Postgres if it is not there yet.
async fn migrate(
    postgres: &Postgres,
    args: &PostgresArgs,
    readiness: &Readiness,
) -> Result<(), StartError> {
    let began = Instant::now();
    loop {
        let ready = async {
            postgres.migrate(args.migrate).await?;
            postgres.check_triggers().await
        };
        let why = match ready.await {
            Ok(()) => return Ok(()),
            Err(postgres::Error::Unavailable(why)) => why,
            Err(error) => return Err(StartError(format!("DATABASE_URL: {error}"))),
        };
        if began.elapsed() >= args.startup_timeout {
            return Err(StartError(postgres.out_of_reach(&why)));
        }
        readiness.set_not_ready(&format!("waiting for PostgreSQL: {why}"));
        tracing::warn!(%why, "waiting for PostgreSQL");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Without an epoch Redis has no keys: those of another catalogue, or of versions that PostgreSQL has lost while no instance ran,
/// must never be read.
async fn enter_epoch(
    reader: &mut ChangeReader,
    redis: &Redis,
    metrics: &Metrics,
) -> Result<(), postgres::Error> {
    let (scope, catalogue) = reader.scope().await?;
    redis.set_scope(&scope, &catalogue);
    // Without Redis, too, it serves; what is wrong is logged there.
    redis.wait_until_connected(REDIS_PATIENCE).await;
    if relay::compare_marks(redis, reader, metrics).await? {
        reader.start_over();
        let (scope, catalogue) = reader.scope().await?;
        redis.set_scope(&scope, &catalogue);
    }
    reader.start_over();
    Ok(())
}

/// Waits a while for the first look at the outbox: what is read before is not trusted for long.
async fn follow_changes(hot: &HotCache) {
    let began = Instant::now();
    while !hot.is_proven() && began.elapsed() < REDIS_PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The gauges of what the parts hold.
fn observe(parts: &Parts) {
    let Parts { metrics, hot, redis, postgres, .. } = parts;
    metrics.build_info();
    let help = "Entries in this process' memory.";
    metrics.gauge("hotshelf.hot.entries", help, hot, HotCache::len);
    let help =
        "What those entries cost, in bytes: their encoded size, and what keeping them takes.";
    metrics.gauge("hotshelf.hot.bytes", help, hot, HotCache::bytes);
    let help = "Whether the outbox has been read so recently that memory is trusted: 1 or 0.";
    metrics.gauge("hotshelf.hot.lease.valid", help, hot, |hot| hot.is_proven().into());
    let help = "Connections to Redis that stand.";
    metrics.gauge("hotshelf.redis.connected", help, redis, Redis::connected);
    let help = "Circuit breakers in front of Redis that are open, or being probed.";
    metrics.gauges("hotshelf.redis.breakers.open", help, redis, Redis::open_breakers);
    let help = "Redis servers that refuse something again and again, by reason; one that is out of reach is among them.";
    metrics.gauges("hotshelf.redis.refusing", help, redis, Redis::refusing);
    let help = "Redis servers that do not offer something that hotshelf does without.";
    metrics.gauges("hotshelf.redis.limited", help, redis, Redis::limited);
    let help = "Other databases whose instances use the same Redis and namespace.";
    metrics.gauge("hotshelf.redis.other.catalogues", help, redis, Redis::other_catalogues);
    let help = "Open connections to PostgreSQL.";
    metrics.gauge("hotshelf.postgres.connections", help, postgres, Postgres::connections);
    let help = "Open connections to PostgreSQL that are not in use.";
    metrics.gauge("hotshelf.postgres.connections.idle", help, postgres, Postgres::idle_connections);
    let help = "Loads from PostgreSQL that run or wait.";
    metrics.gauge("hotshelf.postgres.loads.in.flight", help, postgres, Postgres::loads_in_flight);
    let help = "Statements for callers that run, by their share of the connections to PostgreSQL.";
    metrics.gauges("hotshelf.postgres.share.in.use", help, postgres, Postgres::in_use);
    let help = "Statements for callers that wait for their turn, by share.";
    metrics.gauges("hotshelf.postgres.share.waiting", help, postgres, Postgres::waiting);
    let help = "Statements for callers that may run at once, by share.";
    metrics.gauges("hotshelf.postgres.share.limit", help, postgres, Postgres::limit);
    let help = "Commands of callers that Redis has not answered yet.";
    metrics.gauge("hotshelf.redis.commands.in.flight", help, redis, Redis::commands_in_flight);
    let help = "Commands of callers that wait to be sent to Redis.";
    metrics.gauge("hotshelf.redis.commands.waiting", help, redis, Redis::commands_waiting);
}
