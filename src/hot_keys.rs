//! Which products this instance is asked for most: a heavy-hitters sketch of bounded size.
//!
//! Every read is counted in the sketch of its thread (HeavyKeeper: Gong et al., USENIX ATC 2018). From time
//! to time the sketches are collected into a slice and begun anew; rates are what the last slices say.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use heavykeeper::BucketedTopK;
use parking_lot::Mutex;

use crate::metrics::thread_number;
use crate::product::ProductId;

/// Products that each sketch ranks: the most that a caller may ask for.
const TRACKED: usize = 1_000;
/// 2048 buckets of 4 cells of 16 bytes: 128 KiB for each sketch.
const WIDTH: usize = 2_048;
const DEPTH: usize = 4;
/// The paper's b = 1.08: how reluctantly a counted product gives its place to another.
const DECAY: f64 = 1.0 / 1.08;
/// Rates are over this many slices.
const SLICES: usize = 10;
/// More sketches than this buy nothing but memory.
const MAX_SHARDS: usize = 64;

/// What one instance is asked for most.
pub struct HotKeys {
    shards: Box<[Mutex<BucketedTopK<ProductId>>]>,
    slices: Mutex<Slices>,
}

struct Slices {
    done: VecDeque<Slice>,
    began: Instant,
}

struct Slice {
    counts: HashMap<ProductId, u64>,
    lasted: Duration,
}

/// A product that is read often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HotKey {
    /// The product.
    pub id: ProductId,
    /// Reads per second.
    pub per_second: f64,
    /// The true rate is at most this far away, in 95 of 100 cases.
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
    /// Empty sketches, one for about each core.
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

    /// Counts a read of each.
    pub fn record_all(&self, ids: &[ProductId]) {
        let mut sketch = self.shard().lock();
        for id in ids {
            sketch.add(id, 1);
        }
    }

    /// This thread's sketch, so that its lock is nearly always free and on no other core.
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
        // A product may have been read this often before it was tracked at all.
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
    fn the_most_read_come_first_across_slices() {
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
    fn what_is_not_read_any_more_is_forgotten() {
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
