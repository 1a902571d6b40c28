//! Loads: read Redis, and on a miss, under a lease, Postgres. One product and a thousand take the same path, and each
//! load completes as soon as its result is known.

mod one;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tracing::Instrument;

use super::chunks::in_chunks;
use super::read_postgres::Readable;
use super::singleflight::{FreshnessClass, Leader, LoadFailure};
use super::traced::client_spans;
use super::verdict::Verdict;
use super::{Catalog, Error, Loaded};
use crate::caller::CallContext;
use crate::entry::{Entry, Freshness};
use crate::hot_cache::OutOfDate;
use crate::metrics::{LeaseOutcome, Lookup, ServedBy};
use crate::moment::Moment;
use crate::pause::Point;
use crate::postgres::Demand;
use crate::redis::{CHUNK, Filled, Lease, Publish};
use crate::traces::Span;
use one::caller;
pub(super) use one::{Load, ids};

/// Attempts of a load whose result is older than a change committed meanwhile. The last result answers the read, and is
/// not kept.
const MAX_ROUNDS: usize = 3;
/// The staleness bound without a fault (P3). With a smaller `max_staleness` a load may still take this long.
const OLDEST_ANSWER: Duration = Duration::from_secs(1);
/// A call with at most this many loads shares its command to Redis with other calls.
const TOGETHER: usize = 16;

/// The first read of Redis for one load.
enum FirstRead {
    Completed,
    /// No entry, or one that may not answer.
    Miss(Load),
    /// Redis failed or did not answer in time.
    Unavailable(Load),
}

/// The loads of misses, and those for which Redis is unavailable.
fn split(reads: impl Iterator<Item = FirstRead>) -> (Vec<Load>, Vec<Load>) {
    let (mut misses, mut unavailable) = (Vec::new(), Vec::new());
    for read in reads {
        match read {
            FirstRead::Completed => {}
            FirstRead::Miss(load) => misses.push(load),
            FirstRead::Unavailable(load) => unavailable.push(load),
        }
    }
    (misses, unavailable)
}

/// Loads by what they do after asking for their leases.
#[derive(Default)]
struct Asked {
    /// Hold the leases in `leases`, in the same order.
    leading: Vec<Load>,
    leases: Vec<Lease>,
    /// Wait for the instance that holds the lease to fill Redis.
    waiting: Vec<Load>,
    /// Read Postgres without a lease: the fill of another instance may be older than the read asks for.
    strict: Vec<Load>,
    /// Redis did not answer.
    unavailable: Vec<Load>,
}

impl Catalog {
    pub(super) fn begin(
        &self,
        leader: Leader,
        freshness: Freshness,
        CallContext { caller, span: call, .. }: CallContext,
        demand: &Arc<Demand>,
        span: &Span,
    ) -> Load {
        let ticket = self.hot.begin_load(leader.id());
        let (demand, span) = (Arc::clone(demand), span.clone());
        Load { leader, ticket, freshness, caller, demand, seen: None, call, span }
    }

    /// Starts `loads` as tasks of their own: no caller's deadline bounds a load that other callers wait for.
    ///
    /// Loads that start in one turn of the scheduler share a command to Redis, which costs more than a further key in it. Except:
    /// in a cluster, where the keys are on different nodes and one slow node would delay all; those of a large batch; and
    /// what exceeds one command, because a single read would wait for the rest.
    pub(super) fn start_loads(self: &Arc<Self>, loads: Vec<Load>) {
        let catalog = Arc::clone(self);
        let mut starting = self.starting.lock();
        let together = starting.iter().map(Vec::len).sum::<usize>() + loads.len();
        if self.redis.is_cluster() || loads.len() > TOGETHER || together > CHUNK {
            drop(starting);
            let log = log(&loads);
            drop(self.drain.spawn(async move { catalog.load(loads).await }.instrument(log)));
            return;
        }
        starting.push(loads);
        if starting.len() == 1 {
            drop(self.drain.spawn(async move {
                // If several calls of one connection start loads, those of others are about to. A single one would only be delayed.
                if catalog.starting.lock().len() > 1 {
                    tokio::task::yield_now().await;
                }
                let starting = std::mem::take(&mut *catalog.starting.lock());
                catalog.load_together(starting).await;
            }));
        }
    }

    /// Shares the first read of Redis only. After it each call's loads are a task: none waits for another's.
    async fn load_together(self: &Arc<Self>, starting: Vec<Vec<Load>>) {
        let sizes: Vec<usize> = starting.iter().map(Vec::len).collect();
        let reads = self.read_redis(starting.into_iter().flatten().collect()).await;
        let mut reads = reads.into_iter();
        for size in sizes {
            let (misses, unavailable) = split(reads.by_ref().take(size));
            if !misses.is_empty() || !unavailable.is_empty() {
                let (catalog, log) = (Arc::clone(self), log(misses.iter().chain(&unavailable)));
                let rest = async move { catalog.load_rest(misses, unavailable).await };
                drop(self.drain.spawn(rest.instrument(log)));
            }
        }
    }

    async fn load(&self, loads: Vec<Load>) {
        let (misses, unavailable) = split(self.read_redis(loads).await.into_iter());
        self.load_rest(misses, unavailable).await;
    }

    async fn load_rest(&self, misses: Vec<Load>, unavailable: Vec<Load>) {
        let misses = in_chunks(misses, |chunk| self.load_misses(chunk));
        let unavailable = in_chunks(unavailable, |chunk| self.load_without_lease(chunk, None));
        tokio::join!(misses, unavailable);
    }

    /// Reads Redis, and completes the loads whose entries may answer.
    async fn read_redis(&self, loads: Vec<Load>) -> Vec<FirstRead> {
        let spans = client_spans(&loads, "redis", "get");
        let entries = self.redis.get_many(&ids(&loads), caller(&loads)).await;
        drop(spans);
        self.pauses.reach(Point::ReadRedis).await;
        let read = |(load, entry): (Load, Result<Option<Entry>, _>)| {
            let Ok(entry) = entry else {
                self.metrics.lookups.inc(Lookup::RedisError);
                return FirstRead::Unavailable(load);
            };
            if entry.as_ref().is_some_and(|entry| self.may_be_impossible(entry)) {
                // Checked by a poll of the outbox, where no other call's load waits for it.
                self.metrics.lookups.inc(Lookup::RedisStale);
                return FirstRead::Miss(load);
            }
            let (lookup, missed) = self.complete_if_answers(load, entry);
            // Counted here only: reading again under the lease, or while waiting for one, is part of the same lookup.
            self.metrics.lookups.inc(lookup);
            missed.map_or(FirstRead::Completed, FirstRead::Miss)
        };
        loads.into_iter().zip(entries).map(read).collect()
    }

    async fn load_misses(&self, mut misses: Vec<Load>) {
        for _ in 0..MAX_ROUNDS {
            if misses.is_empty() {
                return;
            }
            // Boxed, so that the future of a Redis hit does not include the state of a read of Postgres.
            misses = Box::pin(self.load_under_leases(misses)).await;
        }
        self.load_without_lease(misses, None).await;
    }

    /// Completes a load with the entry in Redis, or returns it when that entry may not answer.
    fn complete_if_answers(&self, mut load: Load, entry: Option<Entry>) -> (Lookup, Option<Load>) {
        let Some(entry) = entry else { return (Lookup::RedisMiss, Some(load)) };
        if load.seen.as_ref().is_none_or(|seen| seen.revision() <= entry.revision()) {
            load.seen = Some(entry.clone());
        }
        let missed = match self.judge_redis(&entry, &load.freshness, load.ticket.floor()) {
            Verdict::Fresh | Verdict::PastSoftTtl => {
                match self.complete(load, entry, ServedBy::Redis) {
                    None => return (Lookup::RedisHit, None),
                    missed => missed,
                }
            }
            Verdict::Unconfirmed if self.feed.is_unreachable() => {
                load.leader.complete(Ok(Loaded {
                    entry,
                    from: ServedBy::Redis,
                    unconfirmed: true,
                }));
                None
            }
            _ => Some(load),
        };
        (Lookup::RedisStale, missed)
    }

    /// Leads the loads whose leases it gets, waits for those that other instances lead, and returns the loads whose results
    /// are out of date.
    async fn load_under_leases(&self, loads: Vec<Load>) -> Vec<Load> {
        let waiting_since = Instant::now();
        let mut waiting = loads;
        let mut again = Vec::new();
        for attempt in 0.. {
            let asked = self.ask_for_leases(waiting).await;
            let (filled, ()) = tokio::join!(
                self.load_and_fill(asked.leading, asked.leases),
                self.load_without_lease(asked.unavailable, None),
            );
            again.extend(filled);
            self.load_without_lease(asked.strict, Some(Publish::Read)).await;
            self.record_wait(&asked.waiting, "hotshelf.lease_wait_ms", waiting_since.elapsed());
            waiting = asked.waiting.into_iter().filter_map(Load::unless_abandoned).collect();
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

    /// Asks for the leases of `loads`, and completes those that Redis has an answer for meanwhile.
    async fn ask_for_leases(&self, loads: Vec<Load>) -> Asked {
        let spans = client_spans(&loads, "redis", "lease");
        let replies = self.redis.try_leases(&ids(&loads), caller(&loads)).await;
        drop(spans);
        let replies = loads.iter().zip(replies).map(|(load, reply)| async {
            let reply = reply.ok()?;
            Some((self.unless_impossible(load.leader.id(), reply.entry).await, reply.lease))
        });
        let replies = join_all(replies).await;
        let (mut asked, mut needless) = (Asked::default(), Vec::new());
        for (load, reply) in loads.into_iter().zip(replies) {
            let Some((entry, lease)) = reply else {
                asked.unavailable.push(load);
                continue;
            };
            let (_, missed) = self.complete_if_answers(load, entry);
            match (missed, lease) {
                (Some(load), Some(lease)) => {
                    asked.leading.push(load);
                    asked.leases.push(lease);
                }
                (Some(load), None) if load.leader.class() == FreshnessClass::Cached => {
                    asked.waiting.push(load);
                }
                (Some(load), None) => asked.strict.push(load),
                (None, Some(lease)) => needless.push(lease),
                (None, None) => {}
            }
        }
        self.redis.release(&needless).await;
        asked
    }

    /// Reads Postgres under leases, fills Redis, and returns the loads whose results are out of date.
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
        let spans = client_spans(&loads, "redis", "fill");
        let filled = join_all(fills).await;
        drop(spans);
        self.pauses.reach(Point::FilledRedis).await;
        let mut again = Vec::new();
        for ((load, entry), filled) in loads.into_iter().zip(entries).zip(filled) {
            again.extend(self.complete_filled(load, entry, filled));
        }
        again
    }

    /// Completes a load with what was read under its lease. If the lease was broken, a change was committed since, and the
    /// load is done again unless Redis holds that newer revision.
    fn complete_filled(&self, load: Load, entry: Entry, filled: Option<Filled>) -> Option<Load> {
        match filled {
            Some(Filled::Older(held) | Filled::Lost(Some(held)))
                if held.revision() > entry.revision()
                    && self.judge_redis(&held, &Freshness::Cached, entry.revision()).answers() =>
            {
                self.complete(load, held, ServedBy::Redis)
            }
            Some(Filled::Older(_) | Filled::Lost(_)) => Some(load),
            Some(Filled::Stored) | None if self.is_overdue(&entry) => Some(load),
            // Redis did not answer: the load's floor keeps memory from taking an older revision.
            Some(Filled::Stored) | None => self.complete(load, entry, ServedBy::Postgres),
        }
    }

    /// Whether what Postgres returned is older than the staleness bound, with no poll of the outbox since: this process or
    /// Postgres was suspended.
    fn is_overdue(&self, entry: &Entry) -> bool {
        let oldest = Moment::now().before(self.options.trust.max(OLDEST_ANSWER));
        entry.known_at() < oldest && self.hot.known_until() < oldest
    }

    /// Reads Postgres without a lease. That may not fill Redis; with `publish` it replaces an older entry there.
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
            // A read from before a change of the epoch must not replace an entry of the new one.
            let publishes = loads.iter().zip(&entries).filter(|(load, _)| load.ticket.is_covered());
            let publishes =
                publishes.map(|(load, entry)| self.redis.publish(load.leader.id(), entry, why));
            // A failure is counted there; the next load reads Postgres again.
            let _ = join_all(publishes).await;
        }
        for (load, entry) in loads.into_iter().zip(entries) {
            let (answer, from) = (entry.clone(), ServedBy::Postgres);
            if self.is_overdue(&entry) {
                load.leader.complete(Ok(Loaded { entry, from, unconfirmed: true }));
            } else if let Some(load) = self.complete(load, entry, from) {
                // Postgres held it after the read began, so it answers. A newer revision is in memory, or will be.
                load.leader.complete(Ok(Loaded::confirmed(answer, from)));
            }
        }
    }

    /// Keeps `entry` in memory and completes the load with the newest entry that memory holds then, or returns the load
    /// when a newer revision was committed since it began.
    fn complete(&self, load: Load, entry: Entry, from: ServedBy) -> Option<Load> {
        match load.ticket.finish(entry) {
            Ok(held) => {
                load.leader.complete(Ok(Loaded::confirmed(held.entry.clone(), from)));
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

/// The span of the log for the first traced call.
fn log<'a>(loads: impl IntoIterator<Item = &'a Load>) -> tracing::Span {
    let traced = loads.into_iter().find(|load| load.span.is_some());
    traced.map_or_else(tracing::Span::none, |load| load.span.log())
}
