//! Singleflight: of many readers that need the same product loaded, one leads and the others join.
//!
//! The leader of a flight is no reader but a detached task, so a caller that hangs up strands nobody.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Error, Loaded};
use crate::product::ProductId;

const STRIPES: usize = 64;

/// What a load came to, for everybody who waits for it.
pub(super) type Outcome = Result<Loaded, Arc<Error>>;
type Landing = watch::Receiver<Option<Outcome>>;

/// The loads in flight of one instance.
#[derive(Debug)]
pub(super) struct Flights {
    stripes: Box<[Mutex<HashMap<ProductId, Landing>>]>,
}

/// The duty to land a flight. Dropped without landing, those who wait are told that it failed.
#[derive(Debug)]
pub(super) struct Pilot {
    flights: Arc<Flights>,
    id: ProductId,
    landing: watch::Sender<Option<Outcome>>,
}

/// A seat in a flight.
#[derive(Debug)]
pub(super) struct Seat(Landing);

impl Flights {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() })
    }

    /// Joins the flight of `id`, or begins one: then the pilot has to be put to work.
    pub(super) fn join(self: &Arc<Self>, id: ProductId) -> (Seat, Option<Pilot>) {
        match self.stripe(id).lock().entry(id) {
            MapEntry::Occupied(flight) => (Seat(flight.get().clone()), None),
            MapEntry::Vacant(free) => {
                let (landing, seat) = watch::channel(None);
                free.insert(seat.clone());
                (Seat(seat), Some(Pilot { flights: Arc::clone(self), id, landing }))
            }
        }
    }

    pub(super) fn is_in_flight(&self, id: ProductId) -> bool {
        self.stripe(id).lock().contains_key(&id)
    }

    fn stripe(&self, id: ProductId) -> &Mutex<HashMap<ProductId, Landing>> {
        &self.stripes[id.get().unsigned_abs() as usize % STRIPES]
    }
}

impl Pilot {
    pub(super) fn id(&self) -> ProductId {
        self.id
    }

    /// Gives everybody aboard the outcome. Whoever comes later begins a new flight.
    pub(super) fn land(self, outcome: Outcome) {
        self.flights.stripe(self.id).lock().remove(&self.id);
        self.landing.send_replace(Some(outcome));
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if self.landing.borrow().is_none() {
            self.flights.stripe(self.id).lock().remove(&self.id);
        }
    }
}

impl Seat {
    /// Waits for the landing.
    pub(super) async fn landed(mut self) -> Outcome {
        let landed = self.0.wait_for(Option::is_some).await;
        let outcome = landed.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| {
            Err(Arc::new(Error::Internal("a load ended without a result".to_owned())))
        })
    }
}
