//! What the live page shows of products: the rankings, and an explanation.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::admin::PageProducts;
use crate::caller::CallContext;
use crate::catalog::{Catalog, Explanation, HotKey, Verdict};
use crate::entry::Entry;
use crate::metrics::ServedBy;
use crate::product::ProductId;

/// Products in each ranking.
const RANKED: usize = 12;
/// The longest that an explanation waits for its turn.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// `explains`: whether anybody who reaches a port may call ExplainProduct. The admin port asks for no credentials.
pub(super) fn show(page: &PageProducts, catalog: &Arc<Catalog>, explains: bool) {
    let of = Arc::clone(catalog);
    let rankings = Box::new(move || {
        let catalog = Arc::clone(&of);
        async move {
            let fleet = catalog.fleet_hot_keys(RANKED).await;
            json!({
                "instance": ranking(&catalog.hot_keys(RANKED).keys),
                "fleet": ranking(&fleet.keys),
                "fleet_instances": fleet.instances,
                "fleet_age_ms": millis(fleet.age),
            })
        }
        .boxed()
    });
    let of = Arc::clone(catalog);
    let explain = move |id| {
        let catalog = Arc::clone(&of);
        async move { explain(&catalog, id).await }.boxed()
    };
    page.set(rankings, explains.then(|| Box::new(explain) as _));
}

/// Ids are text, because a number of JavaScript is exact only up to 2^53.
fn ranking(keys: &[HotKey]) -> Vec<Value> {
    let key = |key: &HotKey| json!({ "id": key.id.to_string(), "per_second": key.per_second });
    keys.iter().map(key).collect()
}

async fn explain(catalog: &Arc<Catalog>, id: i64) -> Result<Value, String> {
    let id = ProductId::new(id).ok_or("the id must be 1 or more")?;
    let deadline = Some(Instant::now() + EXPLAIN_TIMEOUT);
    let call = CallContext { deadline, ..CallContext::BACKGROUND };
    match Box::pin(catalog.explain(id, call)).await {
        Ok(explanation) => Ok(message(id, &explanation)),
        Err(_) => Err("too many explanations are asked for; try again".to_owned()),
    }
}

fn message(id: ProductId, explanation: &Explanation) -> Value {
    let (tier, reason) = explanation.served_from;
    let memory = explanation.memory.as_ref();
    json!({
        "id": id.to_string(),
        "served_from": match tier {
            ServedBy::Hot => "memory",
            ServedBy::Redis => "Redis",
            ServedBy::Postgres => "PostgreSQL",
        },
        "reason": reason,
        "floor": explanation.floor.version.0.to_string().trim_start_matches('0'),
        "feed_lag_ms": millis(explanation.feed_lag),
        "memory": {
            "state": memory.map_or("empty", |(_, verdict)| state(*verdict)),
            "copy": memory.map(|(held, _)| copy(&held.entry)),
            "load_in_flight": explanation.load_in_flight,
        },
        "redis": explanation.redis.as_ref().map(|redis| json!({
            "copy": redis.entry.as_ref().map(copy),
            "usable": explanation.redis_verdict.is_some_and(Verdict::answers),
            "leased": redis.lease.is_some(),
        })),
        "postgres": explanation.postgres.as_ref().map(|row| json!({
            "exists": row.row.is_some(),
            "version": row.row.map(|(version, _)| version.0.to_string()),
            "update_time": row.row.and_then(|(_, time)| time).map(shown),
            "pending_changes": row.pending_changes,
        })),
    })
}

fn state(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fresh => "fresh",
        Verdict::PastSoftTtl => "past its soft TTL",
        Verdict::PastHardTtl => "past its hard TTL",
        Verdict::Invalidated => "invalidated",
        Verdict::Unconfirmed | Verdict::Suspect | Verdict::NotFreshEnough => "untrusted",
    }
}

fn copy(entry: &Entry) -> Value {
    let age = millis(entry.known_at().elapsed());
    json!({
        "version": entry.revision().version.0.to_string(),
        "tombstone": entry.is_tombstone(),
        "age_ms": age,
        "soft_ttl_ms": millis(entry.ttl().soft) - age,
        "hard_ttl_ms": millis(entry.ttl().hard) - age,
    })
}

fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
