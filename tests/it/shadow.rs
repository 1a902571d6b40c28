//! Shadow reads: what memory answers is compared with Postgres, and what no trigger has recorded is found and mended.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::pause::Point;
use hotshelf::proto::ProductServiceClient;
use sqlx::{AssertSqlSafe, Executor};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{HANG, Node, Program, Stack, Suite, eventually, get};
use crate::newest_wins::rename;

const HOUR: Duration = Duration::from_secs(3_600);

pub fn register(suite: &mut Suite<'_>) {
    suite.both("shadow::other_contents_under_one_version_are_found_and_mended", contents);
    suite.both("shadow::a_change_that_left_no_outbox_row_is_found_and_mended", unrecorded);
    suite.both("shadow::a_deleted_product_that_is_still_served_is_found_and_mended", deleted);
    suite.single("shadow::a_product_that_is_served_as_absent_is_found_and_mended", created);
    suite.single("shadow::an_entry_that_another_program_wrote_into_redis_is_found", forged);
    suite.single("shadow::a_mismatch_is_logged_with_what_each_tier_holds", logged);
    suite.both("shadow::changes_that_arrive_in_time_are_no_mismatch", in_time);
    suite.single("shadow::a_difference_that_memory_follows_is_counted", followed);
    suite.single("shadow::nothing_is_compared_in_an_overload", overloaded);
}

/// Only shadow reads can mend memory within the test.
fn alone(args: &mut ServeArgs) {
    args.caching.shadow_reads = 100;
    args.caching.refresh_keys = 0;
    args.caching.soft_ttl = HOUR;
    args.caching.tombstone_ttl = HOUR;
}

async fn checks(node: &Node, result: &str) -> f64 {
    node.metric(&format!("hotshelf_shadow_checks_total{{result=\"{result}\"}}")).await
}

/// Runs a statement that no trigger notices.
async fn unnoticed(stack: &Stack, sql: &str, id: i64) {
    stack.sql.execute("ALTER TABLE products DISABLE TRIGGER USER").await.unwrap();
    run(stack, sql, id).await;
    stack.sql.execute("SELECT hotshelf.install_triggers()").await.unwrap();
}

async fn run(stack: &Stack, sql: &str, id: i64) {
    let sql = sql.replace("{id}", &id.to_string());
    stack.sql.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// A node that serves a product named "old" from memory, without a mismatch so far.
async fn serving(stack: &Stack) -> (Node, i64) {
    let id = stack.insert("old").await;
    let node = stack.node_with(alone).await;
    eventually("memory is compared", async || {
        assert_eq!(node.product(id).await.name, "old");
        checks(&node, "current").await > 0.0
    })
    .await;
    assert_eq!(checks(&node, "mismatch").await, 0.0);
    (node, id)
}

/// Reads until the planted fault is mended, and checks that it was counted, and that Redis holds the truth.
async fn is_mended(
    stack: &Stack,
    node: &Node,
    id: i64,
    mended: impl Fn(Result<&str, Code>) -> bool,
) {
    eventually("memory is mended", async || {
        mended(name(node, id).await.as_deref().map_err(|code| *code))
    })
    .await;
    assert_eq!(checks(node, "mismatch").await, 1.0);
    let other = stack.node().await;
    let read = name(&other, id).await;
    assert!(mended(read.as_deref().map_err(|code| *code)), "Redis answers {read:?}");
}

async fn name(node: &Node, id: i64) -> Result<String, Code> {
    let read = node.get(id).await;
    read.map(|product| product.into_inner().name).map_err(|status| status.code())
}

async fn contents(stack: Stack) {
    let (node, id) = serving(&stack).await;
    let version = node.product(id).await.version;
    unnoticed(&stack, "UPDATE products SET name = 'new' WHERE id = {id}", id).await;
    is_mended(&stack, &node, id, |name| name == Ok("new")).await;
    assert_eq!(node.product(id).await.version, version);
}

async fn unrecorded(stack: Stack) {
    let (node, id) = serving(&stack).await;
    let mut change = stack.sql.begin().await.unwrap();
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    change.execute(AssertSqlSafe(rename)).await.unwrap();
    let forget = "DELETE FROM hotshelf.outbox WHERE xid = pg_current_xact_id()";
    assert_eq!(change.execute(forget).await.unwrap().rows_affected(), 1);
    change.commit().await.unwrap();
    is_mended(&stack, &node, id, |name| name == Ok("new")).await;
}

async fn deleted(stack: Stack) {
    let (node, id) = serving(&stack).await;
    unnoticed(&stack, "DELETE FROM products WHERE id = {id}", id).await;
    is_mended(&stack, &node, id, |name| name == Err(Code::NotFound)).await;
}

async fn created(stack: Stack) {
    let (node, known) = serving(&stack).await;
    let id = known + 1_000;
    assert_eq!(node.get(id).await.unwrap_err().code(), Code::NotFound);
    unnoticed(&stack, "INSERT INTO products (id, name, price) VALUES ({id}, 'new', 1)", id).await;
    is_mended(&stack, &node, id, |name| name == Ok("new")).await;
}

/// The bytes of another product's contents, with a checksum that is right, loaded into memory from Redis.
async fn forged(stack: Stack) {
    let (node, id) = serving(&stack).await;
    let mut forged = stack.redis_value(id).await.unwrap();
    let at = forged.windows(3).position(|bytes| bytes == b"old").unwrap();
    forged[at..at + 3].copy_from_slice(b"bad");
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&forged[..26]);
    checksum.update(&forged[30..]);
    forged[26..30].copy_from_slice(&checksum.finalize().to_be_bytes());
    stack.redis_put(id, &forged).await;
    let victim = stack.node_with(alone).await;
    assert_eq!(victim.product(id).await.name, "bad");
    is_mended(&stack, &victim, id, |name| name == Ok("old")).await;
    assert_eq!(node.product(id).await.name, "old");
}

async fn logged(stack: Stack) {
    let id = stack.insert("old").await;
    let options = ["--shadow-reads", "100", "--refresh-keys", "0", "--soft-ttl", "1h"];
    let program = Program::serve(&stack, &options).await;
    let client = program.client().await;
    let version = read(&client, id).await.version;
    unnoticed(&stack, "UPDATE products SET name = 'new' WHERE id = {id}", id).await;
    eventually("memory is mended", async || read(&client, id).await.name == "new").await;
    let log = program.log();
    let line = log.lines().find(|line| line.contains("ERROR")).unwrap();
    for part in [
        "memory answers with something else than PostgreSQL holds, for longer than MAX_STALENESS",
        &format!("id={id} memory_answers=other contents of version {version}"),
        &format!("postgres_holds=version {version}"),
        &format!("explained=memory: version {version}, Fresh"),
        &format!("Redis: version {version}; PostgreSQL: version {version}, 0 changes not relayed"),
        "a read is answered by Hot",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

async fn read(client: &ProductServiceClient<Channel>, id: i64) -> hotshelf::proto::Product {
    client.clone().get_product(get(id)).await.unwrap().into_inner()
}

async fn in_time(stack: Stack) {
    let (node, id) = serving(&stack).await;
    let other = stack.node().await;
    let before = checks(&node, "current").await;
    let number = AtomicUsize::new(0);
    eventually("memory was compared ten times while it changed", async || {
        match number.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => drop(rename(&node, id, "here").await),
            1 => drop(rename(&other, id, "there").await),
            _ => run(&stack, "UPDATE products SET name = 'by SQL' WHERE id = {id}", id).await,
        }
        node.product(id).await;
        checks(&node, "current").await >= before + 10.0
    })
    .await;
    assert_eq!(checks(&node, "mismatch").await, 0.0);
}

/// While the poll is held, memory answers with the older version, for as long as its lease lasts.
async fn followed(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack
        .node_with(|args| {
            alone(args);
            args.caching.max_staleness = HOUR;
            args.caching.hot_lease = HOUR;
        })
        .await;
    node.controls.turn_off(Protection::Hints);
    eventually("a difference was seen", async || {
        node.product(id).await;
        let mut polls = node.pauses.arm(Point::PollOutbox);
        let poll = tokio::time::timeout(HANG, polls.recv()).await.unwrap().unwrap();
        run(&stack, "UPDATE products SET name = name || '.' WHERE id = {id}", id).await;
        // About two rounds of comparisons.
        tokio::time::sleep(Duration::from_secs(2)).await;
        node.pauses.release(Point::PollOutbox);
        drop(poll);
        checks(&node, "stale_within_bound").await > 0.0
    })
    .await;
    assert_eq!(checks(&node, "mismatch").await, 0.0);
}

async fn overloaded(stack: Stack) {
    let (hot, a, b) = (stack.insert("hot").await, stack.insert("a").await, stack.insert("b").await);
    let node = stack
        .node_with(|args| {
            alone(args);
            args.postgres.database_loads = 1;
        })
        .await;
    eventually("memory is compared", async || {
        node.product(hot).await;
        checks(&node, "current").await > 0.0
    })
    .await;
    let lock = stack.lock_products().await;
    let readers = [a, b].map(|id| {
        let mut client = node.client.clone();
        tokio::spawn(async move { client.get_product(get(id)).await })
    });
    eventually("one load runs and one waits", async || {
        node.metric("hotshelf_postgres_share_waiting{share=\"loads\"}").await == 1.0
    })
    .await;
    let before = checks(&node, "skipped").await;
    eventually("comparisons are skipped", async || {
        node.product(hot).await;
        checks(&node, "skipped").await >= before + 2.0
    })
    .await;
    assert_eq!(stack.running_loads().await, 1, "only the caller's");
    lock.rollback().await.unwrap();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    let before = checks(&node, "current").await;
    eventually("memory is compared again", async || {
        node.product(hot).await;
        checks(&node, "current").await > before
    })
    .await;
}
