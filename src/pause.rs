//! Named places where a test may hold the program, so that races are played out step by step.
//!
//! Only with the feature `test-hooks`; without it [`PausePoints`] is empty and reaching a point is
//! nothing.

#[cfg(feature = "test-hooks")]
use std::{collections::HashMap, sync::Arc};

#[cfg(feature = "test-hooks")]
use parking_lot::Mutex;
#[cfg(feature = "test-hooks")]
use tokio::sync::{mpsc, oneshot};

/// A place where a test may hold the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "test-hooks", derive(clap::ValueEnum))]
pub enum Point {
    /// A load has read Postgres and not yet filled Redis.
    LoadedFromPostgres,
    /// A load has filled Redis, or tried to, and memory does not hold its result yet.
    FilledRedis,
    /// A write is committed, and no cache knows.
    Committed,
    /// Memory was told of a write, and Redis does not know yet.
    OfferedToMemory,
    /// A write is in Redis, and no other instance has been told.
    Published,
    /// The relay has read changes, and Redis does not reflect them.
    RelayRead,
    /// The relay has broken the leases, and Redis still holds what is old.
    RelaySuperseded,
    /// The relay has applied changes to Redis, and nothing says so yet.
    RelayApplied,
    /// The outbox is about to be read for memory.
    PollOutbox,
    /// Redis was asked for an entry, and its answer was not looked at.
    ReadRedis,
}

/// The points of one instance.
#[derive(Clone, Debug, Default)]
pub struct PausePoints {
    #[cfg(feature = "test-hooks")]
    armed: Arc<Mutex<HashMap<Point, mpsc::UnboundedSender<Paused>>>>,
    #[cfg(feature = "test-hooks")]
    held_for_ever: Option<Point>,
    #[cfg(feature = "test-hooks")]
    panics: Arc<Mutex<Option<Point>>>,
}

/// Somebody is held at a point until this is dropped.
#[cfg(feature = "test-hooks")]
#[derive(Debug)]
pub struct Paused(
    #[expect(dead_code, reason = "dropping it is what it is for")] oneshot::Sender<()>,
);

#[cfg(feature = "test-hooks")]
impl PausePoints {
    /// Holds whoever reaches `point` from now on, until [`release`](Self::release); what was held comes out
    /// of the receiver.
    #[must_use]
    pub fn arm(&self, point: Point) -> mpsc::UnboundedReceiver<Paused> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.armed.lock().insert(point, sender);
        receiver
    }

    /// Holds whoever reaches `point` until the process is killed, and says so in the log.
    #[must_use]
    pub fn held_for_ever(point: Option<Point>) -> Self {
        Self { held_for_ever: point, ..Self::default() }
    }

    /// Lets everybody pass `point` again. Those already held stay so until their [`Paused`] is dropped.
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
        if self.held_for_ever == Some(point) {
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
