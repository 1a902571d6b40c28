//! Load shedding: above the limit of calls in flight a call is refused at once, with `RetryInfo`. A call takes its place when
//! its request is complete, so that a client that never completes its requests takes none. Streams have limits of their own.
//! Health checks are not limited, because a busy instance must not fail them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use super::connection::ClientConnection;
use super::status;
use super::{PerConnection, per_connection};
use crate::metrics::{Metrics, Shed};

/// Once half of the places are taken, a connection that has more than a `FREE_DIVISOR`th of the free ones gets no more.
const FREE_DIVISOR: usize = 8;

/// Admits the calls of one connection.
#[derive(Debug)]
pub(super) struct CallAdmission {
    places: PerConnection<CallPlaces>,
    connection: Arc<ClientConnection>,
}

/// The unary calls in flight on all connections. Not a semaphore, which takes a lock at each release to look for waiters:
/// here are none.
#[derive(Debug)]
pub(super) struct CallPlaces {
    taken: AtomicUsize,
    limit: usize,
}

/// The place of a call in flight.
#[derive(Debug)]
pub(super) struct CallPlace(PerConnection<CallPlaces>);

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
        Self { places: per_connection(places), connection: Arc::clone(connection) }
    }

    /// Takes a place for a call. Above half of the limit a connection gets only an eighth of the free places (see
    /// [`FREE_DIVISOR`]), so that calls that hang, or that wait for a slow reader, leave places for other connections.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, without waiting.
    pub(super) fn take(&self) -> Result<CallPlace, Status> {
        // Every place of this connection holds one reference.
        let own = Arc::strong_count(&self.places) - 1;
        // Counted before the check, so that dropping the place undoes it when the call is refused.
        let place = CallPlace(Arc::clone(&self.places));
        let free =
            self.places.limit.saturating_sub(self.places.taken.fetch_add(1, Ordering::Relaxed));
        if free > 0 && (free >= self.places.limit.div_ceil(2) || own <= free / FREE_DIVISOR) {
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

    /// As many places as one connection gets, at most `streams`.
    fn fill(places: &Arc<CallPlaces>, streams: usize) -> Vec<CallPlace> {
        let refusals = Refusals::new(&Metrics::new());
        let connection =
            ClientConnection::new(([127, 0, 0, 1], 1).into(), Caller::BACKGROUND, refusals);
        let admission = CallAdmission::new(places, &connection);
        std::iter::from_fn(|| admission.take().ok()).take(streams).collect()
    }

    #[test]
    fn connections_leave_places_for_others() {
        let places = CallPlaces::new(1_000, &Metrics::new());
        let held: Vec<_> = (0..20).map(|_| fill(&places, 100)).collect();
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts[..8], [100, 100, 100, 100, 100, 56, 50, 44]);
        assert!(!fill(&places, 100).is_empty());
        drop(held);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0, "refused calls are not counted");
    }

    #[test]
    fn a_limit_of_one_admits_one_call() {
        let places = CallPlaces::new(1, &Metrics::new());
        assert_eq!(fill(&places, 100).len(), 1);
    }
}
