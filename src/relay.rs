//! The relay: makes Redis reflect every committed change, whoever made it. Coherence does not depend on it: what it has not
//! applied yet, every instance knows from the outbox itself.
//!
//! One instance relays for the fleet, by a lease in Postgres. It reads the outbox with a cursor of its own, and applies by version,
//! so that repeating what a crash or a second relay has done does no harm.

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

/// Changes that are applied together. Too high: those behind them wait longer. Too low: more round trips.
const BATCH: usize = 1_000;
/// Products of bulk jobs that are removed from Redis between two looks at the outbox.
const REMOVED: usize = 500;
/// How long the lease lasts. Too high: Redis is cleaned later when the relay dies. Too low: a pause ends it.
const LEASE: Duration = Duration::from_secs(3);
/// How often the lease is renewed, and a mark is made also when nothing was written.
const UPKEEP: Duration = Duration::from_secs(1);
/// Versions of deleted products that are pruned at once.
const PRUNED: u32 = 1_000;
/// How long giving the lease back may take.
const LET_GO: Duration = Duration::from_millis(500);
/// Between tries with Postgres in trouble, and to apply what a server of Redis has not taken.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// Changes that wait to be applied, 24 bytes each. With more, what Redis holds is given up.
const MOST_PENDING: usize = 4_000_000;

/// How the relay works.
#[derive(Clone, Copy, Debug)]
pub struct RelayOptions {
    /// How often the outbox is read.
    pub interval: Duration,
    /// How long changes are kept after they became visible.
    pub retention: Duration,
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
    /// Of the lease.
    holder: String,
    /// Told when no instance relays.
    vacancy: Arc<Notify>,
}

type Pending = HashMap<ProductId, Revision, RandomState>;

/// The relay's work, while it holds the lease.
struct Work<'a> {
    reader: &'a mut ChangeReader,
    /// Changes that no server of Redis has taken yet.
    pending: Pending,
    /// Products of bulk jobs, to be removed from Redis.
    bulk: VecDeque<Vec<(ProductId, Revision)>>,
    /// Whether more is applied than the table says.
    has_news: bool,
    /// Of the last poll.
    scope: String,
    retry_at: Instant,
    upkeep_at: Instant,
    /// Whether there is something to prune.
    is_pruning: bool,
}

impl Relay {
    /// Starts relaying.
    pub fn start(
        postgres: Arc<Postgres>,
        redis: Arc<Redis>,
        metrics: Arc<Metrics>,
        (pauses, controls): (PausePoints, Controls),
        vacancy: Arc<Notify>,
        options: RelayOptions,
        drain: &Drain,
    ) -> Arc<Self> {
        let holder = format!("{:032x}", rand::random::<u128>());
        let relay =
            Arc::new(Self { postgres, redis, metrics, pauses, controls, options, holder, vacancy });
        let running = Arc::clone(&relay);
        drain.spawn_loop(BackgroundTask::Relay, move || Arc::clone(&running).run());
        relay
    }

    /// Gives the lease back, so that another instance relays at once. To be called when the loop has ended.
    pub async fn let_go(&self) {
        let mut reader = self.postgres.change_reader();
        // Otherwise it expires.
        let _ = tokio::time::timeout(LET_GO, reader.let_relay_go(&self.holder)).await;
    }

    async fn run(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut troubled = false;
        loop {
            self.vacancy.notified().await;
            let mut reader = self.postgres.change_reader();
            let ended = match self.controls.holds(Protection::Relay) {
                true => self.relay_on(&mut reader).await,
                false => Ok(()),
            };
            if let Err(error) = &ended
                && !troubled
            {
                tracing::warn!(%error, "the relay cannot read the outbox; Redis is brought up to date later");
            }
            troubled = ended.is_err();
        }
    }

    /// Relays until the lease is lost, if it can be had.
    async fn relay_on(&self, reader: &mut ChangeReader) -> Result<(), postgres::Error> {
        let Some(relayed) = reader.hold_relay(&self.holder, LEASE).await? else { return Ok(()) };
        reader.start_after(relayed);
        let now = Instant::now();
        let mut work = Work {
            reader,
            pending: Pending::default(),
            bulk: VecDeque::new(),
            has_news: true,
            scope: String::new(),
            retry_at: now,
            upkeep_at: now,
            is_pruning: false,
        };
        loop {
            if !self.controls.holds(Protection::Relay) {
                return work.reader.let_relay_go(&self.holder).await;
            }
            self.step(&mut work).await?;
            let holds = if work.upkeep_at <= Instant::now() {
                self.keep_up(&mut work).await?
            } else if work.has_news && work.is_idle() {
                self.mark(&mut work).await? && work.reader.note_relayed(&self.holder).await?
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
                // Jittered, so that polls do not fall into step with a writer.
                let pause = self.options.interval.mul_f64(rand::random_range(0.5..1.0));
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Reads the outbox, applies what is small, and a part of what is large.
    async fn step(&self, work: &mut Work<'_>) -> Result<(), postgres::Error> {
        let changes = work.reader.poll(MOST_PENDING).await?;
        if changes.went_back.is_some() {
            // The change feed of every instance raises the epoch; this relay begins anew in it.
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

    /// Makes Redis reflect a few changes: what it holds and is older is replaced. What it does not hold is left out.
    async fn apply(&self, changes: &[Change], work: &mut Work<'_>) -> Result<(), postgres::Error> {
        if !self.redis.has_scope(&work.scope) {
            // This instance has not entered the new epoch, or Redis is abandoned: it would be applied to keys of before.
            changes.iter().for_each(|change| work.put_off(*change));
            return Ok(());
        }
        let superseded = self.redis.supersede(changes).await;
        self.pauses.reach(Point::RelaySuperseded).await;
        let (mut older, mut applied) = (Vec::new(), Vec::new());
        for (change, held) in changes.iter().zip(superseded) {
            match held {
                Ok(true) => older.push(*change),
                Ok(false) => applied.push(*change),
                Err(_) => work.put_off(*change),
            }
        }
        for (change, replaced) in older.iter().zip(self.replace(&older, &work.scope).await?) {
            match replaced {
                true => applied.push(*change),
                false => work.put_off(*change),
            }
        }
        self.pauses.reach(Point::RelayApplied).await;
        work.have_applied(&applied);
        self.metrics.relayed.add((), applied.len() as u64);
        // Redis first, so that an instance that hears of a change finds it there. A hint that is lost costs it one poll.
        let _ = self.redis.publish_hint(changes).await;
        Ok(())
    }

    /// Replaces entries that are older. Returns of each whether Redis took it.
    async fn replace(&self, older: &[Change], scope: &str) -> Result<Vec<bool>, postgres::Error> {
        if older.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<ProductId> = older.iter().map(|change| change.id).collect();
        let loaded = self.postgres.load_now(&ids).await?;
        if !self.redis.has_scope(scope) {
            // What was read may be of an epoch that was lost.
            return Ok(vec![false; older.len()]);
        }
        let mut entries: HashMap<ProductId, Entry, RandomState> = HashMap::default();
        for product in &loaded.products {
            let entry = Entry::live(product, loaded.known_at, self.options.ttl.product());
            entries.insert(product.id, entry);
        }
        // Why is logged where it was found out.
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

    /// Removes what a bulk job has changed: replacing it would take a script and a read of Postgres for each.
    async fn remove(&self, pack: &[(ProductId, Revision)], work: &mut Work<'_>) {
        if !self.redis.has_scope(&work.scope) {
            return pack.iter().for_each(|(id, revision)| {
                work.put_off(Change { id: *id, revision: *revision });
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
                        work.have_applied(&[change]);
                    }
                    Err(_) => work.put_off(change),
                }
            }
            self.metrics.relayed.add((), count);
            self.metrics.relay_removed.add((), count);
        }
    }

    /// What Redis holds is given up: there are more changes than can be applied one by one, or one that concerns everything.
    async fn abandon_redis(&self, work: &mut Work<'_>) -> Result<(), postgres::Error> {
        tracing::warn!(
            "too many changes wait to be applied to Redis, or all products were truncated; Redis starts empty"
        );
        work.reader.abandon_redis().await?;
        work.pending.clear();
        work.bulk.clear();
        Ok(())
    }

    /// Makes a mark in Postgres and in Redis: when it is not found any more Postgres went back. Soon after each write, or a restore
    /// to just before it would not be noticed. Returns whether the lease is still held.
    async fn mark(&self, work: &mut Work<'_>) -> Result<bool, postgres::Error> {
        work.has_news = false;
        let (seen, done) = (work.reader.seen().clone(), work.is_idle());
        let mark = work.reader.mark(&self.holder, &seen, done).await?;
        if let Some(mark) = &mark {
            // The next one replaces it.
            let _ = self.redis.write_mark(&format!("{} {}", mark.id, mark.token)).await;
        }
        Ok(mark.is_some())
    }

    /// Prunes a part. Returns whether there may be more.
    async fn prune(&self, work: &mut Work<'_>) -> Result<bool, postgres::Error> {
        let more = work.reader.prune_outbox().await?;
        // What was deleted longer ago than any entry lives is older than nothing.
        let deleted = self.postgres.prune_deleted(self.keep().unrelayed * 2, PRUNED).await?;
        Ok(more || deleted >= u64::from(PRUNED))
    }

    fn keep(&self) -> Retention {
        Retention {
            relayed: self.options.retention,
            unrelayed: self.options.ttl.longest().max(self.options.retention),
        }
    }

    /// Renews the lease, makes a mark and notes what may be pruned. Returns whether the lease is still held.
    async fn keep_up(&self, work: &mut Work<'_>) -> Result<bool, postgres::Error> {
        work.upkeep_at = Instant::now() + UPKEEP;
        let Some(relayed) = work.reader.hold_relay(&self.holder, LEASE).await? else {
            return Ok(false);
        };
        if !relayed.is_subset_of(work.reader.seen()) {
            // Another instance held the lease meanwhile, and is further: this one begins anew.
            return work.reader.let_relay_go(&self.holder).await.map(|()| false);
        }
        if self.controls.holds(Protection::Epoch) {
            compare_marks(&self.redis, work.reader, &self.metrics).await?;
        }
        work.is_pruning = self.mark(work).await?;
        let (seen, done) = (work.reader.seen().clone(), work.is_idle());
        work.reader.advance(&self.holder, done.then_some(&seen), self.keep()).await
    }
}

/// Raises the epoch when Redis holds a mark that this database does not know: Redis was filled from another copy of it, or it
/// went back. Returns whether it is another epoch now.
pub(crate) async fn compare_marks(
    redis: &Redis,
    reader: &mut ChangeReader,
    metrics: &Metrics,
) -> Result<bool, postgres::Error> {
    let Ok(Some(left)) = redis.read_mark().await else { return Ok(false) };
    let Some((id, token)) = left.split_once(' ') else { return Ok(false) };
    let Ok(id) = id.parse() else { return Ok(false) };
    if reader.knows_mark(&Mark { id, token: token.to_owned() }).await? {
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
    fn put_off(&mut self, change: Change) {
        let newest = self.pending.entry(change.id).or_insert(change.revision);
        *newest = change.revision.max(*newest);
        self.retry_at = Instant::now() + PAUSE_AFTER_FAILURE;
    }

    /// Whether all that was read is applied.
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.bulk.is_empty()
    }

    fn have_applied(&mut self, changes: &[Change]) {
        self.has_news = true;
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
