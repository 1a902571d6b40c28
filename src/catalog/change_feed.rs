//! Following the changes in Postgres: each poll of the outbox brings every change that was committed since the one before, so a poll
//! that returned is the proof that memory is current as of the moment at which it was sent.
//!
//! Redis only hurries this: other instances publish what they write, and losing that costs one poll interval.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::Catalog;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::metrics::BackgroundTask;
use crate::moment::{AtomicMoment, Moment};
use crate::pause::Point;
use crate::postgres::{self, ChangeReader, Changes, Snapshot};
use crate::product::{Change, ProductId, Revision, Version};
use crate::recent_changes::{Floors, PollNumber};
use crate::redis::Hint;

/// Polls that were asked for follow each other no sooner: one poll answers all that asked meanwhile.
const SPACING: Duration = Duration::from_millis(5);
/// Between tries while Postgres does not answer.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
/// The longest wait for a poll that was asked for.
const ASKED_POLL: Duration = Duration::from_secs(1);
/// Changes that are applied before other tasks have a turn.
const TURN: usize = 1_000;

/// What one instance knows of the changes in Postgres.
#[derive(Debug)]
pub(super) struct ChangeFeed {
    /// The newest version that is known to have been given out.
    ceiling: AtomicI64,
    /// Whether the last poll failed.
    unreachable: AtomicBool,
    /// What Redis holds from before this moment may be older than a change that is not among the recent ones.
    redis_covered_since: AtomicMoment,
    /// Since when there are changes that Redis does not reflect.
    unrelayed_since: AtomicMoment,
    asked_for: Notify,
    /// Told after each poll, also one that failed.
    polled: Notify,
}

/// The reader's side, which lives as long as the loop.
struct Follower {
    catalog: Arc<Catalog>,
    reader: ChangeReader,
    /// The polls whose changes are kept.
    kept: VecDeque<Kept>,
    /// What was seen when there were more changes than are kept.
    overflowed_at: Option<Snapshot>,
    epoch: Option<String>,
}

/// A poll whose changes are kept: which, what it had seen, and when it was sent.
struct Kept {
    poll: PollNumber,
    seen: Snapshot,
    asked: Moment,
}

impl ChangeFeed {
    pub(super) fn new() -> Self {
        Self {
            ceiling: AtomicI64::new(0),
            unreachable: AtomicBool::new(false),
            redis_covered_since: AtomicMoment::new(Moment::NEVER),
            unrelayed_since: AtomicMoment::new(Moment::NEVER),
            asked_for: Notify::new(),
            polled: Notify::new(),
        }
    }

    /// Whether Postgres does not answer, so that it is not known what is current.
    pub(super) fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    /// Takes in a version that Postgres gave out.
    pub(super) fn has_given_out(&self, version: Version) {
        self.ceiling.fetch_max(version.0, Ordering::Relaxed);
    }

    fn ceiling(&self) -> Version {
        Version(self.ceiling.load(Ordering::Relaxed))
    }

    /// For how long there have been changes that Redis does not reflect; zero when it reflects all.
    pub(super) fn relay_lag(&self) -> Duration {
        match self.unrelayed_since.load() {
            Moment::NEVER => Duration::ZERO,
            since => since.elapsed(),
        }
    }

    /// A poll soon, instead of at the next interval.
    pub(super) fn ask_for_poll(&self) {
        self.asked_for.notify_one();
    }
}

impl Catalog {
    pub(super) fn start_following_changes(self: &Arc<Self>) {
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::ChangeFeed, move || Arc::clone(&catalog).follow_changes());
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::ChangeHints, move || Arc::clone(&catalog).take_hints());
        let help =
            "How long ago every change that was committed by then was surely known, in seconds.";
        self.metrics.seconds("hotshelf.change.feed.lag", help, self, |catalog| {
            catalog.hot.known_until().elapsed().min(catalog.began.elapsed())
        });
        let help = "For how long there have been committed changes that Redis does not reflect, in seconds.";
        self.metrics.seconds("hotshelf.relay.lag", help, self, |catalog| catalog.feed.relay_lag());
        let help = "Changes that are kept as the floor of loads and of what Redis holds.";
        self.metrics
            .gauge("hotshelf.recent.changes", help, &self.recent, |recent| recent.len() as u64);
    }

    async fn follow_changes(self: Arc<Self>) -> Result<Infallible, Infallible> {
        // Started again, it may have read changes that it did not apply.
        self.hot.distrust_before(Moment::now());
        let first = self.change_reader.lock().take();
        let reader = first.unwrap_or_else(|| self.postgres.change_reader());
        let (kept, overflowed_at, epoch) = (VecDeque::new(), None, None);
        let mut follower = Follower { catalog: self, reader, kept, overflowed_at, epoch };
        loop {
            let pause = match follower.poll().await {
                Ok(pause) => pause,
                Err(error) => {
                    follower.catalog.feed_failed(&error);
                    PAUSE_AFTER_FAILURE
                }
            };
            let feed = &follower.catalog.feed;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = async {
                    tokio::time::sleep(SPACING).await;
                    feed.asked_for.notified().await;
                } => {}
            }
        }
    }

    fn feed_failed(&self, error: &postgres::Error) {
        if !self.feed.unreachable.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the outbox cannot be read; cached products are served, soon marked stale");
        }
        self.feed.polled.notify_waiters();
    }

    /// What other instances publish.
    async fn take_hints(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut hints = self.redis.hints();
        loop {
            match hints.next().await {
                _ if !self.controls.holds(Protection::Hints) => {}
                Hint::Changes(changes) => changes.into_iter().for_each(|change| self.hear(change)),
                Hint::Poll => self.feed.ask_for_poll(),
            }
        }
    }

    /// Takes in a change that another instance has published. The next poll confirms it.
    fn hear(&self, change: Change) {
        let _kept = self.recent.publish(change.id, change.revision, false);
        self.invalidate(change);
    }

    fn invalidate(&self, change: Change) {
        if self.hot.invalidate(change) {
            // Loaded again before it is asked for: what memory held was worth keeping.
            self.refresh_queue.ask(change.id);
        }
    }

    /// Whether `entry`, which Redis holds, is no older than the recent changes tell.
    pub(super) fn is_current(&self, entry: &Entry) -> bool {
        let now = Moment::now();
        let known_at = entry.surely_known_at();
        let followed = self.hot.is_proven() || known_at >= now.before(self.options.trust);
        followed && known_at >= self.feed.redis_covered_since.load()
    }

    /// Whether it takes a poll to tell that `entry` is not impossible.
    pub(super) fn may_be_impossible(&self, entry: &Entry) -> bool {
        entry.revision().version > self.feed.ceiling()
            && self.controls.holds(Protection::VersionCeiling)
    }

    /// What Redis holds, unless it claims a version that Postgres has not given out: of a database that was restored, or
    /// another program's. Such an entry is removed. While Postgres does not answer it counts as missing.
    pub(super) async fn unless_impossible(
        &self,
        id: ProductId,
        entry: Option<Entry>,
    ) -> Option<Entry> {
        let entry = entry?;
        if !self.may_be_impossible(&entry) {
            return Some(entry);
        }
        let version = entry.revision().version;
        let ceiling = self.ceiling_above(version).await?;
        if version <= ceiling {
            return Some(entry);
        }
        self.redis.remove_above(id, ceiling).await;
        None
    }

    /// The newest version that Postgres had given out by now: one above it is impossible. `None` when Postgres does not say.
    async fn ceiling_above(&self, version: Version) -> Option<Version> {
        let asked = Moment::now();
        let known = async {
            loop {
                let polled = self.feed.polled.notified();
                if self.hot.known_until() >= asked || version <= self.feed.ceiling() {
                    return Some(self.feed.ceiling());
                }
                if self.feed.is_unreachable() {
                    return None;
                }
                self.feed.ask_for_poll();
                polled.await;
            }
        };
        tokio::time::timeout(ASKED_POLL, known).await.ok().flatten()
    }
}

impl Follower {
    /// Polls once. Returns how long to wait for the next.
    async fn poll(&mut self) -> Result<Duration, postgres::Error> {
        let catalog = Arc::clone(&self.catalog);
        let before = self.reader.seen().clone();
        catalog.pauses.reach(Point::PollOutbox).await;
        let number = catalog.recent.poll_is_sent();
        let mut changes = self.reader.poll(catalog.recent.capacity()).await?;
        if let Some(why) = changes.went_back
            && catalog.controls.holds(Protection::Epoch)
        {
            // Of several instances that find it out, one raises the epoch.
            if self.reader.raise_epoch(&changes.epoch).await? {
                tracing::error!(why, "PostgreSQL has gone back; all caches start empty");
                catalog.metrics.epochs_raised.inc(());
            }
            self.start_over();
            return Ok(Duration::ZERO);
        }
        if self.epoch.as_ref().is_some_and(|epoch| *epoch != changes.epoch) {
            tracing::warn!("the epoch of the catalogue is another; memory and Redis start empty");
            self.start_over();
            return Ok(Duration::ZERO);
        }
        self.enter_epoch(&changes);
        if changes.restarted || self.has_missed(&before, &changes) {
            tracing::warn!(
                "changes may have been missed (PostgreSQL restarted, or this instance slept); memory is compared anew"
            );
            catalog.metrics.feed_gaps.inc(());
            catalog.hot.distrust_before(Moment::now());
            if !changes.restarted {
                self.reader.start_over();
                return Ok(Duration::ZERO);
            }
        }
        if before == Snapshot::empty() {
            // What was committed and pruned before the first poll arrived is not in it.
            catalog.hot.distrust_before(Moment::now());
        }
        self.apply(number, &mut changes).await;
        if changes.relay_is_free {
            catalog.relay_vacancy.notify_one();
        }
        if catalog.feed.unreachable.swap(false, Ordering::Relaxed) {
            tracing::info!("the outbox can be read again");
        }
        catalog.feed.polled.notify_waiters();
        Ok(catalog.options.poll_interval.mul_f64(rand::random_range(0.8..1.2)))
    }

    /// Nothing that is held comes from this PostgreSQL.
    fn start_over(&mut self) {
        self.catalog.recent.reset();
        self.catalog.hot.begin_epoch(Moment::now());
        self.catalog.feed.ceiling.store(0, Ordering::Relaxed);
        self.kept.clear();
        self.overflowed_at = None;
        self.epoch = None;
        self.reader.start_over();
    }

    fn enter_epoch(&mut self, changes: &Changes) {
        if self.epoch.is_none() {
            self.epoch = Some(changes.epoch.clone());
        }
        self.catalog.redis.set_scope(&changes.scope, &changes.catalogue);
        self.catalog.feed.has_given_out(changes.ceiling);
    }

    /// Whether something was pruned that this instance has not read: it slept for longer than rows are kept.
    fn has_missed(&self, before: &Snapshot, changes: &Changes) -> bool {
        // A marker of the future is of before a crash that lost it; the relay repairs it.
        let pruned = changes.pruned.is_subset_of(&changes.snapshot)
            && !changes.pruned.is_subset_of(before)
            && *before != Snapshot::empty();
        pruned && self.catalog.controls.holds(Protection::GapDetection)
    }

    async fn apply(&mut self, number: PollNumber, changes: &mut Changes) {
        let catalog = Arc::clone(&self.catalog);
        if !catalog.controls.holds(Protection::ChangeFeed) {
            return catalog.hot.prove(changes.asked);
        }
        let is_new = changes.len() > 0 || changes.truncated_below.is_some();
        let floors = floors(changes).await;
        let ids: Vec<(ProductId, Revision)> =
            floors.iter().map(|(id, revision)| (*id, *revision)).collect();
        let kept =
            !changes.overflow && catalog.recent.apply(number, floors, changes.truncated_below);
        if !kept {
            self.overflow(number, changes);
        } else if is_new {
            let (seen, asked) = (changes.snapshot.clone(), changes.asked);
            self.kept.push_back(Kept { poll: number, seen, asked });
        }
        if changes.truncated_below.is_some() {
            catalog.hot.distrust_before(Moment::now());
        }
        for turn in ids.chunks(TURN) {
            for (id, revision) in turn {
                catalog.invalidate(Change { id: *id, revision: *revision });
            }
            tokio::task::yield_now().await;
        }
        catalog.hot.prove(changes.asked);
        self.drop_pruned(number, changes);
    }

    /// There are more changes than are kept: any copy from before may be old.
    fn overflow(&mut self, number: PollNumber, changes: &Changes) {
        tracing::warn!(
            limit = self.catalog.recent.capacity(),
            "more changes than MAX_RECENT_CHANGES at once; what the caches hold is compared anew"
        );
        // First what Redis holds: a load that finds no floor any more must not trust that. Memory last: what is kept until the
        // floors are gone may be old.
        self.catalog.feed.redis_covered_since.store(Moment::now());
        self.catalog.recent.overflow(number);
        self.catalog.hot.distrust_before(Moment::now());
        self.overflowed_at = Some(changes.snapshot.clone());
        self.kept.clear();
    }

    /// What was pruned is applied to Redis, and no load is as old.
    fn drop_pruned(&mut self, number: PollNumber, changes: &Changes) {
        if self.overflowed_at.take_if(|seen| seen.is_subset_of(&changes.relayed)).is_some() {
            self.catalog.recent.overflow_ends(number);
            self.catalog.feed.redis_covered_since.store(Moment::NEVER);
        }
        let mut pruned = None;
        while let Some(kept) =
            self.kept.pop_front_if(|kept| kept.seen.is_subset_of(&changes.pruned))
        {
            pruned = Some(kept.poll);
        }
        if let Some(poll) = pruned {
            self.catalog.recent.drop_through(poll);
        }
        let unrelayed = self.kept.iter().find(|kept| !kept.seen.is_subset_of(&changes.relayed));
        let since = unrelayed.map_or(Moment::NEVER, |kept| kept.asked);
        self.catalog.feed.unrelayed_since.store(since);
    }
}

/// The newest of each product.
async fn floors(changes: &mut Changes) -> Floors {
    let mut floors = std::mem::take(&mut changes.single);
    for pack in std::mem::take(&mut changes.packs) {
        for (id, revision) in pack {
            let floor = floors.entry(id).or_insert(revision);
            *floor = revision.max(*floor);
        }
        tokio::task::yield_now().await;
    }
    floors
}
