//! Announces the end, tracks what still runs, and waits for it with a limit. The only place that spawns.

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

/// The life of one instance. Clones are the same life.
#[derive(Clone, Debug)]
pub struct Drain {
    announced: CancellationToken,
    ended: CancellationToken,
    calls: TaskTracker,
    background: TaskTracker,
    supervisor: Supervisor,
}

impl Drain {
    /// The life of an instance that begins now.
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

    /// What keeps the background tasks running.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Announces the end: no new calls, streams end.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    /// Resolves when the end has been announced.
    pub async fn announced(&self) {
        self.announced.cancelled().await;
    }

    /// Whether the end has been announced.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.announced.is_cancelled()
    }

    /// Resolves when the grace is over, and whatever still runs should stop.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Runs work that callers wait for: connections, loads, writes. Drain waits for it, and a caller that goes
    /// away does not end it.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(self.calls.track_future(work))
    }

    /// Runs the loop that `work` makes until the calls have ended. A loop ends only by failing: then `work` makes another.
    ///
    /// What a loop has to keep from one run to the next (listeners, receivers) belongs to `work`, which lends it out.
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

    /// The same for a loop that accepts calls: it runs until the end is announced, and drain waits for what it accepted.
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

    /// Ends everything where it is, without waiting.
    #[cfg(feature = "test-hooks")]
    pub fn abandon(&self) {
        self.announce();
        self.ended.cancel();
    }

    /// Waits until the calls have ended, at most `grace`, then ends the loops. Returns whether all calls
    /// ended by themselves.
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

/// For parts that are made without an instance: their restarts are counted in metrics of their own.
impl Default for Drain {
    fn default() -> Self {
        Self::new(Metrics::new())
    }
}
