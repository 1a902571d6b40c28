//! What each tier holds of a product, and from which tier a read would be answered: for the operator who asks
//! why an old price is seen.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::verdict::Verdict;
use super::{Catalog, Error};
use crate::caller::CallContext;
use crate::entry::Freshness;
use crate::hot_cache::HotEntry;
use crate::metrics::ServedBy;
use crate::moment::Moment;
use crate::postgres::RowState;
use crate::product::{ProductId, Revision};
use crate::redis::RedisState;

/// What this instance can find out about one product. The tiers are read one after the other, not at one instant.
#[derive(Debug)]
pub struct Explanation {
    /// What memory holds, and the verdict on it for a plain read.
    pub memory: Option<(HotEntry, Verdict)>,
    pub load_in_flight: bool,
    /// `None` when Redis does not answer.
    pub redis: Option<RedisState>,
    /// The verdict on the entry in Redis, if it holds one, for a plain read.
    pub redis_verdict: Option<Verdict>,
    /// `None` when Postgres does not answer.
    pub postgres: Option<RowState>,
    /// The age of the newest poll of the outbox.
    pub feed_lag: Duration,
    /// The age of the oldest change that Redis does not reflect.
    pub relay_lag: Duration,
    /// The newest revision of this product among the recent changes.
    pub floor: Revision,
    /// Whether the newest poll is recent enough for memory to be trusted without checking its entries' age.
    pub lease_valid: bool,
    /// The tier that a plain read would be answered from, and why.
    pub served_from: (ServedBy, &'static str),
}

impl Catalog {
    /// Reads every tier of this instance, changes nothing, and is not counted as a read.
    ///
    /// # Errors
    /// [`Error::OverBudget`]. A tier that does not answer is part of the explanation.
    pub async fn explain(&self, id: ProductId, call: CallContext) -> Result<Explanation, Error> {
        let turn = self.postgres.operator_turn(call).await?;
        let span = self.metrics.traces.call(call.span);
        let spans = [span.client("redis", "inspect"), span.client("postgresql", "explain")];
        let (redis, postgres) =
            tokio::join!(self.redis.inspect(id), self.postgres.inspect(id, &turn));
        drop(spans);
        let (redis, postgres) = (redis.ok(), postgres.ok());
        let (plain, floor) = (Freshness::Cached, self.recent.floor(id));
        let memory = self.hot.peek(id).map(|held| {
            let verdict = self.judge_hot(&held, &plain, Moment::now());
            (held, verdict)
        });
        let redis_verdict = redis
            .as_ref()
            .and_then(|redis| redis.entry.as_ref())
            .map(|entry| self.judge_redis(entry, &plain, floor));
        let leased = redis.as_ref().map(|redis| redis.lease.is_some());
        let memory_verdict = memory.as_ref().map(|(_, verdict)| *verdict);
        let unreachable = self.feed.is_unreachable();
        Ok(Explanation {
            served_from: served_from(memory_verdict, redis_verdict, leased, unreachable),
            memory,
            load_in_flight: self.singleflight.is_in_flight(id),
            redis,
            redis_verdict,
            postgres,
            feed_lag: self.hot.known_until().elapsed().min(self.began.elapsed()),
            relay_lag: self.feed.relay_lag(),
            floor,
            lease_valid: self.hot.has_valid_lease(),
        })
    }
}

/// For one line of the log.
impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.memory {
            Some((held, verdict)) => {
                let (version, checked) = (held.entry.revision().version, held.checked_at.elapsed());
                write!(f, "memory: version {version}, {verdict:?}, compared {checked:.1?} ago; ")?;
            }
            None => write!(f, "memory: nothing; ")?,
        }
        match &self.redis {
            Some(RedisState { entry: Some(entry), .. }) => {
                write!(f, "Redis: version {}; ", entry.revision().version)?;
            }
            Some(_) => write!(f, "Redis: nothing; ")?,
            None => write!(f, "Redis: no answer; ")?,
        }
        match self.postgres.map(|state| (state.row, state.pending_changes)) {
            Some((Some((version, _)), pending)) => {
                write!(f, "PostgreSQL: version {version}, {pending} changes not relayed; ")?;
            }
            Some((None, pending)) => {
                write!(f, "PostgreSQL: no row, {pending} changes not relayed; ")?;
            }
            None => write!(f, "PostgreSQL: no answer; ")?,
        }
        let (floor, lag, relay_lag) = (self.floor.version, self.feed_lag, self.relay_lag);
        write!(f, "floor {floor}, change feed lag {lag:.1?}, relay lag {relay_lag:.1?}; ")?;
        let (tier, why) = self.served_from;
        write!(f, "a read is answered by {tier:?}: {why}")
    }
}

/// `leased`: whether a lease is held, or `None` when Redis does not answer.
fn served_from(
    memory: Option<Verdict>,
    redis: Option<Verdict>,
    leased: Option<bool>,
    outbox_unreachable: bool,
) -> (ServedBy, &'static str) {
    let stale = |verdict| outbox_unreachable && verdict == Some(Verdict::Unconfirmed);
    match (memory, redis) {
        (Some(Verdict::Fresh), _) => {
            (ServedBy::Hot, "memory holds it, and every committed change is applied to it")
        }
        (Some(Verdict::PastSoftTtl), _) => {
            (ServedBy::Hot, "memory holds it; past its soft TTL it is refreshed in the background")
        }
        (memory, _) if stale(memory) => (
            ServedBy::Hot,
            "memory holds it; it is served marked stale, because the outbox cannot be read",
        ),
        _ if leased.is_none() => {
            (ServedBy::Postgres, "memory may not be served, and Redis does not answer")
        }
        (Some(Verdict::Invalidated), Some(redis)) if redis.answers() => (
            ServedBy::Redis,
            "memory is invalidated, because a newer revision was committed; Redis holds it",
        ),
        (Some(Verdict::Unconfirmed | Verdict::Suspect), Some(redis)) if redis.answers() => (
            ServedBy::Redis,
            "memory may have missed a change, and is compared with Redis, which holds it",
        ),
        (_, Some(redis)) if redis.answers() => {
            (ServedBy::Redis, "memory does not hold it, and Redis does")
        }
        (_, redis) if stale(redis) => (
            ServedBy::Redis,
            "Redis holds it; it is served marked stale, because the outbox cannot be read",
        ),
        _ if leased == Some(true) => {
            (ServedBy::Postgres, "no cache holds it; a load that holds the lease is reading it")
        }
        (_, Some(_)) => {
            (ServedBy::Postgres, "what the caches hold may be old, and is compared with PostgreSQL")
        }
        _ => (ServedBy::Postgres, "no cache holds it"),
    }
}
