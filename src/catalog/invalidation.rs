//! Following the change stream: what changed is void in memory, and a stream that has been followed to its
//! end proves that the rest is current.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Catalog;
use crate::metrics::BackgroundTask;
use crate::redis::Poll;

/// With Redis in trouble, the follower waits this long between tries.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

impl Catalog {
    /// Once it is known how far the relays are: no proof is one without.
    pub(super) fn start_following(self: &Arc<Self>, looked: CancellationToken) {
        let catalog = Arc::clone(self);
        self.drain.spawn_loop(BackgroundTask::ChangeFeed, move || {
            Arc::clone(&catalog).follow(looked.clone())
        });
    }

    /// Each run begins at the end of the stream and voids memory: a run that panicked may have taken changes from the
    /// stream that it did not apply.
    async fn follow(self: Arc<Self>, looked: CancellationToken) -> Result<Infallible, Infallible> {
        looked.cancelled().await;
        let mut follower = self.redis.follow_changes();
        let mut following = false;
        loop {
            // Before the stream is asked: what was told until then is heard of when it says that this is its end.
            let relayed_until = self.frontier.relayed_until();
            match follower.poll().await {
                Ok(Poll::Changes { changes, proven }) => {
                    for change in changes {
                        if self.hot.invalidate(change) {
                            // Read again before somebody asks: what memory held was worth keeping.
                            self.refresh_queue.ask(change.id);
                        }
                    }
                    if let Some(moment) = proven {
                        self.hot.prove(moment, relayed_until);
                    }
                }
                Ok(Poll::Restarted(moment)) => {
                    self.hot.void_before(moment);
                    if following {
                        tracing::warn!("part of the change stream was missed: memory is void");
                        self.metrics.stream_gaps.inc(());
                    }
                    // At the start, too: another instance may have died before it did.
                    self.replay().await;
                    // What is checked from that moment on hears of every change.
                    self.hot.prove(moment, relayed_until);
                    following = true;
                }
                Err(error) => {
                    tracing::debug!(%error, "the change stream cannot be followed");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    }

    pub(super) async fn replay(&self) {
        match self.postgres.replay_changes(self.options.replay_window).await {
            Ok(0) => {}
            Ok(changes) => {
                tracing::info!(changes, "relaying recent changes again, which Redis may have lost")
            }
            // The soft TTLs bound what is old then.
            Err(error) => tracing::warn!(%error, "recent changes cannot be relayed again"),
        }
    }
}
