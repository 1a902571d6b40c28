//! P2 and P3 when Redis has lost writes: it was restored from an old snapshot, or a replica without the last writes
//! was promoted.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use sqlx::AssertSqlSafe;

use crate::harness::{Node, Private, Suite, cache_status, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.private("replication_ids::what_an_old_snapshot_brings_back_is_not_served", old_snapshot);
    suite.private(
        "replication_ids::without_looking_at_the_replication_id_an_old_snapshot_is_served",
        without_protection,
    );
    suite.private(
        "replication_ids::with_postgres_down_what_a_snapshot_brings_back_is_marked_stale",
        postgres_down,
    );
    suite.private("replication_ids::a_restart_that_lost_nothing_costs_no_reads", nothing_lost);
    suite.private("replication_ids::a_replication_id_that_redis_evicts_is_stored_again", evicted);
}

/// The recent changes do not include those that the snapshot lacks.
fn short_retention(args: &mut ServeArgs) {
    args.caching.change_retention = Duration::from_millis(10);
    args.caching.refresh_keys = 0;
}

/// An instance, and a product that it has not read. Redis is restored from a snapshot with the product's old version,
/// and the change that replaced it is pruned.
async fn restored(world: &Private) -> (Node, i64) {
    let id = world.insert("old").await;
    let (reader, node) = tokio::join!(
        world.node_with_short_timeouts(short_retention),
        world.node_with_short_timeouts(short_retention)
    );
    reader.product(id).await;
    assert!(reader.app.stop().await);
    let old = world.redis_digest(id);
    assert!(old.is_some());
    world.redis.command(&["SAVE"]).unwrap();
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(rename)).execute(&world.sql).await.unwrap();
    world.wait_until_relayed().await;
    assert_ne!(world.redis_digest(id), old, "replaced");
    eventually("the change is pruned", || async { world.kept_changes().await == 0 }).await;
    world.redis.kill();
    world.redis.start_again().unwrap();
    eventually("the snapshot is loaded", || async { world.redis_holds(id) }).await;
    eventually("the old entry is back", || async { world.redis_digest(id) == old }).await;
    (node, id)
}

async fn old_snapshot(world: Private) {
    let (before, id) = restored(&world).await;
    // The old version may be read until a probe detects the new replication id.
    eventually("the new version is read", || async { before.product(id).await.name == "new" })
        .await;
    let after = world.node_with_short_timeouts(short_retention).await;
    assert_eq!(after.product(id).await.name, "new");
    assert_eq!(before.product(id).await.name, "new", "and from then on");
    assert_eq!(changes(&before).await, 1.0);
    assert_eq!(changes(&after).await, 0.0, "the stored replication id is current");
}

/// Changes of Redis' replication id that a node has detected.
async fn changes(node: &Node) -> f64 {
    node.metric("hotshelf_redis_replication_changes_total").await
}

async fn without_protection(world: Private) {
    let (_before, id) = restored(&world).await;
    let after = world.node_with_short_timeouts(short_retention).await;
    after.controls.turn_off(Protection::RedisReplicationId);
    assert_eq!(after.product(id).await.name, "old");
}

async fn postgres_down(world: Private) {
    let id = world.insert("old").await;
    let (reader, node) = tokio::join!(
        world.node_with_short_timeouts(short_retention),
        world.node_with_short_timeouts(short_retention)
    );
    reader.product(id).await;
    assert!(reader.app.stop().await);
    world.redis.command(&["SAVE"]).unwrap();
    world.to_postgres.cut();
    world.redis.kill();
    world.redis.start_again().unwrap();
    eventually("it is served as stale", || async {
        let read = node.get(id).await;
        read.is_ok_and(|read| cache_status(&read) == "hotshelf; hit; detail=redis; stale")
    })
    .await;
    eventually("it happened", || async { world.to_postgres.counts().refused > 0 }).await;
    world.to_postgres.heal();
    eventually("it is served as current", || async {
        let read = node.get(id).await;
        read.is_ok_and(|read| !cache_status(&read).contains("stale"))
    })
    .await;
}

async fn nothing_lost(world: Private) {
    let insert = "INSERT INTO products (name, price) SELECT 'lamp', 1 FROM generate_series(1, 100) RETURNING id";
    let ids: Vec<i64> = sqlx::query_scalar(insert).fetch_all(&world.sql).await.unwrap();
    let options = |args: &mut ServeArgs| args.caching.refresh_keys = 0;
    let (reader, node) = tokio::join!(
        world.node_with_short_timeouts(options),
        world.node_with_short_timeouts(options)
    );
    for id in &ids {
        reader.product(*id).await;
    }
    world.redis.command(&["SAVE"]).unwrap();
    world.redis.kill();
    world.redis.start_again().unwrap();
    eventually("it is noticed", || async { changes(&node).await >= 1.0 }).await;
    let open = "hotshelf_redis_breakers_open{dependency=\"commands\"}";
    eventually("its breaker is closed", || async { node.metric(open).await == 0.0 }).await;
    let noticed = changes(&node).await;
    // The entries are confirmed within the time that recent changes cover. Each poll reads another product, because
    // memory has those that were loaded while Redis was unreachable.
    let (mut unread, node, redis) = (ids.into_iter(), &node, "hotshelf; hit; detail=redis");
    eventually("Redis serves it", || {
        let next = unread.next().expect("one of a hundred");
        async move { cache_status(&node.get(next).await.unwrap()) == redis }
    })
    .await;
    for id in unread {
        assert_eq!(cache_status(&node.get(id).await.unwrap()), redis);
    }
    assert_eq!(changes(node).await, noticed, "and no other change is detected");
}

async fn evicted(world: Private) {
    let id = world.insert("lamp").await;
    let (reader, node) = tokio::join!(
        world.node_with_short_timeouts(short_retention),
        world.node_with_short_timeouts(short_retention)
    );
    reader.product(id).await;
    let key = format!("{}:{{node-0}}:replication", world.key_prefix);
    let held = || world.redis.command(&["GET", &key]).unwrap();
    eventually("it is stored", || async { held() != "(nil)" }).await;
    assert_eq!(world.redis.command(&["DEL", &key]).unwrap(), "1");
    eventually("it is stored again", || async { held() != "(nil)" }).await;
    let read = node.get(id).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=redis", "nothing is suspect");
    assert_eq!(changes(&node).await, 0.0);
    let later = world.node_with_short_timeouts(short_retention).await;
    assert_eq!(cache_status(&later.get(id).await.unwrap()), "hotshelf; hit; detail=redis");
}
