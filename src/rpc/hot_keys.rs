//! StreamHotKeys: sends a snapshot at once and then one every interval, until the client, its deadline or the drain ends the
//! stream. A snapshot is sent when the flow-control window of the connection has room for it, so a slow reader misses
//! snapshots and delays no other stream. All streams share one computation of each ranking (`ranking.rs`).

mod ranking;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::unfold;
use futures_util::{FutureExt, Stream};
use tokio::time::{Interval, MissedTickBehavior};
use tonic::Status;

use super::allowance::Reservation;
use super::connection::Origin;
use super::{convert, status};
use crate::catalog::{Catalog, Ranked};
use crate::drain::Drain;
use crate::proto::{HotKey, Scope, StreamHotKeysRequest, StreamHotKeysResponse};
use ranking::{Ranking, RankingSnapshot};

/// Keys in a snapshot when the request gives no limit.
const DEFAULT_LIMIT: usize = 20;
/// Most keys in a snapshot. Every ranking is computed with this many, whatever limits the streams have, so that streams with
/// different limits share it.
const MAX_LIMIT: usize = 1_000;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);
/// A snapshot that was computed for another stream is reused while it is younger than this and than the stream's interval.
const MAX_AGE: Duration = DEFAULT_INTERVAL;

pub(super) type HotKeysStream =
    Pin<Box<dyn Stream<Item = Result<StreamHotKeysResponse, Status>> + Send>>;

/// What the streams send.
#[derive(Debug)]
pub(super) struct Watchers {
    drain: Drain,
    instance: Arc<Ranking>,
    fleet: Arc<Ranking>,
}

struct Watch {
    ranking: Arc<Ranking>,
    drain: Drain,
    limit: usize,
    ticks: Interval,
    sent: Option<Arc<RankingSnapshot>>,
    deadline: Option<Instant>,
    _place: Reservation,
}

impl Watchers {
    pub(super) fn new(catalog: &Arc<Catalog>, drain: Drain) -> Arc<Self> {
        let of = Arc::clone(catalog);
        let instance = Ranking::new(drain.clone(), move || {
            let catalog = Arc::clone(&of);
            async move { catalog.hot_keys(MAX_LIMIT) }.boxed()
        });
        let of = Arc::clone(catalog);
        let fleet = Ranking::new(drain.clone(), move || {
            let catalog = Arc::clone(&of);
            async move { catalog.fleet_hot_keys(MAX_LIMIT).await }.boxed()
        });
        Arc::new(Self { drain, instance, fleet })
    }

    pub(super) fn watch(
        &self,
        request: StreamHotKeysRequest,
        origin: &Origin,
    ) -> Result<HotKeysStream, Status> {
        let limit = limit(request.limit)?;
        let interval = interval(request.interval)?;
        let scope = Scope::try_from(request.scope)
            .map_err(|_| status::invalid("scope", "must be SCOPE_INSTANCE or SCOPE_FLEET"))?;
        let account = origin.account();
        let place = account.limits().watchers.take(1);
        let place = place.map_err(|over| account.over_limit(over))?;
        let ranking = match scope {
            Scope::Fleet => Arc::clone(&self.fleet),
            Scope::Instance | Scope::Unspecified => Arc::clone(&self.instance),
        };
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (drain, deadline) = (self.drain.clone(), origin.call.deadline);
        let watch = Watch { ranking, drain, limit, ticks, sent: None, deadline, _place: place };
        Ok(Box::pin(unfold(Some(watch), |watch| async { Some(watch?.next().await) })))
    }
}

impl Watch {
    /// The next snapshot, or the status with which the stream ends.
    async fn next(mut self) -> (Result<StreamHotKeysResponse, Status>, Option<Self>) {
        let (drain, deadline) = (self.drain.clone(), self.deadline);
        let snapshot = tokio::select! {
            // The drain first, so that it also ends a stream that always has a snapshot ready.
            biased;
            () = drain.announced() => return (Err(status::draining()), None),
            () = passed(deadline) => return (Err(status::deadline_exceeded()), None),
            snapshot = self.snapshot() => snapshot,
        };
        let message = message(&snapshot, self.limit);
        self.sent = Some(snapshot);
        (Ok(message), Some(self))
    }

    /// Waits for the next tick and then for a snapshot that this stream has not sent yet. The first one is computed after the
    /// stream was opened, so that it counts the caller's own reads before that.
    async fn snapshot(&mut self) -> Arc<RankingSnapshot> {
        self.ticks.tick().await;
        let now = Instant::now();
        let earliest = self.sent.as_ref().map_or(now, |sent| {
            let unsent = sent.began + Duration::from_nanos(1);
            let oldest = now.checked_sub(self.ticks.period().min(MAX_AGE));
            oldest.map_or(unsent, |oldest| oldest.max(unsent))
        });
        self.ranking.since(earliest).await
    }
}

fn message(snapshot: &RankingSnapshot, limit: usize) -> StreamHotKeysResponse {
    let Ranked { keys, instances, age } = &snapshot.ranked;
    let hottest = keys.iter().take(limit);
    let ranked = (1..).zip(hottest).map(|(rank, key)| HotKey {
        product_id: key.id.get(),
        rank,
        requests_per_second: key.per_second,
        error_bound: key.error_bound,
        share: key.share,
        redis_share: key.cold_shares.map(|[redis, _]| redis),
        postgres_share: key.cold_shares.map(|[_, postgres]| postgres),
    });
    StreamHotKeysResponse {
        observe_time: Some(snapshot.time.into()),
        hot_keys: ranked.collect(),
        instances: i32::try_from(*instances).unwrap_or(i32::MAX),
        age: (*age).try_into().ok(),
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn limit(requested: i32) -> Result<usize, Status> {
    match usize::try_from(requested) {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(limit) if limit <= MAX_LIMIT => Ok(limit),
        _ => Err(status::invalid(
            "limit",
            format!("must be 1 to {MAX_LIMIT}, or 0 for {DEFAULT_LIMIT}"),
        )),
    }
}

fn interval(requested: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(requested) = requested else { return Ok(DEFAULT_INTERVAL) };
    let interval = convert::non_negative_duration("interval", requested)?;
    if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
        return Err(status::invalid("interval", "must be 0.1s to 3600s"));
    }
    Ok(interval)
}
