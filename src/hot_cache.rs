//! The hot tier: recently and often read entries in this process' memory.
//!
//! mini-moka decides who stays (TinyLFU); what a product is now, is the business of its slot. mini-moka
//! 0.10.3 loses capacity when keys are overwritten or invalidated concurrently, so here a key is only ever
//! **inserted, when it is absent, under a striped lock**; everything else happens inside the slot.
//! `tests/it/hot_tier.rs` has the soak test that keeps this true.
//!
//! Admission may refuse or evict a slot at any time, so nothing that correctness needs lives only in a slot:
//! each load in flight has a *floor*, the newest revision heard of since it began, and what it brings
//! back below its floor is not kept. Raising floors and inserting happen under the same stripe lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mini_moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};

use crate::entry::{Entry, Freshness};
use crate::metrics::{FillRejection, Metrics};
use crate::product::{ProductId, Revision};

/// Enough that two cores rarely meet in one; each costs 48 bytes.
const STRIPES: usize = 256;

/// Bounds of the hot tier.
#[derive(Clone, Copy, Debug)]
pub struct HotCacheOptions {
    /// How many entries are kept.
    pub capacity: u64,
    /// For how long memory is trusted after it was last compared with Redis or Postgres.
    pub trust: Duration,
}

/// The hot tier of one instance.
#[derive(Debug)]
pub struct HotCache {
    slots: Cache<ProductId, Arc<Slot>>,
    stripes: Box<[Mutex<Stripe>]>,
    options: HotCacheOptions,
    metrics: Arc<Metrics>,
}

/// The loads in flight of the products of one stripe.
type Stripe = HashMap<ProductId, Floor>;

#[derive(Debug)]
struct Floor {
    loads: usize,
    revision: Revision,
}

/// What memory holds of one product, replaced as a whole and only by something newer.
#[derive(Debug)]
struct Slot(ArcSwap<Held>);

/// An entry and how well it is known to be the newest.
#[derive(Clone, Debug)]
pub struct Held {
    /// The entry.
    pub entry: Entry,
    /// When it was last compared with Redis or Postgres.
    pub checked_at: Instant,
}

impl HotCache {
    /// An empty hot tier.
    #[must_use]
    pub fn new(options: HotCacheOptions, metrics: Arc<Metrics>) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { slots: Cache::new(options.capacity), stripes, options, metrics }
    }

    /// What memory holds of `id`, whether or not it may be served.
    #[must_use]
    pub fn get(&self, id: ProductId) -> Option<Arc<Held>> {
        self.slots.get(&id).map(|slot| slot.0.load_full())
    }

    /// Whether `held` may be served to a caller who wants it this fresh.
    #[must_use]
    pub fn serves(&self, held: &Held, freshness: &Freshness, now: Instant) -> bool {
        // Of whatever freshness: a caller who is content with more than the bound is given no less than it.
        let trusted = now.saturating_duration_since(held.checked_at) <= self.options.trust;
        trusted && !held.entry.past_hard(now) && freshness.accepts(&held.entry)
    }

    /// Announces a load of `id`. Until it is finished or dropped it hears of every newer revision.
    #[must_use]
    pub fn begin_load(self: &Arc<Self>, id: ProductId) -> LoadTicket {
        let mut stripe = self.stripe(id);
        let held = self.get(id).map_or(Revision::NONE, |held| held.entry.revision);
        let floor = stripe.entry(id).or_insert(Floor { loads: 0, revision: held });
        floor.loads += 1;
        LoadTicket { hot: Arc::clone(self), id }
    }

    /// Takes in what is known to be committed: a write of our own, or a change that was heard of.
    pub fn offer(&self, id: ProductId, entry: Entry) {
        let mut stripe = self.stripe(id);
        if let Some(floor) = stripe.get_mut(&id) {
            floor.revision = floor.revision.max(entry.revision);
        }
        self.keep(id, entry, &stripe);
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slots.entry_count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries can be read: what `len` should be, counted the slow way.
    #[must_use]
    pub fn count_live(&self) -> u64 {
        self.slots.iter().count() as u64
    }

    /// Newest wins. Returns what memory holds afterwards.
    fn keep(&self, id: ProductId, entry: Entry, _locked: &MutexGuard<'_, Stripe>) -> Arc<Held> {
        let now = Instant::now();
        let Some(slot) = self.slots.get(&id) else {
            let slot = Arc::new(Slot(ArcSwap::from_pointee(Held { entry, checked_at: now })));
            self.slots.insert(id, Arc::clone(&slot));
            return slot.0.load_full();
        };
        let held = slot.0.load_full();
        if entry.revision < held.entry.revision {
            self.metrics.fills_rejected.inc(FillRejection::HotOlder);
            return held;
        }
        let same = entry.revision == held.entry.revision;
        let entry =
            if same && entry.known_at < held.entry.known_at { held.entry.clone() } else { entry };
        slot.0.store(Arc::new(Held { entry, checked_at: now }));
        slot.0.load_full()
    }

    fn stripe(&self, id: ProductId) -> MutexGuard<'_, Stripe> {
        // Fibonacci hashing (Knuth, TAOCP 6.4): sequential ids spread over all stripes.
        let hash = id.get().cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.stripes[(hash >> 56) as usize % STRIPES].lock()
    }
}

/// A load in flight, as the hot tier knows it.
#[derive(Debug)]
pub struct LoadTicket {
    hot: Arc<HotCache>,
    id: ProductId,
}

impl LoadTicket {
    /// The oldest revision that this load may bring back.
    #[must_use]
    pub fn floor(&self) -> Revision {
        self.hot.stripe(self.id).get(&self.id).map_or(Revision::NONE, |floor| floor.revision)
    }

    /// Brings the load's result in. Returns what memory holds then, which may be newer.
    ///
    /// # Errors
    /// The floor, when the result is below it: something newer was committed meanwhile, and the load has
    /// to be done again.
    pub fn finish(&self, entry: Entry) -> Result<Arc<Held>, Revision> {
        let stripe = self.hot.stripe(self.id);
        let floor = stripe.get(&self.id).map_or(Revision::NONE, |floor| floor.revision);
        if entry.revision < floor {
            self.hot.metrics.fills_rejected.inc(FillRejection::HotBelowFloor);
            return Err(floor);
        }
        Ok(self.hot.keep(self.id, entry, &stripe))
    }
}

impl Drop for LoadTicket {
    fn drop(&mut self) {
        if let MapEntry::Occupied(mut floor) = self.hot.stripe(self.id).entry(self.id) {
            floor.get_mut().loads -= 1;
            if floor.get().loads == 0 {
                floor.remove();
            }
        }
    }
}
