//! Leases: which instance loads, and the takeover when that instance is killed.

use std::time::{Duration, Instant};

use hotshelf::caller::CallContext;
use hotshelf::config::ServeArgs;
use hotshelf::pause::Point;
use hotshelf::product::ProductId;
use sqlx::Executor;

use crate::harness::{HANG, Node, Program, Stack, StallMeter, Suite, eventually, get};

/// Longer than the test.
const FOR_EVER: Duration = Duration::from_secs(600);

pub fn register(suite: &mut Suite<'_>) {
    suite.both("lease::the_lease_of_a_killed_holder_is_taken_over", killed_holder);
    suite.both("lease::a_holder_that_takes_long_keeps_its_lease", renewal);
    suite.both(
        "lease::after_the_lease_wait_a_load_reads_postgres_and_does_not_fill_redis",
        waited_out,
    );
    suite.both("lease::a_load_without_waiters_does_not_wait_for_a_lease", no_waiters);
    suite.both("lease::a_load_that_fails_gives_its_lease_back", failed_load);
    suite.alone(|suite| {
        suite.both("lease::when_its_holder_is_killed_others_wait_a_second_and_a_half", wait);
    });
}

/// With the program's own TTL.
async fn wait(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let own = ["--lease-ttl", "1s", "--lease-wait", "2s"];
    let (holder, waiter) = (Program::serve(&stack, &own).await, Program::serve(&stack, &own).await);
    let lock = stack.lock_products().await;
    let mut client = holder.client().await;
    let held = tokio::spawn(async move { client.get_product(get(id)).await });
    eventually("the lease is taken", || stack.is_leased(id)).await;
    let mut client = waiter.client().await;
    let waits = tokio::spawn(async move { client.get_product(get(id)).await });
    let held_by_other = "hotshelf_lease_total{outcome=\"held\"} ";
    eventually("the other waits", || async {
        let (_, exposition) = waiter.admin("/metrics").await;
        let mut counts = exposition.lines().filter_map(|line| line.strip_prefix(held_by_other));
        counts.any(|count| count != "0")
    })
    .await;
    let stalls = StallMeter::start();
    let killed = Instant::now();
    holder.kill().await;
    lock.rollback().await.unwrap();
    waits.await.unwrap().unwrap();
    let (waited, stalled) = (killed.elapsed(), stalls.longest());
    assert!(held.await.unwrap().is_err());
    let allowed = Duration::from_millis(1_500) + stalled;
    assert!(waited <= allowed, "{waited:?}; a thread that slept was {stalled:?} late");
}

async fn killed_holder(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let holder = Program::serve(&stack, &["--lease-ttl", "2s"]).await;
    let node = stack.node().await;
    // The holder's SELECT hangs behind this lock, and the holder holds the lease.
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut client = holder.client().await;
    let read = tokio::spawn(async move { client.get_product(get(id)).await });
    eventually("the lease is taken", || stack.is_leased(id)).await;
    holder.kill().await;
    assert!(read.await.unwrap().is_err());
    assert!(stack.is_leased(id).await, "it was not released");
    lock.rollback().await.unwrap();
    let product = tokio::time::timeout(HANG, node.product(id)).await.unwrap();
    assert_eq!(product.id, id);
    assert_eq!(
        node.metric(r#"hotshelf_lease_total{outcome="waited_out"}"#).await,
        0.0,
        "taken over"
    );
    assert!(!stack.is_leased(id).await);
    assert!(stack.redis_revision(id).await.is_some(), "and Redis was filled");
}

async fn renewal(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack
        .node_with(|args| {
            args.redis.lease_ttl = Duration::from_secs(6);
            args.postgres.database_statement_timeout = FOR_EVER;
        })
        .await;
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut client = node.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await });
    eventually("the lease is taken", || stack.is_leased(id)).await;
    for renewal in 1..=3 {
        // The holder renews it when a third of its TTL has passed.
        let runs_down = || async { stack.lease_left(id).await < Duration::from_secs(5) };
        eventually("it runs down", runs_down).await;
        let renewed = || async { stack.lease_left(id).await > Duration::from_secs(5) };
        eventually(&format!("renewal {renewal}"), renewed).await;
    }
    lock.rollback().await.unwrap();
    assert!(read.await.unwrap().is_ok());
    assert_eq!(node.metric(r#"hotshelf_lease_total{outcome="lost"}"#).await, 0.0);
    assert!(stack.redis_revision(id).await.is_some(), "the fill was accepted");
}

async fn waited_out(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (slow, other) = tokio::join!(
        stack.node(),
        stack.node_with(|args| args.redis.lease_wait = Duration::from_millis(200))
    );
    let mut held = slow.pauses.arm(Point::LoadedFromPostgres);
    let mut client = slow.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await });
    let paused = held.recv().await.unwrap();
    assert_eq!(other.product(id).await.id, id);
    assert_eq!(other.metric(r#"hotshelf_lease_total{outcome="waited_out"}"#).await, 1.0);
    assert_eq!(stack.redis_revision(id).await, None, "only the holder fills");
    drop(paused);
    assert!(read.await.unwrap().is_ok());
    assert!(stack.redis_revision(id).await.is_some());
}

async fn no_waiters(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let options = |args: &mut ServeArgs| {
        (args.redis.lease_wait, args.redis.lease_ttl) = (FOR_EVER, FOR_EVER);
        args.caching.refresh_keys = 0;
    };
    let (holder, other) = tokio::join!(stack.node_with(options), stack.node_with(options));
    let mut held = holder.pauses.arm(Point::LoadedFromPostgres);
    let read = |node: &Node| {
        let mut client = node.client.clone();
        tokio::spawn(async move { client.get_product(get(id)).await })
    };
    let first = read(&holder);
    let paused = held.recv().await.unwrap();
    let (left, other_caller) = (read(&other), read(&other));
    let waits = async || other.metric(r#"hotshelf_lease_total{outcome="held"}"#).await;
    eventually("it waits", async || waits().await > 3.0).await;
    left.abort();
    let cancelled = "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"GetProduct\",\
                    grpc_service=\"hotshelf.v1.ProductService\",grpc_type=\"unary\"}";
    eventually("one call is cancelled", async || other.metric(cancelled).await == 1.0).await;
    let asked = waits().await;
    eventually("it waits for the other caller", async || waits().await > asked + 1.0).await;
    other_caller.abort();
    let in_flight = async || {
        let product = ProductId::new(id).unwrap();
        let explained = other.catalog.explain(product, CallContext::BACKGROUND).await;
        explained.unwrap().load_in_flight
    };
    eventually("without callers the load ends", async || !in_flight().await).await;
    assert_eq!(other.metric(r#"hotshelf_lease_total{outcome="waited_out"}"#).await, 0.0);
    assert!(stack.is_leased(id).await, "the holder still holds it");
    let late = read(&other);
    eventually("it waits again", async || in_flight().await).await;
    drop(paused);
    let (late, first) = (late.await.unwrap().unwrap(), first.await.unwrap().unwrap());
    assert_eq!((late.into_inner().id, first.into_inner().id), (id, id));
}

async fn failed_load(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack
        .node_with(|args| args.postgres.database_statement_timeout = Duration::from_millis(300))
        .await;
    let mut lock = stack.sql.begin().await.unwrap();
    lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let error = node.get(id).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    let details = tonic_types::StatusExt::get_error_details(&error);
    assert_eq!(details.error_info().unwrap().reason, "DATABASE_UNAVAILABLE");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert!(!stack.is_leased(id).await);
    lock.rollback().await.unwrap();
    // With this short timeout a load may fail.
    eventually("it is loaded", async || node.get(id).await.is_ok()).await;
}
