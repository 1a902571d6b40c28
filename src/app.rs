//! The composition root: makes the parts, connects them, starts and stops them. It knows everything, and
//! decides nothing about products.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::admin::{self, Readiness};
use crate::catalog::{Catalog, Parts};
use crate::config::ServeArgs;
use crate::drain::Drain;
use crate::hot_cache::HotCache;
use crate::hot_keys::HotKeys;
use crate::metrics::Metrics;
use crate::pause::PausePoints;
use crate::postgres::{self, Postgres};
use crate::redis::Redis;
use crate::rpc::{self, Health};

/// How long a start waits for Redis before it goes on without.
const REDIS_PATIENCE: Duration = Duration::from_secs(2);
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
    redis: Arc<Redis>,
    postgres: Arc<Postgres>,
    drain: Drain,
    health: Health,
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
        let grpc = bind(args.serving.grpc_addr, "GRPC_ADDR").await?;
        let admin = bind(args.serving.admin_addr, "ADMIN_ADDR").await?;
        let (grpc_addr, admin_addr) = (address(&grpc)?, address(&admin)?);

        let metrics = Metrics::new();
        let drain = Drain::default();
        let readiness = Readiness::not_yet("starting");
        admin::serve(admin, Arc::clone(&metrics), readiness.clone(), &drain);

        let postgres = Postgres::new(&args.postgres(), Arc::clone(&metrics)).map_err(StartError)?;
        let redis = Redis::connect(args.redis(), Arc::clone(&metrics)).map_err(StartError)?;
        let (postgres, redis) = (Arc::new(postgres), Arc::new(redis));
        migrate(&postgres, args.postgres.startup_timeout, &readiness).await?;
        if let Err(why) = redis.wait_until_connected(REDIS_PATIENCE).await {
            tracing::warn!(%why, "Redis cannot be reached; serving from PostgreSQL until it can");
        }

        let hot = Arc::new(HotCache::new(args.hot_cache(), Arc::clone(&metrics)));
        let pauses = PausePoints::default();
        let parts = Parts {
            hot: Arc::clone(&hot),
            hot_keys: Arc::new(HotKeys::new()),
            redis: Arc::clone(&redis),
            postgres: Arc::clone(&postgres),
            metrics: Arc::clone(&metrics),
            drain: drain.clone(),
            pauses: pauses.clone(),
        };
        observe(&parts);
        let catalog = Catalog::start(parts, args.catalog());
        let health = rpc::serve(grpc, Arc::clone(&catalog), args.rpc(), &drain, &metrics).await;
        readiness.set_not_ready("loading the hottest products");
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
            redis,
            postgres,
            drain,
            health,
            readiness,
            drain_delay,
            drain_grace,
        })
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
        self.redis.close().await;
        self.postgres.close().await;
        in_time
    }
}

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
    patience: Duration,
    readiness: &Readiness,
) -> Result<(), StartError> {
    let began = Instant::now();
    loop {
        let why = match postgres.migrate().await {
            Ok(()) => return Ok(()),
            Err(postgres::Error::Unavailable(why)) => why,
            Err(error) => return Err(StartError(format!("DATABASE_URL: {error}"))),
        };
        if began.elapsed() >= patience {
            return Err(StartError(postgres.out_of_reach(&why)));
        }
        readiness.set_not_ready(&format!("waiting for PostgreSQL: {why}"));
        tracing::warn!(%why, "waiting for PostgreSQL");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// The gauges of what the parts hold.
fn observe(parts: &Parts) {
    let metrics = &parts.metrics;
    metrics.build_info();
    let hot = Arc::clone(&parts.hot);
    metrics.gauge("hotshelf.hot.entries", "Entries in this process' memory.", move || hot.len());
    let redis = Arc::clone(&parts.redis);
    metrics.gauge("hotshelf.redis.connected", "Connections to Redis that stand.", move || {
        redis.connected()
    });
    let postgres = Arc::clone(&parts.postgres);
    metrics.gauge("hotshelf.postgres.connections", "Open connections to PostgreSQL.", move || {
        postgres.connections()
    });
    let postgres = Arc::clone(&parts.postgres);
    metrics.gauge(
        "hotshelf.postgres.connections.idle",
        "Open connections to PostgreSQL that are not in use.",
        move || postgres.idle_connections(),
    );
    let postgres = Arc::clone(&parts.postgres);
    metrics.gauge(
        "hotshelf.postgres.loads.in.flight",
        "Loads from PostgreSQL that run or wait.",
        move || postgres.loads_in_flight(),
    );
}
