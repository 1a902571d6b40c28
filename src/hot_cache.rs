//! The hot tier: recently and often read entries in this process' memory.
//!
//! mini-moka decides who stays (TinyLFU, `tenants.rs`); what a product is now, is the business of its slot (`slots.rs`,
//! `table.rs`). mini-moka knows of a key that it was **inserted, when it was absent**, and read; everything else happens
//! inside the slot. `tests/it/hot_tier.rs` has the soak test that keeps the two in step.
//!
//! Admission may refuse or evict a slot at any time, so nothing that correctness needs lives only in a slot:
//! each load in flight has a *floor*, the newest revision heard of since it began, and what it brings
//! back below its floor is not kept. Raising floors and inserting happen under the same stripe lock.

mod slots;
mod table;
mod tenants;

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::MutexGuard;

use crate::controls::{Controls, Protection};
use crate::entry::{Entry, Freshness};
use crate::metrics::{FillRejection, Metrics};
use crate::moment::{AtomicMoment, Moment};
use crate::product::{Change, ProductId, Revision, Version};
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
    /// For how long a proof that the change stream has been followed to its end lets memory be trusted.
    pub lease: Duration,
    /// How far the relays may be behind for such a proof to be one.
    pub relay_lag: Duration,
}

/// The hot tier of one instance.
#[derive(Debug)]
pub struct HotCache {
    slots: Slots,
    proof: Proof,
    options: HotCacheOptions,
    metrics: Arc<Metrics>,
    controls: Controls,
}

/// What is known of the change stream.
#[derive(Debug)]
struct Proof {
    /// When the change stream had surely been followed to its end.
    followed_at: AtomicMoment,
    /// Until when memory is trusted for that.
    trusted_until: AtomicMoment,
    /// What was last checked before this moment may be old: some changes were missed.
    covered_since: AtomicMoment,
}

/// The loads in flight of the products of one stripe.
type Stripe = HashMap<ProductId, InFlight, RandomState>;

#[derive(Debug)]
struct InFlight {
    loads: usize,
    /// Their floor.
    revision: Revision,
}

/// An entry and how well it is known to be the newest.
#[derive(Clone, Debug)]
pub struct Held {
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

impl Held {
    /// The newest revision that was heard of.
    #[must_use]
    pub fn floor(&self) -> Revision {
        Revision { version: Version(self.floor.0 >> 1), deleted: self.floor.0 & 1 == 1 }
    }

    /// Whether something newer was committed: then it is known to be old, and is never served.
    #[must_use]
    pub fn is_void(&self) -> bool {
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
    pub fn new(options: HotCacheOptions, metrics: Arc<Metrics>) -> Self {
        let supervisor = Supervisor::new(Arc::clone(&metrics));
        Self::supervised(options, metrics, &supervisor)
    }

    /// An empty hot tier. The supervisor of its instance keeps its eviction policy running.
    #[must_use]
    pub fn supervised(
        options: HotCacheOptions,
        metrics: Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> Self {
        Self {
            slots: Slots::new(options.capacity, supervisor),
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
    pub fn read<T>(&self, id: ProductId, read: impl FnOnce(&Held) -> T) -> Option<T> {
        self.slots.read(id, read)
    }

    /// The same for many, in their order.
    pub fn read_all(&self, ids: &[ProductId], read: impl FnMut(ProductId, Option<&Held>)) {
        self.slots.read_all(ids, read);
    }

    /// What memory holds of `id`, whether or not it may be served, without using it.
    #[must_use]
    pub fn peek(&self, id: ProductId) -> Option<Held> {
        self.slots.peek(id)
    }

    /// Whether `held` may be served to a caller who wants it this fresh.
    #[must_use]
    pub fn serves(&self, held: &Held, freshness: &Freshness, now: Moment) -> bool {
        // Of whatever freshness: a caller who is content with more than the bound is given no less than it.
        self.trusts(held, now)
            && !held.is_void()
            && !held.entry.past_hard(now)
            && freshness.accepts(&held.entry)
    }

    /// Whether no change of this product can have been missed, or not for longer than is allowed.
    fn trusts(&self, held: &Held, now: Moment) -> bool {
        self.has_followed(held)
            && (now <= self.proof.trusted_until.load()
                || now <= held.checked_at + self.options.trust)
    }

    /// Whether memory may have missed nothing but what nobody could tell it: what it holds is not known to be current,
    /// and may be served when nothing better can be had.
    #[must_use]
    pub fn has_followed(&self, held: &Held) -> bool {
        held.checked_at >= self.proof.covered_since.load()
    }

    /// Whatever was told before `moment` has been heard of; and `relayed_until`, which was known before the change
    /// stream was asked, everything committed before has been told.
    pub fn prove(&self, moment: Moment, relayed_until: Option<Moment>) {
        let told = match self.controls.holds(Protection::RelayLag) {
            true => relayed_until.map(|until| until + self.options.relay_lag),
            false => Some(moment + self.options.lease),
        };
        let until = told.map_or(Moment::NEVER, |told| told.min(moment + self.options.lease));
        self.proof.followed_at.store(moment);
        self.proof.trusted_until.store(until);
    }

    /// Some changes were missed: what was checked before `moment` is not trusted any more.
    pub fn void_before(&self, moment: Moment) {
        self.proof.covered_since.store(moment);
    }

    /// How long ago the change stream had surely been followed to its end.
    #[must_use]
    pub fn stream_lag(&self) -> Duration {
        self.proof.followed_at.load().elapsed()
    }

    /// Whether memory is trusted on the proof alone.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        Moment::now() <= self.proof.trusted_until.load()
    }

    /// Takes in that a product changed. Returns whether memory held it, and what it held is void now.
    pub fn invalidate(&self, change: Change) -> bool {
        let mut stripe = self.slots.stripe(change.id);
        if let Some(floor) = stripe.get_mut(&change.id) {
            floor.revision = floor.revision.max(change.revision);
        }
        let Some(held) = self.slots.peek(change.id) else { return false };
        if held.floor() >= change.revision {
            return false;
        }
        self.slots.replace(change.id, Held { floor: Floor::at(change.revision), ..held }, &stripe);
        true
    }

    /// Announces a load of `id`. Until it is finished or dropped it hears of every newer revision.
    #[must_use]
    pub fn begin_load(self: &Arc<Self>, id: ProductId) -> LoadTicket {
        let mut stripe = self.slots.stripe(id);
        let held = self.peek(id).map_or(Revision::NONE, |held| held.floor());
        let floor = stripe.entry(id).or_insert(InFlight { loads: 0, revision: held });
        // The ticket of a load that has just landed may still be here, from before memory held this.
        floor.revision = floor.revision.max(held);
        floor.loads += 1;
        LoadTicket { hot: Arc::clone(self), id, began: Moment::now() }
    }

    /// Takes in a write of our own: raises the floors of loads in flight, and replaces what memory holds.
    ///
    /// It does not populate. A writer that was held up after its commit would put back what others have
    /// replaced since; only who announced a load beforehand hears of that.
    pub fn offer(&self, id: ProductId, entry: Entry) {
        let mut stripe = self.slots.stripe(id);
        if let Some(floor) = stripe.get_mut(&id) {
            floor.revision = floor.revision.max(entry.revision());
        }
        if let Some(held) = self.slots.peek(id) {
            let known_at = entry.known_at();
            self.replace(id, &held, entry, known_at, &stripe);
        }
    }

    /// How many products have a floor: those with a load or a write in flight.
    #[must_use]
    pub fn floors(&self) -> usize {
        self.slots.stripes().map(|stripe| stripe.len()).sum()
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
    pub fn count_tenants(&self) -> u64 {
        self.slots.count_tenants()
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
        locked: &MutexGuard<'_, Stripe>,
    ) -> Held {
        if let Some(held) = self.slots.peek(id) {
            return self.replace(id, &held, entry, checked_at, locked);
        }
        let held = Held { floor: Floor::at(entry.revision()), entry, checked_at };
        if !self.is_too_large(&held.entry) && !self.slots.take(id, held.clone(), locked) {
            self.metrics.fills_rejected.inc(FillRejection::HotCrowded);
        }
        held
    }

    /// The same, of what memory holds already.
    fn replace(
        &self,
        id: ProductId,
        held: &Held,
        entry: Entry,
        checked_at: Moment,
        locked: &MutexGuard<'_, Stripe>,
    ) -> Held {
        let revision = entry.revision();
        if revision < held.floor() && self.controls.holds(Protection::SlotVersions) {
            self.metrics.fills_rejected.inc(FillRejection::HotOlder);
            return held.clone();
        }
        let same = revision == held.entry.revision();
        let entry = if same && entry.known_at() < held.entry.known_at() {
            held.entry.clone()
        } else {
            entry
        };
        let checked_at = if same { checked_at.max(held.checked_at) } else { checked_at };
        let new = Held { entry, checked_at, floor: Floor::at(revision) };
        let kept = match self.is_too_large(&new.entry) {
            // It has outgrown its slot, which goes on with what is void now.
            true => Held { floor: Floor::at(revision), ..held.clone() },
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
        let [trusted_until, covered_since] = [Moment::NEVER; 2].map(AtomicMoment::new);
        Self { followed_at: AtomicMoment::new(Moment::now()), trusted_until, covered_since }
    }
}

/// A load in flight, as the hot tier knows it.
#[derive(Debug)]
pub struct LoadTicket {
    hot: Arc<HotCache>,
    id: ProductId,
    began: Moment,
}

impl LoadTicket {
    /// The oldest revision that this load may bring back.
    #[must_use]
    pub fn floor(&self) -> Revision {
        self.hot.slots.stripe(self.id).get(&self.id).map_or(Revision::NONE, |floor| floor.revision)
    }

    /// Brings the load's result in. Returns what memory holds then, which may be newer.
    ///
    /// # Errors
    /// The floor, when the result is below it: something newer was committed meanwhile, and the load has
    /// to be done again.
    pub fn finish(&self, entry: Entry) -> Result<Held, Revision> {
        let stripe = self.hot.slots.stripe(self.id);
        let floor = stripe.get(&self.id).map_or(Revision::NONE, |floor| floor.revision);
        if entry.revision() < floor && self.hot.controls.holds(Protection::FlightFloor) {
            self.hot.metrics.fills_rejected.inc(FillRejection::HotBelowFloor);
            return Err(floor);
        }
        Ok(self.hot.keep(self.id, entry, self.began, &stripe))
    }
}

impl Drop for LoadTicket {
    fn drop(&mut self) {
        if let MapEntry::Occupied(mut floor) = self.hot.slots.stripe(self.id).entry(self.id) {
            floor.get_mut().loads -= 1;
            if floor.get().loads == 0 {
                floor.remove();
            }
        }
    }
}
