//! What the gauges of the Postgres tier read.

use std::sync::Arc;

use super::budget::Counts;
use super::{BACKGROUND, Postgres};
use crate::metrics::PostgresShare;

impl Postgres {
    /// Registers the gauges.
    pub fn observe(self: &Arc<Self>) {
        let metrics = &self.metrics;
        let help = "Open connections to PostgreSQL.";
        let (open, limit) = (Self::connections, Self::most_connections);
        metrics.bounded("hotshelf.postgres.connections", help, self, open, limit);
        let help = "Open connections to PostgreSQL that are not in use.";
        metrics.gauge("hotshelf.postgres.connections.idle", help, self, Self::idle_connections);
        let help = "Loads from PostgreSQL that run or wait for their turn.";
        let (in_flight, limit) = (Self::loads_in_flight, Self::most_loads_in_flight);
        metrics.bounded("hotshelf.postgres.loads.in.flight", help, self, in_flight, limit);
        let help = "Statements of callers that run, by share of the connections to PostgreSQL.";
        let in_use = |postgres: &Self, share| postgres.counts(share).running;
        let limit = |postgres: &Self, share| postgres.counts(share).most_running;
        metrics.all_bounded("hotshelf.postgres.share.in.use", help, self, in_use, limit);
        let help = "Statements of callers that wait for their turn, by share.";
        let waiting = |postgres: &Self, share| postgres.counts(share).waiting;
        let limit = |postgres: &Self, share| postgres.counts(share).most_waiting;
        metrics.all_bounded("hotshelf.postgres.share.waiting", help, self, waiting, limit);
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.callers.counts().0 + self.background.counts().0 + u64::from(self.pool.size())
    }

    fn most_connections(&self) -> u64 {
        u64::from(self.callers.limit() + self.background.limit() + BACKGROUND)
    }

    fn idle_connections(&self) -> u64 {
        self.callers.counts().1 + self.background.counts().1 + self.pool.num_idle() as u64
    }

    /// Loads that run or wait for a turn.
    #[must_use]
    pub fn loads_in_flight(&self) -> u64 {
        self.loads().map(|share| share.running + share.waiting).sum()
    }

    /// Whether loads wait for a turn.
    pub(crate) fn has_waiting_loads(&self) -> bool {
        self.loads().any(|share| share.waiting > 0)
    }

    fn most_loads_in_flight(&self) -> u64 {
        self.loads().map(|share| share.most_running + share.most_waiting).sum()
    }

    fn loads(&self) -> impl Iterator<Item = Counts> {
        [PostgresShare::Loads, PostgresShare::Latest].into_iter().map(|share| self.counts(share))
    }

    pub(super) fn counts(&self, share: PostgresShare) -> Counts {
        match share {
            PostgresShare::Loads => self.loads.counts(),
            PostgresShare::Latest => self.latest.counts(),
            PostgresShare::Writes => self.writers.counts(),
            PostgresShare::Operators => self.operators.counts(),
        }
    }
}
