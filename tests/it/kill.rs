//! P5: the process may be killed at any instruction. A process is paused between two steps of a write or of the relay
//! and killed with SIGKILL, and another instance completes the rest.

use std::time::{Duration, Instant};

use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{GetProductRequest, Product, UpdateProductRequest};
use sqlx::AssertSqlSafe;

use crate::harness::{Node, Program, Stack, Suite, eventually};

/// Half a soft TTL: a change that only the TTL makes visible takes longer. P3 promises 1 s, too short for a busy machine.
const BOUND: Duration = Duration::from_secs(30);

pub fn register(suite: &mut Suite<'_>) {
    suite.both("kill::a_writer_killed_between_any_two_steps_loses_nothing", writer);
    suite.both("kill::a_relay_killed_between_any_two_steps_loses_nothing", relay);
}

async fn killed_when_held(program: Program) {
    eventually("it stands still", || async { program.log().contains("held for ever") }).await;
    program.kill().await;
}

/// Waits until all tiers have `name`: the survivor's memory, Redis and Postgres.
async fn converges(stack: &Stack, survivor: &Node, id: i64, name: &str) {
    let began = Instant::now();
    let serves = async || survivor.product(id).await.name == name;
    eventually(&format!("the survivor serves {name}"), serves).await;
    assert!(began.elapsed() < BOUND, "{:?} behind", began.elapsed());
    let latest = GetProductRequest { id, freshness: Some(Freshness::Latest(true)) };
    let truth = survivor.client.clone().get_product(latest).await.unwrap().into_inner();
    assert_eq!(truth.name, name, "not lost");
    let redis = stack.redis_revision(id).await;
    assert!(redis.is_none_or(|redis| redis == (truth.version, false)), "{redis:?}, not {truth:?}");
    stack.wait_until_relayed().await;
}

async fn writer(stack: Stack) {
    let id = stack.insert("old").await;
    let survivor = stack.node().await;
    for point in ["committed", "offered-to-memory", "published"] {
        survivor.product(id).await;
        let writer = Program::serve(&stack, &["--hold-at", point]).await;
        let mut client = writer.client().await;
        let product = Some(Product { id, name: point.to_owned(), ..Product::default() });
        let write = tokio::spawn(async move {
            client.update_product(UpdateProductRequest { product, ..Default::default() }).await
        });
        killed_when_held(writer).await;
        assert!(write.await.unwrap().is_err(), "the client got no response");
        converges(&stack, &survivor, id, point).await;
    }
}

async fn relay(stack: Stack) {
    let id = stack.insert("old").await;
    for point in ["relay-read", "relay-superseded", "relay-applied"] {
        // Redis holds the old version, and the killed instance is the only relay.
        let before = stack.node().await;
        before.product(id).await;
        assert!(before.app.stop().await);
        let relay = Program::serve(&stack, &["--hold-at", point]).await;
        let statement = format!("UPDATE products SET name = '{point}' WHERE id = {id}");
        sqlx::query(AssertSqlSafe(statement)).execute(&stack.sql).await.unwrap();
        killed_when_held(relay).await;
        let survivor = stack.node().await;
        converges(&stack, &survivor, id, point).await;
        assert!(survivor.app.stop().await);
    }
}
