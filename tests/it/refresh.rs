//! Entries past their soft TTL, or near it, are loaded again in the background: once for the fleet.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hotshelf::config::ServeArgs;
use hotshelf::product::ProductId;
use hotshelf::proto::BatchGetProductsRequest;
use sqlx::Executor;
use tonic::Code;

use crate::harness::{Node, Stack, Suite, cache_status, eventually, too_busy};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("refresh::past_the_soft_ttl_the_fleet_answers_at_once_and_loads_once", past_soft);
    suite.both("refresh::an_entry_is_due_by_its_own_ttl_not_by_the_readers", own_ttl);
    suite.both("refresh::the_hottest_are_loaded_ahead_once_for_the_fleet", ahead);
    suite.both("refresh::an_instance_is_ready_when_it_has_the_hottest_in_memory", warm_start);
    suite.single("refresh::what_is_read_steadily_is_never_cold", never_cold);
    suite.both("refresh::ttls_are_jittered", jitter);
    suite.both("refresh::a_tombstone_expires_after_its_short_ttl", tombstone);
}

fn holds(node: &Node, id: i64) -> bool {
    node.hot.peek(ProductId::new(id).unwrap()).is_some()
}

async fn reads_stale(node: &Node, id: i64) -> bool {
    cache_status(&node.get(id).await.unwrap()).ends_with("; stale")
}

async fn past_soft(stack: Stack) {
    const SOFT: Duration = Duration::from_secs(3);
    let id = stack.insert("walnut desk lamp").await;
    let options = |args: &mut ServeArgs| {
        args.caching.soft_ttl = SOFT;
        args.caching.max_staleness = Duration::from_secs(60);
        args.caching.refresh_keys = 0;
        args.redis.lease_wait = Duration::from_secs(60);
        // The load waits for the lock during the assertions.
        args.postgres.database_statement_timeout = Duration::from_secs(60);
    };
    let (a, b, c) =
        tokio::join!(stack.node_with(options), stack.node_with(options), stack.node_with(options));
    let loaded = Instant::now();
    for node in [&a, &b, &c] {
        node.product(id).await;
    }
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    if loaded.elapsed() > SOFT.mul_f64(0.9) {
        too_busy("its soft TTL was over before the table was locked");
    }
    for node in [&a, &b, &c] {
        // Served at once: the refresh that each read requests cannot end before the lock is released.
        eventually("it is stale", || reads_stale(node, id)).await;
    }
    eventually("one instance loads", || async { stack.running_loads().await == 1 }).await;
    let waits = r#"hotshelf_lease_total{outcome="held"}"#;
    eventually("the others wait for it", || async {
        let nodes = join_all([&a, &b, &c].map(|node| node.metric(waits))).await;
        nodes.iter().filter(|waits| **waits > 0.0).count() == 2
    })
    .await;
    assert_eq!(stack.running_loads().await, 1);
    lock.rollback().await.unwrap();
    for node in [&a, &b, &c] {
        eventually("it is fresh", || async { !reads_stale(node, id).await }).await;
    }
    assert_eq!(stack.loads().await, 2, "the first load and one refresh");
}

async fn own_ttl(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (short, long) = tokio::join!(
        stack.node_with(|args| args.caching.soft_ttl = Duration::from_millis(200)),
        stack.node_with(|args| {
            args.caching.soft_ttl = Duration::from_secs(3_600);
            args.caching.refresh_keys = 0;
        }),
    );
    short.product(id).await;
    short.app.stop().await;
    let loads = stack.loads().await;
    eventually("it is refreshed", || async {
        long.product(id).await;
        stack.loads().await > loads && !reads_stale(&long, id).await
    })
    .await;
}

/// Reads products until each was loaded so often that its soft TTL elapsed a dozen times and its hard TTL, after which memory and
/// Redis have nothing to serve, twice.
async fn never_cold(stack: Stack) {
    const PRODUCTS: u32 = 100;
    const LOADS_EACH: u32 = 12;
    let mut ids = Vec::new();
    for n in 0..PRODUCTS {
        ids.push(stack.insert(&format!("shelf {n}")).await);
    }
    let node = stack.node_with(|args| {
        args.caching.soft_ttl = Duration::from_secs(1);
        args.caching.stale_if_error = Duration::from_secs(5);
        args.caching.refresh_interval = Duration::from_millis(100);
    });
    let node = node.await;
    let read_all = async || {
        let request = BatchGetProductsRequest { ids: ids.clone(), ..Default::default() };
        node.client.clone().batch_get_products(request).await.unwrap();
    };
    let served_by = async |tier: &str| {
        node.metric(&format!("hotshelf_reads_total{{served_by=\"{tier}\"}}")).await
    };
    read_all().await;
    eventually("memory has all", async || ids.iter().all(|id| holds(&node, *id))).await;
    read_all().await;
    let cold = (served_by("redis").await, served_by("postgres").await);
    eventually("each was loaded again and again", async || {
        read_all().await;
        node.metric("hotshelf_postgres_loads_total").await >= f64::from(PRODUCTS * LOADS_EACH)
    })
    .await;
    assert_eq!((served_by("redis").await, served_by("postgres").await), cold);
    assert!(served_by("hot").await > 1_000.0);
}

async fn ahead(stack: Stack) {
    const SOFT: Duration = Duration::from_secs(2);
    let id = stack.insert("walnut desk lamp").await;
    let options = |args: &mut ServeArgs| {
        args.caching.soft_ttl = SOFT;
        args.caching.refresh_interval = Duration::from_millis(100);
    };
    let (a, b, c) =
        tokio::join!(stack.node_with(options), stack.node_with(options), stack.node_with(options));
    a.product(id).await;
    let began = Instant::now();
    eventually("memory has what only others read", || async { holds(&b, id) && holds(&c, id) })
        .await;
    assert_eq!(stack.loads().await, 1, "from Redis");
    eventually("it is refreshed without a read", || async { stack.loads().await >= 4 }).await;
    // Each of three refreshes is due after 0.8 of a TTL that is jittered by 0.1. With a refresh per instance, a third
    // of that would be enough.
    let least = 3 * SOFT.mul_f64(0.8 * 0.9);
    assert!(began.elapsed() > least.mul_f64(0.9), "after {:?}", began.elapsed());
}

async fn warm_start(stack: Stack) {
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(stack.insert(&format!("shelf {n}")).await);
    }
    let reader = stack.node().await;
    join_all(ids.iter().map(|id| reader.product(*id))).await;
    eventually("the fleet ranks them", || async {
        reader.catalog.fleet_hot_keys(10).await.keys.len() == ids.len()
    })
    .await;
    for id in &ids {
        stack.redis_evict(*id).await;
    }
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut args = stack.args();
    // The loads wait for the lock during the assertions.
    args.postgres.database_statement_timeout = Duration::from_secs(60);
    args.caching.warm_timeout = Duration::from_secs(60);
    let starting = tokio::spawn(async move { Node::start(&args).await });
    eventually("it loads them", || async { stack.running_loads().await > 0 }).await;
    assert!(!starting.is_finished(), "not ready before it has them");
    lock.rollback().await.unwrap();
    let node = starting.await.unwrap();
    for id in ids {
        let read = node.get(id).await.unwrap();
        assert_eq!(cache_status(&read), "hotshelf; hit; detail=hot", "its first read");
    }
}

async fn jitter(stack: Stack) {
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(stack.insert(&format!("shelf {n}")).await);
    }
    let node = stack.node().await;
    let request = BatchGetProductsRequest { ids: ids.clone(), ..Default::default() };
    node.client.clone().batch_get_products(request).await.unwrap();
    let mut ttls = Vec::new();
    for id in ids {
        let head = stack.redis_value(id).await.unwrap();
        ttls.push(u32::from_be_bytes(head[18..22].try_into().unwrap()));
    }
    ttls.sort_unstable();
    assert!((54_000..=66_000).contains(&ttls[0]), "{ttls:?}");
    assert!((54_000..=66_000).contains(&ttls[29]), "{ttls:?}");
    assert!(
        ttls[29] - ttls[0] > 3_000,
        "entries loaded together expire at different times: {ttls:?}"
    );
}

async fn tombstone(stack: Stack) {
    const ABSENT: i64 = 4_711;
    let node = stack.node_with(|args| args.caching.tombstone_ttl = Duration::from_secs(5)).await;
    assert_eq!(node.get(ABSENT).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stack.redis_revision(ABSENT).await, Some((0, true)));
    // By SQL, so that no instance observes it at once.
    let insert = "INSERT INTO products (id, name, price) VALUES ($1, 'new', 1)";
    sqlx::query(insert).bind(ABSENT).execute(&stack.sql).await.unwrap();
    let reads = AtomicI64::new(0);
    eventually("it is read", || async {
        reads.fetch_add(1, Ordering::Relaxed);
        node.get(ABSENT).await.is_ok()
    })
    .await;
    // More than three while a busy machine keeps the instance from reading the outbox, and so from trusting its memory.
    let (loads, reads) = (stack.loads().await, reads.into_inner());
    assert!(loads <= 3.max(reads / 2), "{loads} SELECTs for {reads} reads");
}
