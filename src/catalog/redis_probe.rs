//! Probing Redis: which node serves what, which ones answer, what they refuse, and whether their data may be old.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Catalog;
use crate::moment::Moment;

/// How often. Too high: Redis is used again later after a fault, and what it lost is noticed later. Too low:
/// needless commands.
const INTERVAL: Duration = Duration::from_millis(250);
/// A relay that was at work when Redis lost its writes has committed after this long, and its changes can be
/// relayed again, too.
const REPLAY_AGAIN: Duration = Duration::from_secs(3);

impl Catalog {
    pub(super) fn start_probing_redis(self: &Arc<Self>) {
        let catalog = Arc::clone(self);
        self.drain.spawn_loop("Redis probe", async move { catalog.keep_probing().await });
    }

    async fn keep_probing(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut replay_at = None;
        loop {
            if self.probe_redis().await {
                replay_at = Some(Instant::now() + REPLAY_AGAIN);
            }
            if replay_at.is_some_and(|at| at <= Instant::now()) {
                replay_at = None;
                self.replay().await;
            }
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    /// Probes every node once. Returns whether Redis may have lost something, and this instance is the first that found
    /// out.
    pub async fn probe_redis(&self) -> bool {
        let _one = self.probing.lock().await;
        let probed = self.redis.probe().await;
        if probed.changed {
            // It may have been compared with a node that had lost something.
            self.hot.void_before(Moment::now());
        }
        if probed.first {
            self.replay().await;
        }
        probed.first
    }
}
