//! Counters that cores do not share, so that counting costs a few nanoseconds on any number of cores;
//! adding them up is the scrape's work.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// More shards than this buy nothing but memory.
const MAX_SHARDS: usize = 64;

/// Numbers threads for the choice of a shard. Process-wide, and harmless: it only spreads.
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

/// One core's cells, on cache lines of their own.
#[repr(align(128))]
#[derive(Debug)]
struct Shard(Box<[AtomicU64]>);

/// A row of counters.
#[derive(Debug)]
pub(super) struct Cells {
    shards: Box<[Shard]>,
}

impl Cells {
    pub(super) fn new(cells: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (cores * 2).next_power_of_two().min(MAX_SHARDS);
        // Whole cache lines, so that neighbouring allocations are not written by another core.
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
