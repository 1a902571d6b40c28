//! The probe of Redis: which node serves which slots, which nodes answer, what they refuse, and whether they lost data.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Catalog;
use crate::metrics::BackgroundTask;
use crate::moment::Moment;

/// Between two probes. Too high: Redis is used again later after a fault, and lost data is found later. Too low: needless
/// commands.
const INTERVAL: Duration = Duration::from_millis(250);
/// Between two searches for other catalogues in the namespace.
const MEET_INTERVAL: Duration = Duration::from_secs(5);

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
            if met.is_none_or(|met| met.elapsed() >= MEET_INTERVAL)
                && self.redis.register_catalogue().await.is_ok()
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
            // Memory may have been compared with an entry of a node that had lost newer ones.
            self.hot.distrust_before(Moment::now());
        }
    }
}
