//! P6 and P8 under overload: loads from Postgres stay within the budget, loads without a fallback go first, and the
//! rest is refused at once.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hotshelf::config::ServeArgs;
use hotshelf::proto::{BatchGetProductsRequest, Product};
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Stack, Suite, cache_status, eventually, get};

type Read = JoinHandle<Result<Response<Product>, Status>>;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("budget::a_load_with_a_stale_fallback_gives_way_to_one_without", stale_last);
    suite.both("budget::a_refused_read_returns_at_once", refused_at_once);
    suite.both("budget::a_load_without_waiters_leaves_the_queue", no_waiters);
    suite.both("budget::a_fleet_that_starts_cold_stays_within_it_and_recovers", cold_start);
}

fn tight(args: &mut ServeArgs) {
    args.postgres.database_loads = 1;
    args.postgres.database_queued_loads = 1;
    args.caching.refresh_keys = 0;
}

fn read(node: &Node, id: i64) -> Read {
    let mut client = node.client.clone();
    tokio::spawn(async move { client.get_product(get(id)).await })
}

/// Loads of this instance, running and queued.
async fn in_flight(node: &Node) -> f64 {
    node.metric("hotshelf_postgres_loads_in_flight").await
}

async fn ended(read: Read) -> Result<Response<Product>, Status> {
    tokio::time::timeout(HANG, read).await.unwrap().unwrap()
}

async fn stale_last(stack: Stack) {
    let [running, stale, absent] =
        [stack.insert("a").await, stack.insert("b").await, stack.insert("c").await];
    let node = stack
        .node_with(|args| {
            tight(args);
            // Memory is never fresh.
            args.caching.max_staleness = Duration::ZERO;
            args.caching.hot_lease = Duration::ZERO;
        })
        .await;
    node.product(stale).await;
    stack.redis_evict(stale).await;
    let lock = stack.lock_products().await;
    let first = read(&node, running);
    eventually("one runs", || async { stack.running_loads().await == 1 }).await;
    let many: Vec<Read> = (0..20).map(|_| read(&node, stale)).collect();
    eventually("another waits", || async { in_flight(&node).await == 2.0 }).await;
    let without_fallback = read(&node, absent);
    for read in many {
        let read = ended(read).await.unwrap();
        assert_eq!(cache_status(&read), "hotshelf; hit; detail=hot; stale");
    }
    assert!(!without_fallback.is_finished(), "it waits in the queue");
    lock.rollback().await.unwrap();
    ended(without_fallback).await.unwrap();
    ended(first).await.unwrap();
}

async fn refused_at_once(stack: Stack) {
    let [running, waiting, absent] =
        [stack.insert("a").await, stack.insert("b").await, stack.insert("c").await];
    let node = stack
        .node_with(|args| {
            tight(args);
            args.postgres.database_acquire_timeout = 3 * HANG;
            args.postgres.database_statement_timeout = 3 * HANG;
            args.serving.max_call_time = 3 * HANG;
        })
        .await;
    let lock = stack.lock_products().await;
    let first = read(&node, running);
    eventually("one runs", || async { stack.running_loads().await == 1 }).await;
    let second = read(&node, waiting);
    eventually("another waits", || async { in_flight(&node).await == 2.0 }).await;
    let refused = ended(read(&node, absent)).await.unwrap_err();
    assert_eq!(reason(&refused), "DATABASE_BUDGET_EXHAUSTED");
    // One of its products is refused, which fails the batch although the other is being loaded.
    let batch = BatchGetProductsRequest { ids: vec![running, absent], ..Default::default() };
    let mut client = node.client.clone();
    let refused = tokio::time::timeout(HANG, client.batch_get_products(batch)).await.unwrap();
    assert_eq!(reason(&refused.unwrap_err()), "DATABASE_BUDGET_EXHAUSTED");
    assert!(!first.is_finished() && !second.is_finished());
    assert!(!stack.is_leased(absent).await, "no lease is left behind");
    lock.rollback().await.unwrap();
    ended(first).await.unwrap();
    ended(second).await.unwrap();
}

fn reason(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    assert!(details.retry_info().is_some());
    details.error_info().unwrap().reason.clone()
}

async fn no_waiters(stack: Stack) {
    let [running, left, awaited] =
        [stack.insert("a").await, stack.insert("b").await, stack.insert("c").await];
    let node = stack.node_with(tight).await;
    let lock = stack.lock_products().await;
    let first = read(&node, running);
    eventually("one runs", || async { stack.running_loads().await == 1 }).await;
    let cancelled = read(&node, left);
    eventually("another waits", || async { in_flight(&node).await == 2.0 }).await;
    cancelled.abort();
    eventually("it is cancelled", || async {
        let series = "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"GetProduct\"\
                      ,grpc_service=\"hotshelf.v1.ProductService\",grpc_type=\"unary\"}";
        node.metric(series).await == 1.0
    })
    .await;
    // It has the same priority as the other load, and came later; but the other has no waiters.
    let served = read(&node, awaited);
    eventually("it waits", || async { in_flight(&node).await == 2.0 }).await;
    let loads = stack.loads().await;
    lock.rollback().await.unwrap();
    ended(served).await.unwrap();
    ended(first).await.unwrap();
    assert_eq!(stack.loads().await - loads, 2, "without the load that has no waiters");
}

async fn cold_start(stack: Stack) {
    const PRODUCTS: i64 = 200;
    const LOADS: i64 = 2;
    let insert = "INSERT INTO products (name, price) SELECT 'lamp', 1 FROM generate_series(1, $1)";
    sqlx::query(insert).bind(PRODUCTS).execute(&stack.sql).await.unwrap();
    let options = |args: &mut ServeArgs| {
        args.postgres.database_loads = 2;
        args.postgres.database_queued_loads = 10;
        args.postgres.database_acquire_timeout = Duration::from_millis(500);
    };
    let nodes =
        tokio::join!(stack.node_with(options), stack.node_with(options), stack.node_with(options));
    let nodes = [&nodes.0, &nodes.1, &nodes.2];
    let lock = stack.lock_products().await;
    let reads: Vec<Read> =
        (0..PRODUCTS * 3).map(|n| read(nodes[(n % 3) as usize], n / 3 + 1)).collect();
    eventually("the budget is used", || async {
        let running = stack.running_loads().await;
        assert!(running <= 3 * LOADS, "{running} at once");
        running == 3 * LOADS
    })
    .await;
    // All reads but the running and the queued ones are refused while Postgres still hangs.
    let finished = || reads.iter().filter(|read| read.is_finished()).count();
    eventually("the rest is refused", || async { finished() >= reads.len() / 2 }).await;
    let running = stack.running_loads().await;
    assert!(running <= 3 * LOADS, "{running} at once");
    lock.rollback().await.unwrap();
    for read in join_all(reads).await {
        if let Err(refused) = read.unwrap() {
            assert!(
                matches!(refused.code(), Code::ResourceExhausted | Code::Unavailable),
                "{refused:?}"
            );
        }
    }
    let began = Instant::now();
    for id in 1..=PRODUCTS {
        while nodes[(id % 3) as usize].get(id).await.is_err() {
            assert!(began.elapsed() < HANG, "it recovers");
        }
    }
}
