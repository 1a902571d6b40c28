//! Singleflight: of many readers that need the same product loaded, one leads and the others join.
//!
//! The leader of a flight is no reader but a detached task, so a caller that hangs up strands nobody.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Error, Loaded};
use crate::entry::Entry;
use crate::postgres::{Demand, DemandGuard, DemandGuards};
use crate::product::ProductId;

const STRIPES: usize = 64;

/// What a load came to, for everybody who waits for it.
pub(super) type LoadResult = Result<Loaded, Arc<LoadFailure>>;

/// How a flight ended, for those aboard.
#[derive(Debug, Default)]
struct SharedResult {
    result: Mutex<Option<LoadResult>>,
    completed: Notify,
}

/// Why a load failed.
#[derive(Debug)]
pub(super) struct LoadFailure {
    pub(super) error: Error,
    /// What Redis was seen to hold: not good enough for this load, but perhaps better than nothing.
    pub(super) seen: Option<Entry>,
}

type Stripe = HashMap<(ProductId, FreshnessClass), InFlight, RandomState>;

/// The loads in flight of one instance.
#[derive(Debug)]
pub(super) struct Singleflight {
    stripes: Box<[Mutex<Stripe>]>,
}

/// What those aboard are content with. Whoever takes what the caches hold does not board with those who ask Postgres:
/// that may take long, or be refused, while Redis has what is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FreshnessClass {
    /// What the caches may serve.
    Cached,
    /// Nothing but what they ask for.
    Strict,
}

/// A load in flight, and how much it is wanted.
#[derive(Debug)]
struct InFlight {
    result: Arc<SharedResult>,
    demand: Arc<Demand>,
}

/// The duty to land a flight. Dropped without result, those who wait are completed that it failed.
#[derive(Debug)]
pub(super) struct Leader {
    singleflight: Arc<Singleflight>,
    id: ProductId,
    class: FreshnessClass,
    result: Arc<SharedResult>,
}

/// A waiter in a flight.
#[derive(Debug)]
pub(super) struct Waiter {
    result: Arc<SharedResult>,
    _demand: Arc<DemandGuard>,
}

impl Singleflight {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() })
    }

    /// Joins the flight of `id`, or begins one, which is wanted as `demand` says: then the leader has to be put to
    /// work.
    pub(super) fn join(
        self: &Arc<Self>,
        (id, class): (ProductId, FreshnessClass),
        demand: &Arc<Demand>,
        guards: &mut DemandGuards,
    ) -> (Waiter, Option<Leader>) {
        let mut waiter =
            |result, demand: &Arc<Demand>| Waiter { result, _demand: guards.of(demand) };
        match self.stripe(id).lock().entry((id, class)) {
            MapEntry::Occupied(flight) => {
                let InFlight { result, demand } = flight.get();
                (waiter(Arc::clone(result), demand), None)
            }
            MapEntry::Vacant(free) => {
                let result = Arc::default();
                free.insert(InFlight { result: Arc::clone(&result), demand: Arc::clone(demand) });
                let leader = Leader {
                    singleflight: Arc::clone(self),
                    id,
                    class,
                    result: Arc::clone(&result),
                };
                (waiter(result, demand), Some(leader))
            }
        }
    }

    pub(super) fn is_in_flight(&self, id: ProductId) -> bool {
        let singleflight = self.stripe(id).lock();
        [FreshnessClass::Cached, FreshnessClass::Strict]
            .iter()
            .any(|class| singleflight.contains_key(&(id, *class)))
    }

    fn stripe(&self, id: ProductId) -> &Mutex<Stripe> {
        &self.stripes[id.get().unsigned_abs() as usize % STRIPES]
    }
}

impl Leader {
    pub(super) fn id(&self) -> ProductId {
        self.id
    }

    pub(super) fn class(&self) -> FreshnessClass {
        self.class
    }

    /// Gives everybody aboard the outcome. Whoever comes later begins a new flight.
    pub(super) fn complete(self, outcome: LoadResult) {
        self.singleflight.stripe(self.id).lock().remove(&(self.id, self.class));
        self.result.publish(outcome);
    }

    /// Ends the flight if nobody is aboard any more; whoever comes later begins a new one. Boarding takes the same lock,
    /// so nobody does in between.
    pub(super) fn unless_abandoned(self) -> Option<Self> {
        let mut singleflight = self.singleflight.stripe(self.id).lock();
        let flight = (self.id, self.class);
        if !singleflight.get(&flight)?.demand.is_unwanted() {
            drop(singleflight);
            return Some(self);
        }
        singleflight.remove(&flight);
        // Or dropping the leader would end the next flight, which may begin as soon as the lock is free.
        self.result.publish(lost());
        None
    }
}

impl SharedResult {
    fn publish(&self, outcome: LoadResult) {
        *self.result.lock() = Some(outcome);
        self.completed.notify_waiters();
    }

    fn result(&self) -> Option<LoadResult> {
        self.result.lock().clone()
    }
}

/// What those aboard are completed when nobody lands a flight.
fn lost() -> LoadResult {
    let error = Error::Internal("a load ended without a result".to_owned());
    Err(Arc::new(LoadFailure { error, seen: None }))
}

impl Drop for Leader {
    fn drop(&mut self) {
        if self.result.result().is_none() {
            self.singleflight.stripe(self.id).lock().remove(&(self.id, self.class));
            self.result.publish(lost());
        }
    }
}

impl Waiter {
    /// Waits for the result.
    pub(super) async fn wait(self) -> LoadResult {
        // From here on it hears of the result; before, it sees how it went.
        let completed = self.result.completed.notified();
        if let Some(outcome) = self.result.result() {
            return outcome;
        }
        completed.await;
        self.result.result().unwrap_or_else(lost)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::FutureExt;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::caller::CallContext;
    use crate::entry::Ttl;
    use crate::metrics::ServedBy;
    use crate::moment::Moment;
    use crate::product::Version;

    const IDS: usize = 4;

    fn guards() -> DemandGuards {
        DemandGuards::new(CallContext::BACKGROUND, true)
    }

    fn result(flight: i64) -> LoadResult {
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        let entry = Entry::tombstone(Version(flight), Moment::now(), ttl);
        Ok(Loaded::proven(entry, ServedBy::Postgres))
    }

    /// Whether the waiter's flight has ended with its own result, or with the failure of a lost leader.
    fn ended_as(waiter: Waiter, flight: i64, wait: bool) -> bool {
        match waiter.wait().now_or_never() {
            Some(Ok(loaded)) => wait && loaded.entry.revision().version == Version(flight),
            Some(Err(error)) => !wait && matches!(error.error, Error::Internal(_)),
            None => false,
        }
    }

    /// One flight for each product at a time; all aboard learn how their own flight ended, and nobody waits
    /// for a flight that has ended, however joins, landings and lost leaders follow each other.
    fn fly(seed: u64) {
        let singleflight = Singleflight::new();
        let mut random = StdRng::seed_from_u64(seed);
        let mut flying: [Option<(i64, Leader)>; IDS] = Default::default();
        let mut waiters: [Vec<Waiter>; IDS] = Default::default();
        for flight in 0..10_000 {
            let at = random.random_range(0..IDS);
            // Two ids in one stripe.
            let id = ProductId::new(1 + (at as i64) * (STRIPES as i64 / 2)).expect("positive");
            if random.random_range(0..3) > 0 {
                let (waiter, leader) =
                    singleflight.join((id, FreshnessClass::Cached), &Arc::default(), &mut guards());
                assert_eq!(leader.is_none(), flying[at].is_some(), "seed {seed:#x}, {flight}");
                waiters[at].push(waiter);
                flying[at] = flying[at].take().or(leader.map(|leader| (flight, leader)));
            } else if let Some((number, leader)) = flying[at].take() {
                let wait = random.random();
                if wait {
                    leader.complete(result(number));
                } else {
                    drop(leader);
                }
                for waiter in waiters[at].drain(..) {
                    assert!(ended_as(waiter, number, wait), "seed {seed:#x}, flight {number}");
                }
            }
        }
        drop(flying);
        let left: usize = singleflight.stripes.iter().map(|stripe| stripe.lock().len()).sum();
        assert_eq!(left, 0, "seed {seed:#x}: singleflight without leaders");
    }

    #[test]
    fn everybody_aboard_learns_how_the_flight_ended() {
        fly(0x5EED);
        fly(rand::random());
    }

    fn arrives(waiter: Waiter) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(waiter.wait()).is_ok()
    }

    /// Whoever boards a flight while its leader gives it up because it is empty is in that one or in the next, and learns
    /// how it ended.
    #[test]
    fn nobody_is_stranded_in_a_flight_that_is_given_up() {
        let (singleflight, given_up) = (Singleflight::new(), AtomicUsize::new(0));
        let id = ProductId::new(1).expect("positive");
        let board = || {
            let (waiter, leader) =
                singleflight.join((id, FreshnessClass::Cached), &Arc::default(), &mut guards());
            // Boarded, and gone again.
            if rand::random() {
                drop(waiter);
                return leader.map(|leader| (None, leader));
            }
            match leader {
                Some(leader) => return Some((Some(waiter), leader)),
                None => assert!(arrives(waiter)),
            }
            None
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for flight in 0..50_000 {
                        let Some((waiter, leader)) = board() else { continue };
                        match leader.unless_abandoned() {
                            Some(leader) => leader.complete(result(flight)),
                            None => drop(given_up.fetch_add(1, Ordering::Relaxed)),
                        }
                        assert!(waiter.is_none_or(arrives));
                    }
                });
            }
        });
        assert!(given_up.into_inner() > 0);
        assert!(!singleflight.is_in_flight(id));
    }

    /// What a result leaves behind is no business of the flight after it, which may begin at any moment.
    #[test]
    fn there_is_never_a_second_pilot_in_the_air() {
        let (singleflight, flying) = (Singleflight::new(), AtomicBool::new(false));
        let id = ProductId::new(1).expect("positive");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for flight in 0..50_000 {
                        let (_, Some(leader)) = singleflight.join(
                            (id, FreshnessClass::Cached),
                            &Arc::default(),
                            &mut guards(),
                        ) else {
                            continue;
                        };
                        assert!(!flying.swap(true, Ordering::SeqCst), "two leaders");
                        std::hint::spin_loop();
                        flying.store(false, Ordering::SeqCst);
                        leader.complete(result(flight));
                    }
                });
            }
        });
    }
}
