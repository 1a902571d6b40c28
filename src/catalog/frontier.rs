//! How far the relays have got: until when every committed change has been carried to Redis and into the change
//! stream.
//!
//! That Redis answers and its stream can be followed says nothing of changes that nobody has put there: the
//! relays may be behind, or unable to write. Only the outbox knows, so it is asked, a few times a second.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Catalog;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::metrics::BackgroundTask;
use crate::moment::{AtomicMoment, Moment};

/// How often the outbox is asked. Too high: memory and Redis are taken for less current than they are. Too low:
/// needless queries.
const INTERVAL: Duration = Duration::from_millis(250);

/// What one instance knows of the relays, all of them.
#[derive(Debug)]
pub(super) struct Frontier {
    began: Moment,
    /// Never, while nothing is known.
    relayed_until: AtomicMoment,
    /// Whether Postgres did not say when it was last asked.
    blind: AtomicBool,
}

impl Frontier {
    pub(super) fn new() -> Self {
        let relayed_until = AtomicMoment::new(Moment::NEVER);
        Self { began: Moment::now(), relayed_until, blind: AtomicBool::new(false) }
    }

    /// Whatever was committed before this moment is in Redis and in the change stream. It never goes back: a
    /// change that was begun before it and is committed after it comes later.
    pub(super) fn relayed_until(&self) -> Option<Moment> {
        Some(self.relayed_until.load()).filter(|moment| *moment > Moment::NEVER)
    }

    /// How far the relays may be behind.
    pub(super) fn lag(&self) -> Duration {
        self.relayed_until().unwrap_or(self.began).elapsed()
    }

    /// Whether Postgres does not answer, so that nobody can say what is current.
    pub(super) fn is_blind(&self) -> bool {
        self.blind.load(Ordering::Relaxed)
    }
}

impl Catalog {
    /// Returns a token that is cancelled after the first look.
    pub(super) fn start_watching_relays(self: &Arc<Self>) -> CancellationToken {
        let first_look = CancellationToken::new();
        let (catalog, looked) = (Arc::clone(self), first_look.clone());
        self.drain.spawn_loop(BackgroundTask::OutboxWatch, move || {
            Arc::clone(&catalog).watch_relays(looked.clone())
        });
        let help = "For how long committed changes may not have reached Redis and the change stream, in seconds.";
        self.metrics.seconds("hotshelf.relay.lag", help, self, |catalog| catalog.frontier.lag());
        first_look
    }

    async fn watch_relays(
        self: Arc<Self>,
        looked: CancellationToken,
    ) -> Result<Infallible, Infallible> {
        let mut watch = self.postgres.watch_outbox();
        loop {
            let relayed_until = watch.relayed_until().await;
            let was_blind = self.frontier.blind.swap(relayed_until.is_err(), Ordering::Relaxed);
            match relayed_until {
                Ok(moment) => self.frontier.relayed_until.advance(moment),
                Err(error) if !was_blind => {
                    tracing::warn!(%error, "nobody can say what is current: soon it is served as stale");
                }
                Err(_) => {}
            }
            looked.cancel();
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    /// Whether `entry`, which Redis holds, cannot be older than the relays may be behind.
    pub(super) fn is_current(&self, entry: &Entry) -> bool {
        let late = Moment::now().before(self.options.relay_lag);
        self.frontier.relayed_until.load() >= late
            || entry.surely_known_at() >= late
            || !self.controls.holds(Protection::RelayLag)
    }
}
