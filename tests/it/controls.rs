//! Negative controls: with one protection turned off, the fault that it prevents occurs. The same interleavings with
//! all protections are in `newest_wins.rs`, `races.rs` and `coherence.rs`.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::{Paused, Point};
use hotshelf::product::ProductId;
use hotshelf::proto::Product;
use sqlx::AssertSqlSafe;
use tokio::task::JoinHandle;

use crate::harness::{HANG, Node, Stack, Suite, eventually, get};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("controls::without_versions_redis_goes_back", redis_versions);
    suite.both("controls::without_versions_a_slot_goes_back", slot_versions);
    suite.both("controls::without_its_floor_a_load_returns_an_old_version", load_floor);
    suite.both("controls::without_the_lease_a_late_fill_revives_an_old_version", fill_lease);
    suite.both("controls::without_the_relay_redis_stays_old", relay);
    suite.both("controls::without_the_change_feed_memory_stays_old", change_feed);
}

/// Only the change feed makes memory current within the test.
fn long_staleness(args: &mut ServeArgs) {
    args.caching.max_staleness = Duration::from_secs(600);
    args.caching.hot_lease = Duration::from_secs(600);
}

/// Two instances, the first without a protection, and a product named "old".
async fn without(stack: &Stack, protection: Protection) -> (Node, Node, i64) {
    let id = stack.insert("old").await;
    let (a, b) = tokio::join!(stack.node_with(long_staleness), stack.node_with(long_staleness));
    a.controls.turn_off(protection);
    (a, b, id)
}

async fn held(node: &Node, point: Point) -> Paused {
    let mut held = node.pauses.arm(point);
    let paused = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
    node.pauses.release(point);
    paused
}

/// Starts a write and pauses it after its commit.
async fn late_write(node: &Node, id: i64) -> (JoinHandle<Product>, Paused) {
    let mut point = node.pauses.arm(Point::Committed);
    let mut client = node.client.clone();
    let write = tokio::spawn(async move {
        let product = Some(Product { id, name: "late".to_owned(), ..Product::default() });
        let request = hotshelf::proto::UpdateProductRequest { product, ..Default::default() };
        client.update_product(request).await.unwrap().into_inner()
    });
    let paused = tokio::time::timeout(HANG, point.recv()).await.unwrap().unwrap();
    node.pauses.release(Point::Committed);
    (write, paused)
}

async fn redis_versions(stack: Stack) {
    let (a, b, id) = without(&stack, Protection::RedisVersions).await;
    b.product(id).await;
    let (write, paused) = late_write(&a, id).await;
    let new = rename(&b, id, "new").await;
    stack.wait_until_relayed().await;
    assert_eq!(stack.redis_revision(id).await, Some((new.version, false)));
    drop(paused);
    let late = write.await.unwrap();
    assert!(late.version < new.version);
    assert_eq!(stack.redis_revision(id).await, Some((late.version, false)), "Redis went back");
}

async fn slot_versions(stack: Stack) {
    /// The change feed may bring the newer version back into memory before the assertion.
    const TRIES: usize = 10;
    let (a, b, id) = without(&stack, Protection::SlotVersions).await;
    for _ in 0..TRIES {
        if slot_goes_back(&a, &b, id).await {
            return;
        }
    }
    panic!("memory went back in none of {TRIES} tries");
}

async fn slot_goes_back(a: &Node, b: &Node, id: i64) -> bool {
    a.product(id).await;
    let (write, paused) = late_write(a, id).await;
    let new = rename(b, id, "new").await;
    eventually("memory is new", || async { a.product(id).await == new }).await;
    let mut offered = a.pauses.arm(Point::OfferedToMemory);
    drop(paused);
    let paused = tokio::time::timeout(HANG, offered.recv()).await.unwrap().unwrap();
    let held = a.hot.peek(ProductId::new(id).unwrap()).unwrap();
    let went_back = held.entry.revision().version.0 < new.version;
    a.pauses.release(Point::OfferedToMemory);
    drop(paused);
    write.await.unwrap();
    went_back
}

async fn load_floor(stack: Stack) {
    let (a, b, id) = without(&stack, Protection::LoadFloor).await;
    let mut client = a.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await.unwrap().into_inner() });
    let paused = held(&a, Point::FilledRedis).await;
    rename(&b, id, "new").await;
    let other = stack.insert("other").await;
    // The feed is read in order: once a later change is observed, the change is.
    observed(&stack, &a, other).await;
    drop(paused);
    assert_eq!(read.await.unwrap().name, "old");
    assert_eq!(a.product(id).await.name, "old", "and memory serves it");
}

/// Changes `id` and waits until `node` has observed the change.
async fn observed(stack: &Stack, node: &Node, id: i64) {
    node.product(id).await;
    let statement = format!("UPDATE products SET name = 'changed' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(statement)).execute(&stack.sql).await.unwrap();
    eventually("the change is observed", || async { node.product(id).await.name == "changed" })
        .await;
}

async fn fill_lease(stack: Stack) {
    let (a, b, id) = without(&stack, Protection::FillLease).await;
    let mut client = a.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await.unwrap().into_inner() });
    let paused = held(&a, Point::LoadedFromPostgres).await;
    let new = rename(&b, id, "new").await;
    stack.wait_until_relayed().await;
    stack.redis_evict(id).await;
    // Paused again, before its own floor makes it load from Postgres again.
    let mut filled = a.pauses.arm(Point::FilledRedis);
    drop(paused);
    let paused = tokio::time::timeout(HANG, filled.recv()).await.unwrap().unwrap();
    let (revived, _) = stack.redis_revision(id).await.unwrap();
    assert!(revived < new.version, "an old version came back");
    a.pauses.release(Point::FilledRedis);
    drop(paused);
    read.await.unwrap();
}

async fn relay(stack: Stack) {
    let (a, b, id) = without(&stack, Protection::Relay).await;
    b.controls.turn_off(Protection::Relay);
    let free = "SELECT held_until = '-infinity' FROM hotshelf.feed";
    eventually("neither relays", || async {
        sqlx::query_scalar(free).fetch_one(&stack.sql).await.unwrap()
    })
    .await;
    assert_eq!(a.product(id).await.name, "old");
    let before = stack.redis_revision(id).await;
    a.controls.turn_off(Protection::ChangeFeed);
    // Otherwise the instance with the product in memory reloads it and fills Redis.
    b.controls.turn_off(Protection::ChangeFeed);
    let statement = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(statement)).execute(&stack.sql).await.unwrap();
    let other = stack.insert_unrelayed("other").await;
    // Much longer than the relay takes.
    for _ in 0..20 {
        b.product(other).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stack.redis_revision(id).await, before);
    assert!(stack.outbox().await > 0);
}

async fn change_feed(stack: Stack) {
    let (a, b, id) = without(&stack, Protection::ChangeFeed).await;
    a.controls.turn_off(Protection::Hints);
    for node in [&a, &b] {
        assert_eq!(node.product(id).await.name, "old");
    }
    let statement = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(statement)).execute(&stack.sql).await.unwrap();
    eventually("the instance with the change feed serves the change", || async {
        b.product(id).await.name == "new"
    })
    .await;
    assert_eq!(a.product(id).await.name, "old");
}
