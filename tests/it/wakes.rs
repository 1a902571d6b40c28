//! An instance that stood still for longer than every TTL and lease, and continues: it neither serves its old memory
//! nor fills Redis with an old load.

use std::time::Duration;

use hotshelf::pause::Point;
use hotshelf::proto::{GetProductRequest, Product, ProductServiceClient};
use nix::sys::signal::Signal;
use sqlx::AssertSqlSafe;
use tonic::transport::Channel;

use crate::harness::{HANG, Program, Stack, Suite, cache_status, eventually, get};

const LEASES: Duration = Duration::from_millis(300);
// A call may last for most of the test.
const OPTIONS: [&str; 10] = [
    "--hot-lease",
    "300ms",
    "--max-staleness",
    "300ms",
    "--refresh-keys",
    "0",
    "--max-call-time",
    "10m",
    "--lease-ttl",
    "2s",
];

pub fn register(suite: &mut Suite<'_>) {
    suite.both("wakes::it_does_not_serve_its_old_memory", serves_nothing_old);
    suite.both("wakes::it_does_not_fill_what_it_had_loaded", fills_nothing_old);
    suite.both("wakes::a_load_that_is_too_old_is_repeated", asks_again);
}

async fn read(mut client: ProductServiceClient<Channel>, id: i64) -> Product {
    let request: GetProductRequest = get(id);
    client.get_product(request).await.unwrap().into_inner()
}

async fn rename(stack: &Stack, id: i64) {
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(rename)).execute(&stack.sql).await.unwrap();
}

/// Waits until every lease and TTL of the stopped instance has expired.
async fn leases_run_out() {
    tokio::time::sleep(LEASES * 3).await;
}

async fn serves_nothing_old(stack: Stack) {
    let id = stack.insert("old").await;
    let sleeper = Program::serve(&stack, &OPTIONS).await;
    let client = sleeper.client().await;
    eventually("it serves from memory", || async {
        let read = client.clone().get_product(get(id)).await.unwrap();
        cache_status(&read) == "hotshelf; hit; detail=hot"
    })
    .await;
    let other = stack.node().await;
    sleeper.freeze().await;
    rename(&stack, id).await;
    eventually("the change is relayed", || async { stack.outbox().await == 0 }).await;
    leases_run_out().await;
    assert_eq!(other.product(id).await.name, "new");
    sleeper.signal(Signal::SIGCONT);
    for _ in 0..20 {
        assert_eq!(read(client.clone(), id).await.name, "new");
    }
}

async fn fills_nothing_old(stack: Stack) {
    let id = stack.insert("old").await;
    let sleeper = Program::serve(&stack, &OPTIONS).await;
    // Otherwise the relay of the insert would break the lease.
    stack.wait_until_relayed().await;
    let lock = stack.lock_products().await;
    let mut client = sleeper.client().await;
    let reader = tokio::spawn(async move {
        let read = client.get_product(get(id)).await.unwrap();
        let cache_status = cache_status(&read).to_owned();
        (read.into_inner(), cache_status)
    });
    eventually("it is loading", || async { stack.running_loads().await == 1 }).await;
    assert!(stack.is_leased(id).await);
    sleeper.freeze().await;
    // Postgres sends the old row, which the stopped instance does not read.
    lock.rollback().await.unwrap();
    eventually("Postgres has answered", || async { stack.running_loads().await == 0 }).await;
    eventually("its lease has run out", || async { !stack.is_leased(id).await }).await;
    rename(&stack, id).await;
    let other = stack.node().await;
    assert_eq!(other.product(id).await.name, "new");
    let new = stack.redis_revision(id).await;
    assert!(new.is_some());
    // Redis has no version to compare with.
    stack.redis_evict(id).await;
    sleeper.signal(Signal::SIGCONT);
    let (product, cache_status) = reader.await.unwrap();
    assert_eq!(product.name, "new", "{cache_status}");
    let filled = stack.redis_revision(id).await;
    assert!(filled.is_none() || filled == new, "{filled:?}, not {new:?}");
}

/// Neither a broken lease nor a poll rejects the late load.
async fn asks_again(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack
        .node_with(|args| {
            args.caching.hot_lease = LEASES;
            args.caching.max_staleness = LEASES;
            args.caching.refresh_keys = 0;
        })
        .await;
    let mut loaded = node.pauses.arm(Point::LoadedFromPostgres);
    let mut client = node.client.clone();
    let reader = tokio::spawn(async move { client.get_product(get(id)).await.unwrap() });
    let load = tokio::time::timeout(HANG, loaded.recv()).await.unwrap().unwrap();
    node.pauses.release(Point::LoadedFromPostgres);
    let mut polls = node.pauses.arm(Point::PollOutbox);
    let poll = tokio::time::timeout(HANG, polls.recv()).await.unwrap().unwrap();
    let mut relays = node.pauses.arm(Point::RelayRead);
    rename(&stack, id).await;
    let relay = tokio::time::timeout(HANG, relays.recv()).await.unwrap().unwrap();
    // Longer than a response that is not marked stale may be out of date.
    tokio::time::sleep(Duration::from_secs(1) + LEASES).await;
    assert!(!node.hot.has_valid_lease() && stack.is_leased(id).await);
    drop(load);
    assert_eq!(reader.await.unwrap().into_inner().name, "new");
    node.pauses.release(Point::PollOutbox);
    node.pauses.release(Point::RelayRead);
    drop((poll, relay));
}
