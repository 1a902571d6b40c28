//! Interleavings that a review of the core found. Pause points make each deterministic.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hotshelf::pause::Point;
use hotshelf::product::ProductId;
use hotshelf::proto::GetProductRequest;
use hotshelf::proto::get_product_request::Freshness;

use crate::harness::{HANG, Stack, Suite, eventually};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("races::a_late_writer_does_not_populate_a_cache_with_an_old_version", late_writer);
    suite.both("races::memory_without_room_for_a_write_does_not_take_the_old_version", no_room);
    suite
        .both("races::another_machines_clock_does_not_make_an_old_version_the_latest", clock_ahead);
    suite.both("races::a_clock_that_is_an_hour_off_keeps_nothing_old", clock_jumped);
    suite.both("races::a_lock_that_is_no_lease_does_not_prevent_a_load", no_lease);
}

async fn late_writer(stack: Stack) {
    let id = stack.insert("1").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let mut held = a.pauses.arm(Point::Committed);
    let write = async {
        let renamed = rename(&a, id, "2").await;
        assert_eq!(renamed.name, "2");
    };
    let meanwhile = async {
        let paused = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
        a.pauses.release(Point::Committed);
        let newest = rename(&b, id, "3").await;
        stack.redis_evict(id).await;
        stack.wait_until_relayed().await;
        drop(paused);
        newest
    };
    let ((), newest) = tokio::join!(write, meanwhile);
    assert_eq!(stack.redis_revision(id).await, None, "no old version came back");
    assert_eq!(a.product(id).await, newest, "nor into memory");
}

async fn no_room(stack: Stack) {
    let (id, popular) = (stack.insert("old").await, stack.insert("popular").await);
    let (node, other) = tokio::join!(
        stack.node_with(|args| {
            args.caching.hot_capacity = 1;
            args.caching.refresh_keys = 0;
        }),
        stack.node()
    );
    other.product(id).await;
    for _ in 0..50 {
        node.product(popular).await;
    }
    let mut held = node.pauses.arm(Point::OfferedToMemory);
    let (write, read) = tokio::join!(rename(&node, id, "new"), async {
        let paused = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
        node.pauses.release(Point::OfferedToMemory);
        eventually("memory does not hold it", || async {
            node.product(popular).await;
            node.hot.peek(ProductId::new(id).unwrap()).is_none()
        })
        .await;
        let read = node.product(id).await;
        drop(paused);
        read
    });
    assert_eq!(read, write, "the load did not use the old entry in Redis");
}

/// The entry with the timestamp of a machine whose clock is ahead.
fn stamped_ahead(entry: &[u8], by: Duration) -> Vec<u8> {
    stamped_at(entry, SystemTime::now() + by)
}

fn stamped_at(entry: &[u8], wall: SystemTime) -> Vec<u8> {
    let mut entry = entry.to_vec();
    let stamp = wall.duration_since(UNIX_EPOCH).unwrap();
    let millis = u64::try_from(stamp.as_millis()).unwrap();
    entry[10..18].copy_from_slice(&millis.to_be_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&entry[..26]);
    checksum.update(&entry[30..]);
    entry[26..30].copy_from_slice(&checksum.finalize().to_be_bytes());
    entry
}

async fn clock_ahead(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b, c) = tokio::join!(stack.node(), stack.node(), stack.node());
    a.product(id).await;
    let old = stamped_ahead(&stack.redis_value(id).await.unwrap(), Duration::from_millis(900));
    let new = rename(&a, id, "new").await;
    stack.redis_put(id, &old).await;
    for (node, freshness) in
        [(&b, Freshness::Latest(true)), (&c, Freshness::MinVersion(new.version))]
    {
        let request = GetProductRequest { id, freshness: Some(freshness) };
        let read = node.client.clone().get_product(request).await.unwrap();
        assert_eq!(read.into_inner(), new);
        stack.redis_put(id, &old).await;
    }
}

async fn clock_jumped(stack: Stack) {
    const HOUR: Duration = Duration::from_secs(3_600);
    let id = stack.insert("old").await;
    let writer = stack.node().await;
    writer.product(id).await;
    let old = stack.redis_value(id).await.unwrap();
    let new = rename(&writer, id, "new").await;
    for wall in [SystemTime::now() + HOUR, SystemTime::now() - HOUR] {
        let node = stack.node().await;
        let stamped = stamped_at(&old, wall);
        stack.redis_put(id, &stamped).await;
        let latest = GetProductRequest { id, freshness: Some(Freshness::Latest(true)) };
        assert_eq!(node.client.clone().get_product(latest).await.unwrap().into_inner(), new);
        // One plain read may serve the old version; but the instance does not rely on the timestamp.
        let other = stack.node_with(|args| args.caching.refresh_keys = 0).await;
        stack.redis_put(id, &stamped).await;
        other.product(id).await;
        eventually("the new version is served", || async { other.product(id).await == new }).await;
        eventually("the entry is replaced", || async {
            stack.redis_value(id).await.is_some_and(|value| value != stamped)
        })
        .await;
    }
}

async fn no_lease(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    stack.redis_put_lock(id, b"another program's").await;
    node.product(id).await;
    assert!(stack.redis_revision(id).await.is_some(), "it was loaded under a lease");
    let waited = r#"hotshelf_lease_total{outcome="waited_out"}"#;
    assert_eq!(node.metric(waited).await, 0.0);
}
