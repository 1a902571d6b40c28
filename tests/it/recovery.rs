//! What comes back by itself, and how: the pool of connections to Postgres, the relay, the loads.

use std::time::Duration;

use devstack::Direction;
use hotshelf::pause::Point;
use sqlx::AssertSqlSafe;

use crate::harness::{HANG, Private, Suite, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.private(
        "recovery::a_relay_whose_connection_is_lost_without_a_word_goes_on",
        relay_connection_lost,
    );
    suite.private(
        "recovery::connections_lost_while_they_are_given_back_are_replaced",
        pooled_connections_lost,
    );
}

async fn relay_connection_lost(world: Private) {
    let id = world.insert("old").await;
    let node = world.impatient_node(|_| {}).await;
    node.product(id).await;
    let mut claimed = node.pauses.arm(Point::RelayClaimed);
    // By SQL, so that only the relay can tell.
    let rename = format!("UPDATE products SET name = 'new' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(rename)).execute(&world.sql).await.unwrap();
    let held = tokio::time::timeout(HANG, claimed.recv()).await.unwrap();
    node.pauses.release(Point::RelayClaimed);
    world.to_postgres.forget_connections();
    drop(held);
    eventually("the change is relayed", || async { node.product(id).await.name == "new" }).await;
    assert!(world.to_postgres.counts().to_server.swallowed > 0, "it happened");
}

async fn pooled_connections_lost(world: Private) {
    let (a, b, c) = (world.insert("a").await, world.insert("b").await, world.insert("c").await);
    let node = world.impatient_node(|args| args.postgres.database_connections = 2).await;
    // Long enough that what asks the connections for a sign of life, after the answers, is under way.
    world.to_postgres.delay(Direction::ToClient, Duration::from_millis(200));
    let (read_a, read_b) = tokio::join!(node.get(a), node.get(b));
    assert!(read_a.is_ok() || read_b.is_ok(), "{read_a:?}, {read_b:?}");
    world.to_postgres.forget_connections();
    world.to_postgres.heal();
    eventually("misses are loaded", || async { node.get(c).await.is_ok() }).await;
    assert!(world.to_postgres.counts().to_client.swallowed > 0, "it happened");
}
