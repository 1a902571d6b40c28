//! Looking after Redis: who serves what, who answers again; and finding out from when on what it holds can be
//! vouched for, after it may have lost something.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Catalog;
use crate::metrics::BackgroundTask;
use crate::moment::Moment;
use crate::redis::Unvouched;

/// How often. Too high: Redis is used again later after a fault, and what it lost is noticed later. Too low:
/// needless commands.
const INTERVAL: Duration = Duration::from_millis(250);
/// A relay that was at work when Redis lost its writes has committed after this long, and its changes can be
/// relayed again, too.
const REPLAY_AGAIN: Duration = Duration::from_secs(3);

impl Catalog {
    pub(super) fn start_looking_after_redis(self: &Arc<Self>) {
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::RedisProbe, move || Arc::clone(&catalog).keep_looking());
    }

    async fn keep_looking(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut replay_at = None;
        loop {
            if self.look_after_redis().await {
                replay_at = Some(Instant::now() + REPLAY_AGAIN);
            }
            if replay_at.is_some_and(|at| at <= Instant::now()) {
                replay_at = None;
                self.replay().await;
            }
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    /// Looks once. Returns whether Redis may have lost something, and nobody knew.
    pub async fn look_after_redis(&self) -> bool {
        let _one = self.looking.lock().await;
        let mut lost = false;
        for unvouched in self.redis.look_after().await {
            lost |= self.vouch(&unvouched).await;
        }
        lost
    }

    /// Finds out from when on what has this history can be vouched for. Until Postgres says, nothing of it is.
    async fn vouch(&self, unvouched: &Unvouched) -> bool {
        if unvouched.is_news {
            // It may have been compared with what had lost something.
            self.hot.void_before(Moment::now());
        }
        match self.postgres.witness(unvouched.id(), self.options.replay_window).await {
            Ok(witnessed) => {
                // Changes of the last window before were relayed again; half of it is for how long that took.
                let reach = witnessed.known_for + self.options.replay_window / 2;
                unvouched.vouch(Moment::now().before(reach));
                if witnessed.is_news {
                    tracing::info!("Redis has another history: what it held before is read again");
                }
                witnessed.is_news
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can vouch for what Redis holds");
                false
            }
        }
    }
}
