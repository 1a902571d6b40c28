//! The most read products, of this instance and of the fleet.

use std::time::{Duration, Instant};

use super::{Catalog, HotKey};
use crate::hot_keys::two_deviations;
use crate::product::ProductId;
use crate::redis::RANKING_TTL;

/// Products that are read of the fleet's ranking.
const FLEET_KEYS: usize = 1_000;

/// The most read products, the most read first, and what that is based on.
#[derive(Clone, Debug, Default)]
pub struct Ranked {
    pub keys: Vec<HotKey>,
    /// The instances whose reads are counted; 0: unknown.
    pub instances: u32,
    /// How long ago the ranking was read from Redis. Not zero while Redis does not answer.
    pub age: Duration,
}

impl Catalog {
    /// The products that callers of this instance read most.
    #[must_use]
    pub fn hot_keys(&self, limit: usize) -> Ranked {
        Ranked { keys: self.hot_keys.top(limit), instances: 1, age: Duration::ZERO }
    }

    /// The products that callers of all instances read most. While Redis does not answer, the ranking that was read last, as long as
    /// Redis itself would have kept it.
    pub async fn fleet_hot_keys(&self, limit: usize) -> Ranked {
        let read = self.redis.ranking(FLEET_KEYS).await;
        let is_new = read.is_ok();
        let mut last = self.fleet_ranking.lock();
        if let Ok((ranked, all)) = read {
            let window = self.redis.ranking_window().as_secs_f64();
            let key = |(id, per_second): (ProductId, f64)| {
                let error_bound = two_deviations(per_second * window) / window;
                let share = (per_second / all.max(per_second)).min(1.0);
                HotKey { id, per_second, error_bound, share, cold_shares: None }
            };
            let keys = ranked.into_iter().map(key).collect();
            let instances = self.redis.ranking_instances();
            *last = Some((Ranked { keys, instances, age: Duration::ZERO }, Instant::now()));
        }
        let Some((mut ranked, when)) = last.clone() else { return Ranked::default() };
        drop(last);
        let age = when.elapsed();
        if age > RANKING_TTL {
            return Ranked { age, ..Ranked::default() };
        }
        ranked.keys.truncate(limit);
        Ranked { age: if is_new { Duration::ZERO } else { age }, ..ranked }
    }
}
