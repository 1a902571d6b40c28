//! The relay: applies every committed change to Redis, whether it was made by the API or by SQL. Coherence does not depend on it,
//! because every instance reads the outbox itself and rejects older entries of Redis.
//!
//! One instance at a time relays, under a lease in Postgres. It reads the outbox with its own cursor and applies changes by
//! version, so that a change applied twice, after a crash or by a second relay, has no further effect.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::controls::{Controls, Protection};
use crate::drain::Drain;
use crate::entry::{Entry, TtlPolicy};
use crate::metrics::{BackgroundTask, Metrics};
use crate::pause::{PausePoints, Point};
use crate::postgres::{self, ChangeReader, Mark, Postgres, Retention};
use crate::product::{Change, ProductId, Revision};
use crate::redis::{Publish, Redis};

/// Changes that are applied together. Too high: the changes behind them wait longer. Too low: more round trips.
const BATCH: usize = 1_000;
/// Products of bulk jobs that one command removes from Redis (in a cluster, one command each).
const REMOVED: usize = 500;
/// The TTL of the lease. Too high: after a crash of the relay, Redis is updated later. Too low: a pause of the process loses it.
const LEASE: Duration = Duration::from_secs(3);
/// The interval of lease renewals, of marks without a write, and of pruning.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Versions of deleted products that one statement prunes.
const PRUNED: u32 = 1_000;
/// The timeout of releasing the lease.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause before changes that a Redis server did not accept are applied again.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// Pending changes, 24 bytes each. With more, Redis is abandoned: its keys change, and it starts empty.
const MOST_PENDING: usize = 4_000_000;

#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// The interval between polls of the outbox.
    pub interval: Duration,
    /// How long applied changes are kept after they became visible.
    pub retention: Duration,
    /// The TTLs of the entries that it stores.
    pub ttl: TtlPolicy,
}

#[derive(Debug)]
pub struct Relay {
    postgres: Arc<Postgres>,
    redis: Arc<Redis>,
    metrics: Arc<Metrics>,
    pauses: PausePoints,
    controls: Controls,
    options: RelayOptions,
    /// The random token by which this instance holds the lease.
    holder: String,
    /// Notified when the lease is free.
    wake: Arc<Notify>,
}

type Pending = HashMap<ProductId, Revision, RandomState>;

/// The state of the relay while it holds the lease.
struct Work<'a> {
    reader: &'a mut ChangeReader,
    /// Changes that Redis has not accepted yet.
    pending: Pending,
    /// Changes of bulk jobs, whose products are removed from Redis.
    bulk: VecDeque<Vec<(ProductId, Revision)>>,
    /// Whether changes were applied since the last mark.
    needs_mark: bool,
    /// The scope of keys that the last poll read.
    scope: String,
    retry_at: Instant,
    maintenance_at: Instant,
    /// Whether there may be rows to prune.
    is_pruning: bool,
}

impl Relay {
    pub fn start(
        postgres: Arc<Postgres>,
        redis: Arc<Redis>,
        metrics: Arc<Metrics>,
        (pauses, controls): (PausePoints, Controls),
        wake: Arc<Notify>,
        options: RelayOptions,
        drain: &Drain,
    ) -> Arc<Self> {
        let holder = format!("{:032x}", rand::random::<u128>());
        let relay =
            Arc::new(Self { postgres, redis, metrics, pauses, controls, options, holder, wake });
        let running = Arc::clone(&relay);
        drain.spawn_loop(BackgroundTask::Relay, move || Arc::clone(&running).run());
        relay
    }

    /// Releases the lease, so that another instance can relay at once. Called after the loop has ended.
    pub async fn release_lease(&self) {
        let mut reader = self.postgres.change_reader();
        // If the release fails, the lease expires.
        let _ = tokio::time::timeout(RELEASE_TIMEOUT, reader.release_relay(&self.holder)).await;
    }

    async fn run(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut has_failed = false;
        loop {
            self.wake.notified().await;
            let mut reader = self.postgres.change_reader();
            let ended = match self.controls.holds(Protection::Relay) {
                true => self.relay_on(&mut reader).await,
                false => Ok(()),
            };
            if let Err(error) = &ended
                && !has_failed
            {
                tracing::warn!(%error, "the relay cannot read the outbox; it retries, and Redis is updated later");
            }
            has_failed = ended.is_err();
        }
    }

    /// Takes the lease and relays until it is lost. Returns at once if another instance holds it.
    async fn relay_on(&self, reader: &mut ChangeReader) -> Result<(), postgres::Error> {
        let Some(relayed) = reader.hold_relay(&self.holder, LEASE).await? else { return Ok(()) };
        reader.start_after(relayed);
        let now = Instant::now();
        let mut work = Work {
            reader,
            pending: Pending::default(),
            bulk: VecDeque::new(),
            needs_mark: true,
            scope: String::new(),
            retry_at: now,
            maintenance_at: now,
            is_pruning: false,
        };
        loop {
            if !self.controls.holds(Protection::Relay) {
                return work.reader.release_relay(&self.holder).await;
            }
            self.step(&mut work).await?;
            let holds = if work.maintenance_at <= Instant::now() {
                self.maintain(&mut work).await?
            } else if work.needs_mark && work.is_idle() {
                self.mark(&mut work).await? && work.reader.record_relayed(&self.holder).await?
            } else {
                true
            };
            if !holds {
                return Ok(());
            }
            if work.is_pruning {
                work.is_pruning = self.prune(&mut work).await?;
            }
            if work.bulk.is_empty() {
                // Jittered, so that polls do not synchronise with a periodic writer.
                let pause = self.options.interval.mul_f64(rand::random_range(0.5..1.0));
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Polls the outbox, applies all single changes and one pack of a bulk job: single changes wait for one pack at most.
    async fn step(&self, work: &mut Work<'_>) -> Result<(), postgres::Error> {
        let changes = work.reader.poll(MOST_PENDING).await?;
        if changes.went_back.is_some() {
            // The change feed of each instance raises the epoch. This relay starts again in the new one.
            work.reader.start_over();
            work.pending.clear();
            work.bulk.clear();
            return Ok(());
        }
        if changes.overflow || changes.truncated_below.is_some() || work.is_full() {
            return self.abandon_redis(work).await;
        }
        let new: Vec<Change> =
            changes.single.into_iter().map(|(id, revision)| Change { id, revision }).collect();
        work.bulk.extend(changes.packs);
        work.scope = changes.scope;
        for batch in new.chunks(BATCH) {
            self.pauses.reach(Point::RelayRead).await;
            self.apply(batch, work).await?;
        }
        if let Some(pack) = work.bulk.pop_front() {
            self.remove(&pack, work).await;
        } else if work.retry_at <= Instant::now() && !work.pending.is_empty() {
            let again = work.pending.iter().take(BATCH);
            let again: Vec<Change> =
                again.map(|(id, revision)| Change { id: *id, revision: *revision }).collect();
            self.apply(&again, work).await?;
        }
        Ok(())
    }

    /// Applies changes to Redis: replaces older entries. Products without an entry are not inserted.
    async fn apply(&self, changes: &[Change], work: &mut Work<'_>) -> Result<(), postgres::Error> {
        if !self.redis.has_scope(&work.scope) {
            // This instance still uses the keys of the previous epoch, or of the abandoned ones.
            changes.iter().for_each(|change| work.retry_later(*change));
            return Ok(());
        }
        let superseded = self.redis.supersede(changes).await;
        self.pauses.reach(Point::RelaySuperseded).await;
        let (mut older, mut applied) = (Vec::new(), Vec::new());
        for (change, held) in changes.iter().zip(superseded) {
            match held {
                Ok(true) => older.push(*change),
                Ok(false) => applied.push(*change),
                Err(_) => work.retry_later(*change),
            }
        }
        for (change, replaced) in older.iter().zip(self.replace(&older, &work.scope).await?) {
            match replaced {
                true => applied.push(*change),
                false => work.retry_later(*change),
            }
        }
        self.pauses.reach(Point::RelayApplied).await;
        work.record_applied(&applied);
        self.metrics.relayed.add((), applied.len() as u64);
        // Published after Redis is updated, so that an instance which observes the hint finds the new entry there. If the hint is
        // lost, the instance observes the change with its next poll.
        let _ = self.redis.publish_hint(changes).await;
        Ok(())
    }

    /// Replaces older entries by what Postgres holds. Returns for each whether Redis accepted it.
    async fn replace(&self, older: &[Change], scope: &str) -> Result<Vec<bool>, postgres::Error> {
        if older.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<ProductId> = older.iter().map(|change| change.id).collect();
        let loaded = self.postgres.load_now(&ids).await?;
        if !self.redis.has_scope(scope) {
            // The keys are of another epoch now, and the rows may be from the previous one.
            return Ok(vec![false; older.len()]);
        }
        let mut entries: HashMap<ProductId, Entry, RandomState> = HashMap::default();
        for product in &loaded.products {
            let entry = Entry::live(product, loaded.known_at, self.options.ttl.product());
            entries.insert(product.id, entry);
        }
        // `load_now` has logged the reasons.
        let broken: Vec<ProductId> = loaded.broken.iter().map(|(id, _)| *id).collect();
        let replaced = older.iter().map(|change| async {
            if broken.contains(&change.id) {
                self.metrics.relay_set_aside.inc(());
                return self.redis.remove(&[change.id]).await.iter().all(Result::is_ok);
            }
            let entry = entries.get(&change.id).cloned().unwrap_or_else(|| {
                let version = change.revision.version.max(loaded.last_version(change.id));
                Entry::tombstone(version, loaded.known_at, self.options.ttl.tombstone())
            });
            self.redis.publish(change.id, &entry, Publish::Read).await.is_ok()
        });
        Ok(join_all(replaced).await)
    }

    /// Removes the products of a bulk job. Replacing them would take a script and a read of Postgres for each.
    async fn remove(&self, pack: &[(ProductId, Revision)], work: &mut Work<'_>) {
        if !self.redis.has_scope(&work.scope) {
            return pack.iter().for_each(|(id, revision)| {
                work.retry_later(Change { id: *id, revision: *revision });
            });
        }
        for chunk in pack.chunks(REMOVED) {
            let ids: Vec<ProductId> = chunk.iter().map(|(id, _)| *id).collect();
            let removed = self.redis.remove(&ids).await;
            let mut count = 0;
            for ((id, revision), removed) in chunk.iter().zip(removed) {
                let change = Change { id: *id, revision: *revision };
                match removed {
                    Ok(()) => {
                        count += 1;
                        work.record_applied(&[change]);
                    }
                    Err(_) => work.retry_later(change),
                }
            }
            self.metrics.relayed.add((), count);
            self.metrics.relay_removed.add((), count);
        }
    }

    /// Abandons all entries in Redis by changing the scope of the keys, because there are too many changes, or a TRUNCATE.
    async fn abandon_redis(&self, work: &mut Work<'_>) -> Result<(), postgres::Error> {
        tracing::warn!(
            "too many changes wait to be applied to Redis, or all products were truncated; Redis starts empty"
        );
        work.reader.abandon_redis().await?;
        work.pending.clear();
        work.bulk.clear();
        Ok(())
    }

    /// Writes a mark to Postgres and to Redis. If Postgres lacks it later, Postgres has gone back. A mark follows each write
    /// soon: a restore to a moment between the previous mark and the write would not be detected. Returns whether the lease is
    /// held.
    async fn mark(&self, work: &mut Work<'_>) -> Result<bool, postgres::Error> {
        work.needs_mark = false;
        let (seen, done) = (work.reader.seen().clone(), work.is_idle());
        let mark = work.reader.mark(&self.holder, &seen, done).await?;
        if let Some(mark) = &mark {
            // If this fails, the next mark replaces it.
            let _ = self.redis.write_mark(&format!("{} {}", mark.id, mark.token)).await;
        }
        Ok(mark.is_some())
    }

    /// Prunes some rows. Returns whether there may be more.
    async fn prune(&self, work: &mut Work<'_>) -> Result<bool, postgres::Error> {
        let more = work.reader.prune_outbox().await?;
        // Deletions from longer ago than any TTL: no cache can contain an older copy of them.
        let deleted = self.postgres.prune_deleted(self.keep().unrelayed * 2, PRUNED).await?;
        Ok(more || deleted >= u64::from(PRUNED))
    }

    fn keep(&self) -> Retention {
        Retention {
            relayed: self.options.retention,
            unrelayed: self.options.ttl.longest().max(self.options.retention),
        }
    }

    /// Renews the lease, writes a mark and records how far the outbox may be pruned. Returns whether the lease is still held.
    async fn maintain(&self, work: &mut Work<'_>) -> Result<bool, postgres::Error> {
        work.maintenance_at = Instant::now() + MAINTENANCE_INTERVAL;
        let Some(relayed) = work.reader.hold_relay(&self.holder, LEASE).await? else {
            return Ok(false);
        };
        if !relayed.is_subset_of(work.reader.seen()) {
            // Another instance held the lease in between and has applied more. This one starts again from the stored snapshot.
            return work.reader.release_relay(&self.holder).await.map(|()| false);
        }
        if self.controls.holds(Protection::Epoch) {
            compare_marks(&self.redis, work.reader, &self.metrics).await?;
        }
        work.is_pruning = self.mark(work).await?;
        let (seen, done) = (work.reader.seen().clone(), work.is_idle());
        work.reader.advance(&self.holder, done.then_some(&seen), self.keep()).await
    }
}

/// Raises the epoch when Redis contains a mark that this database does not: Redis was filled from another copy of the database,
/// or Postgres has gone back. Returns whether the epoch was changed, by this or by another instance.
pub(crate) async fn compare_marks(
    redis: &Redis,
    reader: &mut ChangeReader,
    metrics: &Metrics,
) -> Result<bool, postgres::Error> {
    let Ok(Some(left)) = redis.read_mark().await else { return Ok(false) };
    let Some((id, token)) = left.split_once(' ') else { return Ok(false) };
    let Ok(id) = id.parse() else { return Ok(false) };
    if reader.has_mark(&Mark { id, token: token.to_owned() }).await? {
        return Ok(false);
    }
    if reader.raise_epoch_now().await? {
        tracing::error!(
            "Redis was filled from another copy of this database, or PostgreSQL has gone back; all caches start empty"
        );
        metrics.epochs_raised.inc(());
    }
    Ok(true)
}

impl Work<'_> {
    fn retry_later(&mut self, change: Change) {
        let newest = self.pending.entry(change.id).or_insert(change.revision);
        *newest = change.revision.max(*newest);
        self.retry_at = Instant::now() + PAUSE_AFTER_FAILURE;
    }

    /// Whether all changes that were read are applied.
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.bulk.is_empty()
    }

    fn record_applied(&mut self, changes: &[Change]) {
        self.needs_mark = true;
        for change in changes {
            if self.pending.get(&change.id).is_some_and(|pending| *pending <= change.revision) {
                self.pending.remove(&change.id);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.pending.len() + self.bulk.len() * BATCH > MOST_PENDING
    }
}
