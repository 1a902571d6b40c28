//! One load: Redis, and on a miss, under a lease, Postgres. For one product and for a thousand it is the
//! same code, and a product is wait as soon as it is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::chunks::in_chunks;
use super::read_postgres::Readable;
use super::singleflight::{FreshnessClass, Leader, LoadFailure};
use super::{Catalog, Error, Loaded};
use crate::caller::Caller;
use crate::entry::{Entry, Freshness};
use crate::hot_cache::{LoadTicket, OutOfDate};
use crate::metrics::{LeaseOutcome, Lookup, ServedBy};
use crate::moment::Moment;
use crate::pause::Point;
use crate::postgres::Demand;
use crate::product::{ProductId, Version};
use crate::redis::{CHUNK, Filled, Lease, Publish};

/// A load that comes back older than what was committed meanwhile is done again this often; then the answer
/// is given, and not kept.
const MAX_ROUNDS: usize = 3;
/// The bound of P3 without a fault. Where `max_staleness` is less, a load may still take this long.
const OLDEST_ANSWER: Duration = Duration::from_secs(1);
/// Loads of one call that look into Redis together with those of other calls.
const TOGETHER: usize = 16;

/// A product on its way in.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) leader: Leader,
    pub(super) ticket: LoadTicket,
    pub(super) freshness: Freshness,
    /// Whose call began it.
    caller: Caller,
    pub(super) demand: Arc<Demand>,
    /// The newest that Redis was seen to hold.
    pub(super) seen: Option<Entry>,
}

/// What the first look into Redis came to.
enum Looked {
    Completed,
    /// It lacks it, or what it holds is not good enough.
    Missing(Load),
    /// It did not say.
    Unknown(Load),
}

/// What is missing, and what is unknown.
fn sorted(looked: impl Iterator<Item = Looked>) -> (Vec<Load>, Vec<Load>) {
    let mut sorted = (Vec::new(), Vec::new());
    looked.for_each(|looked| match looked {
        Looked::Completed => {}
        Looked::Missing(load) => sorted.0.push(load),
        Looked::Unknown(load) => sorted.1.push(load),
    });
    sorted
}

/// Loads by what is to be done with them.
#[derive(Default)]
struct Sorted {
    /// We hold their leases.
    ours: Vec<Load>,
    leases: Vec<Lease>,
    /// Another instance loads them, and its fill will do.
    waits: Vec<Load>,
    /// Another instance loads them, and its fill may be too old.
    needs_postgres: Vec<Load>,
    /// Redis did not say.
    unknown: Vec<Load>,
}

impl Catalog {
    pub(super) fn begin(
        &self,
        leader: Leader,
        freshness: Freshness,
        caller: Caller,
        demand: &Arc<Demand>,
    ) -> Load {
        let ticket = self.hot.begin_load(leader.id());
        Load { leader, ticket, freshness, caller, demand: Arc::clone(demand), seen: None }
    }

    /// Lands every one of `loads`, detached: no caller's deadline bounds a load that others wait for.
    ///
    /// Loads that begin in the same turn of the scheduler look into Redis together, because a command costs more than a key
    /// of it. Not in a cluster, where the keys have nodes of their own, and one that hangs would hold up all. Not a large batch,
    /// and no more than one command has keys: a lone read would wait for it.
    pub(super) fn start_loads(self: &Arc<Self>, loads: Vec<Load>) {
        let catalog = Arc::clone(self);
        let mut starting = self.starting.lock();
        let together = starting.iter().map(Vec::len).sum::<usize>() + loads.len();
        if self.redis.is_cluster() || loads.len() > TOGETHER || together > CHUNK {
            drop(starting);
            drop(self.drain.spawn(async move { catalog.load(loads).await }));
            return;
        }
        starting.push(loads);
        if starting.len() == 1 {
            drop(self.drain.spawn(async move {
                // Where several calls of a connection wait, those of others will. A lone one would only wait longer.
                if catalog.starting.lock().len() > 1 {
                    tokio::task::yield_now().await;
                }
                let starting = std::mem::take(&mut *catalog.starting.lock());
                catalog.load_together(starting).await;
            }));
        }
    }

    /// From here on each goes its own way: what one has to wait for does not concern the others.
    async fn load_together(self: &Arc<Self>, starting: Vec<Vec<Load>>) {
        let sizes: Vec<usize> = starting.iter().map(Vec::len).collect();
        let looked = self.look_into_redis(starting.into_iter().flatten().collect()).await;
        let mut looked = looked.into_iter();
        for size in sizes {
            let (missing, unknown) = sorted(looked.by_ref().take(size));
            if !missing.is_empty() || !unknown.is_empty() {
                let catalog = Arc::clone(self);
                drop(self.drain.spawn(async move { catalog.load_rest(missing, unknown).await }));
            }
        }
    }

    async fn load(&self, loads: Vec<Load>) {
        let (missing, unknown) = sorted(self.look_into_redis(loads).await.into_iter());
        self.load_rest(missing, unknown).await;
    }

    async fn load_rest(&self, missing: Vec<Load>, unknown: Vec<Load>) {
        let missing = in_chunks(missing, |chunk| self.load_missing(chunk));
        let unknown = in_chunks(unknown, |chunk| self.load_without_lease(chunk, None));
        tokio::join!(missing, unknown);
    }

    /// Lands what Redis holds fresh enough.
    async fn look_into_redis(&self, loads: Vec<Load>) -> Vec<Looked> {
        let entries = self.redis.get_many(&ids(&loads), caller(&loads)).await;
        self.pauses.reach(Point::ReadRedis).await;
        let look = |(load, entry): (Load, Result<Option<Entry>, _>)| {
            let Ok(entry) = entry else {
                self.metrics.lookups.inc(Lookup::RedisError);
                return Looked::Unknown(load);
            };
            if entry.as_ref().is_some_and(|entry| self.may_be_impossible(entry)) {
                // Looked into where no other caller waits for it.
                self.metrics.lookups.inc(Lookup::RedisStale);
                return Looked::Missing(load);
            }
            let (lookup, missed) = self.complete_if_good(load, entry);
            // Here only: asking again under the lease, or while waiting for one, is the same read.
            self.metrics.lookups.inc(lookup);
            missed.map_or(Looked::Completed, Looked::Missing)
        };
        loads.into_iter().zip(entries).map(look).collect()
    }

    async fn load_missing(&self, mut missing: Vec<Load>) {
        for _ in 0..MAX_ROUNDS {
            if missing.is_empty() {
                return;
            }
            // Boxed, so that what Redis answers does not carry the way to Postgres with it.
            missing = Box::pin(self.load_under_leases(missing)).await;
        }
        self.load_without_lease(missing, None).await;
    }

    /// Lands a load with what Redis holds, or returns it when that is not good enough.
    fn complete_if_good(&self, mut load: Load, entry: Option<Entry>) -> (Lookup, Option<Load>) {
        let Some(entry) = entry else { return (Lookup::RedisMiss, Some(load)) };
        if load.seen.as_ref().is_none_or(|seen| seen.revision() <= entry.revision()) {
            load.seen = Some(entry.clone());
        }
        let good = !entry.past_hard(Moment::now())
            && load.freshness.accepts(&entry)
            && entry.revision() >= load.ticket.floor();
        if !good {
            return (Lookup::RedisStale, Some(load));
        }
        if entry.is_suspect() || !self.is_current(&entry) {
            return (Lookup::RedisStale, self.complete_unproven(load, entry));
        }
        match self.complete(load, entry, ServedBy::Redis) {
            None => (Lookup::RedisHit, None),
            missed => (Lookup::RedisStale, missed),
        }
    }

    /// Lands a load with what may not be current, and is not kept, when Postgres answers nobody's questions.
    fn complete_unproven(&self, load: Load, entry: Entry) -> Option<Load> {
        if load.freshness != Freshness::Cached || !self.feed.is_unreachable() {
            return Some(load);
        }
        load.leader.complete(Ok(Loaded { entry, from: ServedBy::Redis, unproven: true }));
        None
    }

    /// Loads what we get the lease for, waits for what others load, and returns what has to be loaded again.
    async fn load_under_leases(&self, loads: Vec<Load>) -> Vec<Load> {
        let waiting_since = Instant::now();
        let mut waiting = loads;
        let mut again = Vec::new();
        for attempt in 0.. {
            let sorted = self.ask_for_leases(waiting).await;
            let (filled, ()) = tokio::join!(
                self.load_and_fill(sorted.ours, sorted.leases),
                self.load_without_lease(sorted.unknown, None),
            );
            again.extend(filled);
            self.load_without_lease(sorted.needs_postgres, Some(Publish::Read)).await;
            // What nobody is aboard of any more waits for nobody.
            waiting = sorted.waits.into_iter().filter_map(Load::unless_abandoned).collect();
            if waiting.is_empty() {
                break;
            }
            if waiting_since.elapsed() >= self.options.lease_wait {
                self.metrics.leases.add(LeaseOutcome::WaitedOut, waiting.len() as u64);
                self.load_without_lease(waiting, Some(Publish::Read)).await;
                break;
            }
            tokio::time::sleep(self.redis.poll_pause(attempt)).await;
        }
        again
    }

    /// Asks for the leases of `loads`, lands what is in Redis by now, and sorts the rest by what is to be done.
    async fn ask_for_leases(&self, loads: Vec<Load>) -> Sorted {
        let asked = self.redis.try_leases(&ids(&loads), caller(&loads)).await;
        let possible = loads.iter().zip(asked).map(|(load, asked)| async {
            let asked = asked.ok()?;
            Some((self.unless_impossible(load.leader.id(), asked.entry).await, asked.lease))
        });
        let possible = join_all(possible).await;
        let (mut sorted, mut needless) = (Sorted::default(), Vec::new());
        for (load, asked) in loads.into_iter().zip(possible) {
            let Some((entry, lease)) = asked else {
                sorted.unknown.push(load);
                continue;
            };
            let (_, missed) = self.complete_if_good(load, entry);
            match (missed, lease) {
                (Some(load), Some(lease)) => {
                    sorted.ours.push(load);
                    sorted.leases.push(lease);
                }
                (Some(load), None) if load.leader.class() == FreshnessClass::Cached => {
                    sorted.waits.push(load);
                }
                (Some(load), None) => sorted.needs_postgres.push(load),
                (None, Some(lease)) => needless.push(lease),
                (None, None) => {}
            }
        }
        self.redis.release(&needless).await;
        sorted
    }

    /// Reads Postgres under leases, fills Redis, and returns what has to be loaded again.
    async fn load_and_fill(&self, loads: Vec<Load>, leases: Vec<Lease>) -> Vec<Load> {
        if loads.is_empty() {
            return Vec::new();
        }
        let loaded = tokio::select! {
            loaded = self.read_postgres(&loads) => loaded,
            never = self.redis.keep_renewing(&leases) => match never {},
        };
        let entries = match loaded {
            Ok(entries) => entries,
            Err(error) => {
                self.redis.release(&leases).await;
                self.fail(loads, &error);
                return Vec::new();
            }
        };
        let Readable { loads, with: leases, entries, failed } =
            self.readable(loads, leases, entries);
        self.redis.release(&failed).await;
        self.pauses.reach(Point::LoadedFromPostgres).await;
        let fills = loads.iter().zip(leases.iter().zip(&entries));
        let fills = fills.map(|(load, (lease, entry))| async {
            match self.redis.fill(lease, entry, load.caller).await.ok()? {
                Filled::Older(newer) | Filled::Lost(Some(newer)) => {
                    let newer = self.unless_impossible(load.leader.id(), Some(newer)).await;
                    Some(Filled::Lost(newer))
                }
                filled => Some(filled),
            }
        });
        let filled = join_all(fills).await;
        self.pauses.reach(Point::FilledRedis).await;
        let mut again = Vec::new();
        for ((load, entry), filled) in loads.into_iter().zip(entries).zip(filled) {
            again.extend(self.complete_filled(load, entry, filled));
        }
        again
    }

    /// Lands what was loaded under a lease. If the lease was broken something was committed since, and
    /// what was read may be old: then it is loaded again.
    fn complete_filled(&self, load: Load, entry: Entry, filled: Option<Filled>) -> Option<Load> {
        match filled {
            Some(Filled::Older(held)) | Some(Filled::Lost(Some(held)))
                if held.revision() > entry.revision()
                    && !held.is_suspect()
                    && !held.past_hard(Moment::now())
                    && self.is_current(&held) =>
            {
                self.complete(load, held, ServedBy::Redis)
            }
            Some(Filled::Older(_) | Filled::Lost(_)) => Some(load),
            Some(Filled::Stored) | None if self.is_overdue(&entry) => Some(load),
            // Redis did not answer: the load's floor is what protects memory.
            Some(Filled::Stored) | None => self.complete(load, entry, ServedBy::Postgres),
        }
    }

    /// Whether what Postgres returned is older than an answer may be, and the change feed has not advanced since: this process
    /// or Postgres stood still.
    fn is_overdue(&self, entry: &Entry) -> bool {
        let oldest = Moment::now().before(self.options.trust.max(OLDEST_ANSWER));
        entry.known_at() < oldest && self.hot.known_until() < oldest
    }

    /// Reads Postgres without a lease and so without filling Redis; at most what is older there is replaced.
    async fn load_without_lease(&self, loads: Vec<Load>, publish: Option<Publish>) {
        if loads.is_empty() {
            return;
        }
        let entries = match self.read_postgres(&loads).await {
            Ok(entries) => entries,
            Err(error) => return self.fail(loads, &error),
        };
        let without = vec![(); loads.len()];
        let Readable { loads, entries, .. } = self.readable(loads, without, entries);
        if let Some(why) = publish {
            // What was read before the epoch changed must not replace what is in Redis in the new one.
            let publishes = loads.iter().zip(&entries).filter(|(load, _)| load.ticket.is_covered());
            let publishes =
                publishes.map(|(load, entry)| self.redis.publish(load.leader.id(), entry, why));
            // What Redis did not take is counted there, and found again by the next load.
            let _ = join_all(publishes).await;
        }
        for (load, entry) in loads.into_iter().zip(entries) {
            let (answer, from) = (entry.clone(), ServedBy::Postgres);
            if self.is_overdue(&entry) {
                load.leader.complete(Ok(Loaded { entry, from, unproven: true }));
            } else if let Some(load) = self.complete(load, entry, from) {
                // It was current when it was asked for. Something newer is in memory, or will be.
                load.leader.complete(Ok(Loaded::proven(answer, from)));
            }
        }
    }

    /// Keeps `entry` in memory and lands the load with the newest that memory holds, or returns the load
    /// when something newer was committed since it began.
    fn complete(&self, load: Load, entry: Entry, from: ServedBy) -> Option<Load> {
        match load.ticket.finish(entry) {
            Ok(held) => {
                load.leader.complete(Ok(Loaded::proven(held.entry.clone(), from)));
                None
            }
            Err(OutOfDate) => Some(load),
        }
    }

    pub(super) fn fail(&self, loads: Vec<Load>, error: &Error) {
        for Load { leader, seen, .. } in loads {
            leader.complete(Err(Arc::new(LoadFailure { error: error.clone(), seen })));
        }
    }
}

impl Load {
    pub(super) fn unless_abandoned(self) -> Option<Self> {
        Some(Self { leader: self.leader.unless_abandoned()?, ..self })
    }

    pub(super) fn newest_observed(&self) -> Version {
        let seen = self.seen.as_ref().map(|seen| seen.revision().version);
        self.ticket.floor().version.max(seen.unwrap_or_default())
    }
}

/// Whose share of Redis these take. Where several calls look together it is that of the first: they are few.
fn caller(loads: &[Load]) -> Caller {
    loads.first().map_or(Caller::BACKGROUND, |load| load.caller)
}

pub(super) fn ids(loads: &[Load]) -> Vec<ProductId> {
    loads.iter().map(|load| load.leader.id()).collect()
}
