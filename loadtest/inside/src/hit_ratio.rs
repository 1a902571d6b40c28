//! The hit ratio of the hot cache on generated traces, against LRU and the optimum.
//!
//! The optimum is Belady's ("A study of replacement algorithms for a virtual-storage computer", 1966) with bypass: it knows
//! the next request of each key, and keeps the keys that are requested soonest.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use hotshelf::entry::{Entry, Ttl};
use hotshelf::hot_cache::{HotCache, HotCacheOptions};
use hotshelf::metrics::Metrics;
use hotshelf::moment::Moment;
use hotshelf::product::{ProductId, Version};
use hotshelf::recent_changes::RecentChanges;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const KEYS: usize = 100_000;
const REQUESTS: usize = 2_000_000;
/// Not counted: the caches are empty at first.
const WARM_UP: usize = REQUESTS / 4;
const CAPACITIES: [usize; 2] = [KEYS / 100, KEYS / 10];
/// A scan reads this many keys once, in between so many requests.
const SCAN: usize = 20_000;
const SCAN_EVERY: usize = 200_000;
/// Requests between two runs of the maintenance of the eviction policy: its interval at 50,000 requests a second.
const MAINTENANCE: usize = 1_000;
const HOUR: Duration = Duration::from_secs(3_600);

/// Prints a table. Every trace has a fixed seed.
pub(crate) fn print() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "| requests | capacity | LRU | hotshelf | optimum |\n|---|--:|--:|--:|--:|")?;
    for (name, exponent, scans) in [
        ("Zipf 0.7", 0.7, false),
        ("Zipf 0.9", 0.9, false),
        ("Zipf 1.1", 1.1, false),
        ("Zipf 0.9 and scans", 0.9, true),
    ] {
        let trace = trace(exponent, scans);
        for capacity in CAPACITIES {
            let [lru, hot, optimum] = [lru, hot, optimum].map(|policy| {
                let hits = policy(&trace, capacity);
                let counted = trace.len() - WARM_UP;
                format!("{:.1} %", 100.0 * hits as f64 / counted as f64)
            });
            writeln!(out, "| {name} | {capacity} | {lru} | {hot} | {optimum} |")?;
        }
    }
    Ok(())
}

/// Requests by Zipf's law, and every now and then a scan of keys that are read once.
fn trace(exponent: f64, scans: bool) -> Vec<usize> {
    let mut sum = 0.0;
    let cumulated: Vec<f64> = (1..=KEYS)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    let mut random = StdRng::seed_from_u64(7);
    let mut trace = Vec::with_capacity(REQUESTS);
    let mut unread = KEYS;
    while trace.len() < REQUESTS {
        if scans && trace.len() % SCAN_EVERY == 0 && !trace.is_empty() {
            trace.extend(unread..unread + SCAN);
            unread += SCAN;
        }
        let point = random.random_range(0.0..sum);
        trace.push(cumulated.partition_point(|&sum| sum <= point));
    }
    trace
}

/// Hits after the warm-up.
fn counted(hits: &mut usize, at: usize, hit: bool) {
    *hits += usize::from(hit && at >= WARM_UP);
}

fn lru(trace: &[usize], capacity: usize) -> usize {
    let (mut used, mut keys) = (HashMap::new(), BTreeMap::new());
    let mut hits = 0;
    for (at, key) in trace.iter().enumerate() {
        let before = used.insert(*key, at);
        counted(&mut hits, at, before.is_some());
        if let Some(before) = before {
            keys.remove(&before);
        } else if keys.len() == capacity
            && let Some((_, oldest)) = keys.pop_first()
        {
            used.remove(&oldest);
        }
        keys.insert(at, *key);
    }
    hits
}

fn optimum(trace: &[usize], capacity: usize) -> usize {
    let mut next = vec![usize::MAX; trace.len()];
    let mut last = HashMap::new();
    for (at, key) in trace.iter().enumerate() {
        if let Some(before) = last.insert(*key, at) {
            next[before] = at;
        }
    }
    // The next request of each key that is held. Keys without one are never held.
    let mut held = BTreeMap::new();
    let mut hits = 0;
    for (at, key) in trace.iter().enumerate() {
        counted(&mut hits, at, held.remove(&at).is_some());
        if next[at] == usize::MAX {
            continue;
        }
        held.insert(next[at], *key);
        if held.len() > capacity {
            held.pop_last();
        }
    }
    hits
}

fn hot(trace: &[usize], capacity: usize) -> usize {
    let options = HotCacheOptions {
        capacity: capacity as u64,
        largest: usize::MAX,
        trust: HOUR,
        lease: HOUR,
    };
    let cache = Arc::new(HotCache::new(options, Arc::new(RecentChanges::new(1)), Metrics::new()));
    let entry = Entry::tombstone(Version(1), Moment::now(), Ttl { soft: HOUR, hard: HOUR });
    let mut hits = 0;
    for (at, key) in trace.iter().enumerate() {
        let id = ProductId::new(1 + *key as i64).expect("positive");
        let hit = cache.read(id, |_| ()).is_some();
        counted(&mut hits, at, hit);
        if !hit {
            cache.begin_load(id).finish(entry.clone()).expect("nothing changes");
        }
        if at % MAINTENANCE == 0 {
            // Returns when the policy has applied all records.
            let _ = cache.count_admitted();
        }
    }
    hits
}
