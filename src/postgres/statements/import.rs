//! The statements of an import. The rows are in a temporary table, whose columns are `hotshelf_line` and those that are written.

use sqlx::SqlStr;

use super::{sql, written};
use crate::postgres::columns::Column;
use crate::postgres::mapping::Mapping;

#[derive(Debug)]
pub(in crate::postgres) struct ImportStatements {
    pub(in crate::postgres) begin: SqlStr,
    pub(in crate::postgres) copy: String,
    pub(in crate::postgres) duplicate: SqlStr,
    pub(in crate::postgres) advance_ids: SqlStr,
    /// How many rows are new, and how many differ from the ones that exist.
    pub(in crate::postgres) compare: SqlStr,
    /// The same, written.
    pub(in crate::postgres) merge: SqlStr,
    pub(in crate::postgres) insert_new: SqlStr,
}

/// The columns that are written.
#[derive(Debug)]
pub(in crate::postgres) struct Written<'a> {
    /// Attributes are written only when the file has them.
    pub(in crate::postgres) attributes: Vec<&'a Column>,
    /// Columns that the file lacks: new products get a default, others keep their values.
    pub(in crate::postgres) only_new: Vec<&'a Column>,
}

/// The temporary table and its alias in the statements.
const ROWS: &str = "pg_temp.import_rows AS i";

impl ImportStatements {
    pub(in crate::postgres) fn new(mapping: &Mapping, file: &Written<'_>) -> Self {
        let id = mapping.id.quoted();
        let names = file.columns(mapping).map(Column::quoted).collect::<Vec<_>>().join(", ");
        Self {
            begin: sql(begin(mapping, file)),
            copy: format!("COPY pg_temp.import_rows (hotshelf_line, {id}, {names}) FROM STDIN"),
            duplicate: sql(format!(
                "SELECT {id}::bigint, min(hotshelf_line), max(hotshelf_line) FROM {ROWS} \
                 WHERE {id} IS NOT NULL GROUP BY {id} HAVING count(*) > 1 ORDER BY 2 LIMIT 1"
            )),
            advance_ids: sql(advance_ids(mapping)),
            compare: sql(compare(mapping, file)),
            merge: sql(merge(mapping, file)),
            insert_new: sql(format!(
                "INSERT INTO {} ({names}) SELECT {names} FROM {ROWS} WHERE {id} IS NULL ORDER BY hotshelf_line",
                mapping.quoted_table()
            )),
        }
    }
}

impl<'a> Written<'a> {
    /// All columns but the id, in the order of the rows.
    pub(in crate::postgres) fn columns<'m>(
        &self,
        mapping: &'m Mapping,
    ) -> impl Iterator<Item = &'m Column>
    where
        'a: 'm,
    {
        written(mapping).into_iter().chain(self.attributes.clone())
    }

    /// Those that rows of existing products set.
    fn updated<'m>(&self, mapping: &'m Mapping) -> impl Iterator<Item = &'m Column>
    where
        'a: 'm,
    {
        self.columns(mapping)
            .filter(|column| !self.only_new.iter().any(|one| one.name == column.name))
    }

    /// Whether a row differs from the one that exists. Attributes are compared as texts, because some types, such as json, have no
    /// equality.
    fn differs(&self, mapping: &Mapping, new: &str, old: &str) -> String {
        let is_attribute = |name: &str| self.attributes.iter().any(|one| one.name == name);
        let row = |alias: &str| {
            let values = self.updated(mapping).map(|column| {
                let cast = if is_attribute(&column.name) { "::text" } else { "" };
                format!("{alias}.{}{cast}", column.quoted())
            });
            format!("ROW({})", values.collect::<Vec<_>>().join(", "))
        };
        format!("{} IS DISTINCT FROM {}", row(new), row(old))
    }
}

/// The temporary table has the column types of the table, but not the constraints, because ids may be missing.
fn begin(mapping: &Mapping, file: &Written<'_>) -> String {
    let columns = std::iter::once(&mapping.id).chain(file.columns(mapping));
    let columns = columns.map(|column| format!("{} {}", column.quoted(), column.base));
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!(
        "SET LOCAL statement_timeout = 0; CREATE TEMP TABLE import_rows (hotshelf_line bigint, {columns}) ON COMMIT DROP"
    )
}

/// Advances the id sequence past the highest id, before any row is inserted. Otherwise a concurrent CreateProduct could take an
/// id of the file, wait for this transaction, and fail.
///
/// The sequence must never go back. A `setval` concurrent with a `nextval` could set it back, so it is used only for distances
/// above 10,000, which concurrent `nextval` calls do not reach; otherwise `nextval` is called for each id.
///
/// Ids in the upper half of the range do not advance the sequence, because it could reach its end. CreateProduct skips such an id
/// when the sequence reaches it.
fn advance_ids(mapping: &Mapping) -> String {
    let (table, id, sequence) = (mapping.quoted_table(), mapping.id.quoted(), mapping.sequence());
    let half = match mapping.id.kind.as_str() {
        "smallint" => i64::from(i16::MAX / 2),
        "integer" => i64::from(i32::MAX / 2),
        _ => i64::MAX / 2 + 1,
    };
    format!(
        "WITH ids AS (SELECT {sequence} AS name, coalesce(pg_sequence_last_value({sequence}), 0) AS last), \
         highest AS (SELECT greatest((SELECT max({id}) FROM {ROWS} WHERE {id} < {half}), \
             (SELECT max({id}) FROM {table} WHERE {id} < {half}))::bigint AS id) \
         SELECT CASE WHEN highest.id - last > 10000 THEN setval(name, highest.id) \
             ELSE (SELECT max(id) FROM ( \
                 SELECT nextval(name) AS id FROM generate_series(last + 1, highest.id)) AS walked) END \
         FROM highest, ids WHERE last < highest.id AND name IS NOT NULL"
    )
}

/// The rows with ids that are new or differ.
fn changed(mapping: &Mapping, file: &Written<'_>) -> String {
    let (table, id) = (mapping.quoted_table(), mapping.id.quoted());
    let differs = file.differs(mapping, "i", "old");
    format!(
        "WITH changed AS (SELECT i.*, old.{id} IS NULL AS hotshelf_is_new FROM {ROWS} \
             LEFT JOIN {table} AS old ON old.{id} = i.{id} \
             WHERE i.{id} IS NOT NULL AND (old.{id} IS NULL OR {differs}))"
    )
}

const COUNTS: &str = "SELECT count(*) FILTER (WHERE hotshelf_is_new), count(*) FILTER (WHERE NOT hotshelf_is_new) FROM";

fn compare(mapping: &Mapping, file: &Written<'_>) -> String {
    format!("{} {COUNTS} changed", changed(mapping, file))
}

/// Rows without a change are filtered out before the insert, which would lock them and assign a version. `ON CONFLICT` checks
/// again, because another transaction may have written in between. Every import locks rows in the order of their ids, so that
/// two imports cannot deadlock.
fn merge(mapping: &Mapping, file: &Written<'_>) -> String {
    let (table, id) = (mapping.quoted_table(), mapping.id.quoted());
    let names = std::iter::once(&mapping.id).chain(file.columns(mapping));
    let names: Vec<String> = names.map(Column::quoted).collect();
    let values = names.iter().map(|name| format!("i.{name}")).collect::<Vec<_>>().join(", ");
    let sets = file.updated(mapping).map(Column::quoted);
    let mut sets: Vec<String> = sets.map(|name| format!("{name} = excluded.{name}")).collect();
    sets.extend(mapping.update_time.as_ref().and_then(super::set_to_now));
    let (names, sets) = (names.join(", "), sets.join(", "));
    let (changed, now) = (changed(mapping, file), file.differs(mapping, "excluded", "product"));
    let overriding = "OVERRIDING SYSTEM VALUE";
    format!(
        "{changed}, written AS (INSERT INTO {table} AS product ({names}) {overriding} \
             SELECT {values} FROM changed AS i ORDER BY i.{id} \
             ON CONFLICT ({id}) DO UPDATE SET {sets} WHERE {now} RETURNING product.{id}) \
         {COUNTS} written JOIN changed USING ({id})"
    )
}
