//! The columns of a table, as the system catalogue describes them.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{FromRow, Row as _};

use super::quote::ident;

/// The types are those below domains, because a value is converted to its type before the row is there, when a domain that
/// refuses NULL would refuse each column that is not written. The assignment checks the domain.
const COLUMNS: &str = "SELECT a.attnum, a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS declared, \
        format_type(base.type, base.typmod) AS base, format_type(base.type, NULL) AS kind, base.typmod, \
        a.attnotnull AS not_null, a.attgenerated <> '' OR a.attidentity = 'a' AS computed \
    FROM pg_attribute AS a, LATERAL ( \
        WITH RECURSIVE below (type, typmod, depth) AS ( \
            SELECT a.atttypid, a.atttypmod, 0 \
            UNION ALL SELECT t.typbasetype, t.typtypmod, depth + 1 FROM below JOIN pg_type AS t \
                ON t.oid = below.type AND t.typtype = 'd') \
        SELECT type, typmod FROM below ORDER BY depth DESC LIMIT 1) AS base \
    WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) attnum: i16,
    pub(super) name: String,
    /// The type as it was declared, such as `character varying(255)`.
    pub(super) declared: String,
    /// The type below its domain, if it is one.
    pub(super) base: String,
    /// That type without its modifier, such as `character varying`.
    pub(super) kind: String,
    typmod: i32,
    pub(super) not_null: bool,
    /// PostgreSQL computes the value: it cannot be written.
    pub(super) computed: bool,
}

impl FromRow<'_, PgRow> for Column {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            attnum: row.try_get("attnum")?,
            name: row.try_get("name")?,
            declared: row.try_get("declared")?,
            base: row.try_get("base")?,
            kind: row.try_get("kind")?,
            typmod: row.try_get("typmod")?,
            not_null: row.try_get("not_null")?,
            computed: row.try_get("computed")?,
        })
    }
}

impl Column {
    pub(super) fn quoted(&self) -> String {
        ident(&self.name)
    }

    /// `product.COLUMN`.
    pub(super) fn of_product(&self) -> String {
        format!("product.{}", self.quoted())
    }

    /// `given.COLUMN`.
    pub(super) fn given(&self) -> String {
        format!("given.{}", self.quoted())
    }

    pub(super) fn is_integer(&self) -> bool {
        matches!(self.kind.as_str(), "smallint" | "integer" | "bigint")
    }

    /// The decimals of a `numeric(precision, decimals)`; `None` when it keeps all decimals that it is given.
    pub(super) fn decimals(&self) -> Option<i32> {
        // src/backend/utils/adt/numeric.c of PostgreSQL: 11 bits with sign, above an offset of 4.
        let bits = (self.typmod - 4) & 0x7ff;
        (self.kind == "numeric" && self.typmod >= 4).then_some((bits ^ 0x400) - 0x400)
    }

    pub(super) fn is_time(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "timestamp with time zone" | "timestamp without time zone" | "date"
        )
    }
}

/// The columns of the table with this oid. The session's `search_path` has to be `pg_catalog`, so that the types of others are
/// qualified.
pub(super) async fn columns_of(
    connection: &mut PgConnection,
    relation: i64,
) -> Result<Vec<Column>, sqlx::Error> {
    sqlx::query_as(COLUMNS).bind(relation).fetch_all(connection).await
}

#[cfg(test)]
pub(super) fn column(name: &str, declared: &str, typmod: i32) -> Column {
    let kind = declared.split('(').next().unwrap_or_default().to_owned();
    let (attnum, not_null, computed) = (1, false, false);
    let (declared, base) = (declared.to_owned(), declared.to_owned());
    Column { attnum, name: name.to_owned(), declared, base, kind, typmod, not_null, computed }
}
