//! The most read products of this instance: a heavy-hitters sketch of bounded size.
//!
//! Each thread counts its reads in a sketch (HeavyKeeper: Gong et al., USENIX ATC 2018). Each refresh interval the sketches are
//! merged into a slice and replaced with empty ones; a rate is the count of the last slices over the time that they took.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use heavykeeper::BucketedTopK;
use parking_lot::Mutex;

use crate::metrics::thread_number;
use crate::product::ProductId;

/// Products that each sketch ranks: the greatest `limit` of StreamHotKeys.
const TRACKED: usize = 1_000;
/// 2,048 buckets of 4 cells of 16 bytes: 128 KiB for each sketch.
const WIDTH: usize = 2_048;
const DEPTH: usize = 4;
/// The paper's b = 1.08: a colliding product decays a cell of count C with the probability b^-C, and takes it over at 0.
const DECAY: f64 = 1.0 / 1.08;
/// Rates cover this many slices. Too few: rates jump. Too many: a product that cooled down stays in the ranking for longer.
const SLICES: usize = 10;
/// Sketches of one instance. More would cost memory without less contention.
const MAX_SHARDS: usize = 64;

pub struct HotKeys {
    shards: Box<[Mutex<BucketedTopK<ProductId>>]>,
    slices: Mutex<Slices>,
}

struct Slices {
    /// At most [`SLICES`], the oldest first.
    done: VecDeque<Slice>,
    /// When the current slice began.
    began: Instant,
}

struct Slice {
    counts: HashMap<ProductId, u64>,
    lasted: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HotKey {
    pub id: ProductId,
    /// Estimated reads per second.
    pub per_second: f64,
    /// The true rate differs from the estimate by at most this, with a probability of 95 %.
    pub error_bound: f64,
}

impl std::fmt::Debug for HotKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotKeys").finish_non_exhaustive()
    }
}

fn sketch() -> BucketedTopK<ProductId> {
    BucketedTopK::new(TRACKED, WIDTH, DEPTH, DECAY)
}

impl HotKeys {
    /// Empty sketches: the number of cores, rounded up to a power of two, at most [`MAX_SHARDS`].
    #[must_use]
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = cores.next_power_of_two().min(MAX_SHARDS);
        Self {
            shards: (0..shards).map(|_| Mutex::new(sketch())).collect(),
            slices: Mutex::new(Slices {
                done: VecDeque::with_capacity(SLICES),
                began: Instant::now(),
            }),
        }
    }

    /// Counts a read.
    pub fn record(&self, id: ProductId) {
        self.shard().lock().add(&id, 1);
    }

    /// Counts a read of each product of a batch.
    pub fn record_all(&self, ids: &[ProductId]) {
        let mut sketch = self.shard().lock();
        for id in ids {
            sketch.add(id, 1);
        }
    }

    /// The sketch of this thread. Threads rarely share one, so its lock is nearly always free and its cache lines stay on one
    /// core.
    fn shard(&self) -> &Mutex<BucketedTopK<ProductId>> {
        &self.shards[thread_number() & (self.shards.len() - 1)]
    }

    /// Ends the current slice and returns what it counted, most read first.
    pub fn take_new_counts(&self) -> Vec<(ProductId, u64)> {
        let mut slices = self.slices.lock();
        let counts = self.collect(|shard| std::mem::replace(shard, sketch()));
        let mut ranked: Vec<_> = counts.iter().map(|(id, count)| (*id, *count)).collect();
        ranked.sort_unstable_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        ranked.truncate(TRACKED);
        if slices.done.len() == SLICES {
            slices.done.pop_front();
        }
        let lasted = slices.began.elapsed();
        slices.began = Instant::now();
        slices.done.push_back(Slice { counts, lasted });
        ranked
    }

    /// The most read products of the last slices and the current one, most read first.
    #[must_use]
    pub fn top(&self, limit: usize) -> Vec<HotKey> {
        let slices = self.slices.lock();
        let mut counts = self.collect(|shard| shard.clone());
        let mut lasted = slices.began.elapsed();
        for slice in &slices.done {
            lasted += slice.lasted;
            for (id, count) in &slice.counts {
                *counts.entry(*id).or_default() += count;
            }
        }
        drop(slices);
        let seconds = lasted.as_secs_f64().max(1.0);
        let mut ranked: Vec<_> = counts.into_iter().collect();
        ranked.sort_unstable_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        // The sketch forgets what it does not rank: a product may have had that many reads before it was tracked.
        let untracked = if ranked.len() < TRACKED { 0 } else { ranked[TRACKED - 1].1 };
        ranked.truncate(limit);
        let key = |(id, count): (ProductId, u64)| {
            let (count, untracked) = (to_f64(count), to_f64(untracked));
            HotKey {
                id,
                per_second: count / seconds,
                error_bound: (two_deviations(count) + untracked) / seconds,
            }
        };
        ranked.into_iter().map(key).collect()
    }

    /// The sum of what `take` returns of each sketch.
    fn collect(
        &self,
        take: impl Fn(&mut BucketedTopK<ProductId>) -> BucketedTopK<ProductId>,
    ) -> HashMap<ProductId, u64> {
        let mut counts = HashMap::new();
        for shard in &self.shards {
            let taken = take(&mut shard.lock());
            for node in taken.list() {
                *counts.entry(node.item).or_default() += node.count;
            }
        }
        counts
    }
}

impl Default for HotKeys {
    fn default() -> Self {
        Self::new()
    }
}

/// Two standard deviations of a count of independent reads (Poisson).
#[must_use]
pub fn two_deviations(count: f64) -> f64 {
    2.0 * count.sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: i64) -> ProductId {
        ProductId::new(number).expect("positive")
    }

    #[test]
    fn the_ranking_counts_the_last_slices_and_the_current_one() {
        let keys = HotKeys::new();
        for round in 0..300 {
            keys.record(id(1));
            if round % 3 == 0 {
                keys.record(id(2));
            }
            if round == 150 {
                assert_eq!(keys.take_new_counts()[0], (id(1), 151));
            }
        }
        let top = keys.top(5);
        assert_eq!(top.iter().map(|key| key.id).collect::<Vec<_>>(), [id(1), id(2)]);
        assert!((top[0].per_second - 300.0).abs() < 1.0, "{top:?}");
        assert!((top[1].per_second - 100.0).abs() < 1.0, "{top:?}");
    }

    #[test]
    fn a_product_without_reads_leaves_the_ranking() {
        let keys = HotKeys::new();
        keys.record(id(1));
        for _ in 0..=SLICES {
            keys.take_new_counts();
        }
        assert_eq!(keys.top(5), []);
    }

    #[test]
    fn heavy_hitters_are_found_among_a_million_others() {
        let keys = HotKeys::new();
        for n in 0..1_000_000 {
            keys.record(id(1_000 + n));
            if n % 100 == 0 {
                keys.record(id(1 + n / 100 % 10));
            }
        }
        let top: Vec<i64> = keys.top(10).iter().map(|key| key.id.get()).collect();
        let found = top.iter().filter(|id| **id <= 10).count();
        assert!(found >= 9, "found {found} of 10: {top:?}");
    }
}
