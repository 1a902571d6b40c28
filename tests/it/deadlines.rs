//! A caller's deadline bounds its write: a write that has not started by then is not made.

use std::time::Duration;

use hotshelf::proto::{DeleteProductRequest, Product, UpdateProductRequest};
use sqlx::AssertSqlSafe;
use tonic::Code;

use crate::harness::{Node, Raw, Stack, Suite, eventually};
use crate::newest_wins::rename;
use crate::schema::run;

const UPDATE: &str = "/hotshelf.v1.ProductService/UpdateProduct";
const DELETE: &str = "/hotshelf.v1.ProductService/DeleteProduct";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("deadlines::a_write_that_waits_for_a_row_ends_with_its_caller", locked_row);
    suite.single("deadlines::a_write_without_a_connection_ends_with_its_caller", no_connection);
}

fn late(id: i64) -> UpdateProductRequest {
    let product = Some(Product { id, name: "too late".to_owned(), ..Product::default() });
    UpdateProductRequest { product, ..Default::default() }
}

async fn raw(node: &Node) -> Raw {
    Raw::connect(node.grpc_addr.port()).await
}

/// The timeout of the lock, of the connection or of the call, whichever is first.
fn assert_ended(ended: &tonic::Status) {
    let codes = [Code::Aborted, Code::DeadlineExceeded, Code::ResourceExhausted];
    assert!(codes.contains(&ended.code()), "{ended:?}");
}

async fn locked_row(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack
        // Postgres itself ends no statement within this test.
        .node_with(|args| args.postgres.database_statement_timeout = Duration::from_secs(600))
        .await;
    let version = stack.version(id).await;
    let mut lock = stack.sql.begin().await.unwrap();
    let row = format!("SELECT FROM products WHERE id = {id} FOR UPDATE");
    sqlx::query(AssertSqlSafe(row)).execute(&mut *lock).await.unwrap();
    let waits = || async { stack.waiting_statements().await.len() == 1 };
    let nothing_waits = || async { stack.waiting_statements().await.is_empty() };
    let update = tokio::spawn({
        let raw = raw(&node).await;
        async move { raw.call_within("5S", UPDATE, &late(id)).await }
    });
    eventually("it waits for the row", waits).await;
    let ended = update.await.unwrap();
    assert_ended(&ended);
    eventually("it waits no longer", nothing_waits).await;
    let delete = DeleteProductRequest { id, ..Default::default() };
    let ended = raw(&node).await.call_within("500m", DELETE, &delete).await;
    assert_ended(&ended);
    eventually("nor does this", nothing_waits).await;
    lock.rollback().await.unwrap();
    assert_eq!(stack.version(id).await, version, "neither was made");
    assert_eq!(rename(&node, id, "in time").await.name, "in time");
}

async fn no_connection(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack
        .node_with(|args| {
            args.postgres.database_connections = 1;
            args.postgres.database_acquire_timeout = Duration::from_secs(60);
        })
        .await;
    // A write of another product holds the connection. A write that waits for a lock would release it.
    let other = stack.insert_unrelayed("held").await;
    for sql in [
        "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
         IF OLD.name = 'held' THEN PERFORM pg_sleep(3); END IF; RETURN NEW; END$$",
        "CREATE TRIGGER hold BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION public.hold()",
    ] {
        run(&stack.sql, sql).await;
    }
    let waiting = tokio::spawn({
        let raw = raw(&node).await;
        async move { raw.call_within("20S", UPDATE, &late(other)).await }
    });
    let sleeps = "SELECT EXISTS (SELECT FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event = 'PgSleep')";
    eventually("it holds the connection", async || {
        sqlx::query_scalar::<_, bool>(sleeps).fetch_one(&stack.sql).await.unwrap()
    })
    .await;
    let ended = raw(&node).await.call_within("300m", UPDATE, &late(id)).await;
    assert_ended(&ended);
    assert_eq!(waiting.await.unwrap().code(), Code::Ok);
    let in_time = rename(&node, id, "in time").await;
    assert_eq!(in_time.version, stack.version(other).await + 1, "and nothing in between");
}
