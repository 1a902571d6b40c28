//! Load shedding: past the limit of calls in flight the next one is refused at once, with a hint when to try
//! again. A call takes its place when its request is complete: a client that never completes its requests takes none.
//! Streams have limits of their own, and a health check always passes: an instance that is busy must not look dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use super::connection::ClientConnection;
use super::status;
use super::{Local, local};
use crate::metrics::{Metrics, Shed};

/// A connection that has more than this part of what is free gets no more, when half is taken.
const MOST: usize = 8;

/// Admits calls of a connection, within the limit of all.
#[derive(Debug)]
pub(super) struct CallAdmission {
    places: Local<CallPlaces>,
    connection: Arc<ClientConnection>,
}

/// How many calls are in flight. A semaphore would take a lock for each, to see whether somebody waits; nobody does.
#[derive(Debug)]
pub(super) struct CallPlaces {
    taken: AtomicUsize,
    limit: usize,
}

/// The place of a call in flight.
#[derive(Debug)]
pub(super) struct CallPlace(Local<CallPlaces>);

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CallPlaces {
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Arc<Self> {
        let places = Arc::new(Self { taken: AtomicUsize::new(0), limit });
        let help = "Unary calls in flight.";
        metrics.gauge("hotshelf.calls.in.flight", help, &places, |places| {
            places.taken.load(Ordering::Relaxed).min(places.limit) as u64
        });
        places
    }
}

impl CallAdmission {
    pub(super) fn new(places: &Arc<CallPlaces>, connection: &Arc<ClientConnection>) -> Self {
        Self { places: local(places), connection: Arc::clone(connection) }
    }

    /// A place for a call. When half of the places are taken a connection that has more than an eighth of those that are free gets no
    /// more: so calls that hang, or whose answers are not read, leave places for the next connection.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, at once.
    pub(super) fn take(&self) -> Result<CallPlace, Status> {
        // Each place of the connection refers to it.
        let own = Arc::strong_count(&self.places) - 1;
        // The place gives itself back, also when there was none.
        let place = CallPlace(Arc::clone(&self.places));
        let free =
            self.places.limit.saturating_sub(self.places.taken.fetch_add(1, Ordering::Relaxed));
        if free > 0 && (free >= self.places.limit.div_ceil(2) || own <= free / MOST) {
            return Ok(place);
        }
        self.connection.refused(Shed::Calls);
        Err(status::too_many_requests())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Caller;
    use crate::refusals::Refusals;

    /// As many places as a connection gets, and has streams for.
    fn fill(places: &Arc<CallPlaces>, streams: usize) -> Vec<CallPlace> {
        let refusals = Refusals::new(&Metrics::new());
        let connection =
            ClientConnection::new(([127, 0, 0, 1], 1).into(), Caller::BACKGROUND, refusals);
        let admission = CallAdmission::new(places, &connection);
        std::iter::from_fn(|| admission.take().ok()).take(streams).collect()
    }

    #[test]
    fn connections_leave_places_to_the_next() {
        let places = CallPlaces::new(1_000, &Metrics::new());
        let held: Vec<_> = (0..20).map(|_| fill(&places, 100)).collect();
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts[..8], [100, 100, 100, 100, 100, 56, 50, 44]);
        assert!(!fill(&places, 100).is_empty());
        drop(held);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0, "also those that were refused");
    }

    #[test]
    fn one_place_is_enough_for_one_call() {
        let places = CallPlaces::new(1, &Metrics::new());
        assert_eq!(fill(&places, 100).len(), 1);
    }
}
