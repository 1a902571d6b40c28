//! What each tier holds of a product, and which one a read would be answered from: for the operator who is
//! asked "why do I see the old price?".

use std::time::Duration;

use super::{Catalog, Error};
use crate::caller::CallContext;
use crate::entry::{Entry, Freshness};
use crate::hot_cache::HotEntry;
use crate::metrics::ServedBy;
use crate::moment::Moment;
use crate::postgres::RowState;
use crate::product::{ProductId, Revision};
use crate::redis::RedisState;

/// Everything that is known of one product here.
#[derive(Debug)]
pub struct Explanation {
    /// What memory holds.
    pub memory: Option<HotEntry>,
    /// Whether memory may be served.
    pub slot: SlotState,
    /// Whether a load is in flight.
    pub load_in_flight: bool,
    /// What Redis holds; `None` when it does not answer.
    pub redis: Option<RedisState>,
    /// What Postgres holds; `None` when it does not answer.
    pub postgres: Option<RowState>,
    /// How long ago every change that was committed by then was surely known.
    pub feed_lag: Duration,
    /// For how long there have been changes that Redis does not reflect.
    pub relay_lag: Duration,
    /// The newest revision that the recent changes tell of this product.
    pub floor: Revision,
    /// Whether that is so recent that memory is trusted.
    pub lease_valid: bool,
    /// Where a plain read would be answered from, and why.
    pub verdict: (ServedBy, &'static str),
}

/// Whether memory may be served, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing is held.
    Empty,
    /// Served.
    Fresh,
    /// Served, and refreshed in the background.
    PastSoftTtl,
    /// Gone.
    PastHardTtl,
    /// Known to be old.
    Invalidated,
    /// Not known to be current.
    Untrusted,
}

impl Catalog {
    /// Looks at every tier, changes nothing, and counts as no read.
    ///
    /// # Errors
    /// [`Error::OverBudget`]: a tier that does not answer is part of the explanation.
    pub async fn explain(&self, id: ProductId, call: CallContext) -> Result<Explanation, Error> {
        let turn = self.postgres.operator_turn(call).await?;
        let (redis, postgres) =
            tokio::join!(self.redis.inspect(id), self.postgres.inspect(id, &turn));
        let (redis, postgres) = (redis.ok().map(|redis| self.judge(id, redis)), postgres.ok());
        let memory = self.hot.peek(id);
        let slot = self.slot_state(memory.as_ref());
        Ok(Explanation {
            verdict: verdict(slot, redis.as_ref()),
            slot,
            memory,
            load_in_flight: self.singleflight.is_in_flight(id),
            redis,
            postgres,
            feed_lag: self.hot.known_until().elapsed().min(self.began.elapsed()),
            relay_lag: self.feed.relay_lag(),
            floor: self.recent.floor(id),
            lease_valid: self.hot.is_proven(),
        })
    }

    fn judge(&self, id: ProductId, redis: RedisState) -> RedisState {
        let floor = self.recent.floor(id);
        let judge = |entry: Entry| {
            let current = self.is_current(&entry) && entry.revision() >= floor;
            if current { entry } else { entry.suspect() }
        };
        RedisState { entry: redis.entry.map(judge), ..redis }
    }

    fn slot_state(&self, held: Option<&HotEntry>) -> SlotState {
        let now = Moment::now();
        match held {
            None => SlotState::Empty,
            Some(held) if held.is_invalidated() => SlotState::Invalidated,
            Some(held) if held.entry.past_hard(now) => SlotState::PastHardTtl,
            Some(held) if !self.hot.serves(held, &Freshness::Cached, now) => SlotState::Untrusted,
            Some(held) if held.entry.past_soft(now) => SlotState::PastSoftTtl,
            Some(_) => SlotState::Fresh,
        }
    }
}

fn verdict(slot: SlotState, redis: Option<&RedisState>) -> (ServedBy, &'static str) {
    match (slot, redis) {
        (SlotState::Fresh, _) => (ServedBy::Hot, "memory holds it, and no change was missed"),
        (SlotState::PastSoftTtl, _) => {
            (ServedBy::Hot, "memory holds it; past its soft TTL it is refreshed in the background")
        }
        (_, None) => (ServedBy::Postgres, "memory may not be served, and Redis does not answer"),
        (SlotState::Invalidated, Some(redis)) if redis.serves() => (
            ServedBy::Redis,
            "memory is void, because something newer was committed; Redis holds it",
        ),
        (SlotState::Untrusted, Some(redis)) if redis.serves() => (
            ServedBy::Redis,
            "memory may have missed a change, and is compared with Redis, which holds it",
        ),
        (_, Some(redis)) if redis.serves() => {
            (ServedBy::Redis, "memory does not hold it, and Redis does")
        }
        (_, Some(redis)) if redis.lease.is_some() => {
            (ServedBy::Postgres, "no cache holds it; a load that holds the lease is reading it")
        }
        (_, Some(redis)) if redis.entry.is_some() => {
            (ServedBy::Postgres, "what the caches hold may be old, and is compared with PostgreSQL")
        }
        _ => (ServedBy::Postgres, "no cache holds it"),
    }
}
