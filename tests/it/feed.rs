//! P3 and P4 of the change feed: loads and writes in flight while changes are pruned, all kinds of transactions, bulk
//! jobs, and an unreachable Redis. Pause points make the interleavings deterministic.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::{Paused, Point};
use hotshelf::product::ProductId;
use hotshelf::proto::{BatchGetProductsRequest, Product};
use sqlx::{AssertSqlSafe, Executor};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use crate::harness::{HANG, Node, Private, Stack, Suite, cache_status, eventually, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("feed::a_load_that_read_redis_before_a_change_was_pruned_is_rejected", late_redis);
    suite.both("feed::a_load_that_read_redis_before_an_overflow_ended_is_rejected", late_overflow);
    suite.single("feed::a_late_own_write_does_not_make_an_invalid_slot_valid", late_own_write);
    suite.single("feed::what_was_pruned_before_the_poll_after_a_gap_is_not_trusted", late_poll);
    suite.single("feed::a_prepared_transaction_counts_from_its_commit", prepared);
    suite.single("feed::more_savepoints_than_a_snapshot_lists_are_one_transaction", savepoints);
    suite.both("feed::a_bulk_update_leaves_other_products_in_memory", bulk);
    suite.private("feed::a_change_by_sql_is_served_everywhere_with_redis_killed", redis_killed);
    suite.private("feed::a_change_by_sql_is_served_everywhere_with_redis_full", redis_full);
    suite.both("feed::a_change_by_sql_is_served_everywhere_without_hints", no_hints);
    suite.single("feed::a_poll_of_an_outbox_that_has_grown_scans_its_index", plan);
}

/// Only the feed invalidates a copy within the test.
fn long_staleness(args: &mut ServeArgs) {
    args.caching.max_staleness = Duration::from_secs(600);
    args.caching.hot_lease = Duration::from_secs(600);
    args.caching.refresh_keys = 0;
}

/// Changes are pruned as soon as they are relayed.
fn short_retention(args: &mut ServeArgs) {
    long_staleness(args);
    args.caching.change_retention = Duration::from_millis(100);
}

async fn run(stack: &Stack, statement: &str) {
    stack.sql.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
}

async fn insert_many(stack: &Stack, count: i64) -> Vec<i64> {
    let insert = "INSERT INTO products (name, price) SELECT 'old', 1 FROM generate_series(1, $1) RETURNING id";
    sqlx::query_scalar(insert).bind(count).fetch_all(&stack.sql).await.unwrap()
}

async fn rename(stack: &Stack, id: i64, name: &str) {
    run(stack, &format!("UPDATE products SET name = '{name}' WHERE id = {id}")).await;
}

async fn all_serve(nodes: &[&Node], id: i64, name: &str) {
    for node in nodes {
        eventually(&format!("{id} is {name}"), || async {
            node.get(id).await.is_ok_and(|read| read.into_inner().name == name)
        })
        .await;
    }
}

async fn next(held: &mut UnboundedReceiver<Paused>) -> Paused {
    tokio::time::timeout(HANG, held.recv()).await.expect("it is reached").unwrap()
}

/// Waits for `count` polls that start after the call.
pub async fn polls(node: &Node, count: usize) {
    for _ in 0..count {
        let mut polling = node.pauses.arm(Point::PollOutbox);
        let _paused = next(&mut polling).await;
        node.pauses.release(Point::PollOutbox);
    }
}

/// An instance that will pause as the relay before it applies a change, and another instance. Redis holds the
/// products; the memory of the second instance does not.
async fn relay_paused(
    stack: &Stack,
    ids: &[i64],
    options: fn(&mut ServeArgs),
) -> (Node, Node, UnboundedReceiver<Paused>) {
    let relays = stack.node_with(short_retention).await;
    let node = stack.node_with(options).await;
    node.controls.turn_off(Protection::Relay);
    for id in ids {
        relays.product(*id).await;
    }
    eventually("earlier changes are pruned", || async {
        stack.kept_changes().await == 0 && node.metric("hotshelf_recent_changes").await == 0.0
    })
    .await;
    // This instance would reload an invalidated product, and so fill Redis.
    relays.controls.turn_off(Protection::ChangeFeed);
    let pausing = relays.pauses.arm(Point::RelayRead);
    (relays, node, pausing)
}

/// A read that has the response of Redis, and is paused before it uses it.
async fn read_held(node: &Node, id: i64) -> (JoinHandle<Product>, Paused) {
    let mut reading = node.pauses.arm(Point::ReadRedis);
    let mut client = node.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await.unwrap().into_inner() });
    let load = next(&mut reading).await;
    node.pauses.release(Point::ReadRedis);
    (read, load)
}

async fn late_redis(stack: Stack) {
    let id = stack.insert("old").await;
    let (relays, node, mut pausing) = relay_paused(&stack, &[id], short_retention).await;
    rename(&stack, id, "new").await;
    let relay = next(&mut pausing).await;
    eventually("the change is observed", || async {
        node.metric("hotshelf_recent_changes").await == 1.0
    })
    .await;
    let (read, load) = read_held(&node, id).await;
    relays.pauses.release(Point::RelayRead);
    drop(relay);
    eventually("the change is pruned everywhere", || async {
        stack.kept_changes().await == 0 && node.metric("hotshelf_recent_changes").await == 0.0
    })
    .await;
    drop(load);
    assert_eq!(read.await.unwrap().name, "new");
    assert_eq!(node.product(id).await.name, "new");
}

fn small(args: &mut ServeArgs) {
    short_retention(args);
    args.caching.max_recent_changes = 10;
}

async fn late_overflow(stack: Stack) {
    let ids = insert_many(&stack, 20).await;
    let (relays, node, mut pausing) = relay_paused(&stack, &ids, small).await;
    run(&stack, "UPDATE products SET name = 'new'").await;
    let relay = next(&mut pausing).await;
    polls(&node, 2).await;
    assert_eq!(node.product(ids[0]).await.name, "new", "the entry in Redis is rejected");
    let id = ids[1];
    let (read, load) = read_held(&node, id).await;
    relays.pauses.release(Point::RelayRead);
    drop(relay);
    pruned(&stack).await;
    polls(&node, 2).await;
    drop(load);
    assert_eq!(read.await.unwrap().name, "new");
    assert_eq!(node.product(id).await.name, "new");
}

async fn late_own_write(stack: Stack) {
    let id = stack.insert("old").await;
    let relays = stack.node_with(short_retention).await;
    let node = stack.node_with(short_retention).await;
    all_serve(&[&relays, &node], id, "old").await;
    let mut committed = node.pauses.arm(Point::Committed);
    let write = crate::newest_wins::rename(&node, id, "late");
    let meanwhile = async {
        let writer = next(&mut committed).await;
        node.pauses.release(Point::Committed);
        // The slot stays invalidated: the load that would replace it is paused.
        let mut reading = node.pauses.arm(Point::ReadRedis);
        rename(&stack, id, "newest").await;
        let load = next(&mut reading).await;
        let newest = stack.version(id).await;
        eventually("both changes are pruned everywhere", || async {
            stack.kept_changes().await == 0 && node.metric("hotshelf_recent_changes").await == 0.0
        })
        .await;
        let mut offered = node.pauses.arm(Point::OfferedToMemory);
        drop(writer);
        let writer = next(&mut offered).await;
        let held = node.hot.peek(ProductId::new(id).unwrap()).unwrap();
        let revision = held.entry.revision().version.0;
        assert!(held.is_invalidated() || revision == newest, "{held:?}");
        node.pauses.release(Point::OfferedToMemory);
        node.pauses.release(Point::ReadRedis);
        drop((writer, load));
    };
    let (_, ()) = tokio::join!(write, meanwhile);
    all_serve(&[&relays, &node], id, "newest").await;
}

async fn pruned(stack: &Stack) {
    eventually("it is pruned", || async { stack.kept_changes().await == 0 }).await;
}

async fn late_poll(stack: Stack) {
    let [id, other] = [stack.insert("old").await, stack.insert("other").await];
    let _relays = stack.node_with(short_retention).await;
    let node = stack.node_with(short_retention).await;
    node.controls.turn_off(Protection::Hints);
    node.controls.turn_off(Protection::Relay);
    let mut polling = node.pauses.arm(Point::PollOutbox);
    let paused = next(&mut polling).await;
    rename(&stack, other, "changed").await;
    pruned(&stack).await;
    drop(paused);
    // The poll after the one that detected the gap: memory was invalidated by then, and this product is loaded later.
    let starts_over = next(&mut polling).await;
    assert_eq!(node.metric("hotshelf_change_feed_gaps_total").await, 1.0);
    assert_eq!(node.product(id).await.name, "old");
    rename(&stack, id, "new").await;
    pruned(&stack).await;
    node.pauses.release(Point::PollOutbox);
    drop(starts_over);
    polls(&node, 2).await;
    assert_eq!(node.product(id).await.name, "new");
}

async fn prepared(stack: Stack) {
    let [id, other, undone] =
        [stack.insert("old").await, stack.insert("old").await, stack.insert("old").await];
    let (a, b) = tokio::join!(stack.node_with(long_staleness), stack.node_with(long_staleness));
    for id in [id, undone] {
        all_serve(&[&a, &b], id, "old").await;
    }
    for (id, name) in [(id, "commit"), (undone, "rollback")] {
        let gid = format!("{}_{name}", stack.namespace);
        let update = format!("UPDATE products SET name = 'new' WHERE id = {id}");
        let mut connection = stack.sql.acquire().await.unwrap();
        let all = AssertSqlSafe(format!("BEGIN; {update}; PREPARE TRANSACTION '{gid}'"));
        connection.execute(all).await.unwrap();
    }
    rename(&stack, other, "new").await;
    all_serve(&[&a, &b], other, "new").await;
    for node in [&a, &b] {
        polls(node, 2).await;
        assert_eq!(node.product(id).await.name, "old");
    }
    run(&stack, &format!("COMMIT PREPARED '{}_commit'", stack.namespace)).await;
    run(&stack, &format!("ROLLBACK PREPARED '{}_rollback'", stack.namespace)).await;
    all_serve(&[&a, &b], id, "new").await;
    all_serve(&[&a, &b], undone, "old").await;
}

/// A snapshot lists at most 64 subtransactions of each transaction.
async fn savepoints(stack: Stack) {
    let ids = insert_many(&stack, 150).await;
    let (a, b) = tokio::join!(stack.node_with(long_staleness), stack.node_with(long_staleness));
    for node in [&a, &b] {
        for id in &ids {
            node.product(*id).await;
        }
    }
    let mut long = stack.sql.begin().await.unwrap();
    for id in &ids {
        let end = if id % 2 == 0 { "RELEASE" } else { "ROLLBACK TO" };
        let statements = format!(
            "SAVEPOINT s; UPDATE products SET name = 'new' WHERE id = {id}; {end} SAVEPOINT s"
        );
        long.execute(AssertSqlSafe(statements)).await.unwrap();
    }
    let other = stack.insert_unrelayed("other").await;
    all_serve(&[&a, &b], other, "other").await;
    for node in [&a, &b] {
        polls(node, 2).await;
    }
    long.commit().await.unwrap();
    for id in &ids {
        let name = if id % 2 == 0 { "new" } else { "old" };
        all_serve(&[&a, &b], *id, name).await;
    }
}

async fn bulk(stack: Stack) {
    const ROWS: i64 = 20_000;
    insert_many(&stack, ROWS + 200).await;
    let node = stack.node_with(long_staleness).await;
    let small = stack
        .node_with(|args| {
            long_staleness(args);
            args.caching.max_recent_changes = 1_000;
        })
        .await;
    let hot: Vec<i64> = (1..=1_000).map(|n| n * (ROWS / 1_000)).collect();
    let steady: Vec<i64> = (ROWS + 1..=ROWS + 200).collect();
    let batch = async |node: &Node, ids: &[i64]| {
        let request = BatchGetProductsRequest { ids: ids.to_vec(), ..Default::default() };
        node.client.clone().batch_get_products(request).await.unwrap().into_inner().products
    };
    for (node, ids) in [(&node, &hot), (&node, &steady), (&small, &hot), (&small, &steady)] {
        batch(node, ids).await;
    }
    let update = format!("UPDATE products SET name = 'new', price = 2 WHERE id <= {ROWS}");
    let changed = sqlx::query(AssertSqlSafe(update)).execute(&stack.sql);
    let mut changed = std::pin::pin!(changed);
    let (mut done, mut relayed) = (false, false);
    // Until the whole change is observed here and applied to Redis.
    while !relayed {
        for id in &steady {
            let read = node.get(*id).await.unwrap();
            assert_eq!(cache_status(&read), "hotshelf; hit; detail=hot");
        }
        if !done {
            tokio::select! {
                outcome = &mut changed => done = outcome.unwrap().rows_affected() > 0,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
        relayed = done
            && stack.outbox().await == 0
            && node.metric("hotshelf_recent_changes").await >= ROWS as f64;
    }
    let late = stack.node_with(long_staleness).await;
    for node in [&node, &small, &late] {
        polls(node, 2).await;
        for product in batch(node, &hot).await {
            assert_eq!(product.name, "new", "{}", product.id);
        }
        for product in batch(node, &steady).await {
            assert_eq!(product.name, "old", "{}", product.id);
        }
    }
}

/// Both instances serve the following changes by SQL.
async fn served_anyway(stack: &Stack, nodes: [&Node; 2], id: i64) {
    for name in ["new", "newer"] {
        rename(stack, id, name).await;
        all_serve(&nodes, id, name).await;
    }
    run(stack, &format!("DELETE FROM products WHERE id = {id}")).await;
    for node in nodes {
        eventually("it is gone", || async { node.get(id).await.is_err() }).await;
        assert_eq!(node.get(id).await.unwrap_err().code(), tonic::Code::NotFound);
    }
}

async fn redis_killed(world: Private) {
    let id = world.insert("old").await;
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(long_staleness),
        world.node_with_short_timeouts(long_staleness)
    );
    all_serve(&[&a, &b], id, "old").await;
    world.redis.kill();
    served_anyway(&world, [&a, &b], id).await;
}

async fn redis_full(world: Private) {
    let id = world.insert("old").await;
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(long_staleness),
        world.node_with_short_timeouts(long_staleness)
    );
    all_serve(&[&a, &b], id, "old").await;
    let full = ["CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1"];
    world.redis.command(&full).unwrap();
    assert!(world.redis.command(&["SET", "any", "thing"]).is_err(), "full");
    // A full Redis still delivers hints.
    [&a, &b].iter().for_each(|node| node.controls.turn_off(Protection::Hints));
    served_anyway(&world, [&a, &b], id).await;
}

async fn no_hints(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = tokio::join!(stack.node_with(long_staleness), stack.node_with(long_staleness));
    [&a, &b].iter().for_each(|node| node.controls.turn_off(Protection::Hints));
    all_serve(&[&a, &b], id, "old").await;
    served_anyway(&stack, [&a, &b], id).await;
}

/// The statement was prepared when the outbox was empty.
async fn plan(stack: Stack) {
    const ROWS: i64 = 50_000;
    let node = stack.node_with(long_staleness).await;
    polls(&node, 3).await;
    let grow = "INSERT INTO hotshelf.outbox (catalogue, product_ids, versions, deleted) \
        SELECT 1, ARRAY[1000000 + n], ARRAY[1::bigint], false FROM generate_series(1::bigint, $1) n";
    sqlx::query(grow).bind(ROWS).execute(&stack.sql).await.unwrap();
    eventually("they are observed", || async {
        node.metric("hotshelf_recent_changes").await >= ROWS as f64
            && node.metric("hotshelf_relayed_total").await >= ROWS as f64
    })
    .await;
    // Sequential scans, index scans, and rows that the index scans fetched.
    let scans = async || -> (i64, i64, i64) {
        let count = "SELECT seq_scan, idx_scan, idx_tup_fetch FROM pg_stat_all_tables \
            WHERE relid = 'hotshelf.outbox'::regclass";
        sqlx::query_as(count).fetch_one(&stack.sql).await.unwrap()
    };
    // Sessions report their scans up to a second late: also this test's sessions, and the poll that read the rows.
    eventually("polls make index scans only, and fetch few rows", || async {
        let before = scans().await;
        polls(&node, 10).await;
        eventually("they are counted", || async { scans().await.1 > before.1 + 10 }).await;
        let after = scans().await;
        after.0 == before.0 && after.2 - before.2 < ROWS / 10
    })
    .await;
}
