//! Looking after Redis: who serves what, who answers again; and finding out from when on what it holds can be
//! vouched for, after it may have lost something.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::Catalog;
use crate::moment::Moment;

/// How often. Too high: Redis is used again later after a fault, and what it lost is noticed later. Too low:
/// needless commands.
const INTERVAL: Duration = Duration::from_millis(250);

impl Catalog {
    pub(super) fn start_looking_after_redis(self: &Arc<Self>) {
        let catalog = Arc::clone(self);
        self.drain.spawn_loop("care of Redis", async move { catalog.keep_looking().await });
    }

    async fn keep_looking(self: Arc<Self>) -> Result<Infallible, Infallible> {
        loop {
            self.look_after_redis().await;
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    /// Looks once.
    pub async fn look_after_redis(&self) {
        let _one = self.looking.lock().await;
        for unvouched in self.redis.look_after().await {
            unvouched.vouch(Moment::NEVER);
        }
    }
}
