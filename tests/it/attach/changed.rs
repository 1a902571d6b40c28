//! A table that is changed while instances serve it.

use super::{SEED, database, node_on, price};
use crate::harness::{Program, Stack, Suite, attach, eventually};
use crate::schema::run;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("attach::a_changed_table_is_served_on", served_on);
    suite.both("attach::attached_again_running_instances_follow", again);
}

async fn served_on(stack: Stack) {
    let table = "CREATE TABLE t (id int PRIMARY KEY, name text, price numeric(10,2), a int, b int)";
    let (url, sql) = database(&stack, "changed", table).await;
    run(&sql, "INSERT INTO t SELECT n, 'p' || n, n, n, n FROM generate_series(1, 100) AS n").await;
    attach(&url, "t").await.unwrap();
    let node = node_on(&stack, &url, "").await;
    let keys = |product: hotshelf::proto::Product| {
        product.attributes.unwrap().fields.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(keys(node.product(1).await), ["a", "b"]);
    // Each product is read for the first time, so each read is a load.
    run(&sql, "ALTER TABLE t DROP COLUMN a").await;
    assert_eq!(keys(node.product(2).await), ["b"]);
    run(&sql, "ALTER TABLE t RENAME COLUMN name TO title").await;
    assert_eq!(node.product(3).await.name, "p3");
    run(&sql, "ALTER TABLE t ALTER price TYPE numeric(20,6), ALTER title TYPE varchar(50)").await;
    assert_eq!(price(&node.product(4).await), Some((4, 0)));
    run(&sql, "ALTER TABLE t RENAME TO u").await;
    assert_eq!(node.product(5).await.name, "p5");
    run(&sql, "CREATE SCHEMA elsewhere; ALTER TABLE u SET SCHEMA elsewhere").await;
    assert_eq!(node.product(6).await.name, "p6");
    run(&sql, "ALTER TABLE elsewhere.u ADD COLUMN c int DEFAULT 5").await;
    assert_eq!(keys(node.product(7).await), ["b"], "until it is attached again");
    run(&sql, "UPDATE elsewhere.u SET title = 'new' WHERE id = 7").await;
    eventually("writes are noticed", async || node.product(7).await.name == "new").await;
    run(&sql, "ALTER TABLE elsewhere.u DROP COLUMN price").await;
    assert_eq!(price(&node.product(8).await), None);
    drop(node);
    let program = Program::serve(&stack, &["--database-url", &url]).await;
    assert!(program.log().contains("hotshelf attach --again"), "{}", program.log());
}

async fn again(stack: Stack) {
    let (url, sql) = database(&stack, "again", SEED).await;
    run(&sql, "INSERT INTO products (name, price, description) VALUES ('a', 1, 'd')").await;
    attach(&url, "products").await.unwrap();
    let (a, b) = (node_on(&stack, &url, "").await, node_on(&stack, &url, "").await);
    let before = a.product(1).await;
    assert_eq!(b.product(1).await, before);
    run(&sql, "ALTER TABLE products ADD COLUMN sku text DEFAULT 'S', ADD COLUMN old_price numeric DEFAULT 9").await;
    run(&sql, "ALTER TABLE products RENAME COLUMN id TO product_id").await;
    let attach = ["attach", "products", "--again", "--yes", "--database-url", &url];
    let ended = Program::run(&[&attach[..], &["--price-column", "old_price"]].concat()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for node in [&a, &b] {
        eventually("the new columns are served", async || {
            let product = node.product(1).await;
            let sku = product.attributes.as_ref().is_some_and(|one| one.fields.contains_key("sku"));
            sku && price(&product) == Some((9, 0)) && product.version == before.version
        })
        .await;
    }
    run(&sql, "UPDATE products SET name = 'new'").await;
    for node in [&a, &b] {
        eventually("writes are noticed", async || node.product(1).await.name == "new").await;
    }
}
