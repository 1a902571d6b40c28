//! Which slots there are: a table answers reads, and mini-moka decides who stays.
//!
//! mini-moka's lookup costs ten times the table's, so reads go to the table, and mini-moka is told of a sample of
//! them. It has a tenant for each slot; when it drops one, the slot goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::HotEntry;
use super::eviction::EvictionPolicy;
use super::table::{STRIPES, Table};
use crate::product::ProductId;
use crate::supervisor::Supervisor;

/// mini-moka hears of one lookup in this many, hits and misses alike, so that their frequencies compare.
const SAMPLING: u8 = 16;
/// So many may wait for mini-moka's decision while there is no room for more than it keeps.
const CANDIDATES: u64 = 1_024;
/// What an entry costs besides its encoded product, more than half of it mini-moka's (`tests/memory.rs`).
pub(super) const ENTRY_BYTES: u64 = 250;

/// The slots, and who decides which.
#[derive(Debug)]
pub(super) struct Slots {
    store: Arc<Store>,
    eviction: EvictionPolicy,
}

/// Where the slots are. They come and go, and change, under the locks of their stripes; reads take none.
#[derive(Debug)]
struct Store {
    table: Table,
    stripes: Box<[Mutex<()>]>,
    /// How many slots there are, and how many there may be.
    count: AtomicU64,
    most: u64,
    bytes: AtomicU64,
}

impl Store {
    fn new(capacity: u64) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        let (count, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let table = Table::new(usize::try_from(capacity).expect("memory is counted in usize"));
        Self { table, stripes, count, most: capacity + CANDIDATES, bytes }
    }

    fn stripe(&self, id: ProductId) -> MutexGuard<'_, ()> {
        self.stripes[self.table.stripe(id)].lock()
    }

    /// Nothing is held of `id` any more.
    fn clear(&self, id: ProductId) {
        let _locked = self.stripe(id);
        if let Some(held) = self.table.remove(id) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(held.cost(), Ordering::Relaxed);
        }
    }
}

impl Slots {
    pub(super) fn new(capacity: u64, supervisor: &Supervisor) -> Self {
        let store = Arc::new(Store::new(capacity));
        let (read, cleared) = (Arc::clone(&store), Arc::clone(&store));
        let keys = move |each: &mut dyn FnMut(ProductId)| read.table.keys(each);
        let evict = move |id| cleared.clear(id);
        Self { store, eviction: EvictionPolicy::new(capacity, keys, evict, supervisor) }
    }

    pub(super) fn stripe(&self, id: ProductId) -> MutexGuard<'_, ()> {
        self.store.stripe(id)
    }

    /// A reader's look: no lock and no count that cores share, but for the sample that mini-moka hears of.
    pub(super) fn read<T>(&self, id: ProductId, read: impl FnOnce(&HotEntry) -> T) -> Option<T> {
        if fastrand::u8(..SAMPLING) == 0 {
            self.eviction.record_read(id);
        }
        self.store.table.read(id, read)
    }

    /// The same for many, every 16th of which is told to mini-moka.
    pub(super) fn read_all(
        &self,
        ids: &[ProductId],
        mut read: impl FnMut(ProductId, Option<&HotEntry>),
    ) {
        let first_sampled = fastrand::u8(..SAMPLING).into();
        for id in ids.iter().skip(first_sampled).step_by(SAMPLING.into()) {
            self.eviction.record_read(*id);
        }
        for id in ids {
            if self.store.table.read(*id, |held| read(*id, Some(held))).is_none() {
                read(*id, None);
            }
        }
    }

    /// What is held, for those who are no readers.
    pub(super) fn peek(&self, id: ProductId) -> Option<HotEntry> {
        self.store.table.read(id, HotEntry::clone)
    }

    /// Puts `held` into the slot of `id`, which is there. Who calls it holds the lock of its stripe.
    pub(super) fn replace(&self, id: ProductId, held: HotEntry, _: &MutexGuard<'_, ()>) {
        let cost = held.cost();
        if let Some(old) = self.store.table.replace(id, held) {
            self.store.bytes.fetch_add(cost, Ordering::Relaxed);
            self.store.bytes.fetch_sub(old.cost(), Ordering::Relaxed);
        }
    }

    /// Takes a slot for `id`, which has none, until mini-moka has decided whether it keeps it. Returns whether there was
    /// one left. Who calls it holds the lock of its stripe.
    ///
    /// A slot that is there keeps others from being taken for the same id, so mini-moka never sees a key twice.
    pub(super) fn insert(&self, id: ProductId, held: HotEntry, _: &MutexGuard<'_, ()>) -> bool {
        if self.store.count.fetch_add(1, Ordering::Relaxed) >= self.store.most {
            self.store.count.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.store.bytes.fetch_add(held.cost(), Ordering::Relaxed);
        self.store.table.insert(id, held);
        self.eviction.record_inserted(id);
        true
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.store.count.load(Ordering::Relaxed)
    }

    /// How many mini-moka says there are, when it has decided about all inserted.
    pub(super) fn count_admitted(&self) -> u64 {
        self.eviction.count()
    }

    /// What they cost in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.store.bytes.load(Ordering::Relaxed)
    }
}
