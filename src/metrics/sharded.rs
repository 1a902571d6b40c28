//! Sharded counters: an addition touches a shard that few threads share, and takes a few nanoseconds on any number of cores. A
//! scrape sums up the shards.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// More shards would cost memory without less contention.
const MAX_SHARDS: usize = 64;

/// The number of the next thread, by which it chooses its shard. Process-wide, and harmless: it never changes a sum.
static NEXT_THREAD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

pub(crate) fn thread_number() -> usize {
    THREAD.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT_THREAD.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// A copy of all cells, on cache lines of its own (128 bytes: x86 prefetches lines in pairs).
#[repr(align(128))]
#[derive(Debug)]
struct Shard(Box<[AtomicU64]>);

/// A row of counters, by index.
#[derive(Debug)]
pub(super) struct Cells {
    shards: Box<[Shard]>,
}

impl Cells {
    pub(super) fn new(cells: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (cores * 2).next_power_of_two().min(MAX_SHARDS);
        // Whole cache lines: otherwise an allocation that follows would share a line with this shard.
        let padded = cells.next_multiple_of(16);
        let shard = || Shard((0..padded).map(|_| AtomicU64::new(0)).collect());
        Self { shards: (0..shards).map(|_| shard()).collect() }
    }

    pub(super) fn add(&self, cell: usize, amount: u64) {
        let shard = &self.shards[thread_number() & (self.shards.len() - 1)];
        shard.0[cell].fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn sum(&self, cell: usize) -> u64 {
        self.shards.iter().map(|shard| shard.0[cell].load(Ordering::Relaxed)).sum()
    }
}
