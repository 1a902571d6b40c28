//! Bulk imports: COPY into a temporary table, and from there into the attached table, in one transaction.

use std::borrow::Cow;

use sqlx::{Postgres as Db, Transaction};

use super::error::{code, message};
use super::importable::{ImportField, ImportTable};
use super::statements::{ImportStatements, Written};
use super::{Error, Postgres, read_error, write_error};
use crate::product::{NewProduct, ProductId};

/// Bytes per COPY. Too low: more round trips. Too high: more memory, here and in the driver.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes per COPY of a chunk that has a bad row: each further one makes PostgreSQL read the rest of its COPY in vain.
const CHUNK_WITH_BAD_ROWS_BYTES: usize = 64 << 10;

/// An import in progress. Dropping it rolls the transaction back.
#[derive(Debug)]
pub struct Import {
    transaction: Transaction<'static, Db>,
    table: ImportTable,
    columns: ImportColumns,
    statements: ImportStatements,
    chunk: String,
    rows: u64,
    rows_with_id: u64,
    bad: Vec<BadRow>,
}

/// Which columns a file has, apart from id, name and price.
#[derive(Clone, Debug, Default)]
pub struct ImportColumns {
    pub currency: bool,
    pub description: bool,
    /// The indices of the attributes, in the order of the values of a row.
    pub attributes: Vec<usize>,
}

/// A row that the types of the table's columns do not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    pub line: u64,
    /// `None` when PostgreSQL's message does not show it.
    pub field: Option<ImportField>,
    pub reason: String,
}

/// What an import did to the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub inserted: u64,
    pub updated: u64,
    /// Rows that are equal to the existing product.
    pub unchanged: u64,
}

impl std::ops::AddAssign for Merged {
    fn add_assign(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.unchanged += other.unchanged;
    }
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
    pub async fn begin(
        postgres: &Postgres,
        table: &ImportTable,
        columns: &ImportColumns,
    ) -> Result<Self, Error> {
        let (table, columns) = (table.clone(), columns.clone());
        let statements = statements(&table, &columns);
        let mut transaction = postgres.pool.begin().await.map_err(|error| read_error(&error))?;
        run(&mut transaction, statements.begin.clone())
            .await
            .map_err(|error| read_error(&error))?;
        let chunk = String::with_capacity(CHUNK_BYTES);
        let (rows, rows_with_id, bad) = (0, 0, Vec::new());
        Ok(Self { transaction, table, columns, statements, chunk, rows, rows_with_id, bad })
    }

    /// Adds a row that begins on `line` of its file, whose price was [checked](ImportTable::check). Without an id it becomes a new
    /// product.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn push(
        &mut self,
        line: u64,
        id: Option<ProductId>,
        product: &NewProduct,
        attributes: &[Option<Cow<'_, str>>],
    ) -> Result<(), Error> {
        self.rows += 1;
        self.rows_with_id += u64::from(id.is_some());
        debug_assert_eq!(attributes.len(), self.columns.attributes.len());
        self.chunk.push_str(&copy_line(&self.table, line, id, product, attributes));
        if self.chunk.len() >= CHUNK_BYTES { self.send().await } else { Ok(()) }
    }

    /// Good rows that were pushed.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The bad rows that were found since the last call: they are not among the rows that are written.
    pub fn take_bad_rows(&mut self) -> Vec<BadRow> {
        std::mem::take(&mut self.bad)
    }

    /// Sends what was pushed. Then all bad rows are known. Returns the first id that more than one row has:
    /// [`finish`](Self::finish) fails if there is one.
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

    /// Writes the rows to the table and commits. Existing products keep the values of columns that the file lacks.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing was changed, [`Error::OutcomeUnknown`] when the connection broke
    /// during the commit.
    pub async fn finish(mut self) -> Result<Merged, Error> {
        self.send().await?;
        let merged = self.merge().await.map_err(|error| read_error(&error))?;
        self.transaction.commit().await.map_err(|error| write_error(&error))?;
        Ok(merged)
    }

    /// What [`finish`](Self::finish) would do, without its constraints and triggers, and without any lock on a row.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn compare(mut self) -> Result<Merged, Error> {
        self.send().await?;
        let compare = sqlx::query_as(self.statements.compare.clone());
        let counts = compare.fetch_one(&mut *self.transaction).await;
        let counts = counts.map_err(|error| read_error(&error))?;
        self.transaction.rollback().await.map_err(|error| read_error(&error))?;
        Ok(merged(self.rows, self.rows_with_id, counts))
    }

    async fn merge(&mut self) -> Result<Merged, sqlx::Error> {
        let ImportStatements { advance_ids, merge, insert_new, .. } = &self.statements;
        let connection = &mut *self.transaction;
        sqlx::query(advance_ids.clone()).execute(&mut *connection).await?;
        let counts = sqlx::query_as(merge.clone()).fetch_one(&mut *connection).await?;
        sqlx::query(insert_new.clone()).execute(connection).await?;
        Ok(merged(self.rows, self.rows_with_id, counts))
    }

    /// Sends a chunk. Each has its own COPY, because a single one would borrow the connection for the whole import. A row that
    /// PostgreSQL refuses is set aside, and the others are sent again without it.
    async fn send(&mut self) -> Result<(), Error> {
        let chunk = std::mem::replace(&mut self.chunk, String::with_capacity(CHUNK_BYTES));
        let (mut rest, mut limit) = (chunk.as_str(), usize::MAX);
        while !rest.is_empty() {
            let end = rest.get(..limit).and_then(|piece| piece.rfind('\n'));
            let (piece, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
            rest = match self.copy(piece).await? {
                None => after,
                Some((index, field, reason)) => {
                    let line = piece.split_inclusive('\n').nth(index).unwrap_or_default();
                    let before: usize = piece.split_inclusive('\n').take(index).map(str::len).sum();
                    if before > 0 && self.copy(&piece[..before]).await?.is_some() {
                        return Err(Error::Unexpected(reason));
                    }
                    self.set_aside(line, field, reason);
                    limit = CHUNK_WITH_BAD_ROWS_BYTES;
                    &rest[before + line.len()..]
                }
            };
        }
        Ok(())
    }

    fn set_aside(&mut self, copy_line: &str, field: Option<ImportField>, reason: String) {
        let mut values = copy_line.split('\t');
        let line = values.next().and_then(|line| line.parse().ok()).unwrap_or_default();
        self.rows -= 1;
        self.rows_with_id -= u64::from(values.next() != Some("\\N"));
        self.bad.push(BadRow { line, field, reason });
    }

    /// Copies lines, or none of them: then it returns the index of the first bad one, the field, and the reason.
    async fn copy(
        &mut self,
        lines: &str,
    ) -> Result<Option<(usize, Option<ImportField>, String)>, Error> {
        let connection = &mut *self.transaction;
        let copied = async {
            run(connection, "SAVEPOINT chunk").await?;
            let mut copy = connection.copy_in_raw(&self.statements.copy).await?;
            copy.send(lines.as_bytes()).await?;
            copy.finish().await.map(drop)
        };
        let Err(error) = copied.await else {
            let released = run(connection, "RELEASE SAVEPOINT chunk").await;
            return released.map(|()| None).map_err(|error| read_error(&error));
        };
        // Of a value that the type of its column does not accept, or of the constraint of a domain.
        let is_of_a_row =
            code(&error).is_some_and(|code| code.starts_with("22") || code.starts_with("23"));
        let Some((index, column)) = place(&error).filter(|_| is_of_a_row) else {
            return Err(read_error(&error));
        };
        let (field, reason) = (self.field_of(column), message(&error));
        run(&mut self.transaction, "ROLLBACK TO SAVEPOINT chunk")
            .await
            .map_err(|error| read_error(&error))?;
        Ok(Some((index, field, reason)))
    }

    fn field_of(&self, column: &str) -> Option<ImportField> {
        let fields = [ImportField::Name, ImportField::Price, ImportField::Currency];
        let fields = fields.into_iter().chain([ImportField::Description, ImportField::Id]);
        let attributes = self.columns.attributes.iter().copied().map(ImportField::Attribute);
        let mut fields = fields.chain(attributes);
        fields.find(|&field| self.table.column(field).is_some_and(|one| one.name == column))
    }
}

fn merged(rows: u64, rows_with_id: u64, (new, differing): (i64, i64)) -> Merged {
    let (new, updated) = (new.unsigned_abs(), differing.unsigned_abs());
    let without_id = rows - rows_with_id;
    Merged { inserted: new + without_id, updated, unchanged: rows_with_id - new - updated }
}

fn statements(table: &ImportTable, columns: &ImportColumns) -> ImportStatements {
    let attributes = columns.attributes.iter().map(|&index| ImportField::Attribute(index));
    let attributes = attributes.filter_map(|field| table.column(field)).collect();
    let only_new = [
        (columns.currency, ImportField::Currency),
        (columns.description, ImportField::Description),
    ];
    let only_new = only_new.into_iter().filter(|(has, _)| !has);
    let only_new = only_new.filter_map(|(_, field)| table.column(field)).collect();
    ImportStatements::new(&table.0.mapping, &Written { attributes, only_new })
}

async fn run(
    connection: &mut sqlx::PgConnection,
    statement: impl sqlx::SqlSafeStr,
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}

/// The index of the line of a COPY that an error is about, and the name of the column. The context of the error is such as
/// `COPY import_rows, line 3, column weight: "x"` in any language, so it is read without its words.
fn place(error: &sqlx::Error) -> Option<(usize, &str)> {
    let error = error.as_database_error()?.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let (_, rest) = error.r#where()?.split_once("import_rows")?;
    let start = rest.find(|letter: char| letter.is_ascii_digit())?;
    let rest = &rest[start..];
    let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    let line: usize = rest[..end].parse().ok()?;
    let (before, _) = rest[end..].split_once(": ").unwrap_or((&rest[end..], ""));
    let column = before.trim_start_matches([',', ' ']).split_once(' ').map_or("", |(_, name)| name);
    Some((line.checked_sub(1)?, column))
}

/// A row in the text format of COPY.
fn copy_line(
    table: &ImportTable,
    line: u64,
    id: Option<ProductId>,
    product: &NewProduct,
    attributes: &[Option<Cow<'_, str>>],
) -> String {
    let mapping = &table.0.mapping;
    let id = id.map_or_else(|| "\\N".to_owned(), |id| id.to_string());
    let mut row = format!("{line}\t{id}");
    let amount = mapping.amount(product.price.hundredths()).unwrap_or_default();
    let price = product.price.currency();
    for (field, text) in [
        (ImportField::Name, product.name.as_str()),
        (ImportField::Price, &amount),
        (ImportField::Currency, price.code()),
        (ImportField::Description, product.description.as_str()),
    ] {
        if table.column(field).is_some() {
            row.push('\t');
            row.push_str(&escape(text));
        }
    }
    for value in attributes {
        row.push('\t');
        row.push_str(&value.as_deref().map_or(Cow::Borrowed("\\N"), escape));
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
    fn a_row_is_one_line_whatever_its_text() {
        let product = product("a\tb\\N", "7.05", "one\r\ntwo\n\\.\n");
        let attributes = [None, Some("\\N".into()), Some("".into())];
        assert_eq!(
            copy_line(&ImportTable::sample(&[]), 3, ProductId::new(42), &product, &attributes),
            "3\t42\ta\\tb\\\\N\t7.05\tEUR\tone\\r\\ntwo\\n\\\\.\\n\t\\N\t\\\\N\t\n"
        );
    }

    #[test]
    fn a_missing_id_is_null_and_an_empty_description_is_not() {
        let line = copy_line(&ImportTable::sample(&[]), 2, None, &product("a", "0", ""), &[]);
        assert_eq!(line, "2\t\\N\ta\t0.00\tEUR\t\n");
    }
}
