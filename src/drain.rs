//! Graceful shutdown: announces it, tracks running work, and waits for that work with a limit.
//!
//! The only module that spawns tasks, so that no task escapes the drain.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{BackgroundTask, Metrics};
use crate::supervisor::Supervisor;

/// The shutdown state and the tasks of one instance; clones share them.
#[derive(Clone, Debug)]
pub struct Drain {
    announced: CancellationToken,
    ended: CancellationToken,
    calls: TaskTracker,
    background: TaskTracker,
    supervisor: Supervisor,
}

impl Drain {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            announced: CancellationToken::new(),
            ended: CancellationToken::new(),
            calls: TaskTracker::new(),
            background: TaskTracker::new(),
            supervisor: Supervisor::new(metrics),
        }
    }

    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Starts the shutdown: the accept loops stop and streams end.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    pub async fn announced(&self) {
        self.announced.cancelled().await;
    }

    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.announced.is_cancelled()
    }

    /// Resolves when all calls have ended or the grace period is over; what still runs has to stop then.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Runs work that callers wait for: connections, loads, writes. [`Self::finish`] waits for it. Dropping the handle
    /// does not cancel it, so a load or a write continues when its caller disconnects.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(self.calls.track_future(work))
    }

    /// Runs a background loop until [`Self::ended`]. A loop returns or panics only on failure; then `work` makes another.
    ///
    /// State that has to survive a restart (listeners, receivers) belongs to `work`, which lends it to each run.
    pub fn spawn_loop<F, E>(
        &self,
        task: BackgroundTask,
        work: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Infallible, E>> + Send + 'static,
        E: Display + Send,
    {
        self.supervise(&self.background, &self.ended, task, work);
    }

    /// Runs a loop that accepts calls until [`Self::announced`]. What it accepted is spawned with [`Self::spawn`], and drain
    /// waits for that.
    pub fn spawn_accept_loop<F, E>(
        &self,
        task: BackgroundTask,
        work: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Infallible, E>> + Send + 'static,
        E: Display + Send,
    {
        self.supervise(&self.calls, &self.announced, task, work);
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    fn supervise<F, E>(
        &self,
        tracker: &TaskTracker,
        until: &CancellationToken,
        task: BackgroundTask,
        work: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Infallible, E>> + Send + 'static,
        E: Display + Send,
    {
        let (until, supervisor) = (until.clone(), self.supervisor.clone());
        tokio::spawn(tracker.track_future(async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = supervisor.keep_running(task, work) => {}
            }
        }));
    }

    /// Announces the shutdown and stops the loops at once, without waiting for calls.
    #[cfg(feature = "test-hooks")]
    pub fn abandon(&self) {
        self.announce();
        self.ended.cancel();
    }

    /// Announces the shutdown, waits at most `grace` for the calls to end, then stops the loops. Returns false when calls
    /// still ran after `grace`.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.announce();
        self.calls.close();
        let in_time = tokio::time::timeout(grace, self.calls.wait()).await.is_ok();
        self.ended.cancel();
        self.background.close();
        self.background.wait().await;
        in_time
    }
}

/// For parts that are built without an instance, as in unit tests; restarts are counted in separate metrics.
impl Default for Drain {
    fn default() -> Self {
        Self::new(Metrics::new())
    }
}
