//! Recovery without a restart: the pool of connections to Postgres, the relay, the loads.

use std::time::Duration;

use devstack::Direction;
use hotshelf::pause::Point;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Private, Program, Stack, Suite, eventually, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.private(
        "recovery::a_relay_recovers_from_a_connection_lost_without_a_reset",
        relay_connection_lost,
    );
    suite.private(
        "recovery::connections_lost_while_they_are_given_back_are_replaced",
        pooled_connections_lost,
    );
    suite.single("recovery::out_of_file_descriptors_callers_stay_served", out_of_descriptors);
    suite.single("recovery::while_postgres_is_read_only_writes_fail_cleanly", read_only);
    suite.single("recovery::while_postgres_takes_no_connections_calls_are_refused", no_connections);
}

async fn relay_connection_lost(world: Private) {
    let id = world.insert("old").await;
    let node = world.node_with_short_timeouts(|_| {}).await;
    node.product(id).await;
    let mut claimed = node.pauses.arm(Point::RelayRead);
    // By SQL, so that only the relay publishes the change.
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(rename)).execute(&world.sql).await.unwrap();
    let held = tokio::time::timeout(HANG, claimed.recv()).await.unwrap();
    node.pauses.release(Point::RelayRead);
    world.to_postgres.forget_connections();
    drop(held);
    eventually("a lost connection is used", || async {
        world.to_postgres.counts().to_server.swallowed > 0
    })
    .await;
    // The test's own SQL does not use the lost connections.
    world.wait_until_relayed().await;
    // A read may need Postgres meanwhile, and get a lost connection from the pool.
    let serves = || async { node.get(id).await.is_ok_and(|read| read.get_ref().name == "new") };
    eventually("the change is served", serves).await;
}

async fn pooled_connections_lost(world: Private) {
    let (a, b, c) = (world.insert("a").await, world.insert("b").await, world.insert("c").await);
    let node = world.node_with_short_timeouts(|args| args.postgres.database_connections = 2).await;
    // Long enough that the pool's check of the connections, after the responses, is in flight.
    world.to_postgres.delay(Direction::ToClient, Duration::from_millis(200));
    let (read_a, read_b) = tokio::join!(node.get(a), node.get(b));
    assert!(read_a.is_ok() || read_b.is_ok(), "{read_a:?}, {read_b:?}");
    world.to_postgres.forget_connections();
    world.to_postgres.heal();
    eventually("misses are loaded", || async { node.get(c).await.is_ok() }).await;
    assert!(world.to_postgres.counts().to_client.swallowed > 0, "it happened");
}

/// A session in another database than the one that the test changes.
fn outside(stack: &Stack) -> PgPool {
    crate::harness::connect(&stack.database_url.replace(&stack.namespace, "postgres"), 1)
}

/// Changes the database, and ends all its sessions, as a failover does.
async fn fail_over(stack: &Stack, change: &str) {
    let outside = outside(stack);
    let alter = format!("ALTER DATABASE {} {change}", stack.namespace);
    sqlx::query(AssertSqlSafe(alter)).execute(&outside).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(end).bind(&stack.namespace).execute(&outside).await.unwrap();
}

async fn try_rename(node: &Node, id: i64, name: &str) -> Result<i64, Status> {
    let product =
        Some(hotshelf::proto::Product { id, name: name.to_owned(), ..Default::default() });
    let request = hotshelf::proto::UpdateProductRequest { product, ..Default::default() };
    Ok(node.client.clone().update_product(request).await?.into_inner().version)
}

fn assert_unavailable(refused: &Status) {
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "DATABASE_UNAVAILABLE");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
}

async fn read_only(stack: Stack) {
    let [cached, uncached] = [stack.insert("a").await, stack.insert("b").await];
    let node = stack.node().await;
    node.product(cached).await;
    let version = stack.version(cached).await;
    fail_over(&stack, "SET default_transaction_read_only = on").await;
    // The first write may still get a connection that has just ended.
    eventually("it is read-only", || async {
        let refused = try_rename(&node, cached, "lost").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        refused.get_error_details().error_info().unwrap().reason == "DATABASE_UNAVAILABLE"
    })
    .await;
    assert_unavailable(&try_rename(&node, cached, "lost").await.unwrap_err());
    assert_eq!(node.product(uncached).await.id, uncached, "reads are served");
    assert_eq!(stack.version(cached).await, version, "the refused write was not made");
    fail_over(&stack, "RESET ALL").await;
    eventually("writes succeed again", || async { try_rename(&node, cached, "new").await.is_ok() })
        .await;
    assert_eq!(node.product(cached).await.name, "new");
}

async fn no_connections(stack: Stack) {
    let [cached, uncached] = [stack.insert("a").await, stack.insert("b").await];
    let node = stack
        .node_with(|args| args.postgres.database_acquire_timeout = Duration::from_millis(500))
        .await;
    node.product(cached).await;
    fail_over(&stack, "ALLOW_CONNECTIONS false").await;
    eventually("misses are refused", || async { node.get(uncached).await.is_err() }).await;
    assert_unavailable(&node.get(uncached).await.unwrap_err());
    assert_unavailable(&try_rename(&node, cached, "lost").await.unwrap_err());
    assert_eq!(node.product(cached).await.id, cached, "what is cached is served");
    fail_over(&stack, "ALLOW_CONNECTIONS true").await;
    eventually("misses are loaded", || async { node.get(uncached).await.is_ok() }).await;
    eventually("writes succeed again", || async { try_rename(&node, cached, "new").await.is_ok() })
        .await;
}

async fn out_of_descriptors(stack: Stack) {
    let id = stack.insert("lamp").await;
    let serving = Program::serving(&stack, &[]);
    let mut limited = tokio::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\""]).arg(serving.as_std().get_program());
    limited.args(serving.as_std().get_args()).env_clear().kill_on_drop(true);
    limited.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let program = Program::start(limited).await;
    let mut client = program.client().await;
    client.get_product(get(id)).await.unwrap();
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(("127.0.0.1", program.port())).await.unwrap());
    }
    let failed = || async { program.log().contains("a connection could not be accepted") };
    eventually("it happened", failed).await;
    client.get_product(get(id)).await.unwrap();
    drop(sockets);
    eventually("others are accepted", || async {
        let mut other = program.client().await;
        other.get_product(get(id)).await.is_ok()
    })
    .await;
}
