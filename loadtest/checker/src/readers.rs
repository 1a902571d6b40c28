//! Reads: each is sent when it is due, and its response is recorded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use rand::RngExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::history::{Micros, Read, ReadFreshness, Request, Seen, Tier, seen};
use crate::load::{Load, Run};
use crate::plan::Keys;

/// The longest `max_staleness` that a read asks for, in microseconds.
const LONGEST_STALENESS: u64 = 500_000;
/// Products of a batch.
const BATCH: usize = 5;
/// After a write its product is read through every instance about this many ms later, so that the staleness of products
/// with few reads is measured too.
pub(crate) const PROBE_DELAYS_MS: [f64; 10] =
    [1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 125.0, 250.0, 500.0, 1_000.0];

/// Reads until the load is stopped.
pub(crate) async fn drive(run: &Arc<Run>, load: &Load) {
    let (mut keys, mut pace) = (Keys::new(load, 1), run.pace(load.read_rate));
    while let Some(due) = pace.next(keys.random()).await {
        let instance = keys.random().random_range(0..run.clients.len());
        let product = run.products[keys.next()];
        let wishes = keys.random().random_range(0..100);
        let age = keys.random().random_range(0..LONGEST_STALENESS);
        let wish = match (wishes, run.newest(product)) {
            (0..10, Some(version)) => ReadFreshness::MinVersion(version),
            (10..15, _) => ReadFreshness::Latest,
            (15..25, _) => ReadFreshness::MaxStaleness(age),
            _ => ReadFreshness::Plain,
        };
        let task_run = Arc::clone(run);
        if (25..30).contains(&wishes) {
            let mut ids: Vec<i64> = (0..BATCH).map(|_| run.products[keys.next()]).collect();
            ids.sort_unstable();
            ids.dedup();
            let wish =
                [ReadFreshness::Plain, ReadFreshness::Latest, ReadFreshness::MaxStaleness(age)]
                    [wishes % 3];
            run.send(async move { read_batch(&task_run, instance, ids, wish, due).await });
        } else {
            run.send(async move { read(&task_run, instance, product, wish, due).await });
        }
    }
}

/// Reads a product that was just written, through every instance.
pub(crate) fn probe_after_write(run: &Arc<Run>, product: i64) {
    let now = Instant::now();
    for after in PROBE_DELAYS_MS {
        for instance in 0..run.clients.len() {
            // Scattered, so that the measured times have no steps.
            let after = Duration::from_secs_f64(after / 1e3 * rand::random_range(0.7..1.4));
            let (due, task_run) = (now + after, Arc::clone(run));
            run.tasks.spawn(async move {
                tokio::time::sleep_until(due.into()).await;
                let sender = Arc::clone(&task_run);
                sender.send(async move {
                    read(&task_run, instance, product, ReadFreshness::Plain, due).await;
                });
            });
        }
    }
}

pub(crate) async fn read(
    run: &Run,
    instance: usize,
    product: i64,
    wish: ReadFreshness,
    due: Instant,
) {
    let request = GetProductRequest { id: product, freshness: freshness(wish) };
    let pending = PendingRead::new(run, instance, wish, due);
    let mut client = run.clients[instance].clone();
    let mut answer = client.get_product(request).await;
    if was_not_sent(&answer) {
        answer = client.get_product(request).await;
    }
    match answer {
        Ok(response) => {
            let origin = origin(response.metadata());
            run.record_reads([pending.done(run, product, origin, seen(response.get_ref()))]);
        }
        Err(status) => match refusal(&status) {
            Some(seen) => {
                run.record_reads([pending.done(run, product, origin(status.metadata()), seen)])
            }
            None => {
                let request = Request::Read(product, pending.instance, wish);
                run.record_failure(failure("GetProduct", &status), request, pending.due);
            }
        },
    }
}

async fn read_batch(run: &Run, instance: usize, ids: Vec<i64>, wish: ReadFreshness, due: Instant) {
    let (max_staleness, latest) = match freshness(wish) {
        Some(Freshness::MaxStaleness(age)) => (Some(age), false),
        Some(Freshness::Latest(latest)) => (None, latest),
        _ => (None, false),
    };
    let pending = PendingRead::new(run, instance, wish, due);
    let request = BatchGetProductsRequest { ids, max_staleness, latest, ..Default::default() };
    let mut client = run.clients[instance].clone();
    let mut answer = client.batch_get_products(request.clone()).await;
    if was_not_sent(&answer) {
        answer = client.batch_get_products(request).await;
    }
    let answer = answer.map(|response| (origin(response.metadata()).1, response.into_inner()));
    let (stale, batch) = match answer {
        Ok(answer) => answer,
        Err(status) => {
            let request = Request::Batch(pending.instance);
            return run.record_failure(failure("BatchGetProducts", &status), request, pending.due);
        }
    };
    let found = batch.products.iter().map(|product| (product.id, seen(product)));
    let absent = batch.not_found_ids.iter().map(|id| (*id, Seen::Absent));
    run.record_reads(
        found.chain(absent).map(|(id, seen)| pending.done(run, id, (Tier::Unknown, stale), seen)),
    );
}

/// Whether the client failed a call without sending it. At its maximum age a connection is closed with GOAWAY; calls that
/// hyper has not written by then fail with this status. gRPC's own libraries repeat them (transparent retry), tonic does not.
fn was_not_sent<T>(answer: &Result<T, Status>) -> bool {
    let not_sent = |status: &Status| {
        status.code() == Code::Cancelled && status.message() == "operation was canceled"
    };
    answer.as_ref().is_err_and(not_sent)
}

/// A read that was sent and not answered yet.
struct PendingRead {
    instance: u8,
    wish: ReadFreshness,
    due: Micros,
    begin: Micros,
}

impl PendingRead {
    fn new(run: &Run, instance: usize, wish: ReadFreshness, due: Instant) -> Self {
        Self {
            instance: u8::try_from(instance).unwrap_or(u8::MAX),
            wish,
            due: run.clock.at(due),
            begin: run.clock.now(),
        }
    }

    fn done(&self, run: &Run, product: i64, (tier, stale): (Tier, bool), seen: Seen) -> Read {
        let Self { instance, wish, due, begin } = *self;
        let late = u32::try_from(begin.saturating_sub(due)).unwrap_or(u32::MAX);
        Read { product, instance, tier, late, wish, seen, stale, begin, end: run.clock.now() }
    }
}

fn freshness(wish: ReadFreshness) -> Option<Freshness> {
    match wish {
        ReadFreshness::Plain => None,
        ReadFreshness::MinVersion(version) => Some(Freshness::MinVersion(version)),
        ReadFreshness::Latest => Some(Freshness::Latest(true)),
        ReadFreshness::MaxStaleness(age) => {
            let age = Duration::from_micros(age);
            let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
            let nanos = i32::try_from(age.subsec_nanos()).unwrap_or(0);
            Some(Freshness::MaxStaleness(prost_types::Duration { seconds, nanos }))
        }
    }
}

/// The tier and the stale mark in `cache-status`.
fn origin(metadata: &MetadataMap) -> (Tier, bool) {
    let status = metadata.get("cache-status").and_then(|value| value.to_str().ok());
    let detail = status.and_then(|status| status.split("detail=").nth(1)).unwrap_or_default();
    let mut parts = detail.split(';').map(str::trim);
    let tier = match parts.next().unwrap_or_default() {
        "hot" => Tier::Hot,
        "redis" => Tier::Redis,
        "postgres" => Tier::Postgres,
        _ => Tier::Unknown,
    };
    (tier, parts.any(|part| part == "stale"))
}

fn refusal(status: &Status) -> Option<Seen> {
    match status.code() {
        Code::NotFound => Some(Seen::Absent),
        Code::FailedPrecondition => Some(Seen::NotReached),
        _ => None,
    }
}

/// Equal for all failures of one cause.
pub(crate) fn failure(method: &str, status: &Status) -> String {
    format!("{method}: {:?}: {}", status.code(), status.message())
}
