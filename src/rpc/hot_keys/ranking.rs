//! A ranking that all streams share. It is computed when a stream needs a newer snapshot than the latest one, once for all
//! streams that wait for it, and at most once in [`SPACING`].
//!
//! The computation runs in a task of its own. A stream is polled only while its client reads, so a computation inside a stream
//! would block all other streams when that client stops reading.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::catalog::Ranked;
use crate::drain::Drain;

/// Minimum time between the starts of two computations, however many streams are opened. Too low: each new stream costs Redis
/// a read. Too high: the first snapshot of a stream comes later.
pub(super) const SPACING: Duration = Duration::from_millis(100);

type Compute = Box<dyn Fn() -> BoxFuture<'static, Ranked> + Send + Sync>;

/// The hottest products at one moment.
#[derive(Debug)]
pub(super) struct RankingSnapshot {
    /// When its computation began. It counts every read that ended before.
    pub(super) began: Instant,
    pub(super) time: SystemTime,
    pub(super) ranked: Ranked,
}

/// The latest snapshot of one scope (instance or fleet), and how to compute the next.
pub(super) struct Ranking {
    compute: Compute,
    drain: Drain,
    latest: watch::Sender<Option<Arc<RankingSnapshot>>>,
    /// Locked while `latest` is replaced, so that no computation starts for a snapshot that has just been computed.
    state: Mutex<RankingState>,
}

#[derive(Debug, Default)]
struct RankingState {
    running: bool,
    began: Option<Instant>,
}

/// One computation. Dropping it, also in a panic, allows the next to begin.
struct Computation {
    ranking: Arc<Ranking>,
    computed: Option<Arc<RankingSnapshot>>,
}

impl Ranking {
    pub(super) fn new(
        drain: Drain,
        compute: impl Fn() -> BoxFuture<'static, Ranked> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (latest, state) = (watch::Sender::new(None), Mutex::default());
        Arc::new(Self { compute: Box::new(compute), drain, latest, state })
    }

    /// Waits for a snapshot with a computation that began at `earliest` or later.
    pub(super) async fn since(self: &Arc<Self>, earliest: Instant) -> Arc<RankingSnapshot> {
        let mut latest = self.latest.subscribe();
        loop {
            if let Some(snapshot) = recent(&latest.borrow_and_update(), earliest) {
                return snapshot;
            }
            self.begin(earliest);
            // Never fails: `self` owns the sender.
            let _ = latest.changed().await;
        }
    }

    fn begin(self: &Arc<Self>, earliest: Instant) {
        let mut state = self.state.lock();
        if state.running || recent(&self.latest.borrow(), earliest).is_some() {
            return;
        }
        state.running = true;
        let since = state.began.map_or(SPACING, |began| began.elapsed());
        let computation = Computation { ranking: Arc::clone(self), computed: None };
        // Unlocked first: a runtime that shuts down drops the task inside `spawn`, and dropping the computation takes the lock.
        drop(state);
        drop(self.drain.spawn(computation.run_after(SPACING.saturating_sub(since))));
    }
}

fn recent(
    latest: &Option<Arc<RankingSnapshot>>,
    earliest: Instant,
) -> Option<Arc<RankingSnapshot>> {
    latest.as_ref().filter(|snapshot| snapshot.began >= earliest).cloned()
}

impl Computation {
    async fn run_after(mut self, pause: Duration) {
        tokio::time::sleep(pause).await;
        let began = Instant::now();
        self.ranking.state.lock().began = Some(began);
        let ranked = (self.ranking.compute)().await;
        self.computed = Some(Arc::new(RankingSnapshot { began, time: SystemTime::now(), ranked }));
    }
}

impl Drop for Computation {
    fn drop(&mut self) {
        let mut state = self.ranking.state.lock();
        state.running = false;
        // Wakes the streams also when there is no snapshot (the computation panicked): one of them begins the next one.
        self.ranking.latest.send_modify(|latest| {
            if let Some(computed) = self.computed.take() {
                *latest = Some(computed);
            }
        });
    }
}

impl std::fmt::Debug for Ranking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ranking").field("state", &self.state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    /// A ranking and the count of its computations, of which the first `panics` panic.
    fn counted(panics: usize) -> (Arc<Ranking>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let compute = move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                assert!(number >= panics, "injected");
                Ranked::default()
            }
            .boxed()
        };
        (Ranking::new(Drain::default(), compute), count)
    }

    #[tokio::test]
    async fn concurrent_streams_share_one_computation() {
        let (ranking, count) = counted(0);
        let now = Instant::now();
        let snapshots = join_all((0..1_000).map(|_| ranking.since(now))).await;
        assert!(snapshots.iter().all(|snapshot| snapshot.began >= now));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        ranking.since(now).await;
        assert_eq!(count.load(Ordering::Relaxed), 1, "the latest snapshot is recent enough");
    }

    #[tokio::test]
    async fn computations_begin_at_least_a_spacing_apart() {
        let (ranking, count) = counted(0);
        let mut before = ranking.since(Instant::now()).await;
        for _ in 0..3 {
            // What a newly opened stream requests.
            let next = ranking.since(Instant::now()).await;
            assert!(next.began.duration_since(before.began) >= SPACING);
            before = next;
        }
        assert_eq!(count.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_computation_outlives_the_stream_that_began_it() {
        let (ranking, count) = counted(0);
        let now = Instant::now();
        assert!(ranking.since(now).now_or_never().is_none(), "a computation takes a while");
        ranking.since(now).await;
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn after_a_panic_the_next_computation_begins() {
        let (ranking, count) = counted(1);
        ranking.since(Instant::now()).await;
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
