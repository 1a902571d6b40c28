//! Announces the end, tracks what still runs, and waits for it with a limit. The only place that spawns.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The life of one instance. Clones are the same life.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    announced: CancellationToken,
    ended: CancellationToken,
    calls: TaskTracker,
    background: TaskTracker,
}

impl Drain {
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

    /// Runs a loop in the background until the calls have ended. It can only end by failing, so none dies
    /// without a word.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_loop<F, E>(&self, name: &'static str, work: F)
    where
        F: Future<Output = Result<Infallible, E>> + Send + 'static,
        E: std::fmt::Display + Send,
    {
        let ended = self.ended.clone();
        tokio::spawn(self.background.track_future(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                Err(error) = work => tracing::error!(name, %error, "a background task ended"),
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
