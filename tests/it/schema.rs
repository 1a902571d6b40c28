//! Every write, by any client, gets a new version and an outbox row in its own transaction.

use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};

use crate::harness::{Stack, Suite};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("schema::every_kind_of_write_gets_a_version_and_an_outbox_row", every_write);
    suite.single("schema::an_aborted_write_leaves_no_outbox_row", aborted);
    suite.single(
        "schema::one_statement_over_many_rows_is_one_insert_into_the_outbox",
        one_statement,
    );
    suite.single("schema::a_reinsertion_that_waited_for_a_deletion_is_newer_than_it", reinsertion);
    suite.single(
        "schema::however_insertions_and_deletions_of_an_id_overlap_its_versions_grow",
        overlapping,
    );
    suite.single("schema::upserts_of_one_product_do_not_deadlock", upserts);
    suite.single("schema::what_no_product_may_be_is_refused", refused);
}

/// The outbox in the order of writing: product (0 for TRUNCATE), version, deleted.
pub async fn changes(sql: &PgPool) -> Vec<(i64, i64, bool)> {
    let unpacked = "SELECT unnest(coalesce(product_ids, ARRAY[0])), unnest(versions), deleted \
                    FROM hotshelf.outbox ORDER BY seq";
    sqlx::query_as(unpacked).fetch_all(sql).await.unwrap()
}

pub async fn run(sql: &PgPool, statement: &str) {
    sql.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
}

async fn every_write(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (id, name, price) VALUES (1, 'a', 1), (2, 'b', 2)").await;
    run(sql, "UPDATE products SET price = price + 1 WHERE id = 1").await;
    run(
        sql,
        "INSERT INTO products (id, name, price) VALUES (1, 'x', 1), (3, 'c', 3) \
              ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    )
    .await;
    run(sql, "DELETE FROM products WHERE id = 2").await;
    run(sql, "TRUNCATE products").await;
    let changes = changes(sql).await;
    let of = |id: i64| changes.iter().filter(|change| change.0 == id).copied().collect::<Vec<_>>();
    let (one, two, three) = (of(1), of(2), of(3));
    assert_eq!(one.len(), 3, "inserted, updated, upserted: {one:?}");
    assert!(one[0].1 < one[1].1 && one[1].1 < one[2].1, "each write is newer: {one:?}");
    let newest = changes.iter().map(|change| change.1).max().unwrap();
    assert_eq!(changes.last(), Some(&(0, newest, true)), "truncated below a version of its own");
    assert_eq!(two, [(2, two[0].1, false), (2, two[0].1, true)]);
    assert_eq!(three.len(), 1);
}

async fn aborted(stack: Stack) {
    let mut transaction = stack.sql.begin().await.unwrap();
    let insert = "INSERT INTO products (name, price) VALUES ('a', 1)";
    transaction.execute(insert).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(changes(&stack.sql).await, []);
}

async fn one_statement(stack: Stack) {
    let sql = &stack.sql;
    let insert =
        "INSERT INTO products (name, price) SELECT 'p' || n, n FROM generate_series(1, 5000) n";
    run(sql, insert).await;
    run(sql, "UPDATE products SET price = price * 1.1").await;
    assert_eq!(changes(sql).await.len(), 10_000);
    let inserts: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
         JOIN pg_database d ON d.oid = dbid WHERE datname = current_database() \
         AND query LIKE 'UPDATE products SET price = price * %'",
    )
    .fetch_one(sql)
    .await
    .unwrap();
    assert_eq!(inserts, 1);
}

async fn reinsertion(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (id, name, price) VALUES (1, 'old', 1)").await;
    // The deleter takes a version before the inserter begins, and again while the inserter waits.
    let mut deleter = sql.begin().await.unwrap();
    deleter.execute("UPDATE products SET price = 2 WHERE id = 1").await.unwrap();
    let pool = sql.clone();
    let inserter = tokio::spawn(async move {
        run(&pool, "INSERT INTO products (id, name, price) VALUES (1, 'new', 1)").await;
    });
    let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND datname = current_database() AND query LIKE 'INSERT%'";
    crate::harness::eventually("the inserter waits", || async {
        sqlx::query_scalar(waiting).fetch_one(sql).await.unwrap()
    })
    .await;
    deleter.execute("UPDATE products SET price = 3 WHERE id = 1").await.unwrap();
    deleter.execute("DELETE FROM products WHERE id = 1").await.unwrap();
    deleter.commit().await.unwrap();
    inserter.await.unwrap();
    let changes = changes(sql).await;
    let deleted = changes.iter().find(|change| change.2).unwrap().1;
    let inserted: i64 = sqlx::query_scalar("SELECT hotshelf_version FROM products WHERE id = 1")
        .fetch_one(sql)
        .await
        .unwrap();
    assert!(inserted > deleted, "{inserted} after {deleted}: {changes:?}");
}

/// Eight sessions insert and delete one id concurrently.
async fn overlapping(stack: Stack) {
    let sql = crate::harness::connect(&stack.database_url, 8);
    let sessions = (0..8).map(|_| {
        let sql = sql.clone();
        tokio::spawn(async move {
            let mut inserted = 0;
            for _ in 0..150 {
                let insert = "INSERT INTO products (id, name, price) VALUES (1, 'a', 1)";
                // Refused while the row of another session exists.
                inserted += u32::from(sql.execute(insert).await.is_ok());
                sql.execute("UPDATE products SET price = 2 WHERE id = 1").await.unwrap();
                sql.execute("DELETE FROM products WHERE id = 1").await.unwrap();
            }
            inserted
        })
    });
    let inserted: u32 = futures_util::future::join_all(sessions.collect::<Vec<_>>())
        .await
        .into_iter()
        .map(Result::unwrap)
        .sum();
    assert!(inserted > 150, "they did overlap");
    // The versions of the deletions, in the order of commits, increase.
    let deleted: Vec<i64> =
        changes(&stack.sql).await.iter().filter(|change| change.2).map(|change| change.1).collect();
    let backwards = deleted.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    assert_eq!(backwards, 0, "of {}", deleted.len());
}

async fn upserts(stack: Stack) {
    let sql = crate::harness::connect(&stack.database_url, 4);
    let sessions = (0..4).map(|session| {
        let sql = sql.clone();
        tokio::spawn(async move {
            for round in 0..50 {
                let upsert = "INSERT INTO products (id, name, price) VALUES (1, $1, 1) \
                              ON CONFLICT (id) DO UPDATE SET name = excluded.name";
                let name = format!("{session}, {round}");
                sqlx::query(upsert).bind(name).execute(&sql).await.unwrap();
            }
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
}

async fn refused(stack: Stack) {
    let sql = &stack.sql;
    run(sql, "INSERT INTO products (id, name, price) VALUES (1, 'a', 1)").await;
    for statement in [
        "INSERT INTO products (name, price) VALUES ('a', 'NaN')",
        "INSERT INTO products (name, price) VALUES ('a', -1)",
        "INSERT INTO products (name, price) VALUES ('', 1)",
        "INSERT INTO products (name, price, currency) VALUES ('a', 1, 'usd')",
        "INSERT INTO products (id, name, price) VALUES (0, 'a', 1)",
        "UPDATE products SET id = 0 WHERE id = 1",
    ] {
        assert!(sql.execute(statement).await.is_err(), "{statement}");
    }
}
