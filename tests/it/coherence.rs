//! P3: every instance serves what was committed, by the API or by SQL.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::Point;
use hotshelf::product::ProductId;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tonic::Code;

use crate::harness::{HANG, Node, Stack, Suite, cache_status, eventually};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("coherence::an_update_by_sql_is_served_by_every_instance", update_by_sql);
    suite.both(
        "coherence::a_deletion_and_an_insertion_by_sql_are_served_by_every_instance",
        delete_and_insert_by_sql,
    );
    suite.both(
        "coherence::an_update_through_one_instance_invalidates_the_memory_of_the_others",
        update_elsewhere,
    );
    suite.both(
        "coherence::what_a_crash_after_the_commit_cuts_off_the_relay_does",
        crash_after_commit,
    );
    suite.both(
        "coherence::what_a_crash_of_the_relay_cuts_off_another_relay_does",
        crash_of_the_relay,
    );
    suite.both("coherence::a_bulk_update_removes_what_redis_holds_and_does_not_populate_it", bulk);
    suite.single("coherence::an_instance_that_slept_past_the_retention_compares_memory_anew", gap);
    suite.single("coherence::without_gap_detection_it_serves_an_old_version", gap_undetected);
    suite.both(
        "coherence::memory_stays_trusted_beyond_max_staleness_while_the_outbox_is_read",
        proof,
    );
    suite.single("coherence::changes_are_kept_for_the_retention_and_then_pruned", pruned);
    suite.single("coherence::a_change_counts_from_its_commit_however_long_it_was_open", long_open);
    suite.both("coherence::truncate_deletes_every_product_everywhere", truncated);
    suite.single("coherence::a_hint_that_is_wrong_is_forgotten_with_the_next_poll", wrong_hint);
    suite.long_single(
        "coherence::soak_a_million_repriced_rows_neither_flood_redis_nor_starve_reads",
        million,
    );
}

/// Only the relay and the change feed make a change visible within the test.
fn long_staleness(args: &mut ServeArgs) {
    args.caching.max_staleness = Duration::from_secs(600);
    args.caching.hot_lease = Duration::from_secs(600);
}

async fn run(stack: &Stack, statement: String) {
    sqlx::query(AssertSqlSafe(statement)).execute(&stack.sql).await.unwrap();
}

async fn serves(node: &Node, id: i64, name: &str) -> bool {
    match node.get(id).await {
        Ok(product) => product.into_inner().name == name,
        Err(error) => error.code() == Code::NotFound && name.is_empty(),
    }
}

/// Waits until every instance serves this name; an empty name stands for no product.
async fn all_serve(nodes: &[&Node], id: i64, name: &str) {
    for node in nodes {
        eventually(&format!("{id} is \"{name}\""), || serves(node, id, name)).await;
    }
}

async fn two(stack: &Stack) -> (Node, Node) {
    tokio::join!(stack.node_with(long_staleness), stack.node_with(long_staleness))
}

async fn update_by_sql(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = two(&stack).await;
    all_serve(&[&a, &b], id, "old").await;
    run(&stack, format!("UPDATE products SET name = 'new' WHERE id = {id}")).await;
    all_serve(&[&a, &b], id, "new").await;
    run(&stack, "UPDATE products SET name = 'newer'".to_owned()).await;
    all_serve(&[&a, &b], id, "newer").await;
}

async fn delete_and_insert_by_sql(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = two(&stack).await;
    all_serve(&[&a, &b], id, "old").await;
    run(&stack, format!("DELETE FROM products WHERE id = {id}")).await;
    all_serve(&[&a, &b], id, "").await;
    run(&stack, format!("INSERT INTO products (id, name, price) VALUES ({id}, 'again', 1)")).await;
    all_serve(&[&a, &b], id, "again").await;
}

async fn update_elsewhere(stack: Stack) {
    let id = stack.insert("0").await;
    let (a, b) = two(&stack).await;
    for round in 1..=10 {
        all_serve(&[&a, &b], id, &(round - 1).to_string()).await;
        rename(&a, id, &round.to_string()).await;
    }
    all_serve(&[&a, &b], id, "10").await;
}

async fn crash_after_commit(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = two(&stack).await;
    all_serve(&[&a, &b], id, "old").await;
    for (point, name) in [(Point::Committed, "new"), (Point::Published, "newer")] {
        let mut held = a.pauses.arm(point);
        let write = rename(&a, id, name);
        let after = async {
            // The writer is paused here; the relay reads the change from the outbox.
            let paused = held.recv().await.unwrap();
            all_serve(&[&a, &b], id, name).await;
            a.pauses.release(point);
            drop(paused);
        };
        let (_, ()) = tokio::join!(write, after);
        all_serve(&[&a, &b], id, name).await;
    }
}

async fn crash_of_the_relay(stack: Stack) {
    let id = stack.insert_unrelayed("old").await;
    for (point, name) in
        [(Point::RelayRead, "a"), (Point::RelaySuperseded, "b"), (Point::RelayApplied, "c")]
    {
        // The first instance becomes the relay.
        let crashing = stack.node_with(long_staleness).await;
        crashing.product(id).await;
        let reader = stack.node_with(long_staleness).await;
        reader.product(id).await;
        let mut held = crashing.pauses.arm(point);
        run(&stack, format!("UPDATE products SET name = '{name}' WHERE id = {id}")).await;
        let _held = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
        crashing.app.crash().await;
        all_serve(&[&reader], id, name).await;
        // The reader takes over the relay.
        stack.wait_until_relayed().await;
        let held = stack.redis_revision(id).await;
        let current = stack.version(id).await;
        assert!(held.is_none_or(|(version, _)| version == current), "{held:?}");
        assert!(reader.app.stop().await);
    }
}

async fn bulk(stack: Stack) {
    let insert =
        "INSERT INTO products (name, price) SELECT 'p' || n, n FROM generate_series(1, 5000) n";
    run(&stack, insert.to_owned()).await;
    let node = stack
        .node_with(|args| {
            long_staleness(args);
            args.caching.refresh_keys = 0;
        })
        .await;
    stack.wait_until_relayed().await;
    let cached: Vec<i64> = (1..=20).map(|n| n * 200).collect();
    for id in &cached {
        node.product(*id).await;
    }
    run(&stack, "UPDATE products SET name = 'bulk', price = price + 1".to_owned()).await;
    stack.wait_until_relayed().await;
    for (id, version) in sqlx::query_as("SELECT id, hotshelf_version FROM products ORDER BY id")
        .fetch_all(&stack.sql)
        .await
        .unwrap()
    {
        let (id, version): (i64, i64) = (id, version);
        // The instance reloads products that its memory held, without a read.
        let held = stack.redis_revision(id).await;
        assert!(held.is_none_or(|held| held == (version, false)), "{id}: {held:?}");
        assert!(held.is_none() || cached.contains(&id), "{id} was added");
    }
    all_serve(&[&node], cached[0], "bulk").await;
}

/// An instance that stood still while a change was made, relayed and pruned, and continues now with the old version
/// in memory.
async fn slept(stack: &Stack, detects: bool) -> (Node, i64) {
    let id = stack.insert("old").await;
    let brief = |args: &mut ServeArgs| {
        long_staleness(args);
        args.caching.change_retention = Duration::from_millis(200);
    };
    let relays = stack.node_with(brief).await;
    let sleeper = stack.node_with(brief).await;
    all_serve(&[&relays, &sleeper], id, "old").await;
    if !detects {
        sleeper.controls.turn_off(Protection::GapDetection);
    }
    sleeper.controls.turn_off(Protection::Hints);
    let mut polling = sleeper.pauses.arm(Point::PollOutbox);
    let asleep = tokio::time::timeout(HANG, polling.recv()).await.unwrap();
    run(stack, format!("UPDATE products SET name = 'new' WHERE id = {id}")).await;
    eventually("it is pruned", || async { stack.kept_changes().await == 0 }).await;
    assert!(serves(&sleeper, id, "old").await, "it has not read the change");
    sleeper.pauses.release(Point::PollOutbox);
    drop(asleep);
    (sleeper, id)
}

async fn gap(stack: Stack) {
    let (sleeper, id) = slept(&stack, true).await;
    all_serve(&[&sleeper], id, "new").await;
    assert!(sleeper.metric("hotshelf_change_feed_gaps_total").await >= 1.0);
}

async fn gap_undetected(stack: Stack) {
    let (sleeper, id) = slept(&stack, false).await;
    let other = stack.insert("other").await;
    all_serve(&[&sleeper], other, "other").await;
    run(&stack, format!("UPDATE products SET name = 'later' WHERE id = {other}")).await;
    all_serve(&[&sleeper], other, "later").await;
    assert!(serves(&sleeper, id, "old").await);
    assert_eq!(sleeper.metric("hotshelf_change_feed_gaps_total").await, 0.0);
}

async fn proof(stack: Stack) {
    let id = stack.insert("lamp").await;
    let node = stack.node_with(|args| args.caching.max_staleness = Duration::from_millis(1)).await;
    node.product(id).await;
    eventually("memory has a valid lease", || async {
        node.metric("hotshelf_hot_lease_valid").await == 1.0
    })
    .await;
    node.product(id).await;
    let read = node.get(id).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=hot");
}

async fn pruned(stack: Stack) {
    let kept = |retention| move |args: &mut ServeArgs| args.caching.change_retention = retention;
    let keeper = stack.node_with(kept(Duration::from_secs(600))).await;
    stack.insert("lamp").await;
    stack.wait_until_relayed().await;
    assert_eq!(stack.kept_changes().await, 1);
    assert!(keeper.metric("hotshelf_relayed_total").await >= 1.0);
    assert!(keeper.app.stop().await);
    let _pruner = stack.node_with(kept(Duration::from_millis(200))).await;
    eventually("pruned", || async { stack.kept_changes().await == 0 }).await;
}

/// Transactions commit in another order than they began in, and one of them is rolled back in part.
async fn long_open(stack: Stack) {
    let [first, second, third] =
        [stack.insert("old").await, stack.insert("old").await, stack.insert("old").await];
    let (a, b) = two(&stack).await;
    for id in [first, second, third] {
        all_serve(&[&a, &b], id, "old").await;
    }
    let mut long = stack.sql.begin().await.unwrap();
    let change = |id| AssertSqlSafe(format!("UPDATE products SET name = 'new' WHERE id = {id}"));
    sqlx::query(change(first)).execute(&mut *long).await.unwrap();
    let mut part = long.begin().await.unwrap();
    sqlx::query(change(second)).execute(&mut *part).await.unwrap();
    part.rollback().await.unwrap();
    // Polls, and transactions that began later, take place while the first is open.
    run(&stack, format!("UPDATE products SET name = 'new' WHERE id = {third}")).await;
    all_serve(&[&a, &b], third, "new").await;
    stack.insert("another").await;
    assert!(serves(&a, first, "old").await && serves(&b, first, "old").await);
    long.commit().await.unwrap();
    all_serve(&[&a, &b], first, "new").await;
    assert!(serves(&a, second, "old").await && serves(&b, second, "old").await);
}

async fn truncated(stack: Stack) {
    let ids = [stack.insert("a").await, stack.insert("b").await];
    let (a, b) = two(&stack).await;
    for id in ids {
        a.product(id).await;
        b.product(id).await;
    }
    let mut reader = stack.sql.begin().await.unwrap();
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    reader.execute("SELECT 1 FROM hotshelf.feed").await.unwrap();
    // The snapshot of the truncating transaction does not include these.
    ids_renamed(&stack, &ids).await;
    reader.execute("TRUNCATE products").await.unwrap();
    reader.commit().await.unwrap();
    for id in ids {
        all_serve(&[&a, &b], id, "").await;
    }
    let again = format!("INSERT INTO products (id, name, price) VALUES ({}, 'again', 1)", ids[0]);
    run(&stack, again).await;
    all_serve(&[&a, &b], ids[0], "again").await;
}

async fn ids_renamed(stack: &Stack, ids: &[i64]) {
    for id in ids {
        run(stack, format!("UPDATE products SET name = 'renamed' WHERE id = {id}")).await;
    }
}

async fn wrong_hint(stack: Stack) {
    let id = stack.insert("lamp").await;
    let node = stack.node_with(long_staleness).await;
    node.product(id).await;
    // The id, a version that was never assigned, not deleted.
    let mut hint = id.to_be_bytes().to_vec();
    hint.extend(i64::MAX.to_be_bytes());
    hint.push(0);
    eventually("the instance receives it", || async {
        stack.redis_publish("changes", &hint).await == 1
    })
    .await;
    eventually("memory is invalid", || async {
        let held = node.hot.peek(ProductId::new(id).unwrap());
        held.is_some_and(|held| held.is_invalidated())
    })
    .await;
    eventually("memory serves it again", || async {
        cache_status(&node.get(id).await.unwrap()) == "hotshelf; hit; detail=hot"
    })
    .await;
}

/// Prints the rate at which relays apply one statement's million changes, and the latency of reads meanwhile.
async fn million(stack: Stack) {
    const ROWS: i64 = 1_000_000;
    let (a, b) = two(&stack).await;
    run(&stack, format!("INSERT INTO products (name, price) SELECT 'p' || n, 1 FROM generate_series(1, {ROWS}) n")).await;
    while stack.outbox().await > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let hot: Vec<i64> = (1..=100).map(|n| n * (ROWS / 100)).collect();
    for id in &hot {
        a.product(*id).await;
    }
    run(&stack, "UPDATE products SET price = price * 1.1, name = 'repriced'".to_owned()).await;
    let began = std::time::Instant::now();
    let mut reads = Vec::new();
    while stack.outbox().await > 0 {
        for id in &hot {
            let read = std::time::Instant::now();
            b.product(*id).await;
            reads.push(read.elapsed());
        }
    }
    let rate = ROWS as f64 / began.elapsed().as_secs_f64();
    reads.sort_unstable();
    let worst = reads[reads.len() - 1];
    let p99 = reads[reads.len() * 99 / 100];
    println!(
        "{ROWS} changes: {rate:.0} rows/s; {} reads meanwhile, p99 {p99:?}, max {worst:?}",
        reads.len()
    );
    let entries = stack.redis_keys().await;
    assert!(entries <= 200, "{entries} keys: Redis was populated");
    all_serve(&[&a, &b], hot[0], "repriced").await;
    assert!(worst < Duration::from_secs(5), "reads were starved");
}
