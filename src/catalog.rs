//! Reading and writing products.
//!
//! A read is answered by memory, else by Redis, else by Postgres (`load.rs`). Whether a copy may answer is decided in
//! `verdict.rs`. Concurrent reads of one product share one load (`singleflight.rs`). A write goes to Postgres, and cannot fail
//! after its commit (`write.rs`). Changes are read from the outbox (`change_feed.rs`); entries are refreshed ahead (`refresh.rs`).

mod ceiling;
mod change_feed;
mod chunks;
mod error;
mod explain;
mod fallback;
mod load;
mod ranking;
mod read_postgres;
mod redis_probe;
mod refresh;
mod shadow;
mod singleflight;
mod staleness;
mod traced;
mod verdict;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::caller::CallContext;
use crate::controls::Controls;
use crate::drain::Drain;
use crate::entry::{Entry, Freshness, TtlPolicy};
use crate::hot_cache::{HotCache, HotEntry};
pub use crate::hot_keys::HotKey;
use crate::hot_keys::HotKeys;
use crate::metrics::{Lookup, Metrics, ServedBy};
use crate::moment::Moment;
use crate::pause::PausePoints;
use crate::postgres::{ChangeReader, Demand, DemandGuards, Postgres};
pub use crate::postgres::{Refusal, Refused};
use crate::product::{Currency, ProductId};
use crate::recent_changes::RecentChanges;
use crate::redis::Redis;
use change_feed::ChangeFeed;
pub use error::Error;
pub use explain::Explanation;
use load::Load;
pub use ranking::Ranked;
use refresh::RefreshQueue;
use singleflight::{FreshnessClass, Singleflight, Waiter};
pub use verdict::Verdict;

/// Loads that one read joins before it fails. It joins another when the result is less fresh than it asks for.
const MAX_JOINS: usize = 16;

#[derive(Clone, Copy, Debug)]
pub struct CatalogOptions {
    pub ttl: TtlPolicy,
    /// Between two polls of the outbox.
    pub poll_interval: Duration,
    /// For how long after its last comparison with Postgres an entry answers while the outbox is unreachable.
    pub trust: Duration,
    /// For how long a load waits for another instance's lease before it reads Postgres without one.
    pub lease_wait: Duration,
    /// Between two refreshes of the fleet's hottest products.
    pub refresh_interval: Duration,
    /// How many of the fleet's hottest products are refreshed before they expire.
    pub refresh_keys: usize,
    /// Products in memory that are compared with Postgres in a second; 0: none.
    pub shadow_reads: u32,
    /// For how long after a commit an older version may answer.
    pub max_staleness: Duration,
}

#[derive(Debug)]
pub struct Parts {
    pub hot: Arc<HotCache>,
    pub recent: Arc<RecentChanges>,
    pub hot_keys: Arc<HotKeys>,
    pub redis: Arc<Redis>,
    pub postgres: Arc<Postgres>,
    /// Its connection is opened before those of callers, which may take all that the role is allowed.
    pub change_reader: ChangeReader,
    /// Notified when a poll finds that no instance runs the relay.
    pub relay_lease_free: Arc<Notify>,
    pub metrics: Arc<Metrics>,
    pub drain: Drain,
    pub pauses: PausePoints,
    pub controls: Controls,
}

/// The products, read through three tiers.
#[derive(Debug)]
pub struct Catalog {
    began: Moment,
    hot: Arc<HotCache>,
    recent: Arc<RecentChanges>,
    hot_keys: Arc<HotKeys>,
    redis: Arc<Redis>,
    postgres: Arc<Postgres>,
    metrics: Arc<Metrics>,
    drain: Drain,
    pauses: PausePoints,
    controls: Controls,
    feed: ChangeFeed,
    change_reader: Mutex<Option<ChangeReader>>,
    relay_lease_free: Arc<Notify>,
    singleflight: Arc<Singleflight>,
    /// Loads that the next command to Redis reads.
    starting: Mutex<Vec<Vec<Load>>>,
    refresh_queue: RefreshQueue,
    options: CatalogOptions,
    /// Held by the one probe of Redis at a time.
    probing: tokio::sync::Mutex<()>,
    /// The fleet's ranking that was read last, and when.
    fleet_ranking: Mutex<Option<(Ranked, Instant)>>,
}

/// The result of a load.
#[derive(Clone, Debug)]
struct Loaded {
    entry: Entry,
    from: ServedBy,
    /// Whether the entry could not be confirmed, so that it is served marked stale and not kept.
    unconfirmed: bool,
}

impl Loaded {
    fn confirmed(entry: Entry, from: ServedBy) -> Self {
        Self { entry, from, unconfirmed: false }
    }
}

/// The answer to a read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// A product, or a tombstone: the product does not exist.
    pub entry: Entry,
    pub from: ServedBy,
    /// Whether the entry is past its soft TTL, or could not be confirmed.
    pub stale: bool,
    /// Whether the read joined a load that another had started.
    pub collapsed: bool,
}

impl Catalog {
    /// Starts the change feed, the refresher and the probe of Redis with it.
    #[must_use]
    pub fn start(parts: Parts, options: CatalogOptions) -> Arc<Self> {
        let Parts {
            hot,
            recent,
            hot_keys,
            redis,
            postgres,
            change_reader,
            relay_lease_free,
            metrics,
            drain,
            pauses,
            controls,
        } = parts;
        let (refresh_queue, requests) = RefreshQueue::new(Arc::clone(&metrics));
        let singleflight = Singleflight::new();
        let catalog = Arc::new(Self {
            began: Moment::now(),
            hot,
            recent,
            hot_keys,
            redis,
            postgres,
            metrics,
            drain,
            pauses,
            controls,
            feed: ChangeFeed::new(),
            change_reader: Mutex::new(Some(change_reader)),
            relay_lease_free,
            singleflight,
            starting: Mutex::default(),
            refresh_queue,
            options,
            probing: tokio::sync::Mutex::new(()),
            fleet_ranking: Mutex::default(),
        });
        catalog.start_refreshing(requests);
        catalog.start_following_changes();
        catalog.start_probing_redis();
        catalog.start_shadow_reads();
        catalog
    }

    /// Reads memory. An entry past its soft TTL answers and is queued for a refresh. `None`: see
    /// [`get_cold`](Self::get_cold).
    #[must_use]
    pub fn get_hot(&self, id: ProductId, freshness: &Freshness) -> Option<Answer> {
        self.hot_keys.record(id);
        let now = Moment::now();
        let (lookup, answer) = self.look_up(id, freshness, now);
        self.metrics.lookups.inc(lookup);
        if answer.is_some() {
            self.metrics.reads.inc(ServedBy::Hot);
        }
        answer
    }

    /// Loads a product for which [`get_hot`](Self::get_hot) had no answer. A product that does not exist is a tombstone,
    /// not an error.
    ///
    /// # Errors
    /// [`Error::VersionNotReached`], [`Error::Unavailable`], [`Error::OverBudget`].
    pub async fn get_cold(
        self: &Arc<Self>,
        id: ProductId,
        freshness: Freshness,
        call: CallContext,
    ) -> Result<Answer, Error> {
        if let Some(answer) = self.unconfirmed(id, freshness) {
            return Ok(answer);
        }
        let waiter = self.join(&[id], freshness, call).pop().expect("one waiter for each id");
        self.wait_for(id, waiter, freshness, call).await
    }

    /// Reads several products: one answer for each, in the order of `ids`, which must not repeat. `None` is a row that the
    /// API cannot express.
    ///
    /// # Errors
    /// Those of [`get_cold`](Self::get_cold): one product that cannot be loaded fails the call.
    pub async fn get_many(
        self: &Arc<Self>,
        ids: &[ProductId],
        freshness: Freshness,
        call: CallContext,
    ) -> Result<Vec<Option<Answer>>, Error> {
        self.hot_keys.record_all(ids);
        let mut answers = self.get_all_hot(ids, &freshness);
        for (id, answer) in ids.iter().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            *answer = self.unconfirmed(*id, freshness);
        }
        let missing: Vec<ProductId> = ids
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_none())
            .map(|(id, _)| *id)
            .collect();
        if missing.is_empty() {
            return Ok(answers);
        }
        let waiters = self.join(&missing, freshness, call);
        let loads = missing.iter().zip(waiters).map(async |(id, waiter)| {
            match self.wait_for(*id, waiter, freshness, call).await {
                Ok(answer) => Ok(Some(answer)),
                Err(Error::Unreadable(_)) => Ok(None),
                Err(error) => Err(error),
            }
        });
        // The first failure fails the call; the other loads go on without this waiter.
        let mut loaded = try_join_all(loads).await?.into_iter();
        let mut next = || loaded.next().expect("one result for each missing id");
        Ok(answers.into_iter().map(|answer| answer.or_else(&mut next)).collect())
    }

    /// The currency of all prices, where the table has one.
    #[must_use]
    pub fn only_currency(&self) -> Option<Currency> {
        self.postgres.only_currency()
    }

    /// Encoded bytes of those products that memory holds, fresh or not.
    #[must_use]
    pub fn held_bytes(&self, ids: &[ProductId]) -> usize {
        let mut bytes = 0;
        self.hot.read_all(ids, |_, held| bytes += held.map_or(0, |held| held.entry.frame().len()));
        bytes
    }

    /// [`get_hot`](Self::get_hot) for many: one update of each counter.
    fn get_all_hot(&self, ids: &[ProductId], freshness: &Freshness) -> Vec<Option<Answer>> {
        let now = Moment::now();
        let (mut hits, mut stale) = (0, 0);
        let mut answers = Vec::with_capacity(ids.len());
        self.hot.read_all(ids, |id, held| {
            let answer = held.and_then(|held| self.answer_hot(id, held, freshness, now));
            hits += u64::from(answer.is_some());
            stale += u64::from(held.is_some() && answer.is_none());
            answers.push(answer);
        });
        self.metrics.reads.add(ServedBy::Hot, hits);
        self.metrics.lookups.add(Lookup::HotHit, hits);
        self.metrics.lookups.add(Lookup::HotStale, stale);
        self.metrics.lookups.add(Lookup::HotMiss, ids.len() as u64 - hits - stale);
        answers
    }

    fn look_up(
        &self,
        id: ProductId,
        freshness: &Freshness,
        now: Moment,
    ) -> (Lookup, Option<Answer>) {
        match self.hot.read(id, |held| self.answer_hot(id, held, freshness, now)) {
            None => (Lookup::HotMiss, None),
            Some(None) => (Lookup::HotStale, None),
            Some(answer) => (Lookup::HotHit, answer),
        }
    }

    #[inline(always)]
    fn answer_hot(
        &self,
        id: ProductId,
        held: &HotEntry,
        freshness: &Freshness,
        now: Moment,
    ) -> Option<Answer> {
        let verdict = self.judge_hot(held, freshness, now);
        let stale = verdict == Verdict::PastSoftTtl;
        verdict.answers().then(|| self.answer(id, held.entry.clone(), ServedBy::Hot, stale))
    }

    #[inline]
    fn answer(&self, id: ProductId, entry: Entry, from: ServedBy, stale: bool) -> Answer {
        if stale {
            self.refresh_queue.ask(id);
        }
        Answer { entry, from, stale, collapsed: false }
    }

    /// Joins the loads in flight of `ids`, and starts those that are not in flight.
    fn join(
        self: &Arc<Self>,
        ids: &[ProductId],
        freshness: Freshness,
        call: CallContext,
    ) -> Vec<Waiter> {
        let class = match freshness {
            Freshness::Cached | Freshness::NotDue { .. } => FreshnessClass::Cached,
            Freshness::MinVersion { .. } | Freshness::KnownSince(_) => FreshnessClass::Strict,
        };
        let (mut waiters, mut loads) = (Vec::with_capacity(ids.len()), Vec::new());
        // The loads of one call share one demand: the call fails as a whole if it lacks one product.
        let span = self.begin_load_span(call);
        let demand = Demand::traced(span.context());
        let without_fallback = ids.iter().any(|id| !self.has_fallback(*id, freshness));
        let mut guards = DemandGuards::new(call, without_fallback);
        for id in ids {
            let (waiter, leader) = self.singleflight.join((*id, class), &demand, &mut guards);
            waiters.push(waiter);
            match leader {
                Some(leader) => loads.push(self.begin(leader, freshness, call, &demand, &span)),
                None => self.joined(call, waiters.last()),
            }
        }
        self.start_traced(call, span, loads);
        waiters
    }

    /// Waits for a load, and joins another if the result is not fresh enough for this read.
    async fn wait_for(
        self: &Arc<Self>,
        id: ProductId,
        mut waiter: Waiter,
        freshness: Freshness,
        call: CallContext,
    ) -> Result<Answer, Error> {
        for _ in 0..MAX_JOINS {
            let collapsed = waiter.has_joined;
            let loaded = match waiter.wait().await {
                Ok(loaded) => loaded,
                Err(failed) => return self.stale_or(id, freshness, &failed),
            };
            if freshness.accepts(&loaded.entry) {
                error::reached(&loaded.entry, &freshness)?;
                let Loaded { entry, from, unconfirmed } = loaded;
                if unconfirmed {
                    return Ok(self.stale(id, entry, from));
                }
                self.count_answer(id, from);
                let stale = entry.past_soft(Moment::now());
                let answer = self.answer(id, entry, from, stale);
                return Ok(Answer { collapsed, ..answer });
            }
            waiter = self.join(&[id], freshness, call).pop().expect("one waiter for each id");
        }
        Err(Error::Unavailable("every load in flight was older than this read asks for".to_owned()))
    }
}
