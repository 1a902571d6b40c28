//! The products of a run in Postgres, and a record of every committed change.

use sqlx::{Executor, PgPool};

use crate::history::{Clock, Committed, State, content, write_of};

/// A trigger writes the record in the transaction of the change, so that it has committed changes only.
const RECORD: [&str; 4] = [
    "CREATE SCHEMA checker",
    "CREATE TABLE checker.committed (product_id bigint NOT NULL, version bigint NOT NULL,
        deleted boolean NOT NULL, name text NOT NULL, price numeric NOT NULL,
        written timestamptz NOT NULL DEFAULT clock_timestamp())",
    "CREATE FUNCTION checker.record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO checker.committed VALUES (OLD.id, OLD.hotshelf_version, true, OLD.name, OLD.price);
        ELSE
            INSERT INTO checker.committed VALUES (NEW.id, NEW.hotshelf_version, false, NEW.name, NEW.price);
        END IF;
        RETURN NULL;
    END $$",
    "CREATE TRIGGER checker_record AFTER INSERT OR UPDATE OR DELETE ON products
        FOR EACH ROW EXECUTE FUNCTION checker.record()",
];

/// Starts the record, and inserts the products of a run: all with the content of write 0.
pub async fn prepare(sql: &PgPool, products: usize) -> Result<Vec<i64>, sqlx::Error> {
    for statement in RECORD {
        sql.execute(statement).await?;
    }
    let (name, hundredths) = content(0);
    sqlx::query_scalar(
        "INSERT INTO products (name, price) SELECT $1, $2::numeric / 100 FROM generate_series(1, $3)
        RETURNING id",
    )
    .bind(name)
    .bind(hundredths)
    .bind(i64::try_from(products).unwrap_or(i64::MAX))
    .fetch_all(sql)
    .await
}

/// Removes the record and the products: the database may have other uses.
pub async fn remove(sql: &PgPool, products: &[i64]) -> Result<(), sqlx::Error> {
    sql.execute("DROP TRIGGER IF EXISTS checker_record ON products").await?;
    sql.execute("DROP SCHEMA IF EXISTS checker CASCADE").await?;
    sqlx::query("DELETE FROM products WHERE id = ANY($1)").bind(products).execute(sql).await?;
    Ok(())
}

/// Every committed change of the products of this run.
pub async fn committed(sql: &PgPool, clock: &Clock) -> Result<Vec<Committed>, sqlx::Error> {
    let rows: Vec<(i64, i64, bool, String, i64, i64)> = sqlx::query_as(
        "SELECT product_id, version, deleted, name, (price * 100)::bigint,
            (extract(epoch FROM written) * 1000000)::bigint FROM checker.committed",
    )
    .fetch_all(sql)
    .await?;
    let row = |(product, version, deleted, name, hundredths, written): (_, _, _, String, _, _)| {
        let write = write_of(&name, hundredths);
        let written = clock.at_wall(written);
        Committed { product, state: State { version, deleted }, write, written }
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Id and version of each of these products that exists.
pub async fn current(sql: &PgPool, products: &[i64]) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    sqlx::query_as("SELECT id, hotshelf_version FROM products WHERE id = ANY($1)")
        .bind(products)
        .fetch_all(sql)
        .await
}
