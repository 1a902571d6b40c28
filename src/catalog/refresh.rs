//! Background refreshes: of entries that a read found past their soft TTL, and, before they expire, of the fleet's hottest
//! products. A refresh is a load like any other, under a lease, so one instance of the fleet does it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use super::{Catalog, Error};
use crate::caller::CallContext;
use crate::entry::Freshness;
use crate::metrics::{BackgroundTask, Metrics, RefreshRequest};
use crate::moment::Moment;
use crate::product::ProductId;

/// Queued refreshes. More are dropped: the next read of that product queues it again.
const QUEUE: usize = 1_024;
/// Products that are loaded together.
const BATCH: usize = 100;
/// Percent of its soft TTL after which a hot product is refreshed.
const AHEAD: u32 = 80;
/// After a refresh failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct RefreshQueue {
    requests: mpsc::Sender<ProductId>,
    metrics: Arc<Metrics>,
}

impl RefreshQueue {
    pub(super) fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<ProductId>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        (Self { requests, metrics }, receiver)
    }

    pub(super) fn ask(&self, id: ProductId) {
        let outcome = match self.requests.try_send(id) {
            Ok(()) => RefreshRequest::Queued,
            Err(_) => RefreshRequest::Dropped,
        };
        self.metrics.refresh_requests.inc(outcome);
    }
}

impl Catalog {
    pub(super) fn start_refreshing(self: &Arc<Self>, requests: mpsc::Receiver<ProductId>) {
        let (catalog, requests) = (Arc::clone(self), Arc::new(Mutex::new(requests)));
        self.drain.spawn_loop(BackgroundTask::RefreshOnRequest, move || {
            Arc::clone(&catalog).refresh_on_request(Arc::clone(&requests))
        });
    }

    async fn refresh_on_request(
        self: Arc<Self>,
        requests: Arc<Mutex<mpsc::Receiver<ProductId>>>,
    ) -> Result<Infallible, &'static str> {
        let mut requests = requests.lock().await;
        let mut ids = Vec::with_capacity(BATCH);
        while requests.recv_many(&mut ids, BATCH).await > 0 {
            ids.sort_unstable();
            ids.dedup();
            // Another request or instance may have refreshed it since it was queued.
            let due = |id: &ProductId| {
                let now = Moment::now();
                self.hot
                    .peek(*id)
                    .is_none_or(|held| held.is_invalidated() || held.entry.past_soft(now))
            };
            ids.retain(due);
            if self.load_all(&ids, Freshness::NotDue { percent: 100 }).await.is_err() {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
            ids.clear();
        }
        Err("the queue was closed")
    }

    async fn refresh_ahead(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let mut tick = tokio::time::interval(self.options.refresh_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (counts, reads) = self.hot_keys.take_new_counts();
            // Failures are counted by the Redis client; the next tick tries again.
            let _ = self.redis.add_to_ranking(&counts, reads).await;
            if let Ok((ranking, _)) = self.redis.ranking(self.options.refresh_keys).await {
                let hottest: Vec<ProductId> = ranking.into_iter().map(|(id, _)| id).collect();
                self.keep_warm(&hottest).await;
            }
        }
    }

    /// Loads the fleet's hottest products into memory, for at most `timeout`, and refreshes them from then on. Called after the
    /// first poll of the outbox: an entry loaded before it is not trusted.
    pub async fn warm(self: &Arc<Self>, timeout: Duration) {
        let warming = async {
            let ranked = self.redis.ranking(self.options.refresh_keys).await;
            let (ranking, _) = ranked.unwrap_or_default();
            let hottest: Vec<ProductId> = ranking.into_iter().map(|(id, _)| id).collect();
            for batch in hottest.chunks(BATCH) {
                self.load_all(batch, Freshness::Cached).await?;
            }
            Ok::<usize, Error>(hottest.len())
        };
        match tokio::time::timeout(timeout, warming).await {
            Ok(Ok(products)) => tracing::info!(products, "loaded the hottest products"),
            Ok(Err(error)) => tracing::warn!(%error, "starting without all hot products"),
            Err(_) => tracing::warn!(?timeout, "starting without all hot products: out of time"),
        }
        let catalog = Arc::clone(self);
        self.drain
            .spawn_loop(BackgroundTask::RefreshAhead, move || Arc::clone(&catalog).refresh_ahead());
    }

    /// Loads those of the hottest products that memory lacks or that are nearly due.
    async fn keep_warm(self: &Arc<Self>, hottest: &[ProductId]) {
        let now = Moment::now();
        let due =
            |id: &ProductId| self.hot.peek(*id).is_none_or(|held| held.entry.is_due(AHEAD, now));
        let due: Vec<ProductId> = hottest.iter().copied().filter(due).collect();
        for batch in due.chunks(BATCH) {
            if self.load_all(batch, Freshness::NotDue { percent: AHEAD }).await.is_err() {
                return;
            }
            self.metrics.refreshed.add((), batch.len() as u64);
        }
    }

    /// Loads `ids` and waits for all of them.
    async fn load_all(
        self: &Arc<Self>,
        ids: &[ProductId],
        freshness: Freshness,
    ) -> Result<(), Error> {
        for waiter in self.join(ids, freshness, CallContext::BACKGROUND) {
            match waiter.wait().await {
                // A row that cannot be expressed does not stop the refresh of others; the read has logged it.
                Ok(_) => {}
                Err(failed) if matches!(failed.error, Error::Unreadable(_)) => {}
                Err(failed) => return Err(failed.error.clone()),
            }
        }
        Ok(())
    }
}
