//! Probing Redis: which node serves what, which ones answer, what they refuse, and whether their data may be old.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Catalog;
use crate::metrics::BackgroundTask;
use crate::moment::Moment;

/// How often. Too high: Redis is used again later after a fault, and what it lost is noticed later. Too low:
/// needless commands.
const INTERVAL: Duration = Duration::from_millis(250);
/// How often other catalogues in the namespace are looked for.
const MEET: Duration = Duration::from_secs(5);

impl Catalog {
    pub(super) fn start_probing_redis(self: &Arc<Self>) {
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::RedisProbe, move || Arc::clone(&catalog).keep_probing());
    }

    async fn keep_probing(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut met: Option<Instant> = None;
        loop {
            self.probe_redis().await;
            if met.is_none_or(|met| met.elapsed() >= MEET)
                && self.redis.meet_catalogues().await.is_ok()
            {
                met = Some(Instant::now());
            }
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    /// Probes every node once.
    pub async fn probe_redis(&self) {
        let _one = self.probing.lock().await;
        if self.redis.probe().await {
            // It may have been compared with a node that had lost something.
            self.hot.distrust_before(Moment::now());
        }
    }
}
