//! P2: no tier goes from a newer version back to an older one. A load is paused while the product changes, and then
//! resumed.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::pause::{Paused, Point};
use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{DeleteProductRequest, GetProductRequest, Product, UpdateProductRequest};
use prost_types::FieldMask;
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};

use crate::harness::{HANG, Node, Stack, Suite, cache_status, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("newest_wins::a_late_fill_does_not_replace_a_newer_version_in_redis", late_fill);
    suite.both(
        "newest_wins::a_late_fill_does_not_revive_an_old_version_after_eviction",
        late_fill_after_eviction,
    );
    suite.both(
        "newest_wins::a_late_load_does_not_put_an_old_version_into_memory",
        late_load_into_memory,
    );
    suite.both(
        "newest_wins::a_late_load_does_not_revive_a_deleted_product",
        late_load_of_a_deleted_product,
    );
    suite
        .both("newest_wins::an_update_through_another_instance_breaks_the_lease", update_elsewhere);
    suite.both(
        "newest_wins::a_write_that_redis_has_lost_is_not_undone_by_its_old_entry",
        redis_behind,
    );
    suite.both(
        "newest_wins::a_product_that_sql_deleted_is_gone_after_the_next_load",
        deleted_by_sql,
    );
    suite.both(
        "newest_wins::a_caller_gets_the_version_that_it_wrote_from_any_instance",
        read_your_writes,
    );
    suite.both(
        "newest_wins::a_caller_content_with_more_staleness_gets_no_more_than_the_bound",
        more_staleness,
    );
    suite.both("newest_wins::a_tombstone_has_the_version_that_was_deleted", exact_tombstone);
    suite.both(
        "newest_wins::a_version_that_was_never_committed_is_a_failed_precondition",
        never_committed,
    );
}

pub async fn rename(node: &Node, id: i64, name: &str) -> Product {
    let request = UpdateProductRequest {
        product: Some(Product { id, name: name.to_owned(), ..Product::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        expected_version: None,
    };
    node.client.clone().update_product(request).await.unwrap().into_inner()
}

type Read = JoinHandle<Result<Response<Product>, Status>>;

/// Starts a read and pauses it at `point`.
async fn hold(node: &Node, id: i64, point: Point) -> (Read, Paused) {
    let mut held = node.pauses.arm(point);
    let mut client = node.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await });
    let paused = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
    node.pauses.release(point);
    (read, paused)
}

async fn resume(read: Read, paused: Paused) -> Result<Response<Product>, Status> {
    drop(paused);
    tokio::time::timeout(HANG, read).await.unwrap().unwrap()
}

async fn late_fill(stack: Stack) {
    let id = stack.insert("old").await;
    let (node, other) = tokio::join!(stack.node(), stack.node());
    let (read, paused) = hold(&node, id, Point::LoadedFromPostgres).await;
    let new = rename(&node, id, "new").await;
    assert_eq!(other.product(id).await, new);
    assert_eq!(stack.redis_revision(id).await, Some((new.version, false)));
    assert_eq!(resume(read, paused).await.unwrap().into_inner().name, "new");
    assert_eq!(stack.redis_revision(id).await, Some((new.version, false)));
    assert_eq!(node.product(id).await, new);
}

async fn late_fill_after_eviction(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let (read, paused) = hold(&a, id, Point::LoadedFromPostgres).await;
    let new = rename(&b, id, "new").await;
    stack.redis_evict(id).await;
    let served = resume(read, paused).await.unwrap().into_inner();
    assert_eq!(served.name, "new", "loaded again, because the lease was broken");
    assert_eq!(stack.redis_revision(id).await, Some((new.version, false)));
    assert_eq!(a.product(id).await, new);
}

async fn late_load_into_memory(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node().await;
    // Paused after the fill of Redis, so that only the floor of the load keeps the old version out of memory.
    let (read, paused) = hold(&node, id, Point::FilledRedis).await;
    let new = rename(&node, id, "new").await;
    assert_eq!(resume(read, paused).await.unwrap().into_inner().name, "new");
    let hot = node.get(id).await.unwrap();
    assert_eq!(cache_status(&hot), "hotshelf; hit; detail=hot");
    assert_eq!(hot.into_inner(), new);
    let rejected = r#"hotshelf_fills_rejected_total{reason="below_floor",tier="hot"}"#;
    assert!(node.metric(rejected).await >= 1.0);
}

async fn late_load_of_a_deleted_product(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node().await;
    let (read, paused) = hold(&node, id, Point::LoadedFromPostgres).await;
    let request = DeleteProductRequest { id, expected_version: None };
    node.client.clone().delete_product(request).await.unwrap();
    assert_eq!(resume(read, paused).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.get(id).await.unwrap_err().code(), Code::NotFound);
    assert!(stack.redis_revision(id).await.unwrap().1, "a tombstone");
}

async fn update_elsewhere(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let (read, paused) = hold(&a, id, Point::LoadedFromPostgres).await;
    assert!(stack.is_leased(id).await);
    let new = rename(&b, id, "new").await;
    assert!(!stack.is_leased(id).await, "a write breaks the lease");
    assert_eq!(resume(read, paused).await.unwrap().into_inner(), new);
    let lost = r#"hotshelf_fills_rejected_total{reason="lease_lost",tier="redis"}"#;
    // The relay may break the next lease, too, when it applies the same change.
    assert!(a.metric(lost).await >= 1.0);
    assert_eq!(a.product(id).await, new);
}

async fn redis_behind(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack
        .node_with(|args| {
            args.caching.max_staleness = Duration::ZERO;
            args.caching.hot_lease = Duration::ZERO;
        })
        .await;
    node.product(id).await;
    let old = stack.redis_value(id).await.unwrap();
    let new = rename(&node, id, "new").await;
    // As if Redis had lost the write in a failover. Memory is never fresh here, so each read reaches Redis.
    stack.redis_put(id, &old).await;
    let read = node.get(id).await.unwrap();
    assert_eq!(read.into_inner(), new);
    assert_eq!(
        stack.redis_revision(id).await,
        Some((new.version, false)),
        "Redis has the new version again"
    );
}

async fn deleted_by_sql(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node().await;
    let old = node.product(id).await;
    sqlx::query("DELETE FROM products WHERE id = $1").bind(id).execute(&stack.sql).await.unwrap();
    let latest = GetProductRequest { id, freshness: Some(Freshness::Latest(true)) };
    let gone = node.client.clone().get_product(latest).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(node.get(id).await.unwrap_err().code(), Code::NotFound, "memory has the tombstone");
    assert_eq!(stack.redis_revision(id).await, Some((old.version, true)), "and Redis");
    let request = "INSERT INTO products (id, name, price) VALUES ($1, 'again', 1)";
    sqlx::query(request).bind(id).execute(&stack.sql).await.unwrap();
    let again = node.client.clone().get_product(latest).await.unwrap().into_inner();
    assert!(again.version > old.version);
    assert_eq!(node.product(id).await, again);
}

async fn read_your_writes(stack: Stack) {
    let id = stack.insert("0").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    for round in 1..=20 {
        // Both hold the older version in memory, and would serve it.
        let (_, _) = tokio::join!(a.product(id), b.product(id));
        let written = rename([&a, &b][round % 2], id, &round.to_string()).await;
        for node in [&a, &b] {
            let freshness = Some(Freshness::MinVersion(written.version));
            let request = GetProductRequest { id, freshness };
            let read = node.client.clone().get_product(request).await.unwrap().into_inner();
            assert_eq!(read, written);
        }
    }
}

async fn more_staleness(stack: Stack) {
    let id = stack.insert("old").await;
    let never_fresh = |args: &mut ServeArgs| {
        args.caching.max_staleness = Duration::ZERO;
        args.caching.hot_lease = Duration::ZERO;
    };
    let (a, b) = tokio::join!(stack.node_with(never_fresh), stack.node());
    a.product(id).await;
    let new = rename(&b, id, "new").await;
    let hour = prost_types::Duration { seconds: 3_600, nanos: 0 };
    let request = GetProductRequest { id, freshness: Some(Freshness::MaxStaleness(hour)) };
    assert_eq!(a.client.clone().get_product(request).await.unwrap().into_inner(), new);
}

async fn never_committed(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node().await;
    let version = node.product(id).await.version;
    let freshness = Some(Freshness::MinVersion(version + 1));
    let error =
        node.client.clone().get_product(GetProductRequest { id, freshness }).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let details = tonic_types::StatusExt::get_error_details(&error);
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "VERSION_NOT_REACHED");
    assert_eq!(info.metadata["current_version"], version.to_string());
}

/// An interleaving that the model found: a load of an absent product has no version for its tombstone but the one that
/// the deletion left.
async fn exact_tombstone(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let version = stack.version(id).await;
    let delete = "DELETE FROM products WHERE id = $1";
    sqlx::query(delete).bind(id).execute(&stack.sql).await.unwrap();
    stack.wait_until_relayed().await;
    for node in [&a, &b] {
        assert_eq!(node.get(id).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(stack.redis_revision(id).await, Some((version, true)));
}
