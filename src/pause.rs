//! Named points at which a test pauses tasks, so that it can run a race step by step.
//!
//! Only with the feature `test-hooks`; without it [`PausePoints`] is empty and [`reach`](PausePoints::reach) does nothing.

#[cfg(feature = "test-hooks")]
use std::{collections::HashMap, sync::Arc};

#[cfg(feature = "test-hooks")]
use parking_lot::Mutex;
#[cfg(feature = "test-hooks")]
use tokio::sync::{mpsc, oneshot};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "test-hooks", derive(clap::ValueEnum))]
pub enum Point {
    /// A load has read Postgres and not yet filled Redis.
    LoadedFromPostgres,
    /// A load has tried to fill Redis, and its result is not in memory yet.
    FilledRedis,
    /// A write is committed, and no cache reflects it.
    Committed,
    /// Memory reflects a write, and Redis does not yet.
    OfferedToMemory,
    /// A write is in Redis, and not yet published to other instances.
    Published,
    /// The relay has read changes, and Redis does not reflect them.
    RelayRead,
    /// The relay has broken the leases, and Redis still holds the old entries.
    RelaySuperseded,
    /// The relay has applied changes to Redis, and has not recorded it in Postgres yet.
    RelayApplied,
    /// The change feed is about to read the outbox.
    PollOutbox,
    /// Redis has returned an entry, and it has not been checked yet.
    ReadRedis,
}

/// The points of one instance.
#[derive(Clone, Debug, Default)]
pub struct PausePoints {
    #[cfg(feature = "test-hooks")]
    armed: Arc<Mutex<HashMap<Point, mpsc::UnboundedSender<Paused>>>>,
    #[cfg(feature = "test-hooks")]
    held_forever: Option<Point>,
    #[cfg(feature = "test-hooks")]
    panics: Arc<Mutex<Option<Point>>>,
}

/// A task is paused until this is dropped.
#[cfg(feature = "test-hooks")]
#[derive(Debug)]
pub struct Paused(
    #[expect(dead_code, reason = "it is held only to be dropped")] oneshot::Sender<()>,
);

#[cfg(feature = "test-hooks")]
impl PausePoints {
    /// Pauses every task that reaches `point`, until [`release`](Self::release). The receiver returns each paused task.
    #[must_use]
    pub fn arm(&self, point: Point) -> mpsc::UnboundedReceiver<Paused> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.armed.lock().insert(point, sender);
        receiver
    }

    /// Pauses every task that reaches `point` until the process is killed, and logs it.
    #[must_use]
    pub fn held_forever(point: Option<Point>) -> Self {
        Self { held_forever: point, ..Self::default() }
    }

    /// Lets tasks pass `point` again. A task that is paused already stays so until its [`Paused`] is dropped.
    pub fn release(&self, point: Point) {
        self.armed.lock().remove(&point);
    }

    /// Makes the next task that reaches `point` panic.
    pub fn panic_at(&self, point: Point) {
        *self.panics.lock() = Some(point);
    }

    pub(crate) async fn reach(&self, point: Point) {
        let panics = self.panics.lock().take_if(|panics| *panics == point).is_some();
        assert!(!panics, "a test made it panic");
        if self.held_forever == Some(point) {
            tracing::info!(?point, "held for ever");
            std::future::pending::<()>().await;
        }
        let Some(held) = self.armed.lock().get(&point).cloned() else { return };
        let (release, released) = oneshot::channel();
        if held.send(Paused(release)).is_ok() {
            // An error is the release: the test dropped its end.
            let _ = released.await;
        }
    }
}

#[cfg(not(feature = "test-hooks"))]
impl PausePoints {
    pub(crate) async fn reach(&self, _point: Point) {}
}
