//! Load shedding: above the limit of calls in flight a call is refused at once, with `RetryInfo`. A call takes its place when
//! its request is complete, so that a client that never completes its requests takes none. Streams have limits of their own.
//! Health checks are not limited, because a busy instance must not fail them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::allowance::OverLimit;
use crate::metrics::{Metrics, Shed};

/// Once half of the places are taken, a caller that has more than a `FREE_DIVISOR`th of the free ones gets no more.
const FREE_DIVISOR: usize = 8;

/// All places, behind a reference count for each caller, which counts the calls of this caller.
type CountedPlaces = Arc<Arc<CallPlaces>>;

/// Admits the calls of one caller.
#[derive(Debug)]
pub(super) struct CallAdmission(CountedPlaces);

/// The unary calls in flight of all callers. Not a semaphore, which takes a lock at each release to look for waiters:
/// here are none.
#[derive(Debug)]
pub(super) struct CallPlaces {
    taken: AtomicUsize,
    limit: usize,
}

/// The place of a call in flight.
#[derive(Debug)]
pub(super) struct CallPlace(CountedPlaces);

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CallPlaces {
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Arc<Self> {
        let places = Arc::new(Self { taken: AtomicUsize::new(0), limit });
        let help = "Unary calls in flight.";
        let taken = |places: &Self| places.taken.load(Ordering::Relaxed).min(places.limit) as u64;
        let limit = |places: &Self| places.limit as u64;
        metrics.bounded("hotshelf.calls.in.flight", help, &places, taken, limit);
        places
    }
}

impl CallAdmission {
    pub(super) fn new(places: &Arc<CallPlaces>) -> Self {
        Self(Arc::new(Arc::clone(places)))
    }

    /// Whether any call of the caller is in flight.
    pub(super) fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Takes a place for a call. Above half of the limit a caller gets only an eighth of the free places (see
    /// [`FREE_DIVISOR`]), so that calls that hang, or that wait for a slow reader, leave places for other callers.
    ///
    /// # Errors
    /// Without waiting, when there is no place.
    pub(super) fn take(&self) -> Result<CallPlace, OverLimit> {
        // Every place of this caller holds one reference.
        let own = Arc::strong_count(&self.0) - 1;
        // Counted before the check, so that dropping the place undoes it when the call is refused.
        let place = CallPlace(Arc::clone(&self.0));
        let limit = self.0.limit;
        let free = limit.saturating_sub(self.0.taken.fetch_add(1, Ordering::Relaxed));
        if free > 0 && (free >= limit.div_ceil(2) || own <= free / FREE_DIVISOR) {
            return Ok(place);
        }
        Err(OverLimit { kind: Shed::Calls, always: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many places as one caller gets, at most `streams`.
    fn fill(places: &Arc<CallPlaces>, streams: usize) -> Vec<CallPlace> {
        let admission = CallAdmission::new(places);
        std::iter::from_fn(|| admission.take().ok()).take(streams).collect()
    }

    #[test]
    fn callers_leave_places_for_others() {
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
