//! Reads: each is sent at its time, and what it was told is recorded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use rand::RngExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::history::{Micros, Read, Request, Seen, Tier, Wish, seen};
use crate::load::{Load, World};
use crate::plan::Keys;

/// The longest `max_staleness` that is asked for.
const LONGEST_STALENESS: u64 = 500_000;
/// Products of a batch.
const BATCH: usize = 5;
/// After a write its product is looked at through every instance about this many ms later, so that staleness
/// does not go unseen where reads are few.
pub(crate) const LOOKS: [f64; 10] = [1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 125.0, 250.0, 500.0, 1_000.0];

/// Reads until the load is stopped.
pub(crate) async fn drive(world: &Arc<World>, load: &Load) {
    let (mut keys, mut pace) = (Keys::new(load, 1), world.pace(load.read_rate));
    while let Some(due) = pace.next(keys.random()).await {
        let instance = keys.random().random_range(0..world.clients.len());
        let product = world.products[keys.next()];
        let wishes = keys.random().random_range(0..100);
        let age = keys.random().random_range(0..LONGEST_STALENESS);
        let wish = match (wishes, world.newest(product)) {
            (0..10, Some(version)) => Wish::MinVersion(version),
            (10..15, _) => Wish::Latest,
            (15..25, _) => Wish::MaxStaleness(age),
            _ => Wish::Plain,
        };
        let world_of_task = Arc::clone(world);
        if (25..30).contains(&wishes) {
            let mut ids: Vec<i64> = (0..BATCH).map(|_| world.products[keys.next()]).collect();
            ids.sort_unstable();
            ids.dedup();
            let wish = [Wish::Plain, Wish::Latest, Wish::MaxStaleness(age)][wishes % 3];
            world.send(async move { read_batch(&world_of_task, instance, ids, wish, due).await });
        } else {
            world.send(async move { read(&world_of_task, instance, product, wish, due).await });
        }
    }
}

/// Looks at a product that was just written, through every instance.
pub(crate) fn look_again(world: &Arc<World>, product: i64) {
    let now = Instant::now();
    for after in LOOKS {
        for instance in 0..world.clients.len() {
            // Scattered, so that what is measured has no steps.
            let after = Duration::from_secs_f64(after / 1e3 * rand::random_range(0.7..1.4));
            let (due, world_of_task) = (now + after, Arc::clone(world));
            world.tasks.spawn(async move {
                tokio::time::sleep_until(due.into()).await;
                let sender = Arc::clone(&world_of_task);
                sender.send(async move {
                    read(&world_of_task, instance, product, Wish::Plain, due).await;
                });
            });
        }
    }
}

/// Reads one product, and records it.
pub(crate) async fn read(world: &World, instance: usize, product: i64, wish: Wish, due: Instant) {
    let request = GetProductRequest { id: product, freshness: freshness(wish) };
    let mut client = world.clients[instance].clone();
    let draft = Draft::new(world, instance, wish, due);
    match client.get_product(request).await {
        Ok(response) => {
            let origin = origin(response.metadata());
            world.record_reads([draft.done(world, product, origin, seen(response.get_ref()))]);
        }
        Err(status) => match refusal(&status) {
            Some(seen) => {
                world.record_reads([draft.done(world, product, origin(status.metadata()), seen)])
            }
            None => {
                let request = Request::Read(product, draft.instance, wish);
                world.record_failure(failure("GetProduct", &status), request, draft.due);
            }
        },
    }
}

async fn read_batch(world: &World, instance: usize, ids: Vec<i64>, wish: Wish, due: Instant) {
    let (max_staleness, latest) = match freshness(wish) {
        Some(Freshness::MaxStaleness(age)) => (Some(age), false),
        Some(Freshness::Latest(latest)) => (None, latest),
        _ => (None, false),
    };
    let mut client = world.clients[instance].clone();
    let draft = Draft::new(world, instance, wish, due);
    let answer = client
        .batch_get_products(BatchGetProductsRequest {
            ids,
            max_staleness,
            latest,
            ..Default::default()
        })
        .await;
    let answer = answer.map(|response| (origin(response.metadata()).1, response.into_inner()));
    let (stale, batch) = match answer {
        Ok(answer) => answer,
        Err(status) => {
            let request = Request::Batch(draft.instance);
            return world.record_failure(failure("BatchGetProducts", &status), request, draft.due);
        }
    };
    let found = batch.products.iter().map(|product| (product.id, seen(product)));
    let absent = batch.not_found_ids.iter().map(|id| (*id, Seen::Absent));
    world.record_reads(
        found.chain(absent).map(|(id, seen)| draft.done(world, id, (Tier::Unsaid, stale), seen)),
    );
}

/// What is known of a read when it is sent.
struct Draft {
    instance: u8,
    wish: Wish,
    due: Micros,
    begin: Micros,
}

impl Draft {
    fn new(world: &World, instance: usize, wish: Wish, due: Instant) -> Self {
        Self {
            instance: u8::try_from(instance).unwrap_or(u8::MAX),
            wish,
            due: world.clock.at(due),
            begin: world.clock.now(),
        }
    }

    fn done(&self, world: &World, product: i64, (tier, stale): (Tier, bool), seen: Seen) -> Read {
        let Self { instance, wish, due, begin } = *self;
        let late = u32::try_from(begin.saturating_sub(due)).unwrap_or(u32::MAX);
        Read { product, instance, tier, late, wish, seen, stale, begin, end: world.clock.now() }
    }
}

fn freshness(wish: Wish) -> Option<Freshness> {
    match wish {
        Wish::Plain => None,
        Wish::MinVersion(version) => Some(Freshness::MinVersion(version)),
        Wish::Latest => Some(Freshness::Latest(true)),
        Wish::MaxStaleness(age) => {
            let age = Duration::from_micros(age);
            let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
            let nanos = i32::try_from(age.subsec_nanos()).unwrap_or(0);
            Some(Freshness::MaxStaleness(prost_types::Duration { seconds, nanos }))
        }
    }
}

/// The tier that the answer names, and whether it says that it is stale.
fn origin(metadata: &MetadataMap) -> (Tier, bool) {
    let status = metadata.get("cache-status").and_then(|value| value.to_str().ok());
    let detail = status.and_then(|status| status.split("detail=").nth(1)).unwrap_or_default();
    let mut parts = detail.split(';').map(str::trim);
    let tier = match parts.next().unwrap_or_default() {
        "hot" => Tier::Hot,
        "redis" => Tier::Redis,
        "postgres" => Tier::Postgres,
        _ => Tier::Unsaid,
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

/// What went wrong, without what differs from call to call.
pub(crate) fn failure(method: &str, status: &Status) -> String {
    format!("{method}: {:?}: {}", status.code(), status.message())
}
