//! What the gauges of the Redis tier read.

use std::sync::Arc;

use super::Redis;
use super::admission::{AT_ONCE, QUEUED};
use crate::metrics::RedisDependency;

impl Redis {
    /// Registers the gauges.
    pub fn observe(self: &Arc<Self>) {
        let metrics = &self.metrics;
        let help = "Open connections to Redis.";
        let (open, size) = (Self::connected, Self::size);
        metrics.bounded("hotshelf.redis.connected", help, self, open, size);
        let help = "Circuit breakers of Redis that are open or half open.";
        metrics.gauges("hotshelf.redis.breakers.open", help, self, Self::open_breakers);
        let help = "Redis servers that keep refusing commands or connections, by reason; an unreachable one counts.";
        metrics.gauges("hotshelf.redis.refusing", help, self, Self::refusing);
        let help = "Redis servers that lack an optional capability.";
        metrics.gauges("hotshelf.redis.limited", help, self, Self::limited);
        let help =
            "Other databases with instances that use the same Redis and namespace; should be 0.";
        metrics.gauge("hotshelf.redis.other.catalogues", help, self, Self::other_catalogues);
        let help = "Products that callers have asked Redis for, and that it has not answered yet.";
        let in_flight = |redis: &Self| redis.admission.counts()[0];
        let most = |_: &Self| AT_ONCE as u64;
        metrics.bounded("hotshelf.redis.commands.in.flight", help, self, in_flight, most);
        let help = "Commands of callers that wait to be sent to Redis.";
        let waiting = |redis: &Self| redis.admission.counts()[1];
        let most = |_: &Self| QUEUED as u64;
        metrics.bounded("hotshelf.redis.commands.waiting", help, self, waiting, most);
    }

    /// Established connections for commands.
    #[must_use]
    pub fn connected(&self) -> u64 {
        self.nodes.all().iter().map(|node| node.connections() as u64).sum()
    }

    /// The connections when all are established.
    fn size(&self) -> u64 {
        self.nodes.all().iter().map(|node| node.size() as u64).sum()
    }

    /// Breakers that are open or half open.
    #[must_use]
    pub fn open_breakers(&self, of: RedisDependency) -> u64 {
        match of {
            RedisDependency::Commands => {
                self.nodes.all().iter().filter(|node| !node.breaker.admits()).count() as u64
            }
            RedisDependency::Ranking => (!self.ranking_breaker.admits()).into(),
        }
    }
}
