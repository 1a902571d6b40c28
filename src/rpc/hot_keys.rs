//! StreamHotKeys: a snapshot at once, then one every interval, until the caller, its deadline or the drain
//! ends it. A snapshot is made when the connection has room for it, so a slow reader misses some
//! and holds up nobody.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior};
use tonic::Status;

use super::deadline::Deadline;
use super::{convert, status};
use crate::catalog::Catalog;
use crate::drain::Drain;
use crate::metrics::{Metrics, Shed};
use crate::proto::{HotKey, Scope, StreamHotKeysRequest, StreamHotKeysResponse};

/// Keys of a snapshot when the request does not say.
const DEFAULT_LIMIT: usize = 20;
/// Most keys of a snapshot.
const MAX_LIMIT: usize = 1_000;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);

/// What the service sends.
pub(super) type HotKeysStream =
    Pin<Box<dyn Stream<Item = Result<StreamHotKeysResponse, Status>> + Send>>;

/// Those who watch, and how many may.
#[derive(Debug)]
pub(super) struct Watchers {
    free: Arc<Semaphore>,
    drain: Drain,
    metrics: Arc<Metrics>,
}

struct Watch {
    catalog: Arc<Catalog>,
    drain: Drain,
    limit: usize,
    scope: Scope,
    ticks: Interval,
    deadline: Option<Deadline>,
    _place: OwnedSemaphorePermit,
}

impl Watchers {
    pub(super) fn new(limit: usize, drain: Drain, metrics: Arc<Metrics>) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(limit));
        let help = "Open streams of hot keys.";
        metrics.gauge("hotshelf.hot.keys.watchers", help, &free, move |free| {
            limit.saturating_sub(free.available_permits()) as u64
        });
        Arc::new(Self { free, drain, metrics })
    }

    pub(super) fn watch(
        &self,
        request: StreamHotKeysRequest,
        deadline: Option<Deadline>,
        catalog: &Arc<Catalog>,
    ) -> Result<HotKeysStream, Status> {
        let limit = limit(request.limit)?;
        let interval = interval(request.interval)?;
        let scope = Scope::try_from(request.scope)
            .map_err(|_| status::invalid("scope", "must be SCOPE_INSTANCE or SCOPE_FLEET"))?;
        let Ok(place) = Arc::clone(&self.free).try_acquire_owned() else {
            self.metrics.shed.inc(Shed::Streams);
            return Err(status::too_many_streams());
        };
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (catalog, drain) = (Arc::clone(catalog), self.drain.clone());
        let watch = Watch { catalog, drain, limit, scope, ticks, deadline, _place: place };
        Ok(Box::pin(unfold(Some(watch), |watch| async { Some(watch?.next().await) })))
    }
}

impl Watch {
    /// The next snapshot, or how the stream ends.
    async fn next(mut self) -> (Result<StreamHotKeysResponse, Status>, Option<Self>) {
        tokio::select! {
            // The drain first, so that a stream which is always due still ends.
            biased;
            () = self.drain.announced() => (Err(status::draining()), None),
            () = passed(self.deadline) => (Err(status::deadline_exceeded()), None),
            _ = self.ticks.tick() => {
                let snapshot = self.snapshot().await;
                (Ok(snapshot), Some(self))
            }
        }
    }

    async fn snapshot(&self) -> StreamHotKeysResponse {
        let hottest = match self.scope {
            Scope::Fleet => self.catalog.fleet_hot_keys(self.limit).await,
            Scope::Instance | Scope::Unspecified => self.catalog.hot_keys(self.limit),
        };
        let ranked = (1..).zip(hottest).map(|(rank, key)| HotKey {
            product_id: key.id.get(),
            rank,
            requests_per_second: key.per_second,
            error_bound: key.error_bound,
        });
        StreamHotKeysResponse {
            observe_time: Some(SystemTime::now().into()),
            hot_keys: ranked.collect(),
        }
    }
}

async fn passed(deadline: Option<Deadline>) {
    match deadline {
        Some(Deadline(moment)) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn limit(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_LIMIT),
        Ok(limit) if limit <= MAX_LIMIT => Ok(limit),
        _ => Err(status::invalid(
            "limit",
            format!("must be 1 to {MAX_LIMIT}, or 0 for {DEFAULT_LIMIT}"),
        )),
    }
}

fn interval(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(asked) = asked else { return Ok(DEFAULT_INTERVAL) };
    let interval = convert::positive_duration("interval", asked)?;
    if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
        return Err(status::invalid("interval", "must be 0.1s to 3600s"));
    }
    Ok(interval)
}
