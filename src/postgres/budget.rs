//! The database budget: how many loads run at once, and how many may wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;

/// Bounds the loads of one instance. Past the bound a load is refused at once: waiting longer would only
/// turn overload into timeouts.
#[derive(Debug)]
pub(super) struct Budget {
    running: Arc<Semaphore>,
    // Running and waiting together.
    admitted: Arc<Semaphore>,
    capacity: usize,
    patience: Duration,
}

/// A load's turn.
#[derive(Debug)]
pub(super) struct Turn {
    _running: OwnedSemaphorePermit,
    _admitted: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(running: usize, waiting: usize, patience: Duration) -> Self {
        let capacity = running + waiting;
        Self {
            running: Arc::new(Semaphore::new(running)),
            admitted: Arc::new(Semaphore::new(capacity)),
            capacity,
            patience,
        }
    }

    pub(super) async fn turn(&self) -> Result<Turn, Error> {
        let admitted =
            Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| Error::OverBudget)?;
        let running = Arc::clone(&self.running).acquire_owned();
        match tokio::time::timeout(self.patience, running).await {
            Ok(Ok(running)) => Ok(Turn { _running: running, _admitted: admitted }),
            Ok(Err(_)) | Err(_) => Err(Error::OverBudget),
        }
    }

    pub(super) fn in_use(&self) -> u64 {
        (self.capacity - self.admitted.available_permits()) as u64
    }
}
