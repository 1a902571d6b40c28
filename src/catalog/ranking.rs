//! The most read products, of this instance and of the fleet.

use super::{Catalog, HotKey};
use crate::hot_keys::two_deviations;
use crate::product::ProductId;

impl Catalog {
    /// The products that callers of this instance read most.
    #[must_use]
    pub fn hot_keys(&self, limit: usize) -> Vec<HotKey> {
        self.hot_keys.top(limit)
    }

    /// The products that callers of all instances read most; empty while Redis does not answer.
    pub async fn fleet_hot_keys(&self, limit: usize) -> Vec<HotKey> {
        let (ranked, all) = self.redis.ranking(limit).await.unwrap_or_default();
        let window = self.redis.ranking_window().as_secs_f64();
        let key = |(id, per_second): (ProductId, f64)| {
            let error_bound = two_deviations(per_second * window) / window;
            let share = (per_second / all.max(per_second)).min(1.0);
            HotKey { id, per_second, error_bound, share, cold_shares: None }
        };
        ranked.into_iter().map(key).collect()
    }
}
