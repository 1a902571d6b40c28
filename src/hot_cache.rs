//! The hot tier: recently and often read entries in this process' memory.
//!
//! mini-moka decides who stays (TinyLFU, `eviction.rs`); what a product is now, is the business of its slot (`slots.rs`,
//! `table.rs`). mini-moka knows of a key that it was **inserted, when it was absent**, and read; everything else happens
//! inside the slot. `tests/it/hot_tier.rs` has the soak test that keeps the two in step.
//!
//! Admission may refuse or evict a slot at any time, so nothing that correctness needs lives only in a slot: what a load brings
//! back is compared with the recent changes (`recent_changes.rs`) under the stripe lock under which slots change. A change is
//! first put there and then takes that lock, so a load that finishes before is invalidated, and one that finishes later is rejected.

mod eviction;
mod slots;
mod table;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use crate::controls::{Controls, Protection};
use crate::entry::{Entry, Freshness};
use crate::metrics::{FillRejection, Metrics};
use crate::moment::{AtomicMoment, Moment};
use crate::product::{Change, ProductId, Revision, Version};
use crate::recent_changes::{Began, RecentChanges};
use crate::supervisor::Supervisor;
use slots::Slots;

/// Bounds of the hot tier.
#[derive(Clone, Copy, Debug)]
pub struct HotCacheOptions {
    /// How many entries are kept.
    pub capacity: u64,
    /// The largest product that is kept, encoded, in bytes.
    pub largest: usize,
    /// For how long memory is trusted after it was last compared with Redis or Postgres, without any proof.
    pub trust: Duration,
    /// For how long a poll of the outbox lets memory be trusted.
    pub lease: Duration,
}

/// The hot tier of one instance.
#[derive(Debug)]
pub struct HotCache {
    slots: Slots,
    recent: Arc<RecentChanges>,
    proof: Proof,
    options: HotCacheOptions,
    metrics: Arc<Metrics>,
    controls: Controls,
}

/// What is known of the changes in Postgres.
#[derive(Debug)]
struct Proof {
    /// Every change that was committed before this moment is known.
    known_until: AtomicMoment,
    /// Until when memory is trusted for that.
    trusted_until: AtomicMoment,
    /// What was last checked before this moment may be old: some changes were missed.
    covered_since: AtomicMoment,
    /// What was last checked before this moment is of another epoch: its version says nothing.
    epoch_since: AtomicMoment,
}

/// An entry and how well it is known to be the newest.
#[derive(Clone, Debug)]
pub struct HotEntry {
    /// The entry.
    pub entry: Entry,
    /// When it was last compared with Redis or Postgres.
    pub checked_at: Moment,
    floor: Floor,
}

/// A revision in eight bytes; of versions that no sequence of ours reaches, no two differ.
#[derive(Clone, Copy, Debug)]
struct Floor(i64);

impl Floor {
    fn at(revision: Revision) -> Self {
        Self(revision.version.0.min(i64::MAX >> 1) << 1 | i64::from(revision.deleted))
    }
}

impl HotEntry {
    /// The newest revision that is known of.
    #[must_use]
    pub fn floor(&self) -> Revision {
        Revision { version: Version(self.floor.0 >> 1), deleted: self.floor.0 & 1 == 1 }
    }

    /// Whether something newer was committed: then it is known to be old, and is never served.
    #[must_use]
    pub fn is_invalidated(&self) -> bool {
        self.entry.revision() < self.floor()
    }

    /// What keeping it costs, in bytes.
    fn cost(&self) -> u64 {
        slots::ENTRY_BYTES + self.entry.frame().len() as u64
    }
}

impl HotCache {
    /// An empty hot tier, without an instance.
    #[must_use]
    pub fn new(
        options: HotCacheOptions,
        recent: Arc<RecentChanges>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let supervisor = Supervisor::new(Arc::clone(&metrics));
        Self::supervised(options, recent, metrics, &supervisor)
    }

    /// An empty hot tier. The supervisor of its instance keeps its eviction policy running.
    #[must_use]
    pub fn supervised(
        options: HotCacheOptions,
        recent: Arc<RecentChanges>,
        metrics: Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> Self {
        Self {
            slots: Slots::new(options.capacity, supervisor),
            recent,
            proof: Proof::nothing(),
            options,
            metrics,
            controls: Controls::default(),
        }
    }

    /// The same, with protections that a test may turn off.
    #[must_use]
    pub fn with_controls(self, controls: Controls) -> Self {
        Self { controls, ..self }
    }

    /// Reads what memory holds of `id`, whether or not it may be served; counts as a use of it.
    pub fn read<T>(&self, id: ProductId, read: impl FnOnce(&HotEntry) -> T) -> Option<T> {
        self.slots.read(id, read)
    }

    /// The same for many, in their order.
    pub fn read_all(&self, ids: &[ProductId], read: impl FnMut(ProductId, Option<&HotEntry>)) {
        self.slots.read_all(ids, read);
    }

    /// What memory holds of `id`, whether or not it may be served, without using it.
    #[must_use]
    pub fn peek(&self, id: ProductId) -> Option<HotEntry> {
        self.slots.peek(id)
    }

    /// Whether `held` may be served to a caller who wants it this fresh.
    #[must_use]
    pub fn serves(&self, held: &HotEntry, freshness: &Freshness, now: Moment) -> bool {
        // Of whatever freshness: a caller who is content with more than the bound is given no less than it.
        self.trusts(held, now)
            && !held.is_invalidated()
            && !held.entry.past_hard(now)
            && freshness.accepts(&held.entry)
    }

    /// Whether no change of this product can have been missed, or not for longer than is allowed.
    fn trusts(&self, held: &HotEntry, now: Moment) -> bool {
        self.has_followed(held)
            && (now <= self.proof.trusted_until.load()
                || now <= held.checked_at + self.options.trust)
    }

    /// Whether memory may have missed nothing but what nobody could tell it: what it holds is not known to be current,
    /// and may be served when nothing better can be had.
    #[must_use]
    pub fn has_followed(&self, held: &HotEntry) -> bool {
        held.checked_at >= self.proof.covered_since.load()
    }

    /// Every change that was committed before `moment` is known, and what it made old is invalidated.
    pub fn prove(&self, moment: Moment) {
        self.proof.known_until.store(moment);
        self.proof.trusted_until.store(moment + self.options.lease);
    }

    /// Until when every change is known.
    #[must_use]
    pub fn known_until(&self) -> Moment {
        self.proof.known_until.load()
    }

    /// Some changes were missed: what was checked before `moment` is not trusted any more.
    pub fn distrust_before(&self, moment: Moment) {
        self.proof.covered_since.advance(moment);
    }

    /// Postgres is another: whatever is held is not trusted any more, and newer than nothing.
    pub fn begin_epoch(&self, moment: Moment) {
        self.proof.epoch_since.store(moment);
        self.distrust_before(moment);
    }

    /// Whether memory is trusted on the proof alone.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        Moment::now() <= self.proof.trusted_until.load()
    }

    /// Takes in that a product changed, which the recent changes say by now. Returns whether memory held something older.
    pub fn invalidate(&self, change: Change) -> bool {
        let stripe = self.slots.stripe(change.id);
        let Some(held) = self.slots.peek(change.id) else { return false };
        if held.floor() >= change.revision {
            return false;
        }
        self.slots.replace(
            change.id,
            HotEntry { floor: Floor::at(change.revision), ..held },
            &stripe,
        );
        true
    }

    /// Announces a load of `id`: from now on it hears of every newer revision.
    #[must_use]
    pub fn begin_load(self: &Arc<Self>, id: ProductId) -> LoadTicket {
        let changes = self.recent.begin(id);
        LoadTicket { hot: Arc::clone(self), id, began: Moment::now(), changes }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries mini-moka counts, once it has decided about everything that came before: as many as `len` then. It
    /// waits for that decision, and is meant for tests.
    #[must_use]
    pub fn count_admitted(&self) -> u64 {
        self.slots.count_admitted()
    }

    /// What the entries cost, in bytes: their encoded size, and what keeping them takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slots.bytes()
    }

    /// Newest wins. Returns what memory holds afterwards, or would if it were not too large and had room.
    fn keep(
        &self,
        id: ProductId,
        entry: Entry,
        checked_at: Moment,
        locked: &MutexGuard<'_, ()>,
    ) -> HotEntry {
        if let Some(held) = self.slots.peek(id) {
            return self.replace(id, &held, entry, checked_at, locked);
        }
        let held = HotEntry { floor: Floor::at(entry.revision()), entry, checked_at };
        if !self.is_too_large(&held.entry) && !self.slots.insert(id, held.clone(), locked) {
            self.metrics.fills_rejected.inc(FillRejection::HotCrowded);
        }
        held
    }

    /// The same, of what memory holds already.
    fn replace(
        &self,
        id: ProductId,
        held: &HotEntry,
        entry: Entry,
        checked_at: Moment,
        locked: &MutexGuard<'_, ()>,
    ) -> HotEntry {
        let revision = entry.revision();
        // A floor of a change that was only published may be wrong; `finish` asks those that count.
        let same_epoch = held.checked_at >= self.proof.epoch_since.load();
        let is_older = revision < held.entry.revision() && same_epoch;
        if is_older && self.controls.holds(Protection::SlotVersions) {
            self.metrics.fills_rejected.inc(FillRejection::HotOlder);
            return held.clone();
        }
        let same = revision == held.entry.revision() && same_epoch;
        let entry = if same && entry.known_at() < held.entry.known_at() {
            held.entry.clone()
        } else {
            entry
        };
        let checked_at = if same { checked_at.max(held.checked_at) } else { checked_at };
        let new = HotEntry { entry, checked_at, floor: Floor::at(revision) };
        let kept = match self.is_too_large(&new.entry) {
            // It has outgrown its slot, which goes on with what is void now.
            true => HotEntry { floor: Floor::at(revision), ..held.clone() },
            false => new.clone(),
        };
        self.slots.replace(id, kept, locked);
        new
    }

    fn is_too_large(&self, entry: &Entry) -> bool {
        entry.product().map_or(0, <[u8]>::len) > self.options.largest
    }
}

impl Proof {
    fn nothing() -> Self {
        let [known_until, trusted_until, covered_since, epoch_since] =
            [Moment::NEVER; 4].map(AtomicMoment::new);
        Self { known_until, trusted_until, covered_since, epoch_since }
    }
}

/// A load in flight, as the hot tier knows it.
#[derive(Debug)]
pub struct LoadTicket {
    hot: Arc<HotCache>,
    id: ProductId,
    began: Moment,
    changes: Began,
}

/// What a load brought is not kept: something newer was committed meanwhile, or may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfDate;

impl LoadTicket {
    /// The oldest revision that this load may bring back.
    #[must_use]
    pub fn floor(&self) -> Revision {
        self.hot.recent.floor_since(self.changes, self.id)
    }

    /// Whether no change since it began can have been forgotten.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.hot.recent.covers(self.changes)
    }

    /// Takes in a write that was committed since: from now on nothing older is kept, and what memory holds is replaced.
    ///
    /// It does not populate: a write that was held up after its commit would put back what others have replaced since. For the
    /// same reason it leaves a slot alone when changes since it began have been forgotten.
    pub fn offer(&self, entry: Entry) {
        if !self.hot.recent.publish(self.id, entry.revision(), true) {
            self.hot.distrust_before(Moment::now());
        }
        let stripe = self.hot.slots.stripe(self.id);
        let current = entry.revision() >= self.floor() && self.is_covered()
            || !self.hot.controls.holds(Protection::SlotVersions);
        if let Some(held) = self.hot.slots.peek(self.id).filter(|_| current) {
            let known_at = entry.known_at();
            self.hot.replace(self.id, &held, entry, known_at, &stripe);
        }
    }

    /// Brings the load's result in. Returns what memory holds then, which may be newer.
    ///
    /// # Errors
    /// When the result is below the floor, or the load took longer than changes are kept: then it has to be done again.
    pub fn finish(&self, entry: Entry) -> Result<HotEntry, OutOfDate> {
        let stripe = self.hot.slots.stripe(self.id);
        let current = entry.revision() >= self.floor() && self.is_covered();
        if !current && self.hot.controls.holds(Protection::LoadFloor) {
            self.hot.metrics.fills_rejected.inc(FillRejection::HotBelowFloor);
            return Err(OutOfDate);
        }
        Ok(self.hot.keep(self.id, entry, self.began, &stripe))
    }
}
