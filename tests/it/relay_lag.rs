//! P3 while changes cannot be relayed although everything else works: memory and Redis are not taken for current. And
//! while nobody can say whether they are, they answer all the same, and say so.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::{Paused, Point};
use sqlx::AssertSqlSafe;

use crate::harness::{HANG, Node, Private, Stack, Suite, cache_status, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("relay_lag::what_is_not_relayed_is_read_from_postgres", is_noticed);
    suite.both("relay_lag::without_its_protection_it_is_not_noticed", control);
    suite.both("relay_lag::what_redis_holds_is_not_taken_for_current_either", redis_is_not_trusted);
    suite.single(
        "relay_lag::a_change_has_waited_since_its_commit_not_since_its_statement",
        late_commit,
    );
    suite.single("relay_lag::who_starts_while_it_is_long_trusts_nothing", late_start);
    suite.private(
        "relay_lag::while_postgres_does_not_answer_nobody_waits_for_what_is_cached",
        nobody_waits,
    );
}

/// Far below the lag that the tests of a relay that is held wait for.
fn brief(args: &mut ServeArgs) {
    args.caching.max_staleness = Duration::from_secs(1);
}

async fn change(stack: &Stack, id: i64) {
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(rename)).execute(&stack.sql).await.unwrap();
}

/// Makes a change, which the relay takes and goes no further.
async fn get_stuck(node: &Node, change: impl Future<Output = ()>) -> Paused {
    let mut claimed = node.pauses.arm(Point::RelayClaimed);
    change.await;
    tokio::time::timeout(HANG, claimed.recv()).await.expect("it is claimed").unwrap()
}

async fn lags(node: &Node) {
    eventually("it knows that the relays are behind", || async {
        node.metric("hotshelf_relay_lag_seconds").await > 3.0
    })
    .await;
}

async fn is_noticed(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node_with(brief).await;
    assert_eq!(node.product(id).await.name, "old");
    let _stuck = get_stuck(&node, change(&stack, id)).await;
    eventually("the new price is served", || async { node.product(id).await.name == "new" }).await;
    assert!(stack.outbox().await > 0, "nobody has relayed it");
    assert!(
        node.metric("hotshelf_change_stream_lag_seconds").await < 3.0,
        "the stream is followed"
    );
    lags(&node).await;
    assert_eq!(node.metric("hotshelf_hot_lease_valid").await, 0.0);
}

async fn control(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node_with(brief).await;
    node.controls.turn_off(Protection::RelayLag);
    assert_eq!(node.product(id).await.name, "old");
    let _stuck = get_stuck(&node, change(&stack, id)).await;
    lags(&node).await;
    assert_eq!(node.product(id).await.name, "old");
}

async fn redis_is_not_trusted(stack: Stack) {
    let id = stack.insert("old").await;
    let (node, other) = tokio::join!(stack.node_with(brief), stack.node_with(brief));
    other.controls.turn_off(Protection::Relay);
    assert_eq!(node.product(id).await.name, "old");
    let _stuck = get_stuck(&node, change(&stack, id)).await;
    lags(&other).await;
    let (held, newest) = (stack.redis_revision(id).await, stack.version(id).await);
    assert!(held.is_some_and(|(version, _)| version < newest), "{held:?}");
    // Its memory does not hold it.
    assert_eq!(other.product(id).await.name, "new");
}

/// A transaction that ran for an hour.
async fn changed_an_hour_ago(stack: &Stack, id: i64) {
    let mut late = stack.sql.begin().await.unwrap();
    let change = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(change)).execute(&mut *late).await.unwrap();
    let date_back = "UPDATE product_changes SET change_time = change_time - interval '1 hour'";
    let dated = sqlx::query(date_back).execute(&mut *late).await.unwrap();
    assert_eq!(dated.rows_affected(), 1);
    late.commit().await.unwrap();
}

async fn late_commit(stack: Stack) {
    let id = stack.insert("old").await;
    let patient = |args: &mut ServeArgs| args.caching.max_staleness = Duration::from_secs(600);
    let node = stack.node_with(patient).await;
    node.product(id).await;
    let _stuck = get_stuck(&node, changed_an_hour_ago(&stack, id)).await;
    lags(&node).await;
    eventually("not longer than that", || async {
        node.metric("hotshelf_hot_lease_valid").await == 1.0
    })
    .await;
}

async fn late_start(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node().await;
    node.product(id).await;
    let _stuck = get_stuck(&node, changed_an_hour_ago(&stack, id)).await;
    let late = stack.node().await;
    assert_eq!(late.product(id).await.name, "new");
    assert_eq!(late.metric("hotshelf_hot_lease_valid").await, 0.0);
}

async fn nobody_waits(world: Private) {
    let [in_memory, in_redis] = [world.insert("a").await, world.insert("b").await];
    let short = |args: &mut ServeArgs| {
        args.caching.max_staleness = Duration::from_millis(200);
        args.caching.refresh_keys = 0;
    };
    let (node, other) = tokio::join!(world.impatient_node(short), world.impatient_node(short));
    tokio::join!(node.product(in_memory), other.product(in_redis));
    world.to_postgres.black_hole(devstack::Direction::ToClient);
    lags(&node).await;
    eventually("it says that it may be old", || async {
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
    assert_eq!(node.metric("hotshelf_postgres_loads_total").await, loads, "nobody asked");
    assert!(node.metric("hotshelf_served_stale_total").await >= 40.0);
    world.to_postgres.heal();
    eventually("it is known to be current again", || async {
        cache_status(&node.get(in_memory).await.unwrap()) == "hotshelf; hit; detail=hot"
    })
    .await;
}
