//! The hot tier keeps its capacity and its bounds under concurrent operations, which mini-moka alone does not.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hotshelf::entry::{Entry, PREFIX, Ttl, prefix};
use hotshelf::hot_cache::{HotCache, HotCacheOptions};
use hotshelf::metrics::Metrics;
use hotshelf::moment::Moment;
use hotshelf::product::{ProductId, Revision, Version};
use hotshelf::recent_changes::RecentChanges;
use rand::RngExt;

use crate::harness::{HANG, Suite};

const CAPACITY: u64 = 1_000;
const IDS: i64 = 10_000;
const THREADS: i64 = 8;
/// Bound on inserted keys for which mini-moka has not decided admission.
const CANDIDATES: u64 = 1_024;

pub fn register(suite: &mut Suite<'_>) {
    suite.plain("hot_tier::what_is_too_large_or_outgrows_its_slot_is_not_kept", too_large);
    suite.plain("hot_tier::what_is_read_often_comes_in_and_stays", admission);
    suite.plain("hot_tier::concurrent_inserts_do_not_exceed_its_bound", bounded);
    suite.plain("hot_tier::capacity_is_intact_after_two_million_mixed_operations", || {
        soak(2_000_000)
    });
    suite.long(
        "hot_tier::soak_capacity_is_intact_after_a_hundred_million_mixed_operations",
        || {
            soak(100_000_000);
        },
    );
}

fn cache() -> Arc<HotCache> {
    let minute = Duration::from_secs(60);
    let (trust, lease) = (minute, minute);
    let options = HotCacheOptions { capacity: CAPACITY, largest: 1_000, trust, lease };
    Arc::new(HotCache::new(options, Arc::new(RecentChanges::new(IDS as usize)), Metrics::new()))
}

fn id(number: i64) -> ProductId {
    ProductId::new(number).unwrap()
}

fn entry(version: i64) -> Entry {
    let ttl = Ttl { soft: Duration::from_secs(60), hard: Duration::from_secs(60) };
    Entry::tombstone(Version(version), Moment::now(), ttl)
}

/// A product of this version and size in bytes.
fn product(version: i64, size: usize) -> Entry {
    let ttl = Ttl { soft: Duration::from_secs(60), hard: Duration::from_secs(60) };
    let mut frame = prefix(size).to_vec();
    frame.resize(PREFIX + size, 1);
    Entry::from_frame(Revision::live(Version(version)), Moment::now(), ttl, &frame).unwrap()
}

fn too_large() {
    let hot = cache();
    let (large, grows) = (id(1), id(2));
    let answer = hot.begin_load(large).finish(product(1, 1_001)).unwrap();
    assert_eq!(answer.entry.revision(), Revision::live(Version(1)), "it is returned to the caller");
    assert!(hot.peek(large).is_none());
    let _ = hot.begin_load(grows).finish(product(1, 1_000)).unwrap();
    let bytes = hot.bytes();
    assert!(bytes > 1_000, "{bytes}");
    hot.begin_load(grows).offer(product(2, 1_001));
    assert!(hot.peek(grows).unwrap().is_invalidated(), "the old version is not served");
    assert_eq!(hot.bytes(), bytes, "the new version takes no memory");
}

/// Concurrent reads, loads and replacing writes, on ten times as many keys as fit.
fn soak(operations: i64) {
    let hot = cache();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let hot = Arc::clone(&hot);
            scope.spawn(move || operate(&hot, thread, operations / THREADS));
        }
    });
    fill_up(&hot);
    let (count, live) = (hot.count_admitted(), hot.len());
    assert_eq!(live, count, "live entries and the count");
    assert_eq!(live, CAPACITY, "capacity");
}

fn operate(hot: &Arc<HotCache>, thread: i64, operations: i64) {
    let mut random = rand::rng();
    for n in 0..operations {
        let id = id(random.random_range(1..=IDS));
        let version = n * THREADS + thread;
        match n % 4 {
            0 => hot.begin_load(id).offer(entry(version)),
            1 => {
                let load = hot.begin_load(id);
                // Rejected when another thread has raised the floor.
                let _ = load.finish(entry(version));
            }
            _ => {
                if let Some(version) = hot.read(id, |held| held.entry.revision().version.0) {
                    assert!(version <= operations * THREADS);
                }
            }
        }
    }
}

/// Inserts more ids than fit, until the cache is full.
fn fill_up(hot: &Arc<HotCache>) {
    let is_full = || hot.count_admitted() == CAPACITY && hot.len() == CAPACITY;
    let began = Instant::now();
    while !is_full() && began.elapsed() < HANG {
        for number in 1..=IDS {
            let _ = hot.begin_load(id(number)).finish(entry(i64::MAX - 1));
            hot.read(id(number), |_| ());
        }
    }
}

/// Inserts faster than mini-moka decides admission.
fn bounded() {
    let hot = cache();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let hot = Arc::clone(&hot);
            scope.spawn(move || {
                for n in 0..50_000 {
                    let _ = hot.begin_load(id(n * THREADS + thread + 1)).finish(entry(1));
                    assert!(hot.len() <= CAPACITY + CANDIDATES + THREADS.cast_unsigned());
                }
            });
        }
    });
    assert_eq!(hot.count_admitted(), CAPACITY);
    assert_eq!(hot.len(), CAPACITY);
}

/// mini-moka receives the reads: products that are read often are admitted to a full cache, and a scan does not evict
/// them.
fn admission() {
    let hot = cache();
    let capacity = CAPACITY.cast_signed();
    let read = |number| {
        if hot.read(id(number), |_| ()).is_none() {
            let _ = hot.begin_load(id(number)).finish(entry(1));
        }
        if number % 1_000 == 0 {
            // Waits until the mailbox is processed.
            let _ = hot.count_admitted();
        }
    };
    let kept = |ids: Range<i64>| ids.filter(|number| hot.peek(id(*number)).is_some()).count();
    let [first, often, once] = [0, 1, 2].map(|nth| nth * capacity + 1);
    (first..often).for_each(read);
    for _ in 0..200 {
        (often..once).for_each(read);
    }
    let admitted = kept(often..once);
    assert!(admitted > 950, "{admitted} of 1000 were admitted");
    (once..once + 10 * capacity).for_each(read);
    let stayed = kept(often..once);
    assert!(stayed > 950, "{stayed} of 1000 stayed");
}
