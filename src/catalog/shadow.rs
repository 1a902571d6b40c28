//! Shadow reads: a sample of what memory answers is compared with Postgres.
//!
//! Every part that keeps memory current depends on triggers and on the outbox. A change that these do not record (a disabled
//! trigger, a deleted outbox row, a column type that was changed) is found here only. So the contents are compared, and not the
//! versions alone. The ids come from the sketch of hot keys: a read does nothing more than without shadow reads.
//!
//! A difference alone is no fault, because a change takes a moment to arrive. It is one when memory still answers with it after
//! the bound on staleness. Then the copies of that product are discarded, which costs one load.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::poll_fn;

use super::{Catalog, Error};
use crate::caller::CallContext;
use crate::entry::{Entry, Freshness};
use crate::metrics::{BackgroundTask, ShadowCheck};
use crate::moment::Moment;
use crate::product::{ProductId, Revision, Version};

/// Products that one statement reads.
const BATCH: u32 = 100;
/// A pass compares at most what can be compared in this time. Too high: a product that becomes hot is compared late. Too low:
/// products that are rarely read are compared rarely.
const PASS: u32 = 20;
/// Most products of which the difference may still be one that memory follows.
const MOST_DIFFERENCES: usize = 1_000;
/// The part of one CPU that the comparisons may take is 1 in this many.
const BUDGET: u32 = 200;
/// When this task is woken later than that, calls wait for the CPU, too.
const LATE: Duration = Duration::from_millis(100);
/// The longest wait for the connection of operators.
const TURN: Duration = Duration::from_millis(50);
/// The bound on staleness without a fault (P3).
const LEAST_BOUND: Duration = Duration::from_secs(1);

/// The state of the loop.
struct ShadowReads {
    catalog: Arc<Catalog>,
    /// Products per round.
    batch: usize,
    /// Between two rounds.
    period: Duration,
    /// The products that this pass has not compared yet; the next one is last.
    due: Vec<ProductId>,
    /// When the pass began.
    began: Option<Instant>,
    differences: Vec<Difference>,
}

/// Memory answered with something else than Postgres held at `since`.
struct Difference {
    id: ProductId,
    served: Entry,
    truth: Truth,
    since: Moment,
}

/// What Postgres holds.
struct Truth {
    /// `None`: no row, or one that the API cannot express.
    product: Option<Entry>,
    /// The oldest revision that memory may answer with.
    revision: Revision,
    /// For the log.
    text: String,
}

impl Catalog {
    pub(super) fn start_shadow_reads(self: &Arc<Self>) {
        if self.options.shadow_reads == 0 {
            return;
        }
        let catalog = Arc::clone(self);
        let reads = move || ShadowReads::new(Arc::clone(&catalog)).run();
        self.drain.spawn_loop(BackgroundTask::ShadowReads, reads);
    }

    /// What memory answers a plain read with.
    fn served_from_memory(&self, id: ProductId) -> Option<Entry> {
        let held = self.hot.peek(id)?;
        let verdict = self.judge_hot(&held, &Freshness::Cached, Moment::now());
        verdict.answers().then_some(held.entry)
    }
}

impl ShadowReads {
    fn new(catalog: Arc<Catalog>) -> Self {
        let per_second = catalog.options.shadow_reads;
        let batch = per_second.min(BATCH);
        let period = Duration::from_secs(1) * batch / per_second;
        let (due, began, differences) = (Vec::new(), None, Vec::new());
        Self { catalog, batch: batch as usize, period, due, began, differences }
    }

    async fn run(mut self) -> Result<Infallible, Infallible> {
        let mut pause = self.period;
        loop {
            let due = Instant::now() + pause;
            tokio::time::sleep_until(due.into()).await;
            let ((), busy) = Box::pin(timed(self.round(due.elapsed()))).await;
            pause = pause_after(busy, self.period);
        }
    }

    async fn round(&mut self, late: Duration) {
        self.settle().await;
        if self.due.is_empty() {
            self.begin_pass();
        }
        if late > LATE || self.catalog.postgres.has_waiting_loads() {
            return self.count(ShadowCheck::Skipped, self.due.len().min(self.batch));
        }
        let served = self.next_served();
        if served.is_empty() {
            return;
        }
        match self.read_postgres(&served).await {
            Ok(truths) => self.compare(served, truths),
            Err(_) => self.count(ShadowCheck::Skipped, served.len()),
        }
    }

    /// Half of a pass are the hottest products, the other half is drawn from the rest of the ranking.
    fn begin_pass(&mut self) {
        const INTERVAL: Duration = Duration::from_secs(1);
        if self.began.is_some_and(|began| began.elapsed() < INTERVAL) {
            return;
        }
        self.began = Some(Instant::now());
        let most = (self.catalog.options.shadow_reads * PASS) as usize;
        let ranked = self.catalog.hot_keys.top(usize::MAX);
        let mut ids: Vec<ProductId> = ranked.into_iter().map(|key| key.id).collect();
        if ids.len() > most {
            fastrand::shuffle(&mut ids[most / 2..]);
            ids.truncate(most);
        }
        ids.reverse();
        self.due = ids;
    }

    /// The next products, with what memory answers. Those without an answer in memory are passed over.
    fn next_served(&mut self) -> Vec<(ProductId, Entry)> {
        let known: HashSet<ProductId> = self.differences.iter().map(|one| one.id).collect();
        let mut served = Vec::with_capacity(self.batch.min(self.due.len()));
        while served.len() < self.batch
            && let Some(id) = self.due.pop()
        {
            let entry = self.catalog.served_from_memory(id).filter(|_| !known.contains(&id));
            served.extend(entry.map(|entry| (id, entry)));
        }
        served
    }

    /// One truth for each product. What memory answered was committed before, so Postgres holds the same or something newer.
    async fn read_postgres(&self, served: &[(ProductId, Entry)]) -> Result<Vec<Truth>, Error> {
        let postgres = &self.catalog.postgres;
        let deadline = Some(Instant::now() + TURN);
        let turn = postgres.operator_turn(CallContext { deadline, ..CallContext::BACKGROUND });
        let turn = turn.await?;
        let ids: Vec<ProductId> = served.iter().map(|(id, _)| *id).collect();
        let rows = postgres.load_to_compare(&ids, &turn).await?;
        let truth = |(id, served): &(ProductId, Entry)| {
            let newest = served.revision().version;
            let missing = |version: Version, text: String| {
                let revision = Revision::gone_after(version.max(newest));
                Truth { product: None, revision, text }
            };
            if let Some(product) = rows.products.iter().find(|product| product.id == *id) {
                let entry = Entry::live(product, rows.known_at, served.ttl());
                let text = format!("version {}", product.version);
                return Truth { revision: entry.revision(), product: Some(entry), text };
            }
            match rows.broken.iter().find(|(broken, _)| broken == id) {
                Some((_, why)) => missing(newest, format!("a row that cannot be served ({why})")),
                None => missing(rows.last_version(*id), "no such product".to_owned()),
            }
        };
        Ok(served.iter().map(truth).collect())
    }

    fn compare(&mut self, served: Vec<(ProductId, Entry)>, truths: Vec<Truth>) {
        let since = Moment::now();
        for ((id, served), truth) in served.into_iter().zip(truths) {
            if truth.agrees_with(&served) {
                self.count(ShadowCheck::Current, 1);
            } else if self.differences.len() < MOST_DIFFERENCES {
                self.differences.push(Difference { id, served, truth, since });
            } else {
                self.count(ShadowCheck::Skipped, 1);
            }
        }
    }

    /// Counts the differences that memory has followed, and those that have lasted for too long.
    async fn settle(&mut self) {
        let bound = self.catalog.options.max_staleness.max(LEAST_BOUND);
        for difference in std::mem::take(&mut self.differences) {
            match self.catalog.served_from_memory(difference.id) {
                Some(served) if difference.is_in(&served) => {
                    if difference.since.elapsed() <= bound {
                        self.differences.push(difference);
                    } else {
                        self.count(ShadowCheck::Mismatch, 1);
                        self.report(difference, &served).await;
                    }
                }
                _ => self.count(ShadowCheck::StaleWithinBound, 1),
            }
        }
    }

    /// Logs what each tier holds, and discards the copies of the product.
    async fn report(&self, Difference { id, truth, since, .. }: Difference, served: &Entry) {
        let catalog = &self.catalog;
        let explained = match Box::pin(catalog.explain(id, CallContext::BACKGROUND)).await {
            Ok(explanation) => explanation.to_string(),
            Err(error) => format!("not known: {error}"),
        };
        let (version, lasted) = (served.revision().version, since.elapsed());
        let wrong = match (served.is_tombstone(), served.revision() == truth.revision) {
            (true, _) => "that it does not exist".to_owned(),
            (false, true) => format!("other contents of version {version}"),
            (false, false) => format!("version {version}"),
        };
        tracing::error!(
            %id,
            memory_answers = %wrong,
            postgres_holds = %truth.text,
            lasted = ?lasted,
            %explained,
            "memory answers with something else than PostgreSQL holds, for longer than MAX_STALENESS; this product is removed from memory and Redis"
        );
        // Redis first: a read would fill memory from it again. That may happen when Redis does not answer now; then the
        // difference is found again.
        let _ = catalog.redis.remove(&[id]).await;
        catalog.hot.discard(id, served);
        catalog.refresh_queue.ask(id);
    }

    fn count(&self, result: ShadowCheck, products: usize) {
        self.catalog.metrics.shadow_checks.add(result, products as u64);
    }
}

impl Truth {
    fn agrees_with(&self, served: &Entry) -> bool {
        match &self.product {
            Some(product) => product.is_same_as(served),
            None => served.is_tombstone(),
        }
    }
}

impl Difference {
    /// Whether `served` is what was wrong, or another copy that is older than the truth was.
    fn is_in(&self, served: &Entry) -> bool {
        served.is_same_as(&self.served) || served.revision() < self.truth.revision
    }
}

/// The result of `work`, and for how long it used the CPU: waiting for a response does not count.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let (mut work, mut busy) = (pin!(work), Duration::ZERO);
    let done = poll_fn(|cx| {
        let began = Instant::now();
        let polled = work.as_mut().poll(cx);
        busy += began.elapsed();
        polled
    });
    let done = done.await;
    (done, busy)
}

/// The pause after a round that used the CPU for `busy`.
fn pause_after(busy: Duration, period: Duration) -> Duration {
    (busy * BUDGET).max(period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Ttl, prefix};

    #[test]
    fn at_most_half_a_percent_of_a_cpu_is_used() {
        let (second, cheap) = (Duration::from_secs(1), Duration::from_millis(3));
        assert_eq!(pause_after(cheap, second), second);
        let (dear, period) = (Duration::from_millis(40), Duration::from_millis(10));
        let pause = pause_after(dear, period);
        assert!(dear.as_secs_f64() / (dear + pause).as_secs_f64() <= 0.005, "{pause:?}");
    }

    fn live(version: i64, contents: u8) -> Entry {
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        let frame = [&prefix(1)[..], &[contents]].concat();
        Entry::from_frame(Revision::live(Version(version)), Moment::now(), ttl, &frame)
            .expect("a frame")
    }

    fn gone(version: i64) -> Entry {
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        Entry::tombstone(Version(version), Moment::now(), ttl)
    }

    fn holds(product: Option<Entry>, revision: Revision) -> Truth {
        Truth { product, revision, text: String::new() }
    }

    /// What memory answered, what Postgres held then, what memory answers when the bound has passed, and whether that is wrong.
    #[test]
    fn a_mismatch_is_what_memory_keeps_answering() {
        let version = |version| holds(Some(live(version, 1)), Revision::live(Version(version)));
        let absent = |version| holds(None, Revision::gone_after(Version(version)));
        let cases = [
            ("an older version stays", live(5, 1), version(6), live(5, 1), true),
            ("memory has followed", live(5, 1), version(6), live(6, 1), false),
            ("memory is ahead", live(5, 1), version(6), live(7, 1), false),
            ("memory has followed half of the way", live(5, 1), version(7), live(6, 1), true),
            ("other contents of one version stay", live(5, 2), version(5), live(5, 2), true),
            ("the right contents of it came", live(5, 2), version(5), live(5, 1), false),
            ("a newer version than the truth stays", live(9, 1), version(5), live(9, 1), true),
            ("a deleted product stays", live(5, 1), absent(5), live(5, 1), true),
            ("its deletion arrived", live(5, 1), absent(5), gone(5), false),
            ("it was created again", live(5, 1), absent(5), live(8, 1), false),
            ("a created product stays absent", gone(5), version(6), gone(5), true),
            ("its creation arrived", gone(5), version(6), live(6, 1), false),
        ];
        for (case, served, truth, later, wrong) in cases {
            assert!(!truth.agrees_with(&served), "{case}");
            let id = ProductId::new(1).expect("positive");
            let difference = Difference { id, served, truth, since: Moment::now() };
            assert_eq!(difference.is_in(&later), wrong, "{case}");
        }
        assert!(absent(9).agrees_with(&gone(5)), "absence has no contents");
        assert!(version(5).agrees_with(&live(5, 1)));
    }
}
