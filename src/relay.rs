//! The relay: carries committed changes from the outbox to Redis and into the change stream, whoever made
//! them.
//!
//! Every instance runs it, and none leads: each claims what no other has claimed, applies it, and commits.
//! What a crash interrupts is done again, and may be, because everything is applied by version.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use crate::controls::{Controls, Protection};
use crate::drain::Drain;
use crate::entry::{Entry, TtlPolicy};
use crate::metrics::{BackgroundTask, Metrics};
use crate::pause::{PausePoints, Point};
use crate::postgres::{self, Claim, Postgres};
use crate::product::{Change, ProductId};
use crate::redis::{Publish, Redis};

/// Rows of the outbox that are claimed at once. Too high: a crash repeats more. Too low: more round trips.
const BATCH: u32 = 1_000;
/// With Redis or Postgres in trouble, the relay waits this long between tries.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How often the state of the outbox is looked at, and old changes are forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// Changes that are forgotten at once.
const FORGOTTEN: u32 = 10_000;

/// How the relay works.
#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// How often an empty outbox is looked at.
    pub interval: Duration,
    /// How long relayed changes are kept, to be replayed when Redis lost its last writes.
    pub replay_window: Duration,
    /// How long what it stores may be used.
    pub ttl: TtlPolicy,
}

/// The relay of one instance.
#[derive(Debug)]
pub struct Relay {
    postgres: Arc<Postgres>,
    redis: Arc<Redis>,
    metrics: Arc<Metrics>,
    pauses: PausePoints,
    controls: Controls,
    options: RelayOptions,
    pending: AtomicU64,
    oldest_millis: AtomicU64,
}

enum Failure {
    Postgres(postgres::Error),
    Redis,
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl Relay {
    /// Starts relaying.
    pub fn start(
        postgres: Arc<Postgres>,
        redis: Arc<Redis>,
        metrics: Arc<Metrics>,
        (pauses, controls): (PausePoints, Controls),
        options: RelayOptions,
        drain: &Drain,
    ) {
        let relay = Arc::new(Self {
            postgres,
            redis,
            metrics,
            pauses,
            controls,
            options,
            pending: AtomicU64::new(0),
            oldest_millis: AtomicU64::new(0),
        });
        relay.observe();
        let worker = Arc::clone(&relay);
        drain.spawn_loop(BackgroundTask::Relay, move || Arc::clone(&worker).run());
        drain.spawn_loop(BackgroundTask::OutboxMaintenance, move || Arc::clone(&relay).maintain());
    }

    async fn run(self: Arc<Self>) -> Result<Infallible, Infallible> {
        loop {
            match self.step().await {
                // There is more.
                Ok(rows) if rows == BATCH as usize => {}
                Ok(_) => tokio::time::sleep(self.pause()).await,
                Err(failure) => {
                    failure.log();
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Jittered, so that the instances do not all look at once.
    fn pause(&self) -> Duration {
        self.options.interval.mul_f64(rand::random_range(0.5..1.0))
    }

    /// Applies one batch and returns how many rows of the outbox it was.
    async fn step(&self) -> Result<usize, Failure> {
        if !self.controls.holds(Protection::Relay) {
            return Ok(0);
        }
        let mut claim = self.postgres.claim_changes(BATCH).await?;
        if claim.rows == 0 {
            return Ok(0);
        }
        let rows = claim.rows;
        self.pauses.reach(Point::RelayClaimed).await;
        let superseded = self.redis.supersede(&claim.changes).await.map_err(|_| Failure::Redis)?;
        self.pauses.reach(Point::RelaySuperseded).await;
        self.replace(&mut claim, &superseded).await?;
        self.pauses.reach(Point::RelayApplied).await;
        // Redis first, so that whoever hears of a change finds it there.
        self.redis.append_changes(&claim.changes).await.map_err(|_| Failure::Redis)?;
        self.pauses.reach(Point::RelayAppended).await;
        claim.done().await?;
        self.metrics.relayed.add((), rows as u64);
        Ok(rows)
    }

    /// Replaces entries that Redis holds and that are older. What it does not hold is left out: a bulk job
    /// must not flood the cache.
    async fn replace(&self, claim: &mut Claim, superseded: &[ProductId]) -> Result<(), Failure> {
        if superseded.is_empty() {
            return Ok(());
        }
        let loaded = claim.load(superseded).await?;
        let mut entries: Vec<(ProductId, Entry)> = Vec::with_capacity(superseded.len());
        for product in &loaded.products {
            let entry = Entry::live(product, loaded.known_at, self.options.ttl.product());
            entries.push((product.id, entry));
        }
        let exists = |id| loaded.products.iter().any(|product| product.id == id);
        let gone = |change: &&Change| superseded.contains(&change.id) && !exists(change.id);
        for change in claim.changes.iter().filter(gone) {
            let version = change.revision.version.max(loaded.last_version(change.id));
            let entry = Entry::tombstone(version, loaded.known_at, self.options.ttl.tombstone());
            entries.push((change.id, entry));
        }
        let publishes =
            entries.iter().map(|(id, entry)| self.redis.publish(*id, entry, Publish::Read));
        let published: Result<Vec<()>, _> = join_all(publishes).await.into_iter().collect();
        published.map(drop).map_err(|_| Failure::Redis)
    }

    async fn maintain(self: Arc<Self>) -> Result<Infallible, Infallible> {
        loop {
            match self.postgres.pending_changes().await {
                Ok(pending) => {
                    self.pending.store(pending.rows, Ordering::Relaxed);
                    let millis = u64::try_from(pending.oldest.as_millis()).unwrap_or(u64::MAX);
                    self.oldest_millis.store(millis, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "the outbox cannot be looked at"),
            }
            if let Err(error) =
                self.postgres.forget_changes(self.options.replay_window, FORGOTTEN).await
            {
                tracing::debug!(%error, "old changes cannot be forgotten");
            }
            tokio::time::sleep(HOUSEKEEPING.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    fn observe(self: &Arc<Self>) {
        let help = "Changes in the outbox that no relay has applied; not counted past 100,000.";
        self.metrics.gauge("hotshelf.outbox.pending", help, self, |relay| {
            relay.pending.load(Ordering::Relaxed)
        });
        let help = "Age of the oldest change in the outbox, in seconds.";
        self.metrics.seconds("hotshelf.outbox.oldest.age", help, self, |relay| {
            Duration::from_millis(relay.oldest_millis.load(Ordering::Relaxed))
        });
    }
}

impl Failure {
    fn log(&self) {
        match self {
            Self::Postgres(error) => tracing::warn!(%error, "changes cannot be relayed"),
            Self::Redis => tracing::warn!("changes cannot be relayed: Redis does not answer"),
        }
    }
}
