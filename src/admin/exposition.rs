//! The text of `/metrics`. Concurrent scrapes share one computation, and computations are spaced, so that many scrapers cannot
//! take the CPU from calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::metrics::Metrics;

/// Minimum time between the starts of two computations; one takes about 2 ms. Too low: scrapers take more of a core. Too
/// high: a scrape takes longer.
const SPACING: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Exposition {
    metrics: Arc<Metrics>,
    latest: Mutex<Option<Computed>>,
}

#[derive(Debug)]
struct Computed {
    began: Instant,
    text: Result<Bytes, String>,
}

impl Exposition {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, latest: Mutex::default() }
    }

    /// Returns a text that was computed after this call began, so that it counts everything that happened before the scrape.
    pub(super) async fn text(&self) -> Result<Bytes, String> {
        let requested = Instant::now();
        loop {
            let pause = {
                let mut latest = self.latest.lock();
                let began = latest.as_ref().map(|latest| latest.began);
                match (&*latest, began.map_or(SPACING, |began| began.elapsed())) {
                    (Some(latest), _) if latest.began >= requested => return latest.text.clone(),
                    (_, since) if since >= SPACING => {
                        let began = Instant::now();
                        let text = self.metrics.exposition().map(Bytes::from);
                        let text = text.map_err(|error| error.to_string());
                        *latest = Some(Computed { began, text: text.clone() });
                        return text;
                    }
                    (_, since) => SPACING - since,
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::metrics::Shed;

    #[tokio::test]
    async fn concurrent_scrapes_share_one_computation() {
        let metrics = Metrics::new();
        let exposition = Exposition::new(Arc::clone(&metrics));
        exposition.text().await.expect("a text");
        metrics.shed.inc(Shed::Calls);
        let texts = join_all((0..100).map(|_| exposition.text())).await;
        let first = texts[0].as_ref().expect("a text");
        assert!(String::from_utf8_lossy(first).contains("hotshelf_shed_total{reason=\"calls\"} 1"));
        let shared = |text: &Result<Bytes, String>| {
            text.as_ref().is_ok_and(|text| text.as_ptr() == first.as_ptr())
        };
        assert!(texts.iter().all(shared), "one computation");
    }
}
