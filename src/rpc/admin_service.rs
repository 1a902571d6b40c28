//! `hotshelf.v1.AdminService`: ExplainProduct for operators, and the conversion of its response.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::connection::Origin;
use super::convert;
use crate::catalog::{Catalog, Explanation, Verdict};
use crate::entry::Entry;
use crate::metrics::ServedBy;
use crate::product::ProductId;
use crate::proto::admin::AdminService;
use crate::proto::{
    CachedCopy, ChangeStream, ExplainProductRequest, ExplainProductResponse, MemoryCopy,
    PostgresRow, RedisCopy, SlotState, Tier,
};

#[derive(Debug)]
pub(super) struct Admin {
    pub(super) catalog: Arc<Catalog>,
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn explain_product(
        &self,
        request: Request<ExplainProductRequest>,
    ) -> Result<Response<ExplainProductResponse>, Status> {
        let origin = Origin::of(&request)?;
        let id = convert::id("id", request.into_inner().id)?;
        let explanation = Box::pin(self.catalog.explain(id, origin.call)).await;
        let explanation = explanation.map_err(|error| origin.failed(&error, None))?;
        Ok(Response::new(message(id, &explanation)))
    }
}

fn message(id: ProductId, explanation: &Explanation) -> ExplainProductResponse {
    let (tier, reason) = explanation.served_from;
    ExplainProductResponse {
        id: id.get(),
        memory: Some(memory(explanation)),
        redis: Some(redis(explanation)),
        postgres: Some(postgres(explanation)),
        change_stream: Some(ChangeStream {
            lag: duration(explanation.feed_lag),
            relay_lag: duration(explanation.relay_lag),
            hot_lease_valid: explanation.lease_valid,
        }),
        served_from: match tier {
            ServedBy::Hot => Tier::Hot,
            ServedBy::Redis => Tier::Redis,
            ServedBy::Postgres => Tier::Postgres,
        }
        .into(),
        reason: reason.to_owned(),
    }
}

fn memory(explanation: &Explanation) -> MemoryCopy {
    let held = explanation.memory.as_ref().map(|(held, _)| held);
    let state = match explanation.memory.as_ref().map(|(_, verdict)| verdict) {
        None => SlotState::Empty,
        Some(Verdict::Fresh) => SlotState::Fresh,
        Some(Verdict::PastSoftTtl) => SlotState::PastSoftTtl,
        Some(Verdict::PastHardTtl) => SlotState::PastHardTtl,
        Some(Verdict::Invalidated) => SlotState::Invalidated,
        Some(Verdict::Unconfirmed | Verdict::Suspect | Verdict::NotFreshEnough) => {
            SlotState::Untrusted
        }
    };
    MemoryCopy {
        state: state.into(),
        copy: held.map(|held| copy(&held.entry)),
        checked_age: held.and_then(|held| duration(held.checked_at.elapsed())),
        floor_version: held.map_or(0, |held| held.floor().version.0),
        load_in_flight: explanation.load_in_flight,
    }
}

fn redis(explanation: &Explanation) -> RedisCopy {
    let Some(state) = &explanation.redis else { return RedisCopy::default() };
    let hex = |token: &[u8]| token.iter().map(|byte| format!("{byte:02x}")).collect();
    RedisCopy {
        reachable: true,
        copy: state.entry.as_ref().map(copy),
        usable: explanation.redis_verdict.is_some_and(Verdict::answers),
        leased: state.lease.is_some(),
        lease_token: state.lease.as_ref().map(|lease| hex(&lease.token)).unwrap_or_default(),
        lease_age: state.lease.as_ref().and_then(|lease| duration(lease.age)),
    }
}

fn postgres(explanation: &Explanation) -> PostgresRow {
    let Some(state) = &explanation.postgres else { return PostgresRow::default() };
    PostgresRow {
        reachable: true,
        exists: state.row.is_some(),
        version: state.row.map_or(0, |(version, _)| version.0),
        update_time: state.row.and_then(|(_, time)| time).map(Into::into),
        pending_changes: i64::try_from(state.pending_changes).unwrap_or(i64::MAX),
    }
}

fn copy(entry: &Entry) -> CachedCopy {
    let age = entry.known_at().elapsed();
    CachedCopy {
        version: entry.revision().version.0,
        tombstone: entry.is_tombstone(),
        age: duration(age),
        soft_ttl_remaining: difference(entry.ttl().soft, age),
        hard_ttl_remaining: difference(entry.ttl().hard, age),
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// `a - b`, which may be negative.
fn difference(a: Duration, b: Duration) -> Option<prost_types::Duration> {
    match a.checked_sub(b) {
        Some(difference) => duration(difference),
        None => duration(b - a)
            .map(|by| prost_types::Duration { seconds: -by.seconds, nanos: -by.nanos }),
    }
}
