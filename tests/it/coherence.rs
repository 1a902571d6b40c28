//! P3: what was committed, by the API or by anybody's SQL, is what every instance serves.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::pause::Point;
use sqlx::AssertSqlSafe;
use tonic::Code;

use crate::harness::{Node, Stack, Suite, cache_status, eventually};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("coherence::an_update_by_sql_is_served_by_every_instance", update_by_sql);
    suite.both(
        "coherence::a_deletion_and_an_insertion_by_sql_are_served_by_every_instance",
        delete_and_insert_by_sql,
    );
    suite.both(
        "coherence::an_update_through_one_instance_voids_the_memory_of_the_others",
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
    suite.both("coherence::a_bulk_update_replaces_what_redis_holds_and_does_not_populate_it", bulk);
    suite.both("coherence::a_gap_in_the_change_stream_voids_memory", gap);
    suite.both(
        "coherence::memory_stays_trusted_beyond_max_staleness_while_the_stream_is_followed",
        proof,
    );
    suite.both("coherence::relayed_changes_are_kept_for_replay_and_then_forgotten", forgotten);
    suite.long_single(
        "coherence::soak_a_million_repriced_rows_neither_flood_redis_nor_starve_reads",
        million,
    );
}

/// Long enough that only the relay and the stream can be what makes a change known.
fn patient(args: &mut ServeArgs) {
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

/// Every instance serves this name; the empty one says that there is no product.
async fn all_serve(nodes: &[&Node], id: i64, name: &str) {
    for node in nodes {
        eventually(&format!("{id} is \"{name}\""), || serves(node, id, name)).await;
    }
}

async fn two(stack: &Stack) -> (Node, Node) {
    tokio::join!(stack.node_with(patient), stack.node_with(patient))
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
            // The writer goes no further than this; the relay finds the change in the outbox.
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
    let id = stack.insert("old").await;
    let reader = stack.node_with(patient).await;
    for (point, name) in
        [(Point::RelayClaimed, "a"), (Point::RelayApplied, "b"), (Point::RelayAppended, "c")]
    {
        let crashing = stack.node_with(patient).await;
        let mut held = crashing.pauses.arm(point);
        let mut claimed = None;
        // Either relay may be the one that claims it: until the crashing one does, change it again.
        for round in 0.. {
            run(&stack, format!("UPDATE products SET name = '{name}{round}' WHERE id = {id}"))
                .await;
            all_serve_or_held(&reader, id, &format!("{name}{round}"), &mut held, &mut claimed)
                .await;
            if claimed.is_some() {
                // Its claim, and what it holds in Postgres, goes with it.
                crashing.app.crash().await;
                all_serve(&[&reader], id, &format!("{name}{round}")).await;
                break;
            }
        }
    }
}

type Held = tokio::sync::mpsc::UnboundedReceiver<hotshelf::pause::Paused>;

async fn all_serve_or_held(
    reader: &Node,
    id: i64,
    name: &str,
    held: &mut Held,
    claimed: &mut Option<hotshelf::pause::Paused>,
) {
    let readers = [reader];
    tokio::select! {
        paused = held.recv() => *claimed = paused,
        () = all_serve(&readers, id, name) => {}
    }
}

async fn bulk(stack: Stack) {
    let insert =
        "INSERT INTO products (name, price) SELECT 'p' || n, n FROM generate_series(1, 5000) n";
    run(&stack, insert.to_owned()).await;
    let node = stack.node_with(patient).await;
    stack.settled().await;
    let cached: Vec<i64> = (1..=20).map(|n| n * 200).collect();
    for id in &cached {
        node.product(*id).await;
    }
    run(&stack, "UPDATE products SET name = 'bulk', price = price + 1".to_owned()).await;
    stack.settled().await;
    let current: Vec<(i64, i64)> = sqlx::query_as("SELECT id, version FROM products ORDER BY id")
        .fetch_all(&stack.sql)
        .await
        .unwrap();
    let mut held = Vec::new();
    for (id, version) in current {
        if let Some(revision) = stack.redis_revision(id).await {
            assert_eq!(revision, (version, false));
            held.push(id);
        }
    }
    assert_eq!(held, cached, "what was cached was replaced, and nothing was added");
    all_serve(&[&node], cached[0], "bulk").await;
}

async fn gap(stack: Stack) {
    let id = stack.insert("old").await;
    let (a, b) = two(&stack).await;
    all_serve(&[&a, &b], id, "old").await;
    rename(&a, id, "older").await;
    all_serve(&[&a, &b], id, "older").await;
    stack.change_silently(id, "new").await;
    stack.redis_evict(id).await;
    assert!(serves(&b, id, "older").await, "memory cannot know");
    stack.lose_change_stream().await;
    all_serve(&[&a, &b], id, "new").await;
    // On a machine that is busy its lease on memory may have run out before it saw the gap.
    eventually("the gap is seen", || async {
        a.metric("hotshelf_change_stream_gaps_total").await >= 1.0
    })
    .await;
}

async fn proof(stack: Stack) {
    let id = stack.insert("lamp").await;
    let node = stack.node_with(|args| args.caching.max_staleness = Duration::from_millis(1)).await;
    node.product(id).await;
    eventually("the stream is followed", || async {
        node.metric("hotshelf_hot_lease_valid").await == 1.0
    })
    .await;
    node.product(id).await;
    let read = node.get(id).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=hot");
}

async fn forgotten(stack: Stack) {
    let window = |window| move |args: &mut ServeArgs| args.caching.replay_window = window;
    let remembers = stack.node_with(window(Duration::from_secs(600))).await;
    stack.insert("lamp").await;
    stack.settled().await;
    assert_eq!(stack.relayed().await, 1);
    assert!(remembers.metric("hotshelf_relayed_total").await >= 1.0);
    let _forgets = stack.node_with(window(Duration::from_millis(200))).await;
    eventually("forgotten", || async { stack.relayed().await == 0 }).await;
}

/// Prints how fast the relays carry one statement's million changes, and how long reads took meanwhile.
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
