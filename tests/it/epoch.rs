//! P2 when PostgreSQL goes back in time: a restore from a backup and the promotion of a replica raise the epoch, and a
//! restart that lost nothing does not.

use std::path::PathBuf;
use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::controls::Protection;
use hotshelf::moment::Moment;
use hotshelf::proto::{BatchGetProductsRequest, ProductServiceClient};
use sqlx::{AssertSqlSafe, Connection};
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{HANG, Node, Private, Program, Suite, cache_status, connect, eventually, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.private("epoch::a_restore_under_running_instances_raises_the_epoch_once", running);
    suite.private("epoch::a_restore_while_no_instance_runs_raises_the_epoch_once", stopped);
    suite.private("epoch::without_the_protection_the_lost_version_is_served", unprotected);
    suite.private("epoch::a_clean_restart_of_postgres_keeps_the_epoch_and_redis", clean_restart);
    suite.private("epoch::a_crash_of_postgres_that_lost_nothing_keeps_the_epoch_and_redis", crash);
    suite.private("epoch::a_promoted_replica_raises_the_epoch_once", promoted);
    suite.private("epoch::a_copy_of_a_lost_epoch_is_not_served_when_its_load_fails", lost_copy);
    suite.private("epoch::a_replica_is_refused_at_start_in_one_line", replica_refused);
}

const RAISED: &str = "hotshelf_epochs_raised_total";

/// Only the feed and the epoch invalidate a copy within the test.
fn long_staleness(args: &mut ServeArgs) {
    args.caching.max_staleness = Duration::from_secs(600);
    args.caching.hot_lease = Duration::from_secs(600);
    args.caching.refresh_keys = 0;
}

async fn run(world: &Private, statement: String) {
    sqlx::query(AssertSqlSafe(statement)).execute(&world.sql).await.unwrap();
}

async fn rename(world: &Private, id: i64, name: &str) {
    run(world, format!("UPDATE products SET name = '{name}' WHERE id = {id}")).await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn back_up(world: &Private) -> PathBuf {
    let postgres = world.postgres.clone();
    blocking(move || postgres.back_up().unwrap()).await
}

pub async fn stop(world: &Private) {
    let postgres = world.postgres.clone();
    blocking(move || postgres.stop()).await;
}

pub async fn start_again(world: &Private) {
    let postgres = world.postgres.clone();
    blocking(move || postgres.start_again().unwrap()).await;
}

/// Restores PostgreSQL to the backup, and assigns the versions of the lost changes again, to another product.
async fn restore(world: &Private, backup: PathBuf) {
    let postgres = world.postgres.clone();
    blocking(move || {
        postgres.stop();
        postgres.restore(&backup).unwrap();
        postgres.start_again().unwrap();
    })
    .await;
    let other = world.insert_unrelayed("other").await;
    for name in ["a", "b", "c"] {
        rename(world, other, name).await;
    }
}

/// Waits for a new mark in the table and in Redis.
async fn marked(world: &Private) {
    let newest = "SELECT max(id) FROM hotshelf.marks";
    let newest =
        async || -> Option<i64> { sqlx::query_scalar(newest).fetch_one(&world.sql).await.unwrap() };
    let before = newest().await;
    eventually("a mark is made", || async { newest().await > before }).await;
    let key = format!("{}:mark", world.key_prefix);
    eventually("Redis has it", || async {
        let held = world.redis.command(&["GET", &key]).unwrap();
        held.split(' ').next().and_then(|id| id.parse().ok()) > before
    })
    .await;
}

/// Whether a call returns the product with this name; false when it fails.
async fn serves(client: &ProductServiceClient<Channel>, id: i64, name: &str) -> bool {
    let read = client.clone().get_product(get(id)).await;
    read.is_ok_and(|read| read.into_inner().name == name)
}

async fn all_serve(clients: &[&ProductServiceClient<Channel>], id: i64, name: &str) {
    for client in clients {
        eventually(&format!("{id} is {name}"), || serves(client, id, name)).await;
    }
}

async fn metric(program: &Program, series: &str) -> f64 {
    let (_, text) = program.admin("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

fn lines(programs: &[&Program], words: &str) -> usize {
    let logs = programs.iter().map(|program| program.log());
    logs.map(|log| log.lines().filter(|line| line.contains(words)).count()).sum()
}

async fn running(world: Private) {
    let ids = [world.insert("old").await, world.insert("old").await];
    let more = ["--database-acquire-timeout", "2s", "--refresh-keys", "0"];
    let (a, b) = tokio::join!(Program::serve(&world, &more), Program::serve(&world, &more));
    let (to_a, to_b) = (a.client().await, b.client().await);
    marked(&world).await;
    let backup = back_up(&world).await;
    for id in ids {
        rename(&world, id, "lost").await;
        all_serve(&[&to_a, &to_b], id, "lost").await;
    }
    world.wait_until_relayed().await;
    restore(&world, backup).await;
    eventually("the epoch is raised", || async {
        metric(&a, RAISED).await + metric(&b, RAISED).await >= 1.0
    })
    .await;
    for client in [&to_a, &to_b] {
        for id in ids {
            eventually("what was restored is served", || serves(client, id, "old")).await;
            let request = BatchGetProductsRequest { ids: ids.to_vec(), ..Default::default() };
            eventually("in a batch, too", || async {
                let read = client.clone().batch_get_products(request.clone()).await;
                read.is_ok_and(|read| {
                    read.into_inner().products.iter().all(|product| product.name == "old")
                })
            })
            .await;
        }
    }
    rename(&world, ids[0], "new").await;
    all_serve(&[&to_a, &to_b], ids[0], "new").await;
    let late = world.node().await;
    assert_eq!(late.product(ids[0]).await.name, "new");
    assert_eq!(late.product(ids[1]).await.name, "old");
    let raised = metric(&a, RAISED).await + metric(&b, RAISED).await + late.metric(RAISED).await;
    assert_eq!(raised, 1.0);
    // A thread of its own writes the log.
    let said = async || lines(&[&a, &b], "PostgreSQL has gone back") == 1;
    eventually("it is logged", said).await;
    assert_eq!(lines(&[&a, &b], " ERROR "), 1, "{}{}", a.log(), b.log());
}

/// Redis holds a lost version, and the instances that had it in memory are stopped.
async fn lost_while_stopped(world: &Private) -> i64 {
    let id = world.insert("old").await;
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(long_staleness),
        world.node_with_short_timeouts(long_staleness)
    );
    all_serve(&[&a.client, &b.client], id, "old").await;
    marked(world).await;
    let backup = back_up(world).await;
    rename(world, id, "lost").await;
    all_serve(&[&a.client, &b.client], id, "lost").await;
    world.wait_until_relayed().await;
    marked(world).await;
    assert!(a.app.stop().await);
    assert!(b.app.stop().await);
    restore(world, backup).await;
    assert!(world.redis_holds(id));
    id
}

async fn raised_once(nodes: [&Node; 2]) {
    let raised = async || nodes[0].metric(RAISED).await + nodes[1].metric(RAISED).await;
    eventually("the epoch is raised", || async { raised().await >= 1.0 }).await;
    for node in nodes {
        // Polls of each instance that were sent after the epoch was raised.
        for _ in 0..3 {
            let mut polling = node.pauses.arm(hotshelf::pause::Point::PollOutbox);
            drop(tokio::time::timeout(HANG, polling.recv()).await.unwrap());
            node.pauses.release(hotshelf::pause::Point::PollOutbox);
        }
    }
    assert_eq!(raised().await, 1.0);
}

async fn stopped(world: Private) {
    let id = lost_while_stopped(&world).await;
    let start = async || {
        let node = world.node_with_short_timeouts(long_staleness).await;
        // The instance's first read.
        assert_eq!(node.product(id).await.name, "old");
        node
    };
    let (a, b) = tokio::join!(start(), start());
    raised_once([&a, &b]).await;
    rename(&world, id, "new").await;
    all_serve(&[&a.client, &b.client], id, "new").await;
}

async fn unprotected(world: Private) {
    let [read, unread] = [world.insert("old").await, world.insert("old").await];
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(long_staleness),
        world.node_with_short_timeouts(long_staleness)
    );
    for node in [&a, &b] {
        node.controls.turn_off(Protection::Epoch);
    }
    marked(&world).await;
    let backup = back_up(&world).await;
    for id in [read, unread] {
        rename(&world, id, "lost").await;
    }
    all_serve(&[&a.client], unread, "lost").await;
    all_serve(&[&a.client, &b.client], read, "lost").await;
    world.wait_until_relayed().await;
    restore(&world, backup).await;
    let gaps = "hotshelf_change_feed_gaps_total";
    for node in [&a, &b] {
        eventually("it follows the feed again", || async { node.metric(gaps).await >= 1.0 }).await;
    }
    eventually("Redis serves what was lost", || serves(&b.client, unread, "lost")).await;
    assert_eq!(a.metric(RAISED).await + b.metric(RAISED).await, 0.0);
}

/// After `restart` Redis serves a product that the reading instance does not have in memory, and the epoch is unchanged.
async fn nothing_lost(world: &Private, restart: impl AsyncFnOnce()) {
    let durable = format!("ALTER DATABASE {} SET synchronous_commit = on", world.namespace);
    run(world, durable).await;
    // Existing connections keep the old setting.
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    run(world, others.to_owned()).await;
    let id = world.insert("lamp").await;
    let (a, b) = tokio::join!(
        world.node_with_short_timeouts(long_staleness),
        world.node_with_short_timeouts(long_staleness)
    );
    a.product(id).await;
    marked(world).await;
    restart().await;
    let gaps = "hotshelf_change_feed_gaps_total";
    for node in [&a, &b] {
        eventually("the restart is noticed", || async { node.metric(gaps).await >= 1.0 }).await;
    }
    assert_eq!(cache_status(&b.get(id).await.unwrap()), "hotshelf; hit; detail=redis");
    rename(world, id, "new").await;
    all_serve(&[&a.client, &b.client], id, "new").await;
    marked(world).await;
    assert_eq!(a.metric(RAISED).await + b.metric(RAISED).await, 0.0);
}

async fn clean_restart(world: Private) {
    let restart = async || {
        stop(&world).await;
        start_again(&world).await;
    };
    nothing_lost(&world, restart).await;
}

async fn crash(world: Private) {
    let restart = async || {
        let postgres = world.postgres.clone();
        blocking(move || postgres.kill()).await;
        start_again(&world).await;
    };
    nothing_lost(&world, restart).await;
}

pub async fn start_replica(world: &Private) -> devstack::Postgres {
    let postgres = world.postgres.clone();
    blocking(move || postgres.start_replica().unwrap()).await
}

async fn promoted(world: Private) {
    let id = world.insert("old").await;
    let before = world.node_with_short_timeouts(long_staleness).await;
    all_serve(&[&before.client], id, "old").await;
    let replica = start_replica(&world).await;
    assert!(before.app.stop().await);
    assert!(world.redis_holds(id));
    stop(&world).await;
    let url = replica.url_of(&world.namespace);
    let mut sql = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::query("SELECT pg_promote()").execute(&mut sql).await.unwrap();
    let on_replica = |args: &mut ServeArgs| {
        long_staleness(args);
        args.database.database_url = url.clone();
    };
    let start = async || {
        let mut args = world.args();
        on_replica(&mut args);
        Node::start(&args).await
    };
    let (a, b) = tokio::join!(start(), start());
    let read = a.get(id).await.unwrap();
    assert!(!cache_status(&read).contains("redis"), "Redis is empty: {}", cache_status(&read));
    assert_eq!(read.into_inner().name, "old");
    assert_eq!(b.product(id).await.name, "old");
    raised_once([&a, &b]).await;
    let pool = connect(&url, 1);
    sqlx::query("UPDATE products SET name = 'new'").execute(&pool).await.unwrap();
    all_serve(&[&a.client, &b.client], id, "new").await;
    drop((sql, pool, replica));
}

async fn replica_refused(world: Private) {
    let replica = start_replica(&world).await;
    let url = replica.url_of(&world.namespace);
    let ended = Program::finish(Program::serving(&world, &["--database-url", &url])).await;
    assert_ne!(ended.code, Some(0));
    let words = "the server is a read-only replica; DATABASE_URL must name the primary";
    let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("replica")).collect();
    assert_eq!(said.len(), 1, "{}", ended.stderr);
    assert!(said[0].contains(words), "{}", said[0]);
    assert_eq!(ended.stderr.lines().last(), Some(said[0]), "the last word");
}

async fn lost_copy(world: Private) {
    let id = world.insert("walnut desk lamp").await;
    let node = world.node_with(long_staleness).await;
    assert_eq!(node.product(id).await.name, "walnut desk lamp");
    world.postgres.kill();
    world.redis.kill();
    assert_eq!(node.product(id).await.name, "walnut desk lamp", "memory serves it");
    node.hot.begin_epoch(Moment::now());
    let refused = node.client.clone().get_product(get(id)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}
