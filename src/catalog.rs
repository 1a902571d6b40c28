//! Reading and writing products: where every decision of both paths is made.
//!
//! A read goes memory, Redis, Postgres (`load.rs`); of many readers of one product one loads
//! (`flight.rs`). A write goes to Postgres, and once it is committed nothing can turn it into a failure
//! (`write.rs`). Every change is read from the outbox (`change_feed.rs`), and memory is kept warm (`refresh.rs`).

mod change_feed;
mod chunks;
mod error;
mod explain;
mod fallback;
mod load;
mod read_postgres;
mod redis_probe;
mod refresh;
mod singleflight;
mod write;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::caller::CallContext;
use crate::controls::Controls;
use crate::drain::Drain;
use crate::entry::{Entry, Freshness, TtlPolicy};
use crate::hot_cache::{HotCache, HotEntry};
pub use crate::hot_keys::HotKey;
use crate::hot_keys::{HotKeys, two_deviations};
use crate::metrics::{Lookup, Metrics, ServedBy};
use crate::moment::Moment;
use crate::pause::PausePoints;
use crate::postgres::{ChangeReader, DemandGuards, Postgres};
pub use crate::postgres::{Refusal, Refused};
use crate::product::ProductId;
use crate::recent_changes::RecentChanges;
use crate::redis::Redis;
use change_feed::ChangeFeed;
pub use error::Error;
pub use explain::{Explanation, SlotState};
use load::Load;
use refresh::RefreshQueue;
use singleflight::{FreshnessClass, Singleflight, Waiter};

/// A caller who asks for more than the flight it joined can promise boards the next one, this often.
const MAX_JOINS: usize = 16;

/// How long things are kept and waited for.
#[derive(Clone, Copy, Debug)]
pub struct CatalogOptions {
    /// How long entries may be used.
    pub ttl: TtlPolicy,
    /// How often the outbox is read.
    pub poll_interval: Duration,
    /// For how long a copy is trusted after it was compared with Postgres, while the outbox cannot be read.
    pub trust: Duration,
    /// How long to wait for another instance's load before asking Postgres without its lease.
    pub lease_wait: Duration,
    /// How often the fleet's hottest products are looked at, to refresh them ahead of their soft TTL.
    pub refresh_interval: Duration,
    /// How many of them are kept warm.
    pub refresh_keys: usize,
}

/// The parts that a catalogue is made of.
#[derive(Debug)]
pub struct Parts {
    /// The hot tier.
    pub hot: Arc<HotCache>,
    /// Which products changed lately.
    pub recent: Arc<RecentChanges>,
    /// What is read most.
    pub hot_keys: Arc<HotKeys>,
    /// The Redis tier.
    pub redis: Arc<Redis>,
    /// The truth.
    pub postgres: Arc<Postgres>,
    /// Reads the changes; its connection is opened before those of callers, which take all that a role may have.
    pub change_reader: ChangeReader,
    /// Told when no instance relays.
    pub relay_vacancy: Arc<Notify>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The life of this instance.
    pub drain: Drain,
    /// Where tests may hold it.
    pub pauses: PausePoints,
    /// What tests may turn off.
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
    relay_vacancy: Arc<Notify>,
    singleflight: Arc<Singleflight>,
    /// Loads that are about to look into Redis.
    starting: Mutex<Vec<Vec<Load>>>,
    refresh_queue: RefreshQueue,
    options: CatalogOptions,
    /// One probe at a time.
    probing: tokio::sync::Mutex<()>,
}

/// What a load brought.
#[derive(Clone, Debug)]
struct Loaded {
    entry: Entry,
    from: ServedBy,
    /// Whether nobody could say that it is current.
    unproven: bool,
}

impl Loaded {
    fn proven(entry: Entry, from: ServedBy) -> Self {
        Self { entry, from, unproven: false }
    }
}

/// The answer to a read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The product, or the knowledge that there is none.
    pub entry: Entry,
    /// The tier that gave it.
    pub from: ServedBy,
    /// Whether it is past its time.
    pub stale: bool,
}

impl Catalog {
    /// A catalogue of these parts, which follows the changes in Postgres and refreshes what is due.
    #[must_use]
    pub fn start(parts: Parts, options: CatalogOptions) -> Arc<Self> {
        let Parts {
            hot,
            recent,
            hot_keys,
            redis,
            postgres,
            change_reader,
            relay_vacancy,
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
            relay_vacancy,
            singleflight,
            starting: Mutex::default(),
            refresh_queue,
            options,
            probing: tokio::sync::Mutex::new(()),
        });
        catalog.start_refreshing(requests);
        catalog.start_following_changes();
        catalog.start_probing_redis();
        catalog
    }

    /// What memory may answer; the read is counted. Past the soft TTL it answers, and the refresher is told. What it may not answer
    /// is for [`get_cold`](Self::get_cold).
    #[must_use]
    pub fn get_hot(&self, id: ProductId, freshness: &Freshness) -> Option<Answer> {
        self.hot_keys.record(id);
        let now = Moment::now();
        let (lookup, entry) = self.look(id, freshness, now);
        self.metrics.lookups.inc(lookup);
        entry.map(|entry| self.answer(id, entry, ServedBy::Hot, now))
    }

    /// Reads a product that memory may not answer for.
    ///
    /// # Errors
    /// [`Error::VersionNotReached`], [`Error::Unavailable`], [`Error::OverBudget`]. A product that does not
    /// exist is an answer: a tombstone.
    pub async fn get_cold(
        self: &Arc<Self>,
        id: ProductId,
        freshness: Freshness,
        call: CallContext,
    ) -> Result<Answer, Error> {
        if let Some(answer) = self.unproven(id, freshness) {
            return Ok(answer);
        }
        let waiter = self.join(&[id], freshness, call).pop().expect("one waiter for each id");
        self.wait_for(id, waiter, freshness, call).await
    }

    /// Reads several products, one answer for each, in the order of `ids`, which must not repeat. `None` is a product that the
    /// API cannot express.
    ///
    /// # Errors
    /// As those of [`get_cold`](Self::get_cold): one product that cannot be loaded fails them all.
    pub async fn get_many(
        self: &Arc<Self>,
        ids: &[ProductId],
        freshness: Freshness,
        call: CallContext,
    ) -> Result<Vec<Option<Answer>>, Error> {
        self.hot_keys.record_all(ids);
        let mut answers = self.get_all_hot(ids, &freshness);
        for (id, answer) in ids.iter().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
            *answer = self.unproven(*id, freshness);
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
        // The first that fails fails them all, and the others are waited for no longer.
        let mut arrived = try_join_all(loads).await?.into_iter();
        let mut next = || arrived.next().expect("one arrival for each missing id");
        Ok(answers.into_iter().map(|answer| answer.or_else(&mut next)).collect())
    }

    /// Bytes of those products that memory holds, however fresh.
    #[must_use]
    pub fn held_bytes(&self, ids: &[ProductId]) -> usize {
        let mut bytes = 0;
        self.hot.read_all(ids, |_, held| bytes += held.map_or(0, |held| held.entry.frame().len()));
        bytes
    }

    /// What this instance is asked for most.
    #[must_use]
    pub fn hot_keys(&self, limit: usize) -> Vec<HotKey> {
        self.hot_keys.top(limit)
    }

    /// What the fleet is asked for most; nothing while Redis cannot be asked.
    pub async fn fleet_hot_keys(&self, limit: usize) -> Vec<HotKey> {
        let ranked = self.redis.ranking(limit).await.unwrap_or_default();
        let window = self.redis.ranking_window().as_secs_f64();
        let key = |(id, per_second): (ProductId, f64)| {
            let error_bound = two_deviations(per_second * window) / window;
            HotKey { id, per_second, error_bound }
        };
        ranked.into_iter().map(key).collect()
    }

    /// What memory may answer of many, which are counted at once.
    fn get_all_hot(&self, ids: &[ProductId], freshness: &Freshness) -> Vec<Option<Answer>> {
        let now = Moment::now();
        let (mut hits, mut stale) = (0, 0);
        let mut answers = Vec::with_capacity(ids.len());
        self.hot.read_all(ids, |id, held| {
            let served = held.filter(|held| self.hot.serves(held, freshness, now));
            hits += u64::from(served.is_some());
            stale += u64::from(held.is_some() && served.is_none());
            let answer = |held: &HotEntry| self.timed(id, held.entry.clone(), ServedBy::Hot, now);
            answers.push(served.map(answer));
        });
        self.metrics.reads.add(ServedBy::Hot, hits);
        self.metrics.lookups.add(Lookup::HotHit, hits);
        self.metrics.lookups.add(Lookup::HotStale, stale);
        self.metrics.lookups.add(Lookup::HotMiss, ids.len() as u64 - hits - stale);
        answers
    }

    fn look(&self, id: ProductId, freshness: &Freshness, now: Moment) -> (Lookup, Option<Entry>) {
        let serve =
            |held: &HotEntry| self.hot.serves(held, freshness, now).then(|| held.entry.clone());
        match self.hot.read(id, serve) {
            None => (Lookup::HotMiss, None),
            Some(None) => (Lookup::HotStale, None),
            Some(entry) => (Lookup::HotHit, entry),
        }
    }

    fn answer(&self, id: ProductId, entry: Entry, from: ServedBy, now: Moment) -> Answer {
        self.metrics.reads.inc(from);
        self.timed(id, entry, from, now)
    }

    fn timed(&self, id: ProductId, entry: Entry, from: ServedBy, now: Moment) -> Answer {
        let stale = entry.past_soft(now);
        if stale {
            self.refresh_queue.ask(id);
        }
        Answer { entry, from, stale }
    }

    /// Boards the singleflight of `ids`, and sends off those that nobody had begun.
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
        // What is loaded together is wanted together, and by a call that has nothing if it lacks one product.
        let demand = Arc::default();
        let without_fallback = ids.iter().any(|id| !self.may_fall_back(*id, freshness));
        let mut guards = DemandGuards::new(call, without_fallback);
        for id in ids {
            let (waiter, leader) = self.singleflight.join((*id, class), &demand, &mut guards);
            waiters.push(waiter);
            match leader {
                Some(leader) => loads.push(self.begin(leader, freshness, call.caller, &demand)),
                None => self.metrics.singleflight_joined.inc(()),
            }
        }
        if !loads.is_empty() {
            self.start_loads(loads);
        }
        waiters
    }

    /// Waits for the result, and boards again if what came is not fresh enough for this caller.
    async fn wait_for(
        self: &Arc<Self>,
        id: ProductId,
        mut waiter: Waiter,
        freshness: Freshness,
        call: CallContext,
    ) -> Result<Answer, Error> {
        for _ in 0..MAX_JOINS {
            let loaded = match waiter.wait().await {
                Ok(loaded) => loaded,
                Err(failed) => return self.stale_or(id, freshness, &failed),
            };
            if freshness.accepts(&loaded.entry) {
                reached(&loaded.entry, &freshness)?;
                let Loaded { entry, from, unproven } = loaded;
                if unproven {
                    return Ok(self.stale(entry, from));
                }
                return Ok(self.answer(id, entry, from, Moment::now()));
            }
            waiter = self.join(&[id], freshness, call).pop().expect("one waiter for each id");
        }
        Err(Error::Unavailable("every load in flight was older than this read asks for".to_owned()))
    }
}

/// What Postgres said after the caller asked is as new as it gets. If that is older than `min_version`, the
/// caller has a version that was never committed here.
fn reached(entry: &Entry, freshness: &Freshness) -> Result<(), Error> {
    match *freshness {
        Freshness::MinVersion { version, .. }
            if !entry.is_tombstone() && entry.revision().version < version =>
        {
            Err(Error::VersionNotReached { current: entry.revision().version })
        }
        _ => Ok(()),
    }
}
