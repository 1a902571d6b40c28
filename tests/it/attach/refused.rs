//! Tables that cannot be served, and flags that cannot be used, each with the reason.

use super::{SEED, database};
use crate::harness::{Program, Stack, Suite};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("attach::what_cannot_be_served_is_refused_with_the_reason", refused);
}

const TABLES: &str = "CREATE TABLE text_id (id text PRIMARY KEY, name text, price numeric); \
    CREATE TABLE uuid_id (id uuid PRIMARY KEY, name text, price numeric); \
    CREATE TABLE numeric_id (id numeric PRIMARY KEY, name text, price numeric); \
    CREATE TABLE two_keys (shop int, id int, name text, price numeric, PRIMARY KEY (shop, id)); \
    CREATE TABLE no_key (id int, name text, price numeric); \
    CREATE TABLE late_key (id int PRIMARY KEY DEFERRABLE, name text, price numeric); \
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, name text, price numeric); \
    CREATE TABLE parent (id int PRIMARY KEY, name text, price numeric); \
    CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent); \
    CREATE TABLE whole (id int PRIMARY KEY, name text, price numeric) PARTITION BY RANGE (id); \
    CREATE TABLE part PARTITION OF whole FOR VALUES FROM (1) TO (9); \
    CREATE VIEW seen AS SELECT * FROM products; \
    CREATE MATERIALIZED VIEW kept AS SELECT * FROM products; \
    CREATE TABLE no_name (id int PRIMARY KEY, price numeric); \
    CREATE TABLE no_price (id int PRIMARY KEY, name text); \
    CREATE TABLE float_price (id int PRIMARY KEY, name text, price real); \
    CREATE TABLE money_price (id int PRIMARY KEY, name text, price money); \
    CREATE TABLE int_price (id int PRIMARY KEY, name text, price int); \
    CREATE TABLE left_over (id int PRIMARY KEY, name text, price numeric, hotshelf_version bigint)";

const CASES: &[(&[&str], &str)] = &[
    (&["text_id"], "the primary key id of public.text_id is of the type text"),
    (&["uuid_id"], "of the type uuid"),
    (&["numeric_id"], "of the type numeric"),
    (&["two_keys"], "has several columns (shop, id)"),
    (&["no_key"], "has no primary key"),
    (&["late_key"], "DEFERRABLE"),
    (&["unlogged"], "is unlogged"),
    (&["parent"], "inherited"),
    (&["child"], "inherits"),
    (&["part"], "is a partition; attach the partitioned table"),
    (&["seen"], "is a view"),
    (&["kept"], "is a view"),
    (&["pg_catalog.pg_class"], "of PostgreSQL's or hotshelf's own"),
    (&["absent"], "there is no table absent"),
    (&["a.b.c.d.e"], "there is no table"),
    (&["\"unclosed"], "there is no table"),
    (&["no_name"], "--name-column"),
    (&["no_price"], "--price-column"),
    (&["float_price"], "real, which cannot hold prices exactly"),
    (&["money_price"], "money"),
    (&["int_price"], "--price-decimals"),
    (&["left_over"], "DROP COLUMN hotshelf_version"),
    (&["products", "--again"], "is not attached; leave out --again"),
    (&["products", "--name-column", "absent"], "there is no column absent"),
    (&["products", "--name-column", "price"], "two fields"),
    (&["products", "--currency", "usd"], "--currency: \"usd\" is not an ISO 4217"),
    (&["products", "--price-decimals", "2"], "--price-decimals is for integers"),
    (&["products", "--attributes", "absent"], "no column absent"),
    (&["products", "--created-column", "name"], "which is no time"),
];

async fn refused(stack: Stack) {
    let (url, _sql) = database(&stack, "refused", &format!("{SEED}; {TABLES}")).await;
    for (arguments, reason) in CASES {
        let command = [&["attach"], *arguments, &["--yes", "--database-url", &url]].concat();
        let ended = Program::run(&command).await;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.trim().lines().count(), 1, "one line: {}", ended.stderr);
    }
    let attach = ["attach", "products", "--yes", "--database-url", &url];
    assert_eq!(Program::run(&attach).await.code, Some(0));
    let ended = Program::run(&attach).await;
    assert!(ended.stderr.contains("--again takes in its changes"), "{}", ended.stderr);
    let ended = Program::run(&[
        "attach",
        "whole",
        "--catalog",
        "products",
        "--yes",
        "--database-url",
        &url,
    ])
    .await;
    assert!(ended.stderr.contains("there is a catalogue products already"), "{}", ended.stderr);
}
