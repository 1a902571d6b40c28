//! Singleflight: concurrent reads of one product share one load.
//!
//! The leader is a detached task and not one of the callers, so a call that is cancelled ends no load that others wait
//! for.

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
use crate::traces::SpanContext;

const STRIPES: usize = 64;

pub(super) type LoadResult = Result<Loaded, Arc<LoadFailure>>;

/// The result of a load, once there is one.
#[derive(Debug, Default)]
struct SharedResult {
    result: Mutex<Option<LoadResult>>,
    completed: Notify,
}

#[derive(Debug)]
pub(super) struct LoadFailure {
    pub(super) error: Error,
    /// The newest entry read from Redis: no answer to this load, but perhaps a stale one.
    pub(super) seen: Option<Entry>,
}

type Stripe = HashMap<(ProductId, FreshnessClass), InFlight, RandomState>;

/// The loads in flight of one instance.
#[derive(Debug)]
pub(super) struct Singleflight {
    stripes: Box<[Mutex<Stripe>]>,
}

/// Loads of different classes are not shared: a read of Postgres may be slow or refused while Redis has what a cached read
/// accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FreshnessClass {
    /// For reads that accept what the caches may serve.
    Cached,
    /// For reads that ask for a version or for the latest revision.
    Strict,
}

#[derive(Debug)]
struct InFlight {
    result: Arc<SharedResult>,
    demand: Arc<Demand>,
}

/// The duty to complete one load. Dropped before that, it completes with an error.
#[derive(Debug)]
pub(super) struct Leader {
    singleflight: Arc<Singleflight>,
    id: ProductId,
    class: FreshnessClass,
    result: Arc<SharedResult>,
}

/// One call that waits for a load. The load is abandoned when its last waiter is dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    result: Arc<SharedResult>,
    demand: Arc<DemandGuard>,
    /// Whether another call has started the load.
    pub(super) has_joined: bool,
}

impl Singleflight {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() })
    }

    /// Joins the load of `id` in flight, or starts one with `demand`: then the caller has to run the returned leader.
    pub(super) fn join(
        self: &Arc<Self>,
        (id, class): (ProductId, FreshnessClass),
        demand: &Arc<Demand>,
        guards: &mut DemandGuards,
    ) -> (Waiter, Option<Leader>) {
        let mut waiter = |result, demand: &Arc<Demand>, has_joined| {
            let demand = guards.of(demand);
            Waiter { result, demand, has_joined }
        };
        match self.stripe(id).lock().entry((id, class)) {
            MapEntry::Occupied(in_flight) => {
                let InFlight { result, demand } = in_flight.get();
                (waiter(Arc::clone(result), demand, true), None)
            }
            MapEntry::Vacant(vacant) => {
                let result = Arc::default();
                vacant.insert(InFlight { result: Arc::clone(&result), demand: Arc::clone(demand) });
                let leader = Leader {
                    singleflight: Arc::clone(self),
                    id,
                    class,
                    result: Arc::clone(&result),
                };
                (waiter(result, demand, false), Some(leader))
            }
        }
    }

    pub(super) fn is_in_flight(&self, id: ProductId) -> bool {
        let stripe = self.stripe(id).lock();
        let classes = [FreshnessClass::Cached, FreshnessClass::Strict];
        classes.iter().any(|class| stripe.contains_key(&(id, *class)))
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

    /// Gives the result to all waiters. A read that comes later starts a new load.
    pub(super) fn complete(self, result: LoadResult) {
        self.singleflight.stripe(self.id).lock().remove(&(self.id, self.class));
        self.result.publish(result);
    }

    /// Ends the load if it has no waiter. Joining takes the same lock, so no waiter can join between the check and the end.
    pub(super) fn unless_abandoned(self) -> Option<Self> {
        let mut stripe = self.singleflight.stripe(self.id).lock();
        let key = (self.id, self.class);
        if !stripe.get(&key)?.demand.is_abandoned() {
            drop(stripe);
            return Some(self);
        }
        stripe.remove(&key);
        // Without a result, dropping the leader would remove the next load of this product, which may start once the lock is free.
        self.result.publish(lost());
        None
    }
}

impl SharedResult {
    fn publish(&self, result: LoadResult) {
        *self.result.lock() = Some(result);
        self.completed.notify_waiters();
    }

    fn get(&self) -> Option<LoadResult> {
        self.result.lock().clone()
    }
}

/// The result of a load whose leader was dropped.
fn lost() -> LoadResult {
    let error = Error::Internal("a load ended without a result".to_owned());
    Err(Arc::new(LoadFailure { error, seen: None }))
}

impl Drop for Leader {
    fn drop(&mut self) {
        if self.result.get().is_none() {
            self.singleflight.stripe(self.id).lock().remove(&(self.id, self.class));
            self.result.publish(lost());
        }
    }
}

impl Waiter {
    /// The span of the load, if the call that started it is traced.
    pub(super) fn trace(&self) -> Option<SpanContext> {
        self.demand.trace()
    }

    pub(super) async fn wait(self) -> LoadResult {
        // Registered before the check: a completion between the two is not missed.
        let completed = self.result.completed.notified();
        if let Some(result) = self.result.get() {
            return result;
        }
        completed.await;
        self.result.get().unwrap_or_else(lost)
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

    fn result(number: i64) -> LoadResult {
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        let entry = Entry::tombstone(Version(number), Moment::now(), ttl);
        Ok(Loaded::confirmed(entry, ServedBy::Postgres))
    }

    /// Whether the load has completed with its own result, or, if its leader was dropped, with an error.
    fn ended_as(waiter: Waiter, number: i64, completed: bool) -> bool {
        match waiter.wait().now_or_never() {
            Some(Ok(loaded)) => completed && loaded.entry.revision().version == Version(number),
            Some(Err(error)) => !completed && matches!(error.error, Error::Internal(_)),
            None => false,
        }
    }

    /// A product has one load at a time, all its waiters get that load's result, and none waits for a completed load, in any
    /// order of joins, completions and dropped leaders.
    fn join_and_complete(seed: u64) {
        let singleflight = Singleflight::new();
        let mut random = StdRng::seed_from_u64(seed);
        let mut in_flight: [Option<(i64, Leader)>; IDS] = Default::default();
        let mut waiters: [Vec<Waiter>; IDS] = Default::default();
        for load in 0..10_000 {
            let at = random.random_range(0..IDS);
            // Two ids in one stripe.
            let id = ProductId::new(1 + (at as i64) * (STRIPES as i64 / 2)).expect("positive");
            if random.random_range(0..3) > 0 {
                let (waiter, leader) =
                    singleflight.join((id, FreshnessClass::Cached), &Arc::default(), &mut guards());
                assert_eq!(leader.is_none(), in_flight[at].is_some(), "seed {seed:#x}, {load}");
                waiters[at].push(waiter);
                in_flight[at] = in_flight[at].take().or(leader.map(|leader| (load, leader)));
            } else if let Some((number, leader)) = in_flight[at].take() {
                let completed = random.random();
                if completed {
                    leader.complete(result(number));
                } else {
                    drop(leader);
                }
                for waiter in waiters[at].drain(..) {
                    assert!(ended_as(waiter, number, completed), "seed {seed:#x}, load {number}");
                }
            }
        }
        drop(in_flight);
        let left: usize = singleflight.stripes.iter().map(|stripe| stripe.lock().len()).sum();
        assert_eq!(left, 0, "seed {seed:#x}: loads without leaders");
    }

    #[test]
    fn each_waiter_gets_the_result_of_its_own_load() {
        join_and_complete(0x5EED);
        join_and_complete(rand::random());
    }

    fn completes(waiter: Waiter) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(waiter.wait()).is_ok()
    }

    /// A call that joins while the leader abandons the load joins that load or the next one, and gets its result.
    #[test]
    fn a_waiter_that_joins_while_a_load_is_abandoned_gets_a_result() {
        let (singleflight, abandoned) = (Singleflight::new(), AtomicUsize::new(0));
        let id = ProductId::new(1).expect("positive");
        let join = || {
            let (waiter, leader) =
                singleflight.join((id, FreshnessClass::Cached), &Arc::default(), &mut guards());
            // A waiter that is dropped at once abandons its load.
            if rand::random() {
                drop(waiter);
                return leader.map(|leader| (None, leader));
            }
            match leader {
                Some(leader) => return Some((Some(waiter), leader)),
                None => assert!(completes(waiter)),
            }
            None
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for load in 0..50_000 {
                        let Some((waiter, leader)) = join() else { continue };
                        match leader.unless_abandoned() {
                            Some(leader) => leader.complete(result(load)),
                            None => drop(abandoned.fetch_add(1, Ordering::Relaxed)),
                        }
                        assert!(waiter.is_none_or(completes));
                    }
                });
            }
        });
        assert!(abandoned.into_inner() > 0);
        assert!(!singleflight.is_in_flight(id));
    }

    /// Completing a load does not remove the next one, which may start at any moment.
    #[test]
    fn a_product_has_one_leader_at_a_time() {
        let (singleflight, in_flight) = (Singleflight::new(), AtomicBool::new(false));
        let id = ProductId::new(1).expect("positive");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for load in 0..50_000 {
                        let (_, Some(leader)) = singleflight.join(
                            (id, FreshnessClass::Cached),
                            &Arc::default(),
                            &mut guards(),
                        ) else {
                            continue;
                        };
                        assert!(!in_flight.swap(true, Ordering::SeqCst), "two leaders");
                        std::hint::spin_loop();
                        in_flight.store(false, Ordering::SeqCst);
                        leader.complete(result(load));
                    }
                });
            }
        });
    }
}
