//! An entry in Redis is never served with a version that PostgreSQL has not assigned, or past its hard TTL.

use std::time::{Duration, Instant};

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::Point;
use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use sqlx::AssertSqlSafe;
use tonic::Code;

use crate::harness::{HANG, Node, Private, Stack, Suite, cache_status, eventually};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("ceiling::an_impossible_version_is_never_served_and_removed", removed);
    suite.both("ceiling::an_impossible_tombstone_is_never_served_and_removed", tombstone);
    suite.both("ceiling::an_update_over_an_impossible_version_is_visible_at_once", updated);
    suite.both("ceiling::many_impossible_versions_are_found_out_together", many);
    suite.both("ceiling::without_the_protection_an_impossible_version_is_served", unprotected);
    suite.both("ceiling::an_entry_past_its_hard_ttl_is_not_served", past_hard);
    suite.private(
        "ceiling::an_entry_past_its_hard_ttl_is_not_served_without_postgres",
        past_hard_without_postgres,
    );
}

const IMPOSSIBLE: &str = "hotshelf_redis_impossible_total";

fn plain(args: &mut ServeArgs) {
    args.caching.refresh_keys = 0;
}

/// The bytes of an entry with a changed header and a valid checksum.
fn forged(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes[..26]);
    checksum.update(&bytes[30..]);
    bytes[26..30].copy_from_slice(&checksum.finalize().to_be_bytes());
    bytes
}

/// A version that no sequence reaches in this test.
fn impossible(bytes: &mut [u8]) {
    bytes[2..10].copy_from_slice(&(1_i64 << 40).to_be_bytes());
}

/// Three products in Redis, the instance that filled them, and an instance without them in memory.
async fn unread(stack: &Stack) -> (Node, Node, [i64; 3]) {
    let ids = [stack.insert("old").await, stack.insert("old").await, stack.insert("old").await];
    let filler = stack.node_with(plain).await;
    for id in ids {
        filler.product(id).await;
    }
    (filler, stack.node_with(plain).await, ids)
}

/// Reads the first without options, the second with `min_version`, and the third in a batch. Returns the names.
async fn read(stack: &Stack, node: &Node, ids: [i64; 3]) -> Vec<String> {
    let mut names = Vec::new();
    names.push(node.get(ids[0]).await.map_or(String::new(), |read| read.into_inner().name));
    let freshness = Some(Freshness::MinVersion(stack.version(ids[1]).await));
    let request = GetProductRequest { id: ids[1], freshness };
    let read = node.client.clone().get_product(request).await;
    names.push(read.map_or(String::new(), |read| read.into_inner().name));
    let request = BatchGetProductsRequest { ids: vec![ids[2]], ..Default::default() };
    let read = node.client.clone().batch_get_products(request).await.unwrap().into_inner();
    names.extend(read.products.into_iter().map(|product| product.name));
    names
}

async fn is_real(stack: &Stack, id: i64) -> bool {
    let held = stack.redis_revision(id).await;
    held.is_none() || held == Some((stack.version(id).await, false))
}

async fn never_served(stack: &Stack, change: impl Fn(&[u8]) -> Vec<u8>) {
    let (_filler, node, ids) = unread(stack).await;
    for id in ids {
        let bytes = stack.redis_value(id).await.unwrap();
        stack.redis_put(id, &change(&bytes)).await;
    }
    assert_eq!(read(stack, &node, ids).await, ["old"; 3]);
    assert_eq!(node.metric(IMPOSSIBLE).await, 3.0);
    for id in ids {
        assert!(is_real(stack, id).await, "{id}: {:?}", stack.redis_revision(id).await);
    }
    assert_eq!(read(stack, &node, ids).await, ["old"; 3]);
    assert_eq!(node.metric(IMPOSSIBLE).await, 3.0);
}

async fn removed(stack: Stack) {
    never_served(&stack, |bytes| forged(bytes, impossible)).await;
}

fn gone(bytes: &[u8]) -> Vec<u8> {
    forged(&bytes[..30], |bytes| {
        bytes[1] = 1;
        impossible(bytes);
    })
}

async fn tombstone(stack: Stack) {
    never_served(&stack, gone).await;
}

/// Until a poll returns, the instance cannot decide whether a version is impossible, and waits at most a second. The
/// bound is per batch, not per product.
async fn many(stack: Stack) {
    const COUNT: usize = 25;
    let filler = stack.node_with(plain).await;
    let mut ids = Vec::new();
    for _ in 0..COUNT {
        ids.push(stack.insert("old").await);
        filler.product(ids[ids.len() - 1]).await;
    }
    let node = stack.node_with(plain).await;
    for id in &ids[1..] {
        let bytes = stack.redis_value(*id).await.unwrap();
        stack.redis_put(*id, &forged(&bytes, impossible)).await;
    }
    let mut polling = node.pauses.arm(Point::PollOutbox);
    let poll = tokio::time::timeout(HANG, polling.recv()).await.expect("it polls").unwrap();
    let began = Instant::now();
    let request = BatchGetProductsRequest { ids, ..Default::default() };
    let read = node.client.clone().batch_get_products(request).await.unwrap().into_inner();
    assert!(read.products.len() == COUNT && read.products.iter().all(|read| read.name == "old"));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}: one after the other",
        began.elapsed()
    );
    node.pauses.release(Point::PollOutbox);
    drop(poll);
}

async fn updated(stack: Stack) {
    let (a, b, ids) = unread(&stack).await;
    for (id, change) in ids.into_iter().zip([gone, |bytes: &[u8]| forged(bytes, impossible)]) {
        let bytes = stack.redis_value(id).await.unwrap();
        stack.redis_put(id, &change(&bytes)).await;
        // `a` has an older version in memory, `b` has none.
        let new = rename(&a, id, "new").await;
        assert_eq!(a.product(id).await, new);
        assert_eq!(b.product(id).await, new);
        let late = stack.node_with(plain).await;
        assert_eq!(late.product(id).await, new);
        assert!(is_real(&stack, id).await, "{:?}", stack.redis_revision(id).await);
    }
}

async fn unprotected(stack: Stack) {
    let (filler, node, ids) = unread(&stack).await;
    for node in [&filler, &node] {
        node.controls.turn_off(Protection::VersionCeiling);
    }
    for id in ids {
        let bytes = stack.redis_value(id).await.unwrap();
        stack.redis_put(id, &forged(&bytes, impossible)).await;
    }
    let update = AssertSqlSafe("UPDATE products SET name = 'new'".to_owned());
    sqlx::query(update).execute(&stack.sql).await.unwrap();
    stack.wait_until_relayed().await;
    assert_eq!(read(&stack, &node, ids).await, ["old"; 3]);
    assert_eq!(node.metric(IMPOSSIBLE).await, 0.0);
}

/// An entry with a hard TTL of 1 ms, which has passed. `redis_put` sets no expiry.
fn expired(bytes: &[u8]) -> Vec<u8> {
    forged(bytes, |bytes| bytes[18..26].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]))
}

async fn past_hard(stack: Stack) {
    let (_filler, node, ids) = unread(&stack).await;
    for id in ids {
        let bytes = stack.redis_value(id).await.unwrap();
        stack.redis_put(id, &expired(&bytes)).await;
    }
    let status = async |id| {
        let read = node.get(id).await.unwrap();
        cache_status(&read).to_owned()
    };
    let loads = stack.loads().await;
    assert_eq!(read(&stack, &node, ids).await, ["old"; 3]);
    assert_eq!(stack.loads().await, loads + 3, "none of them came from Redis");
    assert_eq!(status(ids[0]).await, "hotshelf; hit; detail=hot");
}

async fn past_hard_without_postgres(world: Private) {
    let ids = [world.insert("old").await, world.insert("old").await];
    let (filler, node) =
        tokio::join!(world.node_with_short_timeouts(plain), world.node_with_short_timeouts(plain));
    for id in ids {
        filler.product(id).await;
    }
    let bytes = world.redis_value(ids[0]).await.unwrap();
    world.redis_put(ids[0], &expired(&bytes)).await;
    world.to_postgres.cut();
    let stale = "hotshelf; hit; detail=redis; stale";
    eventually("both entries are beyond max_staleness", || async {
        node.metric("hotshelf_change_feed_lag_seconds").await > 6.0
    })
    .await;
    assert_eq!(cache_status(&node.get(ids[1]).await.unwrap()), stale, "within its hard TTL");
    assert_eq!(node.get(ids[0]).await.unwrap_err().code(), Code::Unavailable);
    let request = BatchGetProductsRequest { ids: vec![ids[0]], ..Default::default() };
    let error = node.client.clone().batch_get_products(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}
