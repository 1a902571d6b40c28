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
use crate::postgres::{Demand, Waiter, Waiters};
use crate::product::ProductId;

const STRIPES: usize = 64;

/// What a load came to, for everybody who waits for it.
pub(super) type Outcome = Result<Loaded, Arc<Failed>>;

/// How a flight ended, for those aboard.
#[derive(Debug, Default)]
struct Landing {
    outcome: Mutex<Option<Outcome>>,
    told: Notify,
}

/// Why a load failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// What Redis was seen to hold: not good enough for this load, but perhaps better than nothing.
    pub(super) seen: Option<Entry>,
}

type Stripe = HashMap<(ProductId, Class), Flight, RandomState>;

/// The loads in flight of one instance.
#[derive(Debug)]
pub(super) struct Flights {
    stripes: Box<[Mutex<Stripe>]>,
}

/// What those aboard are content with. Whoever takes what the caches hold does not board with those who ask Postgres:
/// that may take long, or be refused, while Redis has what is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// What the caches may serve.
    Cached,
    /// Nothing but what they ask for.
    Strict,
}

/// A load in flight, and how much it is wanted.
#[derive(Debug)]
struct Flight {
    landing: Arc<Landing>,
    demand: Arc<Demand>,
}

/// The duty to land a flight. Dropped without landing, those who wait are told that it failed.
#[derive(Debug)]
pub(super) struct Pilot {
    flights: Arc<Flights>,
    id: ProductId,
    class: Class,
    landing: Arc<Landing>,
}

/// A seat in a flight.
#[derive(Debug)]
pub(super) struct Seat {
    landing: Arc<Landing>,
    _waiter: Arc<Waiter>,
}

impl Flights {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() })
    }

    /// Joins the flight of `id`, or begins one, which is wanted as `demand` says: then the pilot has to be put to
    /// work.
    pub(super) fn join(
        self: &Arc<Self>,
        (id, class): (ProductId, Class),
        demand: &Arc<Demand>,
        waiters: &mut Waiters,
    ) -> (Seat, Option<Pilot>) {
        let mut seat =
            |landing, demand: &Arc<Demand>| Seat { landing, _waiter: waiters.of(demand) };
        match self.stripe(id).lock().entry((id, class)) {
            MapEntry::Occupied(flight) => {
                let Flight { landing, demand } = flight.get();
                (seat(Arc::clone(landing), demand), None)
            }
            MapEntry::Vacant(free) => {
                let landing = Arc::default();
                free.insert(Flight { landing: Arc::clone(&landing), demand: Arc::clone(demand) });
                let pilot =
                    Pilot { flights: Arc::clone(self), id, class, landing: Arc::clone(&landing) };
                (seat(landing, demand), Some(pilot))
            }
        }
    }

    pub(super) fn is_in_flight(&self, id: ProductId) -> bool {
        let flights = self.stripe(id).lock();
        [Class::Cached, Class::Strict].iter().any(|class| flights.contains_key(&(id, *class)))
    }

    fn stripe(&self, id: ProductId) -> &Mutex<Stripe> {
        &self.stripes[id.get().unsigned_abs() as usize % STRIPES]
    }
}

impl Pilot {
    pub(super) fn id(&self) -> ProductId {
        self.id
    }

    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Gives everybody aboard the outcome. Whoever comes later begins a new flight.
    pub(super) fn land(self, outcome: Outcome) {
        self.flights.stripe(self.id).lock().remove(&(self.id, self.class));
        self.landing.tell(outcome);
    }

    /// Ends the flight if nobody is aboard any more; whoever comes later begins a new one. Boarding takes the same lock,
    /// so nobody does in between.
    pub(super) fn unless_empty(self) -> Option<Self> {
        let mut flights = self.flights.stripe(self.id).lock();
        let flight = (self.id, self.class);
        if !flights.get(&flight)?.demand.is_unwanted() {
            drop(flights);
            return Some(self);
        }
        flights.remove(&flight);
        // Or dropping the pilot would end the next flight, which may begin as soon as the lock is free.
        self.landing.tell(lost());
        None
    }
}

impl Landing {
    fn tell(&self, outcome: Outcome) {
        *self.outcome.lock() = Some(outcome);
        self.told.notify_waiters();
    }

    fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().clone()
    }
}

/// What those aboard are told when nobody lands a flight.
fn lost() -> Outcome {
    let error = Error::Internal("a load ended without a result".to_owned());
    Err(Arc::new(Failed { error, seen: None }))
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if self.landing.outcome().is_none() {
            self.flights.stripe(self.id).lock().remove(&(self.id, self.class));
            self.landing.tell(lost());
        }
    }
}

impl Seat {
    /// Waits for the landing.
    pub(super) async fn landed(self) -> Outcome {
        // From here on it hears of the landing; before, it sees how it went.
        let told = self.landing.told.notified();
        if let Some(outcome) = self.landing.outcome() {
            return outcome;
        }
        told.await;
        self.landing.outcome().unwrap_or_else(lost)
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

    fn waiters() -> Waiters {
        Waiters::new(CallContext::BACKGROUND, true)
    }

    fn result(flight: i64) -> Outcome {
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        let entry = Entry::tombstone(Version(flight), Moment::now(), ttl);
        Ok(Loaded::proven(entry, ServedBy::Postgres))
    }

    /// Whether the seat's flight has ended with its own result, or with the failure of a lost pilot.
    fn ended_as(seat: Seat, flight: i64, landed: bool) -> bool {
        match seat.landed().now_or_never() {
            Some(Ok(loaded)) => landed && loaded.entry.revision().version == Version(flight),
            Some(Err(error)) => !landed && matches!(error.error, Error::Internal(_)),
            None => false,
        }
    }

    /// One flight for each product at a time; all aboard learn how their own flight ended, and nobody waits
    /// for a flight that has ended, however joins, landings and lost pilots follow each other.
    fn fly(seed: u64) {
        let flights = Flights::new();
        let mut random = StdRng::seed_from_u64(seed);
        let mut flying: [Option<(i64, Pilot)>; IDS] = Default::default();
        let mut seats: [Vec<Seat>; IDS] = Default::default();
        for flight in 0..10_000 {
            let at = random.random_range(0..IDS);
            // Two ids in one stripe.
            let id = ProductId::new(1 + (at as i64) * (STRIPES as i64 / 2)).expect("positive");
            if random.random_range(0..3) > 0 {
                let (seat, pilot) =
                    flights.join((id, Class::Cached), &Arc::default(), &mut waiters());
                assert_eq!(pilot.is_none(), flying[at].is_some(), "seed {seed:#x}, {flight}");
                seats[at].push(seat);
                flying[at] = flying[at].take().or(pilot.map(|pilot| (flight, pilot)));
            } else if let Some((number, pilot)) = flying[at].take() {
                let landed = random.random();
                if landed {
                    pilot.land(result(number));
                } else {
                    drop(pilot);
                }
                for seat in seats[at].drain(..) {
                    assert!(ended_as(seat, number, landed), "seed {seed:#x}, flight {number}");
                }
            }
        }
        drop(flying);
        let left: usize = flights.stripes.iter().map(|stripe| stripe.lock().len()).sum();
        assert_eq!(left, 0, "seed {seed:#x}: flights without pilots");
    }

    #[test]
    fn everybody_aboard_learns_how_the_flight_ended() {
        fly(0x5EED);
        fly(rand::random());
    }

    fn arrives(seat: Seat) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(seat.landed()).is_ok()
    }

    /// Whoever boards a flight while its pilot gives it up because it is empty is in that one or in the next, and learns
    /// how it ended.
    #[test]
    fn nobody_is_stranded_in_a_flight_that_is_given_up() {
        let (flights, given_up) = (Flights::new(), AtomicUsize::new(0));
        let id = ProductId::new(1).expect("positive");
        let board = || {
            let (seat, pilot) = flights.join((id, Class::Cached), &Arc::default(), &mut waiters());
            // Boarded, and gone again.
            if rand::random() {
                drop(seat);
                return pilot.map(|pilot| (None, pilot));
            }
            match pilot {
                Some(pilot) => return Some((Some(seat), pilot)),
                None => assert!(arrives(seat)),
            }
            None
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for flight in 0..50_000 {
                        let Some((seat, pilot)) = board() else { continue };
                        match pilot.unless_empty() {
                            Some(pilot) => pilot.land(result(flight)),
                            None => drop(given_up.fetch_add(1, Ordering::Relaxed)),
                        }
                        assert!(seat.is_none_or(arrives));
                    }
                });
            }
        });
        assert!(given_up.into_inner() > 0);
        assert!(!flights.is_in_flight(id));
    }

    /// What a landing leaves behind is no business of the flight after it, which may begin at any moment.
    #[test]
    fn there_is_never_a_second_pilot_in_the_air() {
        let (flights, flying) = (Flights::new(), AtomicBool::new(false));
        let id = ProductId::new(1).expect("positive");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for flight in 0..50_000 {
                        let (_, Some(pilot)) =
                            flights.join((id, Class::Cached), &Arc::default(), &mut waiters())
                        else {
                            continue;
                        };
                        assert!(!flying.swap(true, Ordering::SeqCst), "two pilots");
                        std::hint::spin_loop();
                        flying.store(false, Ordering::SeqCst);
                        pilot.land(result(flight));
                    }
                });
            }
        });
    }
}
