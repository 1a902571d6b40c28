//! The fleet's hot keys: a sorted set of decaying counts, to which every instance adds its own.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fred::types::Value;
use futures_util::FutureExt;

use super::breaker::Outcome;
use super::entry_bytes::millis;
use super::lease::number;
use super::node::{NoReply, NodeCommand};
use super::{Redis, Unavailable};
use crate::metrics::RedisOperation;
use crate::product::ProductId;

/// A count without further reads halves in this time.
pub(crate) const HALF_LIFE: Duration = Duration::from_secs(10);
/// After this long without reads of anybody the ranking is forgotten.
pub(crate) const RANKING_TTL: Duration = HALF_LIFE.saturating_mul(30);
/// An instance that added nothing for this long is gone. Too low: one with a long refresh interval comes and goes.
const SILENT: Duration = HALF_LIFE.saturating_mul(3);
/// Products in the ranking.
const RANKED_PRODUCTS: u64 = 2_000;
/// The member that counts the reads of all products: no product has this id. It is never outranked.
const ALL: i64 = 0;

impl Redis {
    /// Adds this instance's counts since the last call, and its reads of any product.
    pub(crate) async fn add_to_ranking(
        &self,
        counts: &[(ProductId, u64)],
        reads: u64,
    ) -> Result<(), Unavailable> {
        let mut args = vec![
            number(millis(HALF_LIFE)),
            number(RANKED_PRODUCTS),
            number(millis(RANKING_TTL)),
            self.instance.clone().into(),
            number(millis(SILENT)),
            number(reads),
            ALL.into(),
        ];
        for (id, count) in counts {
            args.push(number(*count));
            args.push(Value::Integer(id.get()));
        }
        // Each instance calls this from one loop, so the call serves as the probe of this breaker.
        self.ranking_breaker.probing();
        let began = Instant::now();
        let reply = self.run(&self.scripts.ranking, self.keys().ranking(), args);
        let reply = reply.inspect(|reply| self.ranking_breaker.probed(Outcome::of(reply), began));
        let instances = self.counted(RedisOperation::Ranking, reply).await?;
        self.ranking_instances.store(instances, Ordering::Relaxed);
        Ok(())
    }

    /// The instances whose reads the fleet's ranking counts, when this instance added its own.
    #[must_use]
    pub(crate) fn ranking_instances(&self) -> u32 {
        self.ranking_instances.load(Ordering::Relaxed)
    }

    /// The window of plain counting with the same variance as the decaying counts: 2h / ln 2 for a half-life of h.
    #[must_use]
    pub(crate) fn ranking_window(&self) -> Duration {
        HALF_LIFE.mul_f64(2.0 / std::f64::consts::LN_2)
    }

    /// The hottest products of the fleet with their requests per second, hottest first, and the requests per second of all products.
    pub(crate) async fn ranking(
        &self,
        limit: usize,
    ) -> Result<(Vec<(ProductId, f64)>, f64), Unavailable> {
        if limit == 0 {
            return Ok((Vec::new(), 0.0));
        }
        // One more than `limit`, for the count of all.
        let last = i64::try_from(limit).unwrap_or(i64::MAX);
        let ranking = self.keys().ranking().swap_remove(0);
        if !self.ranking_breaker.admits() {
            return Err(Unavailable);
        }
        let args = vec![ranking.clone().into(), number(0), last.into(), "WITHSCORES".into()];
        let began = Instant::now();
        let reply = self.nodes.send(&ranking, NodeCommand::new("ZREVRANGE", args)).map(|reply| {
            self.ranking_breaker.record(Outcome::of(&reply), began);
            reply.and_then(|value| value.convert().map_err(NoReply::Failed))
        });
        let members: Vec<(i64, f64)> = self.counted(RedisOperation::Ranking, reply).await?;
        // A count with half-life h and r reads per second converges to r h / ln 2.
        let per_second = std::f64::consts::LN_2 / HALF_LIFE.as_secs_f64();
        let all = members.iter().find(|(id, _)| *id == ALL).map_or(0.0, |(_, count)| *count);
        let ranked = members
            .into_iter()
            .filter_map(|(id, count)| Some((ProductId::new(id)?, count * per_second)));
        Ok((ranked.take(limit).collect(), all * per_second))
    }
}
