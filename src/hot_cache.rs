//! The hot cache: recently and often read entries in this process' memory.
//!
//! mini-moka decides which keys stay (TinyLFU, `eviction.rs`); a slot holds the entry (`slots.rs`, `table.rs`). mini-moka is
//! given inserts of absent keys and a sample of reads; replacing and invalidating an entry happens inside the slot.
//! The soak test of `tests/it/hot_tier.rs` checks that the keys of both stay equal.
//!
//! A slot may be refused or evicted at any time, so correctness depends on nothing that only a slot holds: the result of a load is
//! compared with the recent changes (`recent_changes.rs`) under the stripe lock under which slots change. A change is
//! recorded there before it takes that lock, so a load that finishes before is invalidated, and one that finishes after is rejected.

mod discard;
mod eviction;
mod slots;
mod table;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use crate::controls::{Controls, Protection};
use crate::entry::Entry;
use crate::metrics::{FillRejection, Metrics};
use crate::moment::{AtomicMoment, Moment};
use crate::product::{Change, ProductId, Revision, Version};
use crate::recent_changes::{Began, Heard, RecentChanges};
use crate::supervisor::Supervisor;
use slots::Slots;

#[derive(Clone, Copy, Debug)]
pub struct HotCacheOptions {
    /// In entries.
    pub capacity: u64,
    /// The largest encoded product that is kept, in bytes.
    pub largest: usize,
    /// For how long an entry is trusted after it was last compared with Redis or Postgres, without a recent poll.
    pub trust: Duration,
    /// For how long all entries are trusted after a poll of the outbox was sent.
    pub lease: Duration,
}

#[derive(Debug)]
pub struct HotCache {
    slots: Slots,
    recent: Arc<RecentChanges>,
    proof: Proof,
    options: HotCacheOptions,
    metrics: Arc<Metrics>,
    controls: Controls,
}

/// Which committed changes are applied to memory.
#[derive(Debug)]
struct Proof {
    /// Every change committed before this moment is applied.
    known_until: AtomicMoment,
    /// Until when all entries are trusted because of that.
    trusted_until: AtomicMoment,
    /// Changes were missed: an entry last checked before this moment may be old.
    covered_since: AtomicMoment,
    /// An entry last checked before this moment is of another epoch: its version does not compare.
    epoch_since: AtomicMoment,
}

/// An entry in a slot, and what is known about newer revisions.
#[derive(Clone, Debug)]
pub struct HotEntry {
    pub entry: Entry,
    /// When the entry was last compared with Redis or Postgres.
    pub checked_at: Moment,
    floor: Floor,
}

/// How surely a tier's copy of a product reflects every committed change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Every change committed until `max_staleness` ago is applied to it.
    Confirmed,
    /// Every change that the outbox told of is applied to it, but the outbox was not read for too long.
    Unconfirmed,
    /// A change may have been missed.
    Suspect,
    /// The copy is of another epoch, which this database has lost: its version does not compare.
    OtherEpoch,
}

/// A revision in eight bytes. Versions above 2^62 are all equal; no sequence gets there.
#[derive(Clone, Copy, Debug)]
struct Floor(i64);

impl Floor {
    fn at(revision: Revision) -> Self {
        Self(revision.version.0.min(i64::MAX >> 1) << 1 | i64::from(revision.deleted))
    }
}

impl HotEntry {
    /// The newest observed revision.
    #[must_use]
    pub fn floor(&self) -> Revision {
        Revision { version: Version(self.floor.0 >> 1), deleted: self.floor.0 & 1 == 1 }
    }

    /// Whether a newer revision is committed, so that the entry is never served.
    #[must_use]
    pub fn is_invalidated(&self) -> bool {
        self.entry.revision() < self.floor()
    }

    /// In bytes of memory.
    fn cost(&self) -> u64 {
        slots::ENTRY_BYTES + self.entry.frame().len() as u64
    }
}

impl HotCache {
    /// For tests and benchmarks: without the supervisor of an instance.
    #[must_use]
    pub fn new(
        options: HotCacheOptions,
        recent: Arc<RecentChanges>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let supervisor = Supervisor::new(Arc::clone(&metrics));
        Self::supervised(options, recent, metrics, &supervisor)
    }

    /// `supervisor` restarts the thread of the eviction policy.
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

    /// With protections that a test may turn off.
    #[must_use]
    pub fn with_controls(self, controls: Controls) -> Self {
        Self { controls, ..self }
    }

    /// Reads the entry of `id`, served or not. The eviction policy counts it as a read.
    pub fn read<T>(&self, id: ProductId, read: impl FnOnce(&HotEntry) -> T) -> Option<T> {
        self.slots.read(id, read)
    }

    /// [`read`](Self::read) for many, in the order of `ids`.
    pub fn read_all(&self, ids: &[ProductId], read: impl FnMut(ProductId, Option<&HotEntry>)) {
        self.slots.read_all(ids, read);
    }

    /// The entry of `id`, served or not. The eviction policy does not count it as a read.
    #[must_use]
    pub fn peek(&self, id: ProductId) -> Option<HotEntry> {
        self.slots.peek(id)
    }

    /// How surely `held` reflects every committed change.
    #[inline]
    #[must_use]
    pub fn trust(&self, held: &HotEntry, now: Moment) -> Trust {
        if held.checked_at < self.proof.covered_since.load() {
            let other_epoch = held.checked_at < self.proof.epoch_since.load();
            return if other_epoch { Trust::OtherEpoch } else { Trust::Suspect };
        }
        let confirmed =
            now <= self.proof.trusted_until.load() || now <= held.checked_at + self.options.trust;
        if confirmed { Trust::Confirmed } else { Trust::Unconfirmed }
    }

    /// Records that every change committed before `moment` is applied.
    pub fn prove(&self, moment: Moment) {
        self.proof.known_until.store(moment);
        self.proof.trusted_until.store(moment + self.options.lease);
    }

    /// Every change committed before this moment is applied.
    #[must_use]
    pub fn known_until(&self) -> Moment {
        self.proof.known_until.load()
    }

    /// Changes were missed: entries checked before `moment` are suspect.
    pub fn distrust_before(&self, moment: Moment) {
        self.proof.covered_since.advance(moment);
    }

    /// The epoch changed: entries are suspect, and any version of the new epoch replaces them.
    pub fn begin_epoch(&self, moment: Moment) {
        self.proof.epoch_since.store(moment);
        self.distrust_before(moment);
    }

    /// Whether the last poll is recent enough for all entries to be trusted.
    #[must_use]
    pub fn has_valid_lease(&self) -> bool {
        Moment::now() <= self.proof.trusted_until.load()
    }

    /// Invalidates an entry older than `change`, which the recent changes hold already. If there was one, returns whether it was
    /// valid until then.
    pub fn invalidate(&self, change: Change) -> Option<bool> {
        let stripe = self.slots.stripe(change.id);
        let held = self.slots.peek(change.id).filter(|held| held.floor() < change.revision)?;
        let was_valid = !held.is_invalidated();
        self.slots.replace(
            change.id,
            HotEntry { floor: Floor::at(change.revision), ..held },
            &stripe,
        );
        Some(was_valid)
    }

    /// Begins a load of `id`: changes committed from now on raise its floor.
    #[must_use]
    pub fn begin_load(self: &Arc<Self>, id: ProductId) -> LoadTicket {
        let changes = self.recent.begin(id);
        LoadTicket { hot: Arc::clone(self), id, began: Moment::now(), changes }
    }

    /// In entries.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In entries.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.options.capacity
    }

    /// The bytes that the entries would take if all were of the largest size.
    #[must_use]
    pub fn most_bytes(&self) -> u64 {
        self.options.capacity.saturating_mul(slots::ENTRY_BYTES + self.options.largest as u64)
    }

    /// For tests: waits until the eviction policy has applied all records, and returns its number of keys, which is `len` then.
    #[must_use]
    pub fn count_admitted(&self) -> u64 {
        self.slots.count_admitted()
    }

    /// Bytes of memory that the entries take: their encoded size and the overhead of a slot.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slots.bytes()
    }

    /// The newest revision wins. Returns what memory holds then, or would hold if the entry were not too large and had room.
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

    /// [`keep`](Self::keep) for a slot that exists.
    fn replace(
        &self,
        id: ProductId,
        held: &HotEntry,
        entry: Entry,
        checked_at: Moment,
        locked: &MutexGuard<'_, ()>,
    ) -> HotEntry {
        let revision = entry.revision();
        // The floor of a change that was only published may be wrong, so it is not compared here; `finish` compares confirmed floors.
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
            // Too large to keep: the slot keeps the old entry, invalidated.
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

/// A load in flight: remembers which changes were known when it began.
#[derive(Debug)]
pub struct LoadTicket {
    hot: Arc<HotCache>,
    id: ProductId,
    began: Moment,
    changes: Began,
}

/// The result of a load is not kept: a newer revision was committed meanwhile, or may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfDate;

impl LoadTicket {
    /// The oldest revision that this load may return.
    #[must_use]
    pub fn floor(&self) -> Revision {
        self.hot.recent.floor_since(self.changes, self.id)
    }

    /// Whether every change since the load began is still among the recent changes.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.hot.recent.covers(self.changes)
    }

    /// Applies a write that was committed since: nothing older is kept from now on, and an entry in memory is replaced.
    ///
    /// It creates no slot: a write delayed after its commit would bring back a revision that others have replaced. For the same
    /// reason it leaves a slot as it is when changes since the write began are no longer kept.
    pub fn offer(&self, entry: Entry) {
        let change = Change { id: self.id, revision: entry.revision() };
        if !self.hot.recent.publish(self.id, change.revision, true) {
            self.hot.distrust_before(Moment::now());
        }
        let at = Moment::now();
        let stripe = self.hot.slots.stripe(self.id);
        let current = entry.revision() >= self.floor() && self.is_covered()
            || !self.hot.controls.holds(Protection::SlotVersions);
        let mut dropped_at = None;
        if let Some(held) = self.hot.slots.peek(self.id).filter(|_| current) {
            let known_at = entry.known_at();
            self.hot.replace(self.id, &held, entry, known_at, &stripe);
            let was_valid = !held.is_invalidated() && held.floor() < change.revision;
            dropped_at = was_valid.then(Moment::now);
        }
        self.hot.recent.record_heard(Heard { change, written_here: true, at, dropped_at });
    }

    /// Keeps the result of the load. Returns what memory holds then, which may be newer.
    ///
    /// # Errors
    /// The result is below the floor, or the load took longer than changes are kept: it has to be done again.
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
