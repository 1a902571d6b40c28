//! P5, P6 and P7: each server fails in each way, and every test proves that the fault took place.

use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{GetProductRequest, Product, UpdateProductRequest};
use prost_types::FieldMask;
use sqlx::Executor;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Private, Stack, Suite, cache_status, eventually, get};
use crate::newest_wins::rename;

/// Several times the sum of the timeouts of an instance with short timeouts, and less than `max_call_time`.
const BOUNDED: Duration = Duration::from_secs(60);

pub fn register(suite: &mut Suite<'_>) {
    suite.private("outage::with_redis_killed_reads_and_writes_go_on_and_recover", redis_killed);
    suite.private("outage::with_redis_frozen_reads_and_writes_are_bounded", redis_frozen);
    suite.private("outage::with_redis_black_holed_reads_and_writes_are_bounded", redis_black_holed);
    suite.private(
        "outage::an_update_with_redis_down_succeeds_and_is_read_by_its_version_anywhere",
        update_without_redis,
    );
    suite.private("outage::a_full_redis_does_not_keep_an_old_version", redis_full);
    suite.private("outage::with_postgres_killed_what_is_cached_is_served", postgres_killed);
    suite.private("outage::with_postgres_frozen_no_read_hangs", postgres_frozen);
    suite.private(
        "outage::with_postgres_black_holed_what_is_cached_is_served",
        postgres_black_holed,
    );
    suite.both("outage::a_read_that_redis_can_serve_does_not_wait_for_a_latest_read", not_joined);
    suite.both("outage::over_the_database_budget_loads_are_refused_quickly", over_budget);
}

/// Fails unless `call` ends in bounded time.
async fn bounded<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUNDED, call).await.expect("bounded")
}

async fn try_rename(node: &Node, id: i64, name: &str) -> Result<Response<Product>, Status> {
    let request = UpdateProductRequest {
        product: Some(Product { id, name: name.to_owned(), ..Product::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        expected_version: None,
    };
    node.client.clone().update_product(request).await
}

fn assert_refusal(status: &Status, code: Code, reason: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, reason);
    assert!(details.retry_info().unwrap().retry_delay.is_some());
}

/// Whether the process is stopped by a signal.
fn is_frozen(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
}

async fn frozen(pid: u32) {
    eventually("the server is frozen", || async { is_frozen(pid) }).await;
}

/// Waits until the node uses Redis again by itself.
async fn redis_is_used_again(world: &Private, node: &Node) {
    eventually("Redis is filled again", || async {
        let id = world.insert("after the outage").await;
        node.product(id).await;
        world.redis_holds(id)
    })
    .await;
}

async fn redis_killed(world: Private) {
    let (cached, uncached) = (world.insert("cached").await, world.insert("uncached").await);
    let node = world.node_with_short_timeouts(|_| {}).await;
    node.product(cached).await;
    let loads = world.loads().await;
    world.redis.kill();
    assert_eq!(world.redis.pid(), None);
    let reads = join_all((0..500).map(|_| node.get(uncached)));
    for read in bounded(reads).await {
        assert_eq!(read.unwrap().into_inner().id, uncached);
    }
    assert_eq!(world.loads().await, loads + 1, "singleflight needs no Redis");
    let written = bounded(rename(&node, cached, "written meanwhile")).await;
    assert_eq!(node.product(cached).await, written);
    world.redis.start_again().unwrap();
    redis_is_used_again(&world, &node).await;
}

async fn redis_frozen(world: Private) {
    let (read, written) = (world.insert("read").await, world.insert("written").await);
    let node = world.node_with_short_timeouts(|_| {}).await;
    node.product(written).await;
    world.redis.pause();
    frozen(world.redis.pid().unwrap()).await;
    assert_eq!(bounded(node.product(read)).await.id, read);
    let new = bounded(rename(&node, written, "written meanwhile")).await;
    assert_eq!(node.product(written).await, new);
    assert!(is_frozen(world.redis.pid().unwrap()), "all the time");
    world.redis.resume();
    redis_is_used_again(&world, &node).await;
}

async fn redis_black_holed(world: Private) {
    let (read, written) = (world.insert("read").await, world.insert("written").await);
    let node = world.node_with_short_timeouts(|_| {}).await;
    node.product(written).await;
    world.to_redis.black_hole(devstack::Direction::Both);
    assert_eq!(bounded(node.product(read)).await.id, read);
    let new = bounded(rename(&node, written, "written meanwhile")).await;
    assert_eq!(node.product(written).await, new);
    assert!(world.to_redis.counts().to_server.swallowed > 0, "it happened");
    world.to_redis.heal();
    redis_is_used_again(&world, &node).await;
}

async fn update_without_redis(world: Private) {
    let id = world.insert("old").await;
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(|_| {}),
        world.node_with_short_timeouts(|_| {})
    );
    let (_, _) = tokio::join!(a.product(id), b.product(id));
    world.redis.kill();
    assert_eq!(world.redis.pid(), None);
    let new = bounded(rename(&a, id, "new")).await;
    assert_eq!(a.product(id).await, new, "at once");
    let freshness = Some(Freshness::MinVersion(new.version));
    let read = b.client.clone().get_product(GetProductRequest { id, freshness }).await.unwrap();
    assert_eq!(read.into_inner(), new);
}

async fn redis_full(world: Private) {
    let id = world.insert("old").await;
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(|_| {}),
        world.node_with_short_timeouts(|_| {})
    );
    a.product(id).await;
    assert!(world.redis_holds(id));
    world.redis.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert!(world.redis.command(&["SET", "any", "thing"]).is_err(), "full");
    let new = bounded(rename(&a, id, "new")).await;
    assert_eq!(bounded(b.product(id)).await, new);
}

/// Waits for recovery; a timeout reports the last error.
async fn loads_again(node: &Node, id: i64) {
    let began = Instant::now();
    while let Err(refusal) = node.get(id).await {
        assert!(began.elapsed() < HANG, "still refused: {refusal:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn postgres_killed(world: Private) {
    let [hot, in_redis, uncached] =
        [world.insert("a").await, world.insert("b").await, world.insert("c").await];
    let short = |args: &mut hotshelf::config::ServeArgs| {
        args.caching.soft_ttl = Duration::from_millis(500);
        args.caching.max_staleness = Duration::from_millis(500);
        args.caching.hot_lease = Duration::from_millis(500);
        // A refresh would bring into memory what the test reads from Redis.
        args.caching.refresh_keys = 0;
    };
    let (node, other) =
        tokio::join!(world.node_with_short_timeouts(short), world.node_with_short_timeouts(short));
    let (_, _) = tokio::join!(node.product(hot), other.product(in_redis));
    // The server of the tests does not wait for the disk, so a kill would lose the last commits.
    world.sql.execute("CHECKPOINT").await.unwrap();
    world.postgres.kill();
    assert_eq!(world.postgres.pid(), None);
    let began = Instant::now();
    eventually("memory serves past its soft TTL, marked stale", || async {
        let read = bounded(node.get(hot)).await.unwrap();
        cache_status(&read) == "hotshelf; hit; detail=hot; stale"
    })
    .await;
    // Past the fallback from memory, Redis serves.
    eventually("four seconds have passed", || async {
        assert_eq!(bounded(node.product(hot)).await.id, hot);
        began.elapsed() > Duration::from_secs(4)
    })
    .await;
    let read = bounded(node.get(in_redis)).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=redis; stale");
    let missed = bounded(node.get(uncached)).await.unwrap_err();
    assert_refusal(&missed, Code::Unavailable, "DATABASE_UNAVAILABLE");
    let written = bounded(try_rename(&node, hot, "lost")).await.unwrap_err();
    assert_eq!(written.code(), Code::Unavailable);
    world.postgres.start_again().unwrap();
    loads_again(&node, uncached).await;
    assert_eq!(rename(&node, hot, "new").await.name, "new");
}

async fn postgres_frozen(world: Private) {
    let (hot, uncached) = (world.insert("hot").await, world.insert("uncached").await);
    let node = world
        .node_with_short_timeouts(|args| {
            args.caching.soft_ttl = Duration::from_millis(300);
            args.caching.max_staleness = Duration::from_millis(100);
            args.caching.hot_lease = Duration::from_millis(100);
            args.postgres.database_statement_timeout = Duration::from_secs(2);
        })
        .await;
    node.product(hot).await;
    // Frozen during a load, which readers of a product past its soft TTL join.
    let mut lock = world.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    eventually("it is being refreshed", || async {
        // Not awaited: a read that joins the refresh waits for its end, after which it cannot be observed.
        let mut reader = node.client.clone();
        drop(tokio::spawn(async move { reader.get_product(get(hot)).await }));
        world.running_loads().await >= 1
    })
    .await;
    world.postgres.pause();
    frozen(world.postgres.pid().unwrap()).await;
    let began = Instant::now();
    eventually("it was read for four seconds", || async {
        assert_eq!(bounded(node.product(hot)).await.id, hot);
        began.elapsed() > Duration::from_secs(4)
    })
    .await;
    let missed = bounded(node.get(uncached)).await.unwrap_err();
    assert_refusal(&missed, Code::Unavailable, "DATABASE_UNAVAILABLE");
    world.postgres.resume();
    lock.rollback().await.unwrap();
    loads_again(&node, uncached).await;
}

async fn postgres_black_holed(world: Private) {
    let (cached, uncached) = (world.insert("cached").await, world.insert("uncached").await);
    let node = world.node_with_short_timeouts(|_| {}).await;
    node.product(cached).await;
    world.to_postgres.black_hole(devstack::Direction::ToClient);
    let missed = bounded(node.get(uncached)).await.unwrap_err();
    assert_refusal(&missed, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert!(world.to_postgres.counts().to_client.swallowed > 0, "it happened");
    assert_eq!(bounded(node.product(cached)).await.id, cached);
    world.to_postgres.heal();
    loads_again(&node, uncached).await;
}

async fn not_joined(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (other, node) = tokio::join!(
        stack.node(),
        stack.node_with(|args| args.postgres.database_statement_timeout = Duration::from_secs(5))
    );
    other.product(id).await;
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut client = node.client.clone();
    let latest = GetProductRequest { id, freshness: Some(Freshness::Latest(true)) };
    let latest = tokio::spawn(async move { client.get_product(latest).await });
    eventually("the load waits for the lock", || async { stack.running_loads().await == 1 }).await;
    let read = node.get(id).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=redis");
    assert!(!latest.is_finished(), "which is still running");
    assert_eq!(latest.await.unwrap().unwrap_err().code(), Code::Unavailable);
    lock.rollback().await.unwrap();
}

async fn over_budget(stack: Stack) {
    let [hot, first, second] =
        [stack.insert("a").await, stack.insert("b").await, stack.insert("c").await];
    let node = stack
        .node_with(|args| {
            args.postgres.database_loads = 1;
            args.postgres.database_queued_loads = 0;
            args.caching.max_staleness = Duration::ZERO;
            args.caching.hot_lease = Duration::ZERO;
        })
        .await;
    node.product(hot).await;
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut client = node.client.clone();
    let running = tokio::spawn(async move { client.get_product(get(first)).await });
    eventually("the budget is used up", || async { stack.running_loads().await == 1 }).await;
    let refused = bounded(node.get(second)).await.unwrap_err();
    assert_refusal(&refused, Code::ResourceExhausted, "DATABASE_BUDGET_EXHAUSTED");
    assert_eq!(bounded(node.product(hot)).await.id, hot, "what is cached is served");
    // Memory is never fresh here, and Redis has no entry: only Postgres could confirm the copy.
    stack.redis_evict(hot).await;
    let stale = bounded(node.get(hot)).await.unwrap();
    assert_eq!(cache_status(&stale), "hotshelf; hit; detail=hot; stale");
    assert!(!running.is_finished(), "all the time");
    lock.rollback().await.unwrap();
    assert_eq!(running.await.unwrap().unwrap().into_inner().id, first);
    assert_eq!(node.product(second).await.id, second);
}
