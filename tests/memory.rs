//! The memory per product in the hot tier beyond its own bytes, counted by the allocator. Nothing else may run in this
//! process meanwhile, so it is not one of the integration tests.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]
#![allow(clippy::unwrap_used, reason = "a test fails where it fails")]

use std::alloc::System;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use hotshelf::config::Cli;
use hotshelf::entry::{Entry, Ttl};
use hotshelf::hot_cache::{HotCache, HotCacheOptions};
use hotshelf::metrics::Metrics;
use hotshelf::moment::Moment;
use hotshelf::product::{Currency, Price, Product, ProductId, Version};
use hotshelf::recent_changes::RecentChanges;
use libtest_mimic::{Arguments, Trial};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bound on the bytes per product beyond its encoded size. mini-moka takes 125 to 170 of them (an allocation for the key,
/// one for its queue, a place in its table, its sketch), which depends on the load of its table of a power of two.
const ALLOWED: f64 = 250.0;
/// The bound when that table has just doubled.
const ALLOWED_AT_WORST: f64 = 280.0;
/// Bound on the rounds until the set of held products is stable, which takes much fewer.
const MAX_ROUNDS: usize = 100;

fn main() -> std::process::ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("memory::a_product_costs_little_more_than_its_300_bytes", || {
            check(100_000, 300, ALLOWED);
            Ok(())
        }),
        Trial::test("memory::a_product_costs_little_more_than_its_64_kib", || {
            check(6_000, 64 * 1024, ALLOWED);
            Ok(())
        }),
        // One more than seven eighths of 2^17 places, which double then.
        Trial::test("memory::a_product_costs_little_more_where_a_table_has_just_grown", || {
            check(114_689, 300, ALLOWED_AT_WORST);
            Ok(())
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Fills a hot tier of this capacity with products of this size, reads each, and loads some others.
fn check(capacity: usize, size: usize, allowed: f64) {
    let product = product(size);
    let encoded = product.product().unwrap().len();
    let metrics = Metrics::new();
    // The constant memory of an empty hot tier.
    let region = Region::new(ALLOCATOR);
    let smallest = hot_cache(1, 2 * size, Arc::clone(&metrics));
    let constant = live(&region);
    drop(smallest);
    let region = Region::new(ALLOCATOR);
    let hot = Arc::new(hot_cache(capacity, 2 * size, metrics));
    fill(&hot, 0..capacity, &product);
    let (held, full) = (hot.count_admitted(), live(&region));
    let each = beyond(full - constant, held, encoded);
    fill(&hot, capacity..capacity + capacity / 5, &product);
    let (held_later, later) = (hot.count_admitted(), live(&region));
    let each_later = beyond(later - constant, held_later, encoded);
    println!(
        "{held} products of {encoded} bytes: {each:.0} bytes more for each, {each_later:.0} after evictions; \
         {constant} bytes besides"
    );
    assert_eq!(held, capacity as u64);
    assert!(held_later.abs_diff(held) <= held / 100, "{held_later} are held");
    assert!(each <= allowed && each_later <= allowed, "more than {allowed} bytes");
}

fn hot_cache(capacity: usize, largest: usize, metrics: Arc<Metrics>) -> HotCache {
    let capacity = capacity.to_string();
    let args = Cli::try_parse_from(["hotshelf", "--hot-capacity", &capacity]).unwrap().serve;
    let options = HotCacheOptions { largest, ..args.hot_cache() };
    HotCache::new(options, Arc::new(RecentChanges::new(1)), metrics)
}

fn live(region: &Region<'_, System>) -> u64 {
    let change = region.change();
    (change.bytes_allocated - change.bytes_deallocated) as u64
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn beyond(live: u64, held: u64, encoded: usize) -> f64 {
    live as f64 / held as f64 - encoded as f64
}

/// Loads and reads these products until the number of held ones is stable.
fn fill(hot: &Arc<HotCache>, products: Range<usize>, product: &Entry) {
    let (mut before, mut still) = (u64::MAX, 0);
    for round in 0.. {
        assert!(round < MAX_ROUNDS, "not stable after {MAX_ROUNDS} rounds");
        for n in products.clone() {
            let id = ProductId::new(i64::try_from(n).unwrap() + 1).unwrap();
            if hot.read(id, |held| held.entry.clone()).is_none() {
                drop(hot.begin_load(id).finish(copy(product)).unwrap());
            }
        }
        let held = hot.count_admitted();
        still = if held == before { still + 1 } else { 0 };
        if still == 2 {
            return;
        }
        before = held;
    }
}

/// A copy of the product in memory of its own.
fn copy(product: &Entry) -> Entry {
    let (revision, known_at) = (product.revision(), product.known_at());
    Entry::from_frame(revision, known_at, product.ttl(), product.frame()).unwrap()
}

/// A product of this size, encoded.
fn product(size: usize) -> Entry {
    let hour = Duration::from_secs(3_600);
    let (now, ttl) = (Moment::now(), Ttl { soft: hour, hard: hour });
    let mut product = Product {
        id: ProductId::new(1_000_000).unwrap(),
        name: "walnut desk lamp".to_owned(),
        price: Price::new(2_499, Currency::stored("USD").unwrap()).ok(),
        description: String::new(),
        version: Version(1_000_000),
        create_time: Some(SystemTime::UNIX_EPOCH + hour),
        update_time: Some(SystemTime::UNIX_EPOCH + hour),
        attributes: None,
    };
    let without = Entry::live(&product, now, ttl).product().unwrap().len();
    // The tag of the description, and its length in two or three bytes.
    let head = if size < 1 << 14 { 3 } else { 4 };
    product.description = "x".repeat(size - without - head);
    Entry::live(&product, now, ttl)
}
