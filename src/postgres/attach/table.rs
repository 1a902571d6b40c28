//! A table that is to be attached, and the reasons why it cannot be.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{FromRow, Row as _};

use crate::postgres::columns::{Column, columns_of};
use crate::postgres::error::read_error;
use crate::postgres::{Error, quote};

/// The exact name first, so that a name in mixed case needs no quotes.
const FIND: &str = "SELECT coalesce((SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (n.nspname || '.' || c.relname = $1 OR n.nspname = 'public' AND c.relname = $1) \
        ORDER BY n.nspname = 'public' DESC LIMIT 1), to_regclass($2)::oid)::bigint";
const DESCRIBE: &str = "SELECT c.oid::bigint AS relation, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind, \
        c.relpersistence::text AS persistence, c.relispartition AS is_partition, \
        NOT c.relispartition AND EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid) \
            OR c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS inherits, \
        pg_has_role(c.relowner, 'USAGE') AS is_owner, \
        coalesce(key.conkey, '{}') AS key, coalesce(key.condeferrable, false) AS is_deferrable, \
        (SELECT pg_get_userbyid(c.relowner))::text AS owner \
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
        LEFT JOIN pg_constraint AS key ON key.conrelid = c.oid AND key.contype = 'p' \
    WHERE c.oid = $1::bigint::oid";

/// The column that attach adds.
pub(super) const VERSION_COLUMN: &str = "hotshelf_version";

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) relation: i64,
    pub(super) schema: String,
    pub(super) name: String,
    kind: String,
    persistence: String,
    is_partition: bool,
    inherits: bool,
    is_owner: bool,
    owner: String,
    key: Vec<i16>,
    is_deferrable: bool,
    pub(super) columns: Vec<Column>,
}

impl FromRow<'_, PgRow> for Table {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            relation: row.try_get("relation")?,
            schema: row.try_get("schema")?,
            name: row.try_get("name")?,
            kind: row.try_get("kind")?,
            persistence: row.try_get("persistence")?,
            is_partition: row.try_get("is_partition")?,
            inherits: row.try_get("inherits")?,
            is_owner: row.try_get("is_owner")?,
            owner: row.try_get("owner")?,
            key: row.try_get("key")?,
            is_deferrable: row.try_get("is_deferrable")?,
            columns: Vec::new(),
        })
    }
}

impl Table {
    /// Finds a table by its name.
    pub(super) async fn find(connection: &mut PgConnection, name: &str) -> Result<Self, Error> {
        let found = Self::oid(connection, name).await?;
        let relation =
            found.ok_or_else(|| Error::Unexpected(format!("there is no table {name}")))?;
        let table = Self::by_oid(connection, relation).await?;
        table.ok_or_else(|| Error::Unexpected(format!("there is no table {name}")))
    }

    /// `None` when it was dropped.
    pub(super) async fn by_oid(
        connection: &mut PgConnection,
        relation: i64,
    ) -> Result<Option<Self>, Error> {
        let described =
            sqlx::query_as(DESCRIBE).bind(relation).fetch_optional(&mut *connection).await;
        let table: Option<Self> = described.map_err(|error| read_error(&error))?;
        let Some(mut table) = table else { return Ok(None) };
        let columns = columns_of(connection, relation).await;
        table.columns = columns.map_err(|error| read_error(&error))?;
        Ok(Some(table))
    }

    /// The oid of the table with this name.
    pub(super) async fn oid(
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Option<i64>, Error> {
        // `pg_catalog` is the search path; an unqualified table is one of `public`.
        let qualified = if name.contains('.') { name.to_owned() } else { format!("public.{name}") };
        let found = sqlx::query_scalar(FIND).bind(name).bind(qualified).fetch_one(connection).await;
        match found {
            Ok(found) => Ok(found),
            // Not a name at all.
            Err(sqlx::Error::Database(_)) => Ok(None),
            Err(error) => Err(read_error(&error)),
        }
    }

    pub(super) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", quote::ident(&self.schema), quote::ident(&self.name))
    }

    pub(super) fn has_version_column(&self) -> bool {
        self.columns.iter().any(|column| column.name == VERSION_COLUMN)
    }

    /// The id column of a table that can be attached.
    ///
    /// # Errors
    /// One sentence why it cannot be.
    pub(super) fn check(&self) -> Result<&Column, String> {
        let table = self.shown();
        let kind = match self.kind.as_str() {
            "r" | "p" => None,
            "v" | "m" => Some("a view, which has no rows of its own; attach the table below it"),
            "f" => Some("a foreign table, whose changes are not seen here; attach it where it is"),
            _ => Some("no table"),
        };
        if let Some(kind) = kind {
            return Err(format!("{table} is {kind}"));
        }
        if ["pg_catalog", "information_schema", "hotshelf"].contains(&self.schema.as_str()) {
            return Err(format!("{table} is a table of PostgreSQL's or hotshelf's own"));
        }
        if self.is_partition {
            return Err(format!("{table} is a partition; attach the partitioned table"));
        }
        if self.inherits {
            return Err(format!(
                "{table} inherits from a table or is inherited, so that its rows are in several tables; only partitions can be served that way"
            ));
        }
        match self.persistence.as_str() {
            "p" => {}
            "t" => return Err(format!("{table} is a temporary table")),
            _ => {
                return Err(format!(
                    "{table} is unlogged: a crash of PostgreSQL empties it, and no trigger notices; ALTER TABLE ... SET LOGGED"
                ));
            }
        }
        self.id()
    }

    /// The reason why this role cannot change the table.
    pub(super) fn not_owned(&self) -> Option<String> {
        let (table, owner) = (self.shown(), &self.owner);
        (!self.is_owner).then(|| {
            format!("{table} belongs to the role {owner}; connect as a member of it, or give its owner the output of --print-sql")
        })
    }

    fn id(&self) -> Result<&Column, String> {
        let table = self.shown();
        let columns: Vec<&Column> =
            (self.columns.iter()).filter(|column| self.key.contains(&column.attnum)).collect();
        match &columns[..] {
            [] => Err(format!(
                "{table} has no primary key; products are read by an id of one integer column"
            )),
            [id] if id.is_integer() && self.is_deferrable => Err(format!(
                "the primary key of {table} is DEFERRABLE, and inserts cannot avoid taken ids under it"
            )),
            [id] if id.is_integer() => Ok(id),
            [id] => Err(format!(
                "the primary key {} of {table} is of the type {}; ids of products are 64-bit integers in the API, so it has to be smallint, integer or bigint",
                id.name, id.declared
            )),
            several => {
                let names: Vec<&str> = several.iter().map(|column| &*column.name).collect();
                Err(format!(
                    "the primary key of {table} has several columns ({}); an id of the API is one integer",
                    names.join(", ")
                ))
            }
        }
    }
}
