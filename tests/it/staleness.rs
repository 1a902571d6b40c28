//! Staleness as lived: `hotshelf_staleness_seconds` contains the time in which an older version could be served.

use std::time::{Duration, Instant};

use hotshelf::controls::Protection;
use hotshelf::metrics::BackgroundTask;
use hotshelf::pause::Point;
use hotshelf::supervisor::Fault;
use sqlx::{AssertSqlSafe, Executor};

use crate::feed::polls;
use crate::harness::{HANG, Node, Private, Stack, Suite, eventually};
use crate::newest_wins::rename;

/// For how long a change is kept from an instance.
const HELD: Duration = Duration::from_millis(300);

pub fn register(suite: &mut Suite<'_>) {
    suite.both("staleness::each_change_is_counted_by_tier_and_by_how_it_was_heard_of", paths);
    suite.single("staleness::it_bounds_the_time_in_which_memory_was_older", bounds);
    suite.single("staleness::a_long_transaction_counts_from_its_commit", long_transaction);
    suite.single("staleness::each_write_of_one_product_counts_from_its_own_commit", many_writes);
    suite.single("staleness::each_change_of_a_bulk_job_counts", bulk);
    suite.single("staleness::what_is_read_again_is_not_counted_again", restarted_task);
    suite.private("staleness::what_postgres_returns_again_is_not_counted_again", restarted_server);
}

async fn counted(node: &Node, tier: &str, heard_by: &str) -> f64 {
    let labels = format!("{{tier=\"{tier}\",heard_by=\"{heard_by}\"}}");
    node.metric(&format!("hotshelf_staleness_seconds_count{labels}")).await
}

/// Changes by tier: those of memory, and all.
async fn all_counted(node: &Node) -> [f64; 2] {
    let mut all = [0.0, 0.0];
    for by in ["write", "hint", "poll"] {
        all[0] += counted(node, "hot", by).await;
        all[1] += counted(node, "redis", by).await;
    }
    all
}

async fn seconds(node: &Node, tier: &str) -> f64 {
    let series = format!("hotshelf_staleness_seconds_sum{{tier=\"{tier}\",heard_by=\"poll\"}}");
    node.metric(&series).await
}

/// An instance that only polls tell of changes, and that does not relay.
async fn polling(stack: &Stack) -> Node {
    let node = stack
        .node_with(|args| {
            args.caching.max_staleness = Duration::from_secs(600);
            args.caching.hot_lease = Duration::from_secs(600);
            args.caching.refresh_keys = 0;
        })
        .await;
    node.controls.turn_off(Protection::Hints);
    node.controls.turn_off(Protection::Relay);
    // The relay publishes what it applies, and may have begun to.
    polls(&node, 2).await;
    node
}

async fn run(stack: &Stack, statement: &str) {
    stack.sql.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
}

async fn paths(stack: Stack) {
    let id = stack.insert("old").await;
    let (writer, hinted, polled) = (stack.node().await, stack.node().await, polling(&stack).await);
    for node in [&writer, &hinted, &polled] {
        polls(node, 2).await;
        node.product(id).await;
    }
    let before = all_counted(&writer).await;
    assert_eq!(before[0], 0.0, "nothing was in memory");
    rename(&writer, id, "new").await;
    for (node, by) in [(&writer, "write"), (&hinted, "hint"), (&polled, "poll")] {
        for tier in ["hot", "redis"] {
            let one = async || counted(node, tier, by).await >= 1.0;
            eventually(&format!("{tier}, by {by}"), one).await;
        }
        assert_eq!(all_counted(node).await[0], 1.0, "{by}: once in memory");
    }
    // Nothing of this product is in memory now.
    let more = stack.insert_unrelayed("never read").await;
    assert!(more > 0);
    let by_poll = async || counted(&polled, "redis", "poll").await >= 2.0;
    eventually("a change of what memory does not hold", by_poll).await;
    assert_eq!(all_counted(&polled).await[0], 1.0);
}

async fn bounds(stack: Stack) {
    let id = stack.insert("old").await;
    let node = polling(&stack).await;
    node.product(id).await;
    let [hot, all] = all_counted(&node).await;
    let (before, before_all) = (seconds(&node, "hot").await, seconds(&node, "redis").await);
    let mut polling = node.pauses.arm(Point::PollOutbox);
    let paused = tokio::time::timeout(HANG, polling.recv()).await.expect("it polls").unwrap();
    let begun = Instant::now();
    run(&stack, &format!("UPDATE products SET name = 'new' WHERE id = {id}")).await;
    let committed = Instant::now();
    tokio::time::sleep(HELD).await;
    assert_eq!(node.product(id).await.name, "old", "it is served meanwhile");
    let least = committed.elapsed();
    node.pauses.release(Point::PollOutbox);
    drop(paused);
    eventually("it is counted", async || all_counted(&node).await == [hot + 1.0, all + 1.0]).await;
    let most = begun.elapsed();
    for (tier, before) in [("hot", before), ("redis", before_all)] {
        let lived = Duration::from_secs_f64(seconds(&node, tier).await - before);
        assert!(least <= lived && lived <= most, "{tier}: {least:?} <= {lived:?} <= {most:?}");
    }
}

async fn long_transaction(stack: Stack) {
    let id = stack.insert("old").await;
    let node = polling(&stack).await;
    node.product(id).await;
    let [hot, _] = all_counted(&node).await;
    let before = seconds(&node, "hot").await;
    let mut transaction = stack.sql.begin().await.unwrap();
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    transaction.execute(AssertSqlSafe(rename)).await.unwrap();
    tokio::time::sleep(HELD).await;
    let later = Instant::now();
    // One of them began after `later`, and does not see the transaction.
    polls(&node, 2).await;
    transaction.commit().await.unwrap();
    eventually("it is counted", async || all_counted(&node).await[0] == hot + 1.0).await;
    let lived = Duration::from_secs_f64(seconds(&node, "hot").await - before);
    assert!(lived <= later.elapsed(), "{lived:?}, although {:?} are the most", later.elapsed());
}

async fn many_writes(stack: Stack) {
    let id = stack.insert("old").await;
    let node = polling(&stack).await;
    node.product(id).await;
    let mut polling = node.pauses.arm(Point::PollOutbox);
    let paused = tokio::time::timeout(HANG, polling.recv()).await.expect("it polls").unwrap();
    let mut writing = Duration::ZERO;
    for name in ["first", "second"] {
        let begun = Instant::now();
        rename(&node, id, name).await;
        writing += begun.elapsed();
        tokio::time::sleep(HELD).await;
    }
    let released = Instant::now();
    node.pauses.release(Point::PollOutbox);
    drop(paused);
    let both = async || {
        counted(&node, "hot", "write").await == 2.0 && counted(&node, "redis", "write").await == 2.0
    };
    eventually("both are counted", both).await;
    // Each figure may contain the way of the poll to PostgreSQL.
    let most = writing + released.elapsed() * 2;
    for tier in ["hot", "redis"] {
        let sum = format!("hotshelf_staleness_seconds_sum{{tier=\"{tier}\",heard_by=\"write\"}}");
        let lived = Duration::from_secs_f64(node.metric(&sum).await);
        assert!(lived <= most, "{tier}: {lived:?}, although {most:?} are the most");
    }
}

async fn bulk(stack: Stack) {
    const PRODUCTS: f64 = 2_500.0;
    let insert = format!(
        "INSERT INTO products (name, price) SELECT 'old', 1 FROM generate_series(1, {PRODUCTS})"
    );
    run(&stack, &insert).await;
    let node = polling(&stack).await;
    let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM products ORDER BY id LIMIT 3")
        .fetch_all(&stack.sql)
        .await
        .unwrap();
    for id in &ids {
        node.product(*id).await;
    }
    let [hot, all] = all_counted(&node).await;
    let began = Instant::now();
    run(&stack, "UPDATE products SET name = 'new'").await;
    let expected = [hot + 3.0, all + PRODUCTS];
    eventually("all are counted", async || all_counted(&node).await == expected).await;
    let most = began.elapsed().as_secs_f64();
    let (of_memory, of_all) = (seconds(&node, "hot").await, seconds(&node, "redis").await);
    assert!(0.0 < of_memory && of_memory <= most * 3.0, "{of_memory} in {most}");
    assert!(0.0 < of_all && of_all <= most * PRODUCTS, "{of_all} in {most}");
}

async fn restarted_task(stack: Stack) {
    let id = stack.insert("old").await;
    let node = polling(&stack).await;
    let [_, all] = all_counted(&node).await;
    run(&stack, &format!("UPDATE products SET name = 'new' WHERE id = {id}")).await;
    eventually("it is counted", async || all_counted(&node).await[1] == all + 1.0).await;
    let restarts = "hotshelf_background_task_restarts_total{task=\"change_feed\"}";
    node.app.inject(BackgroundTask::ChangeFeed, Fault::Error, 1);
    eventually("it was restarted", async || node.metric(restarts).await == 1.0).await;
    polls(&node, 2).await;
    assert_eq!(all_counted(&node).await[1], all + 1.0);
}

async fn restarted_server(world: Private) {
    let id = world.insert("old").await;
    let node = world
        .node_with_short_timeouts(|args| args.caching.max_staleness = Duration::from_secs(600))
        .await;
    let [_, all] = all_counted(&node).await;
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    world.sql.execute(AssertSqlSafe(rename)).await.unwrap();
    eventually("it is counted", async || all_counted(&node).await[1] == all + 1.0).await;
    crate::epoch::stop(&world).await;
    crate::epoch::start_again(&world).await;
    let gaps = "hotshelf_change_feed_gaps_total";
    eventually("all is read again", async || node.metric(gaps).await == 1.0).await;
    polls(&node, 2).await;
    assert_eq!(all_counted(&node).await[1], all + 1.0);
}
