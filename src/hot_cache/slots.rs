//! The slots: a table answers reads, and the eviction policy decides which slots stay.
//!
//! A lookup in mini-moka costs ten times one in the table, so reads go to the table, and a sample of them is recorded for
//! mini-moka. It has a key for each slot; when it evicts the key, the slot is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::HotEntry;
use super::eviction::EvictionPolicy;
use super::table::{STRIPES, Table};
use crate::product::ProductId;
use crate::supervisor::Supervisor;

/// One lookup in this many is recorded, hits and misses alike, so that their frequencies compare.
const SAMPLING: u8 = 16;
/// Slots above the capacity, for keys that the policy has not decided about.
const CANDIDATES: u64 = 1_024;
/// Bytes of an entry besides its encoded product, more than half of them mini-moka's (measured by `tests/memory.rs`).
pub(super) const ENTRY_BYTES: u64 = 250;

#[derive(Debug)]
pub(super) struct Slots {
    store: Arc<Store>,
    eviction: EvictionPolicy,
}

/// A slot is inserted, changed and removed under the lock of its stripe; reads take no lock.
#[derive(Debug)]
struct Store {
    table: Table,
    stripes: Box<[Mutex<()>]>,
    /// In slots; `most` is the bound.
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

    /// Takes no lock, and writes to no cache line that cores share, except for the sampled reads.
    pub(super) fn read<T>(&self, id: ProductId, read: impl FnOnce(&HotEntry) -> T) -> Option<T> {
        if fastrand::u8(..SAMPLING) == 0 {
            self.eviction.record_read(id);
        }
        self.store.table.read(id, read)
    }

    /// [`read`](Self::read) for many; every 16th is recorded.
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

    /// Without recording a read.
    pub(super) fn peek(&self, id: ProductId) -> Option<HotEntry> {
        self.store.table.read(id, HotEntry::clone)
    }

    /// Replaces the entry of `id`, which has a slot. The caller holds the lock of its stripe.
    pub(super) fn replace(&self, id: ProductId, held: HotEntry, _: &MutexGuard<'_, ()>) {
        let cost = held.cost();
        if let Some(old) = self.store.table.replace(id, held) {
            self.store.bytes.fetch_add(cost, Ordering::Relaxed);
            self.store.bytes.fetch_sub(old.cost(), Ordering::Relaxed);
        }
    }

    /// Inserts a slot for `id`, which has none; the policy decides later whether it stays. Returns whether there was room. The
    /// caller holds the lock of its stripe, and has seen that there is no slot: so mini-moka is never given a key twice.
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

    pub(super) fn len(&self) -> u64 {
        self.store.count.load(Ordering::Relaxed)
    }

    /// The policy's number of keys, once it has decided about all inserted ones.
    pub(super) fn count_admitted(&self) -> u64 {
        self.eviction.count()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.store.bytes.load(Ordering::Relaxed)
    }
}
