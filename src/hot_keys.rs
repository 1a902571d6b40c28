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
    shards: Box<[Mutex<Shard>]>,
    /// Reads that memory did not answer, by [`Source`].
    cold: [Mutex<Shard>; 2],
    slices: Mutex<Slices>,
}

/// What answers a read that memory does not answer.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Redis,
    Postgres,
}

#[derive(Clone)]
struct Shard {
    sketch: BucketedTopK<ProductId>,
    /// All reads, of any product.
    reads: u64,
}

struct Slices {
    /// At most [`SLICES`], the oldest first.
    done: VecDeque<Slice>,
    /// When the current slice began.
    began: Instant,
}

struct Slice {
    counts: Counts,
    cold: [Counts; 2],
    lasted: Duration,
}

#[derive(Default)]
struct Counts {
    of: HashMap<ProductId, u64>,
    /// All reads, of any product.
    reads: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        for (id, count) in &other.of {
            *self.of.entry(*id).or_default() += count;
        }
    }

    fn add_shard(&mut self, shard: &Shard) {
        self.reads += shard.reads;
        for node in shard.sketch.list() {
            *self.of.entry(node.item).or_default() += node.count;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HotKey {
    pub id: ProductId,
    /// Estimated reads per second.
    pub per_second: f64,
    /// The true rate differs from the estimate by at most this, with a probability of 95 %.
    pub error_bound: f64,
    /// Its part of all reads, 0 to 1.
    pub share: f64,
    /// The parts of its reads that Redis and PostgreSQL answered, 0 to 1; `None` for the fleet.
    pub cold_shares: Option<[f64; 2]>,
}

impl std::fmt::Debug for HotKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotKeys").finish_non_exhaustive()
    }
}

fn shard() -> Shard {
    Shard { sketch: BucketedTopK::new(TRACKED, WIDTH, DEPTH, DECAY), reads: 0 }
}

impl HotKeys {
    /// Empty sketches: the number of cores, rounded up to a power of two, at most [`MAX_SHARDS`].
    #[must_use]
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = cores.next_power_of_two().min(MAX_SHARDS);
        Self {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            cold: [Mutex::new(shard()), Mutex::new(shard())],
            slices: Mutex::new(Slices {
                done: VecDeque::with_capacity(SLICES),
                began: Instant::now(),
            }),
        }
    }

    /// Counts a read.
    pub fn record(&self, id: ProductId) {
        let mut shard = self.shard().lock();
        shard.sketch.add(&id, 1);
        shard.reads += 1;
    }

    /// Counts a read of each product of a batch.
    pub fn record_all(&self, ids: &[ProductId]) {
        let mut shard = self.shard().lock();
        for id in ids {
            shard.sketch.add(id, 1);
        }
        shard.reads += ids.len() as u64;
    }

    /// Counts the answer to a [recorded](Self::record) read that memory did not answer.
    pub fn record_cold(&self, id: ProductId, from: Source) {
        let mut shard = self.cold[from as usize].lock();
        shard.sketch.add(&id, 1);
        shard.reads += 1;
    }

    /// The sketch of this thread. Threads rarely share one, so its lock is nearly always free and its cache lines stay on one
    /// core.
    fn shard(&self) -> &Mutex<Shard> {
        &self.shards[thread_number() & (self.shards.len() - 1)]
    }

    /// Ends the current slice and returns what it counted, most read first, and all reads.
    pub fn take_new_counts(&self) -> (Vec<(ProductId, u64)>, u64) {
        let mut slices = self.slices.lock();
        let take = |taken: &mut Shard| std::mem::replace(taken, shard());
        let (counts, cold) = self.collect(take);
        let mut ranked: Vec<_> = counts.of.iter().map(|(id, count)| (*id, *count)).collect();
        ranked.sort_unstable_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        ranked.truncate(TRACKED);
        let reads = counts.reads;
        if slices.done.len() == SLICES {
            slices.done.pop_front();
        }
        let lasted = slices.began.elapsed();
        slices.began = Instant::now();
        slices.done.push_back(Slice { counts, cold, lasted });
        (ranked, reads)
    }

    /// The most read products of the last slices and the current one, most read first.
    #[must_use]
    pub fn top(&self, limit: usize) -> Vec<HotKey> {
        let slices = self.slices.lock();
        let (mut counts, mut cold) = self.collect(|shard| shard.clone());
        let mut lasted = slices.began.elapsed();
        for slice in &slices.done {
            lasted += slice.lasted;
            counts.add(&slice.counts);
            for (sum, slice) in cold.iter_mut().zip(&slice.cold) {
                sum.add(slice);
            }
        }
        drop(slices);
        let seconds = lasted.as_secs_f64().max(1.0);
        let reads = to_f64(counts.reads).max(1.0);
        let mut ranked: Vec<_> = counts.of.into_iter().collect();
        ranked.sort_unstable_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        // The sketch forgets what it does not rank: a product may have had that many reads before it was tracked.
        let untracked = if ranked.len() < TRACKED { 0 } else { ranked[TRACKED - 1].1 };
        ranked.truncate(limit);
        let key = |(id, count): (ProductId, u64)| {
            let (count, untracked) = (to_f64(count), to_f64(untracked));
            let part = |cold: &Counts| to_f64(cold.of.get(&id).copied().unwrap_or(0)) / count;
            HotKey {
                id,
                per_second: count / seconds,
                error_bound: (two_deviations(count) + untracked) / seconds,
                share: (count / reads).min(1.0),
                cold_shares: Some([&cold[0], &cold[1]].map(|cold| part(cold).min(1.0))),
            }
        };
        ranked.into_iter().map(key).collect()
    }

    /// The sums of what `take` returns of the shards: of all reads, and of those that memory did not answer.
    fn collect(&self, take: impl Fn(&mut Shard) -> Shard) -> (Counts, [Counts; 2]) {
        let mut counts = Counts::default();
        for shard in &self.shards {
            counts.add_shard(&take(&mut shard.lock()));
        }
        let cold = self.cold.each_ref().map(|shard| {
            let mut cold = Counts::default();
            cold.add_shard(&take(&mut shard.lock()));
            cold
        });
        (counts, cold)
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
                let (ranked, reads) = keys.take_new_counts();
                assert_eq!((ranked[0], reads), ((id(1), 151), 202));
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

    #[test]
    fn shares_are_of_all_reads_and_of_the_reads_of_a_product() {
        let keys = HotKeys::new();
        for round in 0..100 {
            keys.record_all(&[id(1), id(2)]);
            keys.record(id(1));
            keys.record(id(1));
            if round == 50 {
                keys.take_new_counts();
            }
            if round % 2 == 0 {
                keys.record_cold(id(1), Source::Redis);
                keys.record_cold(id(2), Source::Postgres);
            }
        }
        let shares: Vec<_> = keys.top(2).iter().map(|key| (key.share, key.cold_shares)).collect();
        assert_eq!(shares[0], (0.75, Some([50.0 / 300.0, 0.0])));
        assert_eq!(shares[1], (0.25, Some([0.0, 0.5])));
    }

    /// Draws ids from 1 with the probability of their rank, `1 / rank^exponent`.
    struct Zipf(Vec<f64>, fastrand::Rng);

    impl Zipf {
        fn new(products: u32, exponent: f64) -> Self {
            let mut sum = 0.0;
            let add = |rank: u32| {
                sum += f64::from(rank).powf(-exponent);
                sum
            };
            Self((1..=products).map(add).collect(), fastrand::Rng::with_seed(7))
        }

        fn draw(&mut self) -> i64 {
            let at = self.1.f64() * self.0.last().expect("some products");
            self.0.partition_point(|sum| *sum < at) as i64 + 1
        }
    }

    /// Feeds the reads, in as many slices as rates cover, and returns how many of the 100 hottest keys differ from the exact counts
    /// by more than their bound, and how many of the exact 20 hottest are not among the first 40.
    fn compared(reads: impl Iterator<Item = i64>) -> (usize, usize) {
        let keys = HotKeys::new();
        let mut exact: HashMap<i64, u64> = HashMap::new();
        for (number, product) in reads.enumerate() {
            keys.record(id(product));
            *exact.entry(product).or_default() += 1;
            if number % 50_000 == 49_999 {
                keys.take_new_counts();
            }
        }
        let top = keys.top(100);
        let seconds = to_f64(exact[&top[0].id.get()]) / top[0].per_second;
        // The rate is a count over a time that only `top` knows; the largest estimate is exact enough to find it.
        let outside = top.iter().filter(|key| {
            let truth = to_f64(exact.get(&key.id.get()).copied().unwrap_or(0)) / seconds;
            (truth - key.per_second).abs() > key.error_bound
        });
        let mut ranked: Vec<(i64, u64)> = exact.iter().map(|(id, count)| (*id, *count)).collect();
        ranked.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        let first: Vec<i64> = top[..40].iter().map(|key| key.id.get()).collect();
        let lost = ranked[..20].iter().filter(|(id, _)| !first.contains(id));
        (outside.count(), lost.count())
    }

    #[test]
    fn the_bounds_hold_against_exact_counts() {
        const READS: usize = 400_000;
        for exponent in [0.8, 0.99, 1.2] {
            let mut zipf = Zipf::new(100_000, exponent);
            let (outside, lost) = compared((0..READS).map(|_| zipf.draw()));
            assert!(outside <= 5 && lost == 0, "{exponent}: {outside} outside, {lost} lost");
        }
        // No product is hot: the bound has to say that the estimates are worth little.
        let mut uniform = Zipf::new(100_000, 0.0);
        let (outside, _) = compared((0..READS).map(|_| uniform.draw()));
        assert!(outside <= 5, "uniform: {outside} outside");
        // From the middle on other products are hot.
        let mut zipf = Zipf::new(100_000, 0.99);
        let flipped = (0..READS).map(|number| {
            let product = zipf.draw();
            if number < READS / 2 { product } else { 100_001 - product }
        });
        let (outside, lost) = compared(flipped);
        assert!(outside <= 5 && lost <= 1, "flip: {outside} outside, {lost} lost");
    }

    #[test]
    fn a_product_that_rises_to_a_twentieth_of_the_reads_is_ranked_at_once() {
        let keys = HotKeys::new();
        let mut zipf = Zipf::new(100_000, 0.99);
        // Ten slices of one second, and a tenth of a second more.
        for number in 0..101_000 {
            let rose = number >= 100_000 && number % 20 == 0;
            keys.record(id(if rose { 500_000 } else { zipf.draw() }));
            if number % 10_000 == 9_999 {
                keys.take_new_counts();
            }
        }
        let top = keys.top(1_000);
        assert!(top.iter().any(|key| key.id == id(500_000)), "within a tenth of a second");
    }
}
