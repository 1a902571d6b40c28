//! Bulk imports: COPY into a temporary table, and from there into `products`, in one transaction.

use std::borrow::Cow;

use sqlx::{Postgres as Db, Transaction};

use super::{Error, Postgres, read_error, write_error};
use crate::product::{NewProduct, ProductId};

/// The temporary table has the column types of `products`, but not the constraints, because ids may be missing.
const BEGIN: &str = "SET LOCAL statement_timeout = 0; \
    CREATE TEMP TABLE import_rows ON COMMIT DROP AS \
    SELECT 0::bigint AS line, id, name, price, currency, description FROM public.products WITH NO DATA";

const COPY: &str =
    "COPY pg_temp.import_rows (line, id, name, price, currency, description) FROM STDIN";

const DUPLICATE: &str = "SELECT id, min(line), max(line) FROM pg_temp.import_rows \
    WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 ORDER BY 2 LIMIT 1";

/// Advances the id sequence past the highest id, before any row is inserted. Otherwise a concurrent CreateProduct could take an
/// id of the file, wait for this transaction, and fail.
///
/// The sequence must never go back. A `setval` concurrent with a `nextval` could set it back, so it is used only for distances
/// above 10,000, which concurrent `nextval` calls do not reach; otherwise `nextval` is called for each id.
///
/// Ids in the upper half of the range do not advance the sequence, because it could reach its end. CreateProduct skips such an id
/// when the sequence reaches it.
const ADVANCE_IDS: &str = "WITH ids AS ( \
        SELECT name, coalesce(pg_sequence_last_value(name), 0) AS last \
        FROM (SELECT pg_get_serial_sequence('public.products', 'id')::regclass AS name) AS owned), \
    highest AS (SELECT greatest( \
        (SELECT max(id) FROM pg_temp.import_rows WHERE id < 4611686018427387904), \
        (SELECT max(id) FROM public.products WHERE id < 4611686018427387904)) AS id) \
    SELECT CASE WHEN highest.id - last > 10000 THEN setval(name, highest.id) \
        ELSE (SELECT max(id) FROM ( \
            SELECT nextval(name) AS id FROM generate_series(last + 1, highest.id)) AS walked) END \
    FROM highest, ids WHERE last < highest.id";

/// Rows without a change are filtered out before the insert, which would lock them and assign a version. `ON CONFLICT` checks
/// again, because another transaction may have written in between. Every import locks rows in the order of their ids, so that
/// two imports cannot deadlock.
///
/// `create_time` has its default, the start of this transaction, by which inserted rows are distinguished from updated ones.
const MERGE: &str = "WITH written AS ( \
        INSERT INTO public.products AS p (id, name, price, currency, description) \
        SELECT i.id, i.name, i.price, i.currency, i.description \
        FROM pg_temp.import_rows AS i LEFT JOIN public.products AS old ON old.id = i.id \
        WHERE i.id IS NOT NULL AND (old.id IS NULL \
            OR (i.name, i.price, i.currency) IS DISTINCT FROM (old.name, old.price, old.currency) \
            OR $1 AND i.description IS DISTINCT FROM old.description) \
        ORDER BY i.id \
        ON CONFLICT (id) DO UPDATE SET \
            name = excluded.name, price = excluded.price, currency = excluded.currency, \
            description = CASE WHEN $1 THEN excluded.description ELSE p.description END \
        WHERE (p.name, p.price, p.currency) \
                IS DISTINCT FROM (excluded.name, excluded.price, excluded.currency) \
            OR $1 AND p.description IS DISTINCT FROM excluded.description \
        RETURNING create_time IS NOT DISTINCT FROM now() AS inserted) \
    SELECT count(*) FILTER (WHERE inserted), count(*) FILTER (WHERE NOT inserted) FROM written";

const INSERT_NEW: &str = "INSERT INTO public.products (name, price, currency, description) \
    SELECT name, price, currency, description FROM pg_temp.import_rows \
    WHERE id IS NULL ORDER BY line";

/// Bytes per COPY. Too low: more round trips. Too high: more memory, here and in the driver.
const CHUNK_BYTES: usize = 1 << 20;

/// An import in progress. Dropping it rolls the transaction back.
#[derive(Debug)]
pub struct Import {
    transaction: Transaction<'static, Db>,
    chunk: String,
    rows_with_id: u64,
}

/// What an import did to `products`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub inserted: u64,
    pub updated: u64,
    /// Rows that are equal to the existing product.
    pub unchanged: u64,
}

/// An id of more than one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuplicateId {
    pub id: i64,
    /// The line of the first row with the id.
    pub first_line: u64,
    /// The line of the last row with the id.
    pub last_line: u64,
}

impl Import {
    /// Takes a connection from the pool until the import ends.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn begin(postgres: &Postgres) -> Result<Self, Error> {
        let mut transaction = postgres.pool.begin().await.map_err(|error| read_error(&error))?;
        sqlx::raw_sql(BEGIN)
            .execute(&mut *transaction)
            .await
            .map_err(|error| read_error(&error))?;
        Ok(Self { transaction, chunk: String::with_capacity(CHUNK_BYTES), rows_with_id: 0 })
    }

    /// Adds a row that begins on `line` of its file. Without an id it becomes a new product.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn push(
        &mut self,
        line: u64,
        id: Option<ProductId>,
        product: &NewProduct,
    ) -> Result<(), Error> {
        self.rows_with_id += u64::from(id.is_some());
        self.chunk.push_str(&copy_line(line, id, product));
        if self.chunk.len() >= CHUNK_BYTES { self.send().await } else { Ok(()) }
    }

    /// The first id that more than one row has. [`finish`](Self::finish) fails if there is one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn duplicate_id(&mut self) -> Result<Option<DuplicateId>, Error> {
        self.send().await?;
        let found: Option<(i64, i64, i64)> = sqlx::query_as(DUPLICATE)
            .fetch_optional(&mut *self.transaction)
            .await
            .map_err(|error| read_error(&error))?;
        Ok(found.map(|(id, first, last)| DuplicateId {
            id,
            first_line: first.unsigned_abs(),
            last_line: last.unsigned_abs(),
        }))
    }

    /// Writes the rows to `products` and commits. Existing products keep their descriptions unless
    /// `with_descriptions`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing was changed, [`Error::OutcomeUnknown`] when the connection broke
    /// during the commit.
    pub async fn finish(mut self, with_descriptions: bool) -> Result<Merged, Error> {
        self.send().await?;
        let merged = self.merge(with_descriptions).await.map_err(|error| read_error(&error))?;
        self.transaction.commit().await.map_err(|error| write_error(&error))?;
        Ok(merged)
    }

    async fn merge(&mut self, with_descriptions: bool) -> Result<Merged, sqlx::Error> {
        sqlx::query(ADVANCE_IDS).execute(&mut *self.transaction).await?;
        let (inserted, updated): (i64, i64) =
            sqlx::query_as(MERGE).bind(with_descriptions).fetch_one(&mut *self.transaction).await?;
        let (inserted, updated) = (inserted.unsigned_abs(), updated.unsigned_abs());
        let new = sqlx::query(INSERT_NEW).execute(&mut *self.transaction).await?.rows_affected();
        Ok(Merged {
            inserted: inserted + new,
            updated,
            unchanged: self.rows_with_id - inserted - updated,
        })
    }

    /// Sends a chunk. Each has its own COPY, because a single one would borrow the connection for the whole import.
    async fn send(&mut self) -> Result<(), Error> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let sent = copy(&mut self.transaction, self.chunk.as_bytes()).await;
        self.chunk.clear();
        sent.map_err(|error| read_error(&error))
    }
}

async fn copy(connection: &mut sqlx::PgConnection, chunk: &[u8]) -> Result<(), sqlx::Error> {
    let mut copy = connection.copy_in_raw(COPY).await?;
    copy.send(chunk).await?;
    copy.finish().await?;
    Ok(())
}

/// A row in the text format of COPY.
fn copy_line(line: u64, id: Option<ProductId>, product: &NewProduct) -> String {
    let id = id.map_or_else(|| "\\N".to_owned(), |id| id.to_string());
    let (units, hundredths) = (product.price.hundredths() / 100, product.price.hundredths() % 100);
    let currency = product.price.currency();
    format!(
        "{line}\t{id}\t{}\t{units}.{hundredths:02}\t{}\t{}\n",
        escape(product.name.as_str()),
        currency.code(),
        escape(product.description.as_str()),
    )
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '\t', '\n', '\r']) {
        return Cow::Borrowed(text);
    }
    let text = text.replace('\\', "\\\\").replace('\t', "\\t");
    text.replace('\n', "\\n").replace('\r', "\\r").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Price;

    fn product(name: &str, price: &str, description: &str) -> NewProduct {
        let currency = "EUR".parse().unwrap();
        NewProduct {
            name: name.to_owned().try_into().unwrap(),
            price: Price::parse(price, currency).unwrap(),
            description: description.to_owned().try_into().unwrap(),
        }
    }

    #[test]
    fn a_row_is_one_line_of_six_columns_whatever_its_text() {
        let product = product("a\tb\\N", "7.05", "one\r\ntwo\n\\.\n");
        assert_eq!(
            copy_line(3, ProductId::new(42), &product),
            "3\t42\ta\\tb\\\\N\t7.05\tEUR\tone\\r\\ntwo\\n\\\\.\\n\n"
        );
    }

    #[test]
    fn a_missing_id_is_null_and_an_empty_description_is_not() {
        assert_eq!(copy_line(2, None, &product("a", "0", "")), "2\t\\N\ta\t0.00\tEUR\t\n");
    }
}
