//! P3 while the relay does not apply changes to Redis: old entries in memory and Redis are not served. And while
//! Postgres does not respond, cached entries are served, marked stale.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::{Paused, Point};
use hotshelf::product::ProductId;
use sqlx::AssertSqlSafe;

use crate::harness::{HANG, Node, Private, Stack, Suite, cache_status, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("relay_lag::what_is_not_relayed_is_not_served_from_redis", not_relayed);
    suite.both("relay_lag::without_the_change_feed_it_is_served_from_redis", control);
    suite.both("relay_lag::an_instance_that_starts_meanwhile_does_not_serve_it_either", late_start);
    suite.private(
        "relay_lag::while_postgres_does_not_answer_no_read_waits_for_what_is_cached",
        no_read_waits,
    );
    suite.single("relay_lag::what_is_relayed_is_pruned_as_fast_as_it_is_written", pruned);
    suite.single("relay_lag::the_relay_does_not_look_through_all_marks", marks);
}

/// Only the recent changes invalidate a copy within the test.
fn long_staleness(args: &mut ServeArgs) {
    args.caching.max_staleness = Duration::from_secs(600);
    args.caching.refresh_keys = 0;
}

/// Changes are pruned as soon as they are relayed.
fn short_retention(args: &mut ServeArgs) {
    long_staleness(args);
    args.caching.change_retention = Duration::from_millis(100);
}

/// Redis holds an old version of a product, because the relay is paused. Returns the relay, another instance, the pause
/// and the id.
async fn stuck(stack: &Stack, feed: bool) -> (Node, Node, Paused, i64) {
    let id = stack.insert("old").await;
    let relays = stack.node_with(long_staleness).await;
    let other = stack.node_with(long_staleness).await;
    // Otherwise it takes over the relay when the lease of the paused one expires.
    other.controls.turn_off(Protection::Relay);
    assert_eq!(relays.product(id).await.name, "old");
    let mut read = relays.pauses.arm(Point::RelayRead);
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    // Otherwise the instance reloads the product, which fills Redis.
    relays.controls.turn_off(Protection::ChangeFeed);
    if !feed {
        other.controls.turn_off(Protection::ChangeFeed);
        other.controls.turn_off(Protection::Hints);
    }
    sqlx::query(AssertSqlSafe(rename)).execute(&stack.sql).await.unwrap();
    let stuck = tokio::time::timeout(HANG, read.recv()).await.expect("it is read").unwrap();
    (relays, other, stuck, id)
}

async fn is_old_in_redis(stack: &Stack, id: i64) -> bool {
    let (held, newest) = (stack.redis_revision(id).await, stack.version(id).await);
    held.is_some_and(|(version, _)| version < newest)
}

async fn not_relayed(stack: Stack) {
    let (_relays, other, _stuck, id) = stuck(&stack, true).await;
    let newest = stack.version(id).await;
    eventually("it has observed the change", || async {
        let ticket = other.hot.begin_load(ProductId::new(id).unwrap());
        ticket.floor().version.0 == newest
    })
    .await;
    eventually("the relay lags", || async {
        other.metric("hotshelf_relay_lag_seconds").await > 0.0
    })
    .await;
    assert!(is_old_in_redis(&stack, id).await);
    // The product is not in its memory.
    assert_eq!(other.product(id).await.name, "new");
    assert_eq!(other.metric("hotshelf_hot_lease_valid").await, 1.0, "and memory has a valid lease");
}

async fn control(stack: Stack) {
    let (_relays, other, _stuck, id) = stuck(&stack, false).await;
    assert!(is_old_in_redis(&stack, id).await);
    assert_eq!(other.product(id).await.name, "old");
}

async fn late_start(stack: Stack) {
    let (_relays, _other, _stuck, id) = stuck(&stack, true).await;
    assert!(is_old_in_redis(&stack, id).await);
    let late = stack.node_with(long_staleness).await;
    assert_eq!(late.product(id).await.name, "new");
}

async fn no_read_waits(world: Private) {
    let [in_memory, in_redis] = [world.insert("a").await, world.insert("b").await];
    let short = |args: &mut ServeArgs| {
        args.caching.max_staleness = Duration::from_millis(200);
        args.caching.hot_lease = Duration::from_millis(200);
        args.caching.change_poll_interval = Duration::from_millis(50);
        args.caching.refresh_keys = 0;
    };
    let (node, other) =
        tokio::join!(world.node_with_short_timeouts(short), world.node_with_short_timeouts(short));
    tokio::join!(node.product(in_memory), other.product(in_redis));
    world.to_postgres.black_hole(devstack::Direction::ToClient);
    eventually("it has observed the change", || async {
        node.metric("hotshelf_change_feed_lag_seconds").await > 3.0
    })
    .await;
    eventually("it is marked stale", || async {
        cache_status(&node.get(in_memory).await.unwrap()) == "hotshelf; hit; detail=hot; stale"
    })
    .await;
    let read = node.get(in_redis).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=redis; stale");
    let loads = node.metric("hotshelf_postgres_loads_total").await;
    for _ in 0..20 {
        for id in [in_memory, in_redis] {
            assert!(cache_status(&node.get(id).await.unwrap()).ends_with("; stale"));
        }
    }
    assert_eq!(node.metric("hotshelf_postgres_loads_total").await, loads, "no read loaded");
    assert!(node.metric("hotshelf_served_stale_total").await >= 40.0);
    world.to_postgres.heal();
    eventually("it is served as current again", || async {
        cache_status(&node.get(in_memory).await.unwrap()) == "hotshelf; hit; detail=hot"
    })
    .await;
}

/// Marks are kept for hours: the relay must not scan all of them.
async fn marks(stack: Stack) {
    const OLD: i64 = 50_000;
    let node = stack.node_with(short_retention).await;
    let fill = "INSERT INTO hotshelf.marks (catalogue, snapshot, relayed) \
        SELECT 1, pg_current_snapshot(), true FROM generate_series(1, $1)";
    sqlx::query(fill).bind(OLD).execute(&stack.sql).await.unwrap();
    let newest = async || -> i64 {
        let newest = sqlx::query_scalar("SELECT max(id) FROM hotshelf.marks");
        newest.fetch_one(&stack.sql).await.unwrap()
    };
    let made = async |count: i64| {
        let before = newest().await;
        eventually("marks are made", || async { newest().await >= before + count }).await;
    };
    let read = async || -> i64 {
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(&stack.sql).await.unwrap();
        let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_all_tables \
            WHERE relid = 'hotshelf.marks'::regclass";
        sqlx::query_scalar(read).fetch_one(&stack.sql).await.unwrap()
    };
    made(2).await;
    let before = read().await;
    made(5).await;
    // PostgreSQL's statistics lag by about a second.
    made(2).await;
    let rows = read().await - before;
    assert!((1..OLD).contains(&rows), "{rows} rows were read for a few marks");
    drop(node);
}

/// One row per change: pruning 500 per second would take longer than the test's timeout.
async fn pruned(stack: Stack) {
    const ROWS: i64 = 150_000;
    let node = stack.node_with(short_retention).await;
    // One transaction, so that they become prunable together.
    let write = "INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted) \
        SELECT 1, ARRAY[1000000 + n / 1000], ARRAY[1::bigint], false FROM generate_series(1, $1) n";
    sqlx::query(write).bind(ROWS).execute(&stack.sql).await.unwrap();
    assert_eq!(stack.kept_changes().await, ROWS);
    eventually("they are pruned", || async { stack.kept_changes().await == 0 }).await;
    drop(node);
}
