//! Which writes may be on their way to Postgres at once.
//!
//! A write may wait for a row for as long as its caller does, and holds a connection meanwhile. So writes of one product wait
//! for each other here, and all writes together have a share of the connections: a row that a transaction of others holds
//! must not cost the reads their connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::Error;
use crate::product::ProductId;

type Rows = Mutex<HashMap<ProductId, Arc<AsyncMutex<()>>, RandomState>>;

/// The writes of one instance.
#[derive(Debug)]
pub(super) struct Writers {
    slots: Arc<Semaphore>,
    timeout: Duration,
    rows: Arc<Rows>,
}

/// The turn of a write. Given back when dropped.
#[derive(Debug)]
pub(super) struct WriteTurn {
    /// Whether it waited for another write of its product.
    pub(super) has_waited: bool,
    _slot: OwnedSemaphorePermit,
    _row: Option<OwnedMutexGuard<()>>,
    _place: Option<Place>,
}

/// A write that waits for the writes of its product before it, or has its turn.
#[derive(Debug)]
struct Place {
    id: ProductId,
    row: Option<Arc<AsyncMutex<()>>>,
    rows: Arc<Rows>,
}

impl Writers {
    /// `limit` writes at once, which wait at most `timeout` for each other. Those of one product wait as long as their callers.
    pub(super) fn new(limit: usize, timeout: Duration) -> Self {
        Self { slots: Arc::new(Semaphore::new(limit)), timeout, rows: Arc::default() }
    }

    /// Waits for the turn of a write of `id`; `None` for a new product.
    ///
    /// # Errors
    /// [`Error::Locked`] when other writes of the product took until the deadline, [`Error::Unavailable`] when other
    /// products' writes did.
    pub(super) async fn turn(
        &self,
        id: Option<ProductId>,
        deadline: Option<Instant>,
    ) -> Result<WriteTurn, Error> {
        let place = id.map(|id| self.place(id));
        let has_waited = place.as_ref().is_some_and(Place::is_taken);
        let row = match &place {
            Some(place) => Some(place.wait(deadline).await.ok_or(Error::Locked)?),
            None => None,
        };
        let until = Instant::now() + self.timeout;
        let until = deadline.map_or(until, |deadline| deadline.min(until));
        let slot = Arc::clone(&self.slots).acquire_owned();
        let slot = tokio::time::timeout_at(until.into(), slot).await.ok().and_then(Result::ok);
        let busy = || Error::Unavailable("too many writes wait for the database".to_owned());
        Ok(WriteTurn { has_waited, _slot: slot.ok_or_else(busy)?, _row: row, _place: place })
    }

    fn place(&self, id: ProductId) -> Place {
        let row = Arc::clone(self.rows.lock().entry(id).or_default());
        Place { id, row: Some(row), rows: Arc::clone(&self.rows) }
    }
}

impl Place {
    fn is_taken(&self) -> bool {
        self.row.as_ref().is_some_and(|row| row.try_lock().is_err())
    }

    async fn wait(&self, deadline: Option<Instant>) -> Option<OwnedMutexGuard<()>> {
        let turn = Arc::clone(self.row.as_ref()?).lock_owned();
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), turn).await.ok(),
            None => Some(turn.await),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut rows = self.rows.lock();
        self.row = None;
        // Copies are made under the lock of the map.
        if rows.get(&self.id).is_some_and(|row| Arc::strong_count(row) == 1) {
            rows.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: i64) -> Option<ProductId> {
        ProductId::new(id)
    }

    #[tokio::test]
    async fn writes_of_one_product_wait_for_each_other_and_others_do_not() {
        let writers = Writers::new(2, Duration::from_millis(50));
        let soon = Some(Instant::now() + Duration::from_millis(50));
        let first = writers.turn(id(1), None).await.expect("free");
        assert!(matches!(writers.turn(id(1), soon).await, Err(Error::Locked)));
        let other = writers.turn(id(2), None).await.expect("free");
        assert!(
            matches!(writers.turn(id(3), None).await, Err(Error::Unavailable(_))),
            "both slots are taken"
        );
        drop(first);
        drop(writers.turn(id(1), None).await.expect("free again"));
        drop(other);
        assert!(writers.rows.lock().is_empty(), "nothing is kept of what has ended");
    }
}
