//! The statements of an import. The rows are in a temporary table, whose columns are `hotshelf_line` and the mapped ones.

use sqlx::SqlStr;

use super::{sql, written};
use crate::postgres::Error;
use crate::postgres::columns::Column;
use crate::postgres::mapping::Mapping;

#[derive(Debug)]
pub(in crate::postgres) struct ImportStatements {
    pub(in crate::postgres) begin: SqlStr,
    pub(in crate::postgres) copy: String,
    pub(in crate::postgres) duplicate: SqlStr,
    pub(in crate::postgres) advance_ids: SqlStr,
    /// Parameter: whether descriptions are written.
    pub(in crate::postgres) merge: SqlStr,
    pub(in crate::postgres) insert_new: SqlStr,
}

/// The temporary table and its alias in the statements.
const ROWS: &str = "pg_temp.import_rows AS i";

impl ImportStatements {
    /// # Errors
    /// When the table has no column for names or prices.
    pub(in crate::postgres) fn new(mapping: &Mapping) -> Result<Self, Error> {
        for (column, what) in [(&mapping.name, "names"), (&mapping.price, "prices")] {
            if column.as_ref().is_none_or(|column| column.computed) {
                let catalogue = &mapping.catalogue;
                return Err(Error::Unexpected(format!(
                    "the table of the catalogue {catalogue} has no column for {what} that can be written"
                )));
            }
        }
        let id = mapping.id.quoted();
        let names = written(mapping).iter().map(|column| column.quoted()).collect::<Vec<_>>();
        let columns = names.join(", ");
        Ok(Self {
            begin: sql(begin(mapping)),
            copy: format!("COPY pg_temp.import_rows (hotshelf_line, {id}, {columns}) FROM STDIN"),
            duplicate: sql(format!(
                "SELECT {id}::bigint, min(hotshelf_line), max(hotshelf_line) FROM {ROWS} \
                 WHERE {id} IS NOT NULL GROUP BY {id} HAVING count(*) > 1 ORDER BY 2 LIMIT 1"
            )),
            advance_ids: sql(advance_ids(mapping)),
            merge: sql(merge(mapping)),
            insert_new: sql(insert_new(mapping)),
        })
    }
}

/// The temporary table has the column types of the table, but not the constraints, because ids may be missing.
fn begin(mapping: &Mapping) -> String {
    let columns = std::iter::once(&mapping.id).chain(written(mapping));
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

/// Rows without a change are filtered out before the insert, which would lock them and assign a version. `ON CONFLICT` checks
/// again, because another transaction may have written in between. Every import locks rows in the order of their ids, so that
/// two imports cannot deadlock.
fn merge(mapping: &Mapping) -> String {
    let (table, id) = (mapping.quoted_table(), mapping.id.quoted());
    let description = mapping.description.as_ref().filter(|column| !column.computed);
    let others = |column: &&Column| description.is_none_or(|one| one.name != column.name);
    let others: Vec<String> =
        written(mapping).into_iter().filter(others).map(Column::quoted).collect();
    let description = description.map(Column::quoted);
    let of = |alias: &str| {
        let names = others.iter().map(|name| format!("{alias}.{name}"));
        format!("({})", names.collect::<Vec<_>>().join(", "))
    };
    // Whether a row differs from the one that exists.
    let differs = |new: &str, old: &str| {
        let differs = format!("ROW{} IS DISTINCT FROM ROW{}", of(new), of(old));
        match &description {
            Some(name) => format!("{differs} OR $1 AND {new}.{name} IS DISTINCT FROM {old}.{name}"),
            None => format!("{differs} OR $1 AND false"),
        }
    };
    let mut names = vec![id.clone()];
    names.extend(others.iter().chain(&description).cloned());
    let values = names.iter().map(|name| format!("i.{name}")).collect::<Vec<_>>().join(", ");
    let mut sets: Vec<String> =
        others.iter().map(|name| format!("{name} = excluded.{name}")).collect();
    sets.extend(
        description.iter().map(|name| {
            format!("{name} = CASE WHEN $1 THEN excluded.{name} ELSE product.{name} END")
        }),
    );
    sets.extend(mapping.update_time.as_ref().and_then(super::set_to_now));
    let (names, sets) = (names.join(", "), sets.join(", "));
    let (existing, now) = (differs("i", "old"), differs("excluded", "product"));
    let overriding = "OVERRIDING SYSTEM VALUE";
    format!(
        "WITH changed AS (SELECT i.*, old.{id} IS NULL AS hotshelf_is_new FROM {ROWS} \
             LEFT JOIN {table} AS old ON old.{id} = i.{id} \
             WHERE i.{id} IS NOT NULL AND (old.{id} IS NULL OR {existing})), \
         written AS (INSERT INTO {table} AS product ({names}) {overriding} \
             SELECT {values} FROM changed AS i ORDER BY i.{id} \
             ON CONFLICT ({id}) DO UPDATE SET {sets} WHERE {now} RETURNING product.{id}) \
         SELECT count(*) FILTER (WHERE hotshelf_is_new), count(*) FILTER (WHERE NOT hotshelf_is_new) \
         FROM written JOIN changed USING ({id})"
    )
}

fn insert_new(mapping: &Mapping) -> String {
    let (table, id) = (mapping.quoted_table(), mapping.id.quoted());
    let names: Vec<String> = written(mapping).into_iter().map(Column::quoted).collect();
    let names = names.join(", ");
    format!(
        "INSERT INTO {table} ({names}) SELECT {names} FROM {ROWS} WHERE {id} IS NULL ORDER BY hotshelf_line"
    )
}
