//! The circuit breakers in front of Redis: which reads wait before they open, that none waits afterwards, and that
//! they close by themselves.

use std::time::{Duration, Instant};

use devstack::Direction;
use futures_util::future::join_all;
use hotshelf::config::ServeArgs;

use crate::harness::{Node, Private, StallMeter, Suite, eventually, too_busy};

/// Longer than a stall of the machine, and shorter than fred's timeout of a silent connection.
const REDIS_TIMEOUT: Duration = Duration::from_secs(1);

pub fn register(suite: &mut Suite<'_>) {
    suite.private("breaker::once_it_is_open_no_read_waits_for_a_frozen_redis", frozen);
    suite.private("breaker::answers_that_are_always_late_open_it", slow);
    suite.private("breaker::a_redis_that_refuses_writes_does_not_open_it", read_only);
    suite.private("breaker::a_redis_that_is_loading_is_not_waited_for", loading);
}

async fn node(world: &Private) -> Node {
    world.node_with_short_timeouts(|args| args.redis.redis_timeout = REDIS_TIMEOUT).await
}

async fn is_open(node: &Node, dependency: &str) -> bool {
    let series = format!("hotshelf_redis_breakers_open{{dependency=\"{dependency}\"}}");
    node.metric(&series).await > 0.0
}

async fn moves(node: &Node, to: &str) -> f64 {
    let series = "hotshelf_redis_breaker_moves_total";
    node.metric(&format!("{series}{{dependency=\"commands\",to=\"{to}\"}}")).await
}

async fn failed_gets(node: &Node) -> f64 {
    node.metric("hotshelf_redis_errors_total{operation=\"get\"}").await
}

async fn insert_many(world: &Private, count: i64) -> Vec<i64> {
    let insert = "INSERT INTO products (name, price) \
                  SELECT 'lamp', 1 FROM generate_series(1, $1) RETURNING id";
    let ids = sqlx::query_scalar(insert).bind(count).fetch_all(&world.sql).await.unwrap();
    world.wait_until_relayed().await;
    ids
}

async fn closes_again(world: &Private, node: &Node) {
    eventually("the breaker closes", || async { !is_open(node, "commands").await }).await;
    eventually("Redis is filled again", || async {
        let id = world.insert_unrelayed("afterwards").await;
        node.product(id).await;
        world.redis_holds(id)
    })
    .await;
    assert!(moves(node, "half_open").await >= 1.0, "it was probed");
    assert!(moves(node, "closed").await >= 1.0);
}

async fn frozen(world: Private) {
    let node = node(&world).await;
    let ids = insert_many(&world, 60).await;
    let (first, rest) = ids.split_at(10);
    world.redis.pause();
    let stalls = StallMeter::start();
    // Concurrent reads are one command to Redis, and fail together.
    for together in first.chunks(2) {
        let began = Instant::now();
        join_all(together.iter().map(|id| node.product(*id))).await;
        let waited = began.elapsed();
        if let Some(why) = stalls.too_long().filter(|_| waited > REDIS_TIMEOUT * 4) {
            too_busy(&why);
        }
        assert!(waited < REDIS_TIMEOUT * 4, "they waited for {waited:?}");
    }
    assert!(is_open(&node, "commands").await);
    let failed = failed_gets(&node).await;
    assert!(failed >= 1.0, "it happened");
    for id in rest {
        assert_eq!(node.product(*id).await.id, *id);
    }
    assert_eq!(failed_gets(&node).await, failed, "no read reached Redis");
    assert!(moves(&node, "closed").await < 1.0, "all the time");
    world.redis.resume();
    closes_again(&world, &node).await;
}

async fn slow(world: Private) {
    let node = node(&world).await;
    world.to_redis.delay(Direction::ToClient, REDIS_TIMEOUT.mul_f64(0.7));
    eventually("the breaker opens", || async {
        let id = world.insert_unrelayed("lamp").await;
        assert_eq!(node.product(id).await.id, id);
        is_open(&node, "commands").await
    })
    .await;
    assert!(world.to_redis.counts().to_client.delayed > 0, "it happened");
    world.to_redis.heal();
    closes_again(&world, &node).await;
}

async fn read_only(world: Private) {
    let ids = insert_many_unrelayed(&world, 20).await;
    // The changes below cannot be relayed, and after half of `max_staleness` without a confirmation the instances
    // would not serve entries of Redis.
    let options = |args: &mut ServeArgs| {
        args.redis.redis_timeout = REDIS_TIMEOUT;
        args.caching.max_staleness = Duration::from_secs(600);
    };
    let (node, other) = tokio::join!(
        world.node_with_short_timeouts(options),
        world.node_with_short_timeouts(options)
    );
    join_all(ids.iter().map(|id| other.product(*id))).await;
    assert!(ids.iter().all(|id| world.redis_holds(*id)));
    world.redis.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert!(world.redis.command(&["SET", "any", "thing"]).is_err(), "full");
    for id in insert_many_unrelayed(&world, 20).await {
        assert_eq!(node.product(id).await.id, id, "a miss cannot be filled");
    }
    assert!(!is_open(&node, "commands").await);
    for id in &ids {
        node.product(*id).await;
    }
    assert!(node.metric("hotshelf_reads_total{served_by=\"redis\"}").await > 0.0);
}

async fn insert_many_unrelayed(world: &Private, count: usize) -> Vec<i64> {
    join_all((0..count).map(|_| world.insert_unrelayed("lamp"))).await
}

async fn loading(world: Private) {
    let node = node(&world).await;
    world.redis.command(&["CONFIG", "SET", "rdbcompression", "no"]).unwrap();
    let ballast = "x".repeat(2_000);
    for key in 0..40 {
        world.redis.command(&["SET", &format!("ballast:{key}"), &ballast]).unwrap();
    }
    world.redis.command(&["SAVE"]).unwrap();
    let port = world.redis.port();
    world.redis.kill();
    let dir = world.redis.dir().to_owned();
    let mut loading = tokio::process::Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
        .args(["--key-load-delay", "200000", "--loading-process-events-interval-bytes", "1024"])
        .arg("--dir")
        .arg(dir)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let reports = |what: &'static str| {
        let info = world.redis.command(&["INFO", "persistence"]);
        async move { info.is_ok_and(|info| info.contains(what)) }
    };
    eventually("it is loading", || reports("loading:1")).await;
    for id in insert_many_unrelayed(&world, 10).await {
        assert_eq!(node.product(id).await.id, id);
    }
    let open = is_open(&node, "commands").await;
    if !reports("loading:1").await {
        too_busy("Redis had loaded before ten products were read");
    }
    assert!(open);
    eventually("it has loaded", || reports("loading:0")).await;
    closes_again(&world, &node).await;
    loading.kill().await.unwrap();
}
