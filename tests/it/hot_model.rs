//! Random operations on the hot tier and the floors of its loads, compared with a small model.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hotshelf::entry::{Entry, Ttl};
use hotshelf::hot_cache::{HotCache, HotCacheOptions, LoadTicket, OutOfDate};
use hotshelf::metrics::Metrics;
use hotshelf::moment::Moment;
use hotshelf::product::{ProductId, Revision, Version};
use hotshelf::recent_changes::RecentChanges;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::harness::Suite;

const OPERATIONS: usize = 20_000;
const IDS: i64 = 8;

pub fn register(suite: &mut Suite<'_>) {
    suite.plain("hot_model::memory_does_as_the_model_does", || run(0x5EED, 1_000));
    suite.plain("hot_model::memory_does_as_the_model_does_for_a_seed_of_the_day", || {
        run(rand::random(), 1_000);
    });
    suite.plain("hot_model::with_evictions_nothing_below_its_floor_comes_back", || {
        run(rand::random(), 2);
    });
}

/// The expected state of one product.
struct Expected {
    held: Option<Revision>,
    /// The newest revision that was written, also when memory does not hold it: the floor of every load.
    written: Revision,
    loads: Vec<LoadTicket>,
}

impl Default for Expected {
    fn default() -> Self {
        Self { held: None, written: Revision::NONE, loads: Vec::new() }
    }
}

struct Model {
    hot: Arc<HotCache>,
    expected: HashMap<ProductId, Expected>,
    random: StdRng,
    /// Without evictions memory must hold exactly what the model holds.
    evicts: bool,
}

fn run(seed: u64, capacity: u64) {
    let options = HotCacheOptions {
        capacity,
        largest: 1_000,
        trust: Duration::from_secs(60),
        lease: Duration::from_secs(60),
    };
    let recent = Arc::new(RecentChanges::new(1_000));
    let mut model = Model {
        hot: Arc::new(HotCache::new(options, recent, Metrics::new())),
        expected: HashMap::new(),
        random: StdRng::seed_from_u64(seed),
        evicts: capacity < IDS as u64,
    };
    for operation in 0..OPERATIONS {
        let id = ProductId::new(model.random.random_range(1..=IDS)).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.step(id)));
        assert!(outcome.is_ok(), "seed {seed:#x}, operation {operation}, product {id}");
    }
}

impl Model {
    fn step(&mut self, id: ProductId) {
        match self.random.random_range(0..4) {
            0 => self.begin(id),
            1 => self.offer(id),
            2 => self.finish(id),
            _ => self.give_up(id),
        }
        let held = self.hot.peek(id).map(|held| held.entry.revision());
        let expected = self.expected.entry(id).or_default();
        if self.evicts {
            assert!(held.is_none_or(|held| Some(held) <= expected.held), "from nowhere");
            // An entry may be evicted at any time; the checks of the floors below still hold.
            return;
        }
        assert_eq!(held, expected.held);
    }

    fn entry(&mut self) -> Entry {
        let ttl = Ttl { soft: Duration::from_secs(60), hard: Duration::from_secs(60) };
        let version = Version(self.random.random_range(1..=50));
        let tombstone = Entry::tombstone(version, Moment::now(), ttl);
        if self.random.random() {
            return tombstone;
        }
        // A product with the shortest message.
        let frame = [0, 0, 0, 0, 1, 0];
        Entry::from_frame(Revision::live(version), Moment::now(), ttl, &frame).unwrap()
    }

    fn begin(&mut self, id: ProductId) {
        let ticket = self.hot.begin_load(id);
        self.expected.entry(id).or_default().loads.push(ticket);
    }

    fn offer(&mut self, id: ProductId) {
        let entry = self.entry();
        let revision = entry.revision();
        self.hot.begin_load(id).offer(entry);
        let expected = self.expected.entry(id).or_default();
        expected.written = expected.written.max(revision);
        // A revision below the newest written one replaces nothing, not even an older revision.
        if revision == expected.written {
            expected.held = expected.held.map(|held| held.max(revision));
        }
    }

    fn finish(&mut self, id: ProductId) {
        let entry = self.entry();
        let revision = entry.revision();
        let expected = self.expected.entry(id).or_default();
        if expected.loads.is_empty() {
            return;
        }
        let ticket = expected.loads.swap_remove(self.random.random_range(0..expected.loads.len()));
        assert_eq!(ticket.floor(), expected.written);
        match ticket.finish(entry) {
            Ok(held) => {
                assert!(revision >= expected.written, "below its floor: {revision:?}");
                assert!(held.entry.revision() >= revision, "an older one won");
                expected.held = expected.held.max(Some(revision));
            }
            Err(OutOfDate) => {
                assert!(revision < expected.written, "{revision:?}, {:?}", expected.written)
            }
        }
    }

    fn give_up(&mut self, id: ProductId) {
        let expected = self.expected.entry(id).or_default();
        if !expected.loads.is_empty() {
            expected.loads.swap_remove(self.random.random_range(0..expected.loads.len()));
        }
    }
}
