//! Bulk imports: COPY into a temporary table, and from there into the attached table, in one transaction.

use std::borrow::Cow;
use std::sync::Arc;

use sqlx::{Postgres as Db, Transaction};

use super::statements::{ImportStatements, Statements};
use super::{Error, Postgres, read_error, write_error};
use crate::product::{Invalid, NewProduct, ProductId};

/// Bytes per COPY. Too low: more round trips. Too high: more memory, here and in the driver.
const CHUNK_BYTES: usize = 1 << 20;

/// An import in progress. Dropping it rolls the transaction back.
#[derive(Debug)]
pub struct Import {
    transaction: Transaction<'static, Db>,
    table: Arc<Statements>,
    statements: ImportStatements,
    chunk: String,
    rows_with_id: u64,
}

/// What an import did to the table.
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
    /// [`Error::Unavailable`], and [`Error::Unexpected`] when the table has no column for names or prices.
    pub async fn begin(postgres: &Postgres) -> Result<Self, Error> {
        let table = postgres.statements()?;
        let statements = ImportStatements::new(&table.mapping)?;
        let mut transaction = postgres.pool.begin().await.map_err(|error| read_error(&error))?;
        sqlx::raw_sql(statements.begin.clone())
            .execute(&mut *transaction)
            .await
            .map_err(|error| read_error(&error))?;
        let chunk = String::with_capacity(CHUNK_BYTES);
        Ok(Self { transaction, table, statements, chunk, rows_with_id: 0 })
    }

    /// Checks that the table can keep the price of a row.
    ///
    /// # Errors
    /// The column of the file, and why not.
    pub fn check(&self, product: &NewProduct) -> Result<(), (&'static str, Invalid)> {
        let mapping = &self.table.mapping;
        let currency = mapping.check_currency(product.price.currency());
        currency.map_err(|why| ("currency", why))?;
        mapping.amount(product.price).map(drop).map_err(|why| ("price", why))
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
        self.chunk.push_str(&copy_line(&self.table, line, id, product));
        if self.chunk.len() >= CHUNK_BYTES { self.send().await } else { Ok(()) }
    }

    /// The first id that more than one row has. [`finish`](Self::finish) fails if there is one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn duplicate_id(&mut self) -> Result<Option<DuplicateId>, Error> {
        self.send().await?;
        let found: Option<(i64, i64, i64)> = sqlx::query_as(self.statements.duplicate.clone())
            .fetch_optional(&mut *self.transaction)
            .await
            .map_err(|error| read_error(&error))?;
        Ok(found.map(|(id, first, last)| DuplicateId {
            id,
            first_line: first.unsigned_abs(),
            last_line: last.unsigned_abs(),
        }))
    }

    /// Writes the rows to the table and commits. Existing products keep their descriptions unless
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
        let ImportStatements { advance_ids, merge, insert_new, .. } = &self.statements;
        let connection = &mut *self.transaction;
        sqlx::query(advance_ids.clone()).execute(&mut *connection).await?;
        let merge = sqlx::query_as(merge.clone()).bind(with_descriptions);
        let (inserted, updated): (i64, i64) = merge.fetch_one(&mut *connection).await?;
        let (inserted, updated) = (inserted.unsigned_abs(), updated.unsigned_abs());
        let new = sqlx::query(insert_new.clone()).execute(connection).await?.rows_affected();
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
        let sent = copy(&mut self.transaction, &self.statements.copy, self.chunk.as_bytes()).await;
        self.chunk.clear();
        sent.map_err(|error| read_error(&error))
    }
}

async fn copy(
    connection: &mut sqlx::PgConnection,
    statement: &str,
    chunk: &[u8],
) -> Result<(), sqlx::Error> {
    let mut copy = connection.copy_in_raw(statement).await?;
    copy.send(chunk).await?;
    copy.finish().await?;
    Ok(())
}

/// A row in the text format of COPY. Its price was [checked](Import::check).
fn copy_line(table: &Statements, line: u64, id: Option<ProductId>, product: &NewProduct) -> String {
    let mapping = &table.mapping;
    let id = id.map_or_else(|| "\\N".to_owned(), |id| id.to_string());
    let mut row = format!("{line}\t{id}");
    let amount = mapping.amount(product.price).unwrap_or_default();
    let price = product.price.currency();
    for (column, text) in [
        (&mapping.name, product.name.as_str()),
        (&mapping.price, &amount),
        (&mapping.currency, price.code()),
        (&mapping.description, product.description.as_str()),
    ] {
        if column.as_ref().is_some_and(|column| !column.computed) {
            row.push('\t');
            row.push_str(&escape(text));
        }
    }
    row.push('\n');
    row
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
    use crate::postgres::mapping::tests::mapping;
    use crate::product::Price;

    fn product(name: &str, price: &str, description: &str) -> NewProduct {
        let currency = "EUR".parse().unwrap();
        NewProduct {
            name: name.to_owned().try_into().unwrap(),
            price: Price::parse(price, currency).unwrap(),
            description: description.to_owned().try_into().unwrap(),
            attributes: None,
        }
    }

    #[test]
    fn a_row_is_one_line_of_six_columns_whatever_its_text() {
        let product = product("a\tb\\N", "7.05", "one\r\ntwo\n\\.\n");
        assert_eq!(
            copy_line(&Statements::new(mapping()), 3, ProductId::new(42), &product),
            "3\t42\ta\\tb\\\\N\t7.05\tEUR\tone\\r\\ntwo\\n\\\\.\\n\n"
        );
    }

    #[test]
    fn a_missing_id_is_null_and_an_empty_description_is_not() {
        let line = copy_line(&Statements::new(mapping()), 2, None, &product("a", "0", ""));
        assert_eq!(line, "2\t\\N\ta\t0.00\tEUR\t\n");
    }
}
