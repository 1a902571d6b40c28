//! Which slots there are: a table answers reads, and mini-moka decides who stays.
//!
//! mini-moka's lookup costs ten times the table's, so reads go to the table, and mini-moka is told of a sample of
//! them. It has a tenant for each slot; when it drops one, the slot goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::Held;
use super::table::{STRIPES, Table};
use super::tenants::Tenants;
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
    shelf: Arc<Shelf>,
    tenants: Tenants,
}

/// Where the slots are. They come and go, and change, under the locks of their stripes; reads take none.
#[derive(Debug)]
struct Shelf {
    table: Table,
    stripes: Box<[Mutex<()>]>,
    /// How many slots there are, and how many there may be.
    count: AtomicU64,
    most: u64,
    bytes: AtomicU64,
}

impl Shelf {
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
        let shelf = Arc::new(Shelf::new(capacity));
        let (read, cleared) = (Arc::clone(&shelf), Arc::clone(&shelf));
        let keys = move |tell: &mut dyn FnMut(ProductId)| read.table.keys(tell);
        let evict = move |id| cleared.clear(id);
        Self { shelf, tenants: Tenants::new(capacity, keys, evict, supervisor) }
    }

    pub(super) fn stripe(&self, id: ProductId) -> MutexGuard<'_, ()> {
        self.shelf.stripe(id)
    }

    /// A reader's look: no lock and no count that cores share, but for the sample that mini-moka hears of.
    pub(super) fn read<T>(&self, id: ProductId, read: impl FnOnce(&Held) -> T) -> Option<T> {
        if fastrand::u8(..SAMPLING) == 0 {
            self.tenants.note_use(id);
        }
        self.shelf.table.read(id, read)
    }

    /// The same for many, every 16th of which is told to mini-moka.
    pub(super) fn read_all(
        &self,
        ids: &[ProductId],
        mut read: impl FnMut(ProductId, Option<&Held>),
    ) {
        let first_told = fastrand::u8(..SAMPLING).into();
        for id in ids.iter().skip(first_told).step_by(SAMPLING.into()) {
            self.tenants.note_use(*id);
        }
        for id in ids {
            if self.shelf.table.read(*id, |held| read(*id, Some(held))).is_none() {
                read(*id, None);
            }
        }
    }

    /// What is held, for those who are no readers.
    pub(super) fn peek(&self, id: ProductId) -> Option<Held> {
        self.shelf.table.read(id, Held::clone)
    }

    /// Puts `held` into the slot of `id`, which is there. Who calls it holds the lock of its stripe.
    pub(super) fn replace(&self, id: ProductId, held: Held, _: &MutexGuard<'_, ()>) {
        let cost = held.cost();
        if let Some(old) = self.shelf.table.replace(id, held) {
            self.shelf.bytes.fetch_add(cost, Ordering::Relaxed);
            self.shelf.bytes.fetch_sub(old.cost(), Ordering::Relaxed);
        }
    }

    /// Takes a slot for `id`, which has none, until mini-moka has decided whether it keeps it. Returns whether there was
    /// one left. Who calls it holds the lock of its stripe.
    ///
    /// A slot that is there keeps others from being taken for the same id, so mini-moka never sees a key twice.
    pub(super) fn take(&self, id: ProductId, held: Held, _: &MutexGuard<'_, ()>) -> bool {
        if self.shelf.count.fetch_add(1, Ordering::Relaxed) >= self.shelf.most {
            self.shelf.count.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.shelf.bytes.fetch_add(held.cost(), Ordering::Relaxed);
        self.shelf.table.insert(id, held);
        self.tenants.note_newcomer(id);
        true
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.shelf.count.load(Ordering::Relaxed)
    }

    /// How many mini-moka says there are, when it has decided about all newcomers.
    pub(super) fn count_tenants(&self) -> u64 {
        self.tenants.count()
    }

    /// What they cost in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.shelf.bytes.load(Ordering::Relaxed)
    }
}
