//! The change feed: each poll of the outbox returns every change committed since the poll before it. Once they are applied,
//! memory reflects every change committed before the poll was sent.
//!
//! Hints through Redis only make this faster: other instances publish what they write, and a lost hint costs one poll
//! interval.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::Catalog;
use super::staleness::HeardChanges;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::metrics::BackgroundTask;
use crate::moment::{AtomicMoment, Moment};
use crate::pause::Point;
use crate::postgres::{self, ChangeReader, Changes, Snapshot};
use crate::product::{Change, Version};
use crate::recent_changes::{Floors, Heard, PollNumber};
use crate::redis::Hint;

/// The shortest time between two requested polls: one poll serves all requests made meanwhile.
const SPACING: Duration = Duration::from_millis(5);
/// After a poll failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Changes that are applied between two yields to other tasks.
const TURN: usize = 1_000;

/// The state of the change feed that reads and writes use.
#[derive(Debug)]
pub(super) struct ChangeFeed {
    /// The newest version known to be taken from the sequence.
    ceiling: AtomicI64,
    /// Whether the last poll failed.
    unreachable: AtomicBool,
    /// Entries in Redis known from before this moment may be older than a change that the recent changes lack.
    redis_covered_since: AtomicMoment,
    /// When the oldest change that Redis does not reflect was read; `NEVER`: Redis reflects all.
    unrelayed_since: AtomicMoment,
    poll_requested: Notify,
    /// Notified after each poll, also after a failed one.
    pub(super) polled: Notify,
}

/// The state of the polling loop.
struct Follower {
    catalog: Arc<Catalog>,
    reader: ChangeReader,
    /// The polls whose changes the recent changes keep, the oldest first.
    kept: VecDeque<Kept>,
    /// The snapshot of the poll that returned more changes than are kept.
    overflowed_at: Option<Snapshot>,
    epoch: Option<String>,
    /// When the last poll of this epoch was sent.
    last_asked: Option<Moment>,
}

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
            poll_requested: Notify::new(),
            polled: Notify::new(),
        }
    }

    /// Whether the last poll failed.
    pub(super) fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    /// Records a version taken from the sequence: no version above the ceiling is possible.
    pub(super) fn raise_ceiling(&self, version: Version) {
        self.ceiling.fetch_max(version.0, Ordering::Relaxed);
    }

    pub(super) fn ceiling(&self) -> Version {
        Version(self.ceiling.load(Ordering::Relaxed))
    }

    /// The age of the oldest change that Redis does not reflect; zero when Redis reflects all.
    pub(super) fn relay_lag(&self) -> Duration {
        match self.unrelayed_since.load() {
            Moment::NEVER => Duration::ZERO,
            since => since.elapsed(),
        }
    }

    /// Requests a poll before the end of the interval.
    pub(super) fn request_poll(&self) {
        self.poll_requested.notify_one();
    }
}

impl Catalog {
    pub(super) fn start_following_changes(self: &Arc<Self>) {
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::ChangeFeed, move || Arc::clone(&catalog).follow_changes());
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::ChangeHints, move || Arc::clone(&catalog).receive_hints());
        let help =
            "How long ago every change that was committed by then was surely known, in seconds.";
        self.metrics.seconds("hotshelf.change.feed.lag", help, self, |catalog| {
            catalog.hot.known_until().elapsed().min(catalog.began.elapsed())
        });
        let help = "For how long there have been committed changes that Redis does not reflect, in seconds.";
        self.metrics.seconds("hotshelf.relay.lag", help, self, |catalog| catalog.feed.relay_lag());
        let help = "Changes that are kept as the floor of loads and of what Redis holds.";
        self.metrics.bounded(
            "hotshelf.recent.changes",
            help,
            &self.recent,
            |recent| recent.len() as u64,
            |recent| recent.capacity() as u64,
        );
    }

    async fn follow_changes(self: Arc<Self>) -> Result<Infallible, Infallible> {
        // After a restart of this loop, changes may have been read and not applied.
        self.hot.distrust_before(Moment::now());
        let first = self.change_reader.lock().take();
        let reader = first.unwrap_or_else(|| self.postgres.change_reader());
        let mut follower = Follower::new(self, reader);
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
                    feed.poll_requested.notified().await;
                } => {}
            }
        }
    }

    fn feed_failed(&self, error: &postgres::Error) {
        if !self.feed.unreachable.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the outbox cannot be read; until it can, cached products are served marked stale");
        }
        self.feed.polled.notify_waiters();
    }

    async fn receive_hints(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut hints = self.redis.hints();
        loop {
            match hints.next().await {
                _ if !self.controls.holds(Protection::Hints) => {}
                Hint::Changes(changes) => {
                    changes.into_iter().for_each(|change| self.observe(change))
                }
                Hint::Poll => self.feed.request_poll(),
            }
        }
    }

    /// Applies a change that another instance has published. The next poll confirms it.
    fn observe(&self, change: Change) {
        let _kept = self.recent.publish(change.id, change.revision, false);
        let at = Moment::now();
        let dropped_at = self.invalidate(change).then(Moment::now);
        self.recent.record_heard(Heard { change, written_here: false, at, dropped_at });
    }

    /// Returns whether memory held an older version that was valid until then.
    fn invalidate(&self, change: Change) -> bool {
        let was_valid = self.hot.invalidate(change);
        if was_valid.is_some() {
            // Memory kept it, so it is likely to be read again.
            self.refresh_queue.ask(change.id);
        }
        was_valid == Some(true)
    }

    /// Whether every committed change of `entry`, which Redis holds, is in the floor of the recent changes.
    pub(super) fn is_confirmed(&self, entry: &Entry) -> bool {
        let now = Moment::now();
        let known_at = entry.earliest_known_at();
        let followed = self.hot.has_valid_lease() || known_at >= now.before(self.options.trust);
        followed && known_at >= self.feed.redis_covered_since.load()
    }
}

impl Follower {
    fn new(catalog: Arc<Catalog>, reader: ChangeReader) -> Self {
        let (kept, overflowed_at, epoch, last_asked) = (VecDeque::new(), None, None, None);
        Self { catalog, reader, kept, overflowed_at, epoch, last_asked }
    }

    /// Polls once. Returns the pause before the next poll.
    async fn poll(&mut self) -> Result<Duration, postgres::Error> {
        let catalog = Arc::clone(&self.catalog);
        let before = self.reader.seen().clone();
        catalog.pauses.reach(Point::PollOutbox).await;
        let number = catalog.recent.poll_is_sent();
        let mut changes = self.reader.poll(catalog.recent.capacity()).await?;
        if let Some(why) = changes.went_back
            && catalog.controls.holds(Protection::Epoch)
        {
            // Several instances may find it; one of them raises the epoch.
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
        if self.epoch.is_none() {
            // With the mapping of an earlier epoch, entries would have other contents.
            catalog.postgres.open_catalogue().await?;
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
            // The first poll lacks what was committed and pruned before it was answered.
            catalog.hot.distrust_before(Moment::now());
        }
        self.apply(number, &mut changes).await;
        if changes.relay_is_free {
            catalog.relay_lease_free.notify_one();
        }
        if catalog.feed.unreachable.swap(false, Ordering::Relaxed) {
            tracing::info!("the outbox can be read again");
        }
        catalog.feed.polled.notify_waiters();
        Ok(catalog.options.poll_interval.mul_f64(rand::random_range(0.8..1.2)))
    }

    fn start_over(&mut self) {
        self.catalog.recent.reset();
        self.catalog.hot.begin_epoch(Moment::now());
        self.catalog.feed.ceiling.store(0, Ordering::Relaxed);
        self.kept.clear();
        self.overflowed_at = None;
        self.epoch = None;
        self.last_asked = None;
        self.reader.start_over();
    }

    fn enter_epoch(&mut self, changes: &Changes) {
        if self.epoch.is_none() {
            self.epoch = Some(changes.epoch.clone());
        }
        self.catalog.redis.set_scope(&changes.scope, &changes.catalogue);
        self.catalog.feed.raise_ceiling(changes.ceiling);
    }

    /// Whether a row was pruned that this instance has not read: it was suspended for longer than rows are kept.
    fn has_missed(&self, before: &Snapshot, changes: &Changes) -> bool {
        // A marker ahead of the snapshot is from before a crash that lost commits; the relay repairs it.
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
        let heard = HeardChanges::of(
            catalog.recent.take_heard(number),
            changes,
            self.last_asked.replace(changes.asked),
        );
        let floors = Arc::new(floors(changes).await);
        let kept =
            !changes.overflow && catalog.recent.apply(number, &floors, changes.truncated_below);
        let applied_at = Moment::now();
        let mut dropped = Vec::new();
        if !kept {
            self.overflow(number, changes);
        } else if is_new {
            let (seen, asked) = (changes.snapshot.clone(), changes.asked);
            self.kept.push_back(Kept { poll: number, seen, asked });
        }
        if changes.truncated_below.is_some() {
            catalog.hot.distrust_before(Moment::now());
        }
        for (count, (id, revision)) in floors.iter().enumerate() {
            if count % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            if catalog.invalidate(Change { id, revision }) {
                dropped.push((id, Moment::now()));
            }
        }
        catalog.hot.prove(changes.asked);
        if let Some(heard) = heard {
            heard.record(&catalog.metrics, applied_at, &dropped);
        }
        self.drop_pruned(number, changes);
    }

    /// More changes than are kept: every copy from before may be old.
    fn overflow(&mut self, number: PollNumber, changes: &Changes) {
        tracing::warn!(
            limit = self.catalog.recent.capacity(),
            "more changes than MAX_RECENT_CHANGES at once; what the caches hold is compared anew"
        );
        // Redis first: a load that finds no floor must not trust an entry there. Memory last: an entry kept before the floors
        // are dropped may be old.
        self.catalog.feed.redis_covered_since.store(Moment::now());
        self.catalog.recent.overflow(number);
        self.catalog.hot.distrust_before(Moment::now());
        self.overflowed_at = Some(changes.snapshot.clone());
        self.kept.clear();
    }

    /// Drops the changes whose rows are pruned: Redis reflects them, and every load that began before them has ended.
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

/// The newest revision of each changed product. Those of a bulk job are sorted where they do not keep a worker from its calls.
async fn floors(changes: &mut Changes) -> Floors {
    let single = std::mem::take(&mut changes.single);
    let packs = std::mem::take(&mut changes.packs);
    if packs.is_empty() {
        return Floors::new(single, &[]);
    }
    let sorted = tokio::task::spawn_blocking(move || Floors::new(single, &packs));
    sorted.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
}
