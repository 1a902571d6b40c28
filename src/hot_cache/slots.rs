//! Which slots there are: a concurrent map answers reads, and mini-moka decides who stays.
//!
//! mini-moka's lookup costs ten times the map's, so reads go to the map, and mini-moka is told of a sample of
//! them. It holds a [`Tenant`] for each slot; when it drops one, the slot goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use arc_swap::ArcSwap;
use mini_moka::sync::{Cache, ConcurrentCacheExt};
use papaya::HashMap;
use parking_lot::{Mutex, MutexGuard};

use super::{Held, Stripe};
use crate::product::ProductId;

/// Enough that two cores rarely meet in one; each costs 48 bytes.
const STRIPES: usize = 256;
/// mini-moka hears of one lookup in this many, hits and misses alike, so that their frequencies compare.
const SAMPLING: u8 = 16;
/// What an entry costs besides its encoded product, more than half of it mini-moka's: 405 bytes when there have been no
/// evictions, and up to 438 after them (`tests/memory.rs`).
pub(super) const ENTRY_BYTES: u64 = 440;

/// What memory holds of one product, replaced as a whole and only by something newer.
type Slot = ArcSwap<Held>;

/// The slots, and who decides which.
#[derive(Debug)]
pub(super) struct Slots {
    shelf: Arc<Shelf>,
    tenants: Cache<ProductId, Arc<Tenant>>,
}

/// Where the slots are. They come and go, and change, under the locks of their stripes; reads take none.
#[derive(Debug)]
struct Shelf {
    slots: HashMap<ProductId, Slot, RandomState>,
    stripes: Box<[Mutex<Stripe>]>,
    bytes: AtomicU64,
}

/// The right to a slot. mini-moka has no listener for evictions; dropping this is one.
#[derive(Debug)]
struct Tenant {
    id: ProductId,
    shelf: Arc<Shelf>,
}

/// A slot that was taken and is not yet mini-moka's: to be admitted once the stripe is unlocked, because
/// admission evicts others, which locks theirs.
#[must_use = "mini-moka has to be told"]
pub(super) struct Newcomer(Arc<Tenant>);

impl Drop for Tenant {
    fn drop(&mut self) {
        let _locked = self.shelf.stripe(self.id);
        if let Some(slot) = self.shelf.slots.pin().remove(&self.id) {
            // The map frees slots by the dozen, when nobody can be reading them; the product goes now.
            let held = slot.swap(Arc::new(slot.load().emptied()));
            self.shelf.bytes.fetch_sub(held.cost(), Ordering::Relaxed);
        }
    }
}

impl Shelf {
    fn stripe(&self, id: ProductId) -> MutexGuard<'_, Stripe> {
        // Fibonacci hashing (Knuth, TAOCP 6.4): sequential ids spread over all stripes.
        let hash = id.get().cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.stripes[(hash >> 56) as usize % STRIPES].lock()
    }
}

impl Slots {
    pub(super) fn new(capacity: u64) -> Self {
        let shelf = Shelf {
            slots: HashMap::with_hasher(RandomState::new()),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            bytes: AtomicU64::new(0),
        };
        Self { shelf: Arc::new(shelf), tenants: Cache::new(capacity) }
    }

    pub(super) fn stripe(&self, id: ProductId) -> MutexGuard<'_, Stripe> {
        self.shelf.stripe(id)
    }

    pub(super) fn stripes(&self) -> impl Iterator<Item = MutexGuard<'_, Stripe>> {
        self.shelf.stripes.iter().map(Mutex::lock)
    }

    /// A reader's look: no lock and no count that cores share, but for the sample that mini-moka hears of.
    pub(super) fn read<T>(&self, id: ProductId, read: impl FnOnce(&Held) -> T) -> Option<T> {
        if fastrand::u8(..SAMPLING) == 0 {
            drop(self.tenants.get(&id));
        }
        self.shelf.slots.pin().get(&id).map(|slot| read(&slot.load()))
    }

    /// The same for many, which enter the map once, and have every 16th told to mini-moka.
    pub(super) fn read_all(
        &self,
        ids: &[ProductId],
        mut read: impl FnMut(ProductId, Option<&Held>),
    ) {
        let first_told = fastrand::u8(..SAMPLING).into();
        for id in ids.iter().skip(first_told).step_by(SAMPLING.into()) {
            drop(self.tenants.get(id));
        }
        let slots = self.shelf.slots.pin();
        for id in ids {
            match slots.get(id) {
                Some(slot) => read(*id, Some(&slot.load())),
                None => read(*id, None),
            }
        }
    }

    /// What is held, for those who are no readers.
    pub(super) fn peek(&self, id: ProductId) -> Option<Arc<Held>> {
        self.shelf.slots.pin().get(&id).map(ArcSwap::load_full)
    }

    /// Puts `held` into the slot of `id`, which is there. Who calls it holds the lock of its stripe.
    pub(super) fn replace(&self, id: ProductId, held: Arc<Held>, _: &MutexGuard<'_, Stripe>) {
        if let Some(slot) = self.shelf.slots.pin().get(&id) {
            self.shelf.bytes.fetch_add(held.cost(), Ordering::Relaxed);
            let old = slot.swap(held);
            self.shelf.bytes.fetch_sub(old.cost(), Ordering::Relaxed);
        }
    }

    /// Takes a slot for `id`, which has none. Who calls it holds the lock of its stripe.
    pub(super) fn take(
        &self,
        id: ProductId,
        held: Arc<Held>,
        _: &MutexGuard<'_, Stripe>,
    ) -> Newcomer {
        self.shelf.bytes.fetch_add(held.cost(), Ordering::Relaxed);
        self.shelf.slots.pin().insert(id, ArcSwap::new(held));
        Newcomer(Arc::new(Tenant { id, shelf: Arc::clone(&self.shelf) }))
    }

    /// Lets mini-moka decide whether `newcomer` stays. A slot that is there keeps others from being taken for the
    /// same id, so mini-moka never sees a key twice at once. No stripe may be locked.
    pub(super) fn admit(&self, newcomer: Newcomer) {
        self.tenants.insert(newcomer.0.id, newcomer.0);
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.shelf.slots.len() as u64
    }

    /// How many mini-moka says there are, when it has done what it puts off.
    pub(super) fn count_tenants(&self) -> u64 {
        self.tenants.sync();
        self.tenants.entry_count()
    }

    /// What they cost in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.shelf.bytes.load(Ordering::Relaxed)
    }
}
