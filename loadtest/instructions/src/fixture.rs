//! hotshelf with all products hot. Its parts are those of the program, but there is no Postgres and no Redis, and background
//! tasks never run: nothing may run but the counted operation.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use hotshelf::catalog::{Catalog, Parts};
use hotshelf::config::{Cli, ServeArgs};
use hotshelf::controls::Controls;
use hotshelf::drain::Drain;
use hotshelf::entry::{Entry, Ttl};
use hotshelf::hot_cache::HotCache;
use hotshelf::hot_keys::HotKeys;
use hotshelf::metrics::{Lookup, Metrics};
use hotshelf::moment::Moment;
use hotshelf::pause::PausePoints;
use hotshelf::postgres::Postgres;
use hotshelf::product::{Currency, Price, Product, ProductId, Version};
use hotshelf::recent_changes::RecentChanges;
use hotshelf::redis::Redis;
use hotshelf::refusals::Refusals;
use hotshelf::rpc::{self, Identity};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::Error;

pub(crate) const PRODUCTS: usize = 1_000;
/// Of each product, encoded.
pub(crate) const PRODUCT_BYTES: usize = 300;

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Nothing listens on port 1, and nothing connects to it.
const NOWHERE: [&str; 4] =
    ["--database-url", "postgres://nobody@127.0.0.1:1/none", "--redis-url", "redis://127.0.0.1:1"];

pub(crate) struct Fixture {
    pub(crate) catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    args: ServeArgs,
    _background: Runtime,
}

/// The id of the n-th product.
pub(crate) fn id(n: usize) -> ProductId {
    i64::try_from(n).ok().and_then(|n| ProductId::new(n + 1)).expect("few products")
}

/// The n-th product, as an entry of the hot tier.
pub(crate) fn entry(n: usize) -> Entry {
    let known_at = Moment::now();
    let ttl = Ttl { soft: DAY, hard: DAY };
    let currency = Currency::stored("USD").expect("three capital letters");
    let mut product = Product {
        id: id(n),
        name: format!("walnut desk lamp {n}"),
        price: Price::new(2_499, currency).ok(),
        description: String::new(),
        version: Version(7),
        create_time: Some(SystemTime::UNIX_EPOCH + DAY),
        update_time: Some(SystemTime::UNIX_EPOCH + DAY),
        attributes: None,
    };
    let without = encoded_len(&Entry::live(&product, known_at, ttl));
    // The field adds a key and a length of two bytes.
    product.description = "x".repeat(PRODUCT_BYTES - without - 3);
    Entry::live(&product, known_at, ttl)
}

fn encoded_len(entry: &Entry) -> usize {
    entry.product().map_or(0, <[u8]>::len)
}

impl Fixture {
    pub(crate) fn new() -> Result<Self, Error> {
        let background = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let background = background.map_err(|error| Error::Io("a runtime".to_owned(), error))?;
        // The parts spawn their tasks on this runtime, which is never run.
        let entered = background.enter();
        let long = ["--hot-lease", "1day", "--max-staleness", "1day", "--soft-ttl", "1day"];
        let args = Cli::try_parse_from(["hotshelf"].into_iter().chain(NOWHERE).chain(long));
        let args = args.map_err(|error| Error::Failed(error.to_string()))?.serve;
        let metrics = Metrics::new();
        let postgres = Postgres::new(&args.postgres(), Arc::clone(&metrics));
        let postgres = postgres.map_err(Error::Failed)?;
        let redis = Redis::connect(args.redis(), Arc::clone(&metrics), Controls::default());
        let recent = Arc::new(RecentChanges::new(args.caching.max_recent_changes));
        let hot = HotCache::new(args.hot_cache(), Arc::clone(&recent), Arc::clone(&metrics));
        let hot = Arc::new(hot);
        let parts = Parts {
            hot: Arc::clone(&hot),
            recent,
            change_reader: postgres.change_reader(),
            relay_lease_free: Arc::default(),
            hot_keys: Arc::new(HotKeys::new()),
            redis: Arc::new(redis.map_err(Error::Failed)?),
            postgres: Arc::new(postgres),
            metrics: Arc::clone(&metrics),
            drain: Drain::default(),
            pauses: PausePoints::default(),
            controls: Controls::default(),
        };
        let catalog = Catalog::start(parts, args.catalog());
        fill(&hot);
        drop(entered);
        Ok(Self { catalog, metrics, args, _background: background })
    }

    /// Serves as the program does, on the current runtime.
    pub(crate) async fn serve(&self, listener: TcpListener) -> Result<(), Error> {
        let catalog = Arc::clone(&self.catalog);
        let (options, drain, metrics) = (self.args.rpc(), Drain::default(), &self.metrics);
        let identity = self.args.identity().map_err(Error::Failed)?;
        let identity = Identity::load(&identity, metrics).await.map_err(Error::Failed)?;
        let refusals = Refusals::new(metrics);
        let (health, _) =
            rpc::serve(listener, catalog, options, identity, &drain, metrics, &refusals).await;
        health.set(true).await;
        Ok(())
    }

    /// # Errors
    /// If a read was not a hit in the hot tier.
    pub(crate) fn answered_from_memory(&self) -> Result<(), Error> {
        let lookups = &self.metrics.lookups;
        match lookups.get(Lookup::HotMiss) + lookups.get(Lookup::HotStale) {
            0 if lookups.get(Lookup::HotHit) > 0 => Ok(()),
            missed => Err(Error::Failed(format!("{missed} reads were not hot"))),
        }
    }
}

fn fill(hot: &Arc<HotCache>) {
    hot.prove(Moment::now());
    for n in 0..PRODUCTS {
        let load = hot.begin_load(id(n));
        load.finish(entry(n)).expect("no newer version was observed");
    }
}
