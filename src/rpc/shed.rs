//! Load shedding: past the limit of calls in flight the next one is refused at once, with a hint when to try
//! again. A call takes its place when its request is complete: a client that never completes its requests takes none.
//! Health checks and streams have limits of their own: an instance that is busy must not look dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use super::connection::Connection;
use super::status;
use super::{Local, local};
use crate::metrics::{Metrics, Shed};

/// Admits calls of a connection, within the limit of all.
#[derive(Debug)]
pub(super) struct Admission {
    places: Local<Places>,
    connection: Arc<Connection>,
}

/// How many calls are in flight. A semaphore would take a lock for each, to see whether somebody waits; nobody does.
#[derive(Debug)]
pub(super) struct Places {
    taken: AtomicUsize,
    limit: usize,
}

/// The place of a call in flight.
#[derive(Debug)]
pub(super) struct Place(Local<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Arc<Self> {
        let places = Arc::new(Self { taken: AtomicUsize::new(0), limit });
        let help = "Unary calls in flight.";
        metrics.gauge("hotshelf.calls.in.flight", help, &places, |places| {
            places.taken.load(Ordering::Relaxed).min(places.limit) as u64
        });
        places
    }
}

impl Admission {
    pub(super) fn new(places: &Arc<Places>, connection: &Arc<Connection>) -> Self {
        Self { places: local(places), connection: Arc::clone(connection) }
    }

    /// A place for a call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, at once.
    pub(super) fn take(&self) -> Result<Place, Status> {
        // The place gives itself back, also when there was none.
        let place = Place(Arc::clone(&self.places));
        if self.places.taken.fetch_add(1, Ordering::Relaxed) < self.places.limit {
            return Ok(place);
        }
        self.connection.refused(Shed::Calls);
        Err(status::too_many_requests())
    }
}
