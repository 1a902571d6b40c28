//! The statements on an attached table, built once from its mapping.

mod import;

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::columns::Column;
use super::mapping::Mapping;
use super::quote::literal;
pub(super) use import::{ImportStatements, Written};

/// A database with the encoding `SQL_ASCII` may contain any bytes, and converting them would raise.
const READABLE: &str =
    "CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END";
/// For what a write returns: text that is not UTF-8 raises, so that the write is rolled back.
const STRICT: &str = "'UTF8'";
/// What stands for a time that is infinite.
pub(super) const INFINITE: i64 = i64::MAX;
/// Pairs of a `jsonb_build_object`: a function takes at most 100 arguments.
const PAIRS: usize = 50;
/// The version of a row that was not written since its table was attached, below all versions that are given out.
const VERSION: &str = "coalesce(product.hotshelf_version, 1)::bigint";

/// Each text begins and is built as tests recognise it.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) mapping: Mapping,
    /// Parameter: the ids.
    pub(super) load: SqlStr,
    /// Parameters: id, expected version, values, lock timeout.
    pub(super) update: SqlStr,
    /// Parameters: values, lock timeout.
    pub(super) create: SqlStr,
    /// Parameters: id, expected version, lock timeout.
    pub(super) delete: SqlStr,
    /// Parameter: the id after which to search.
    pub(super) next_free_id: SqlStr,
    /// Parameter: the id.
    pub(super) inspect: SqlStr,
    pub(super) any: SqlStr,
}

impl Statements {
    pub(super) fn new(mapping: Mapping) -> Self {
        let table = mapping.quoted_table();
        Self {
            load: sql(load(&mapping)),
            update: sql(update(&mapping, &[])),
            create: sql(create(&mapping, &[])),
            delete: sql(delete(&mapping)),
            next_free_id: sql(next_free_id(&mapping)),
            inspect: sql(inspect(&mapping)),
            any: sql(format!("SELECT EXISTS (SELECT FROM {table})")),
            mapping,
        }
    }

    /// The statements of calls, or only those of loads.
    pub(super) fn of_calls(&self, all: bool) -> Vec<SqlStr> {
        let writes = [&self.update, &self.create, &self.delete];
        let writes = writes.into_iter().filter(|_| all);
        std::iter::once(&self.load).chain(writes).cloned().collect()
    }

    /// An UPDATE that writes these attributes, too.
    pub(super) fn update_with(&self, attributes: &[&Column]) -> SqlStr {
        sql(update(&self.mapping, attributes))
    }

    /// An INSERT with these attributes. The others get their defaults.
    pub(super) fn create_with(&self, attributes: &[&Column]) -> SqlStr {
        sql(create(&self.mapping, attributes))
    }

    /// Converts the value of one column as a write does. Parameter: the values.
    pub(super) fn convert(&self, attribute: &Column) -> SqlStr {
        let (name, declared) = (attribute.quoted(), &attribute.declared);
        sql(format!("SELECT FROM jsonb_to_record($1::text::jsonb) AS given ({name} {declared})"))
    }
}

fn sql(text: String) -> SqlStr {
    // Names are quoted, and nothing else in the text comes from outside of this program.
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

/// One row for each id, whether the product exists or not, all from one snapshot.
fn load(mapping: &Mapping) -> String {
    let (table, number, id) = (mapping.quoted_table(), mapping.number, mapping.id.of_product());
    let columns = columns(mapping, READABLE);
    format!(
        "SELECT asked.id, {id} IS NOT NULL, gone.version, \
         (SELECT max(version) FROM hotshelf.truncations WHERE catalogue = {number}), {columns} \
         FROM unnest($1::bigint[]) AS asked (id) LEFT JOIN {table} AS product ON {id} = asked.id \
         LEFT JOIN hotshelf.deleted AS gone ON gone.catalogue = {number} AND gone.product_id = asked.id"
    )
}

/// Sets `lock_timeout` for this statement only, so that waiting for a locked row ends after a slice of the caller's time. The CTE
/// is evaluated before the row is locked, takes no further round trip, and its setting ends with the transaction.
fn with_lock_timeout(parameter: &str) -> String {
    format!(
        "WITH lock_limit AS MATERIALIZED (SELECT set_config('lock_timeout', {parameter}::text, true))"
    )
}

/// The columns that the API writes, apart from attributes.
fn written(mapping: &Mapping) -> Vec<&Column> {
    let columns = [&mapping.name, &mapping.price, &mapping.currency, &mapping.description];
    columns.into_iter().flatten().filter(|column| !column.computed).collect()
}

/// The values of a write as a table of one row. They are converted to the types of their columns as any text is, so that a value
/// that is too long or out of range raises.
fn given(columns: &[&Column], parameter: &str) -> String {
    if columns.is_empty() {
        return format!("(SELECT {parameter}::text) AS given");
    }
    let declared = columns.iter().map(|column| format!("{} {}", column.quoted(), column.base));
    let declared = declared.collect::<Vec<_>>().join(", ");
    format!("jsonb_to_record({parameter}::text::jsonb) AS given ({declared})")
}

/// A column keeps its value unless another one is given, except attributes, which may become NULL.
fn update(mapping: &Mapping, attributes: &[&Column]) -> String {
    let written = written(mapping);
    let mut sets: Vec<String> = written
        .iter()
        .map(|column| {
            let (name, given, old) = (column.quoted(), column.given(), column.of_product());
            format!("{name} = coalesce({given}, {old})")
        })
        .collect();
    sets.extend(attributes.iter().map(|one| format!("{} = {}", one.quoted(), one.given())));
    sets.extend(mapping.update_time.as_ref().and_then(set_to_now));
    // The trigger assigns the version; without a column to set there would be no UPDATE.
    sets.push("hotshelf_version = product.hotshelf_version".to_owned());
    let columns: Vec<&Column> = written.into_iter().chain(attributes.iter().copied()).collect();
    let (table, id) = (mapping.quoted_table(), mapping.id.of_product());
    let (lock_timeout, given) = (with_lock_timeout("$4"), given(&columns, "$3"));
    let (expressible, returned) = (expressible(mapping), self::columns(mapping, STRICT));
    let sets = sets.join(", ");
    format!(
        "{lock_timeout} UPDATE {table} AS product SET {sets} FROM lock_limit, {given} \
         WHERE {id} = $1::bigint AND ($2::bigint IS NULL OR {VERSION} = $2) AND {expressible} \
         RETURNING {id}::bigint, {returned}"
    )
}

fn create(mapping: &Mapping, attributes: &[&Column]) -> String {
    let columns: Vec<&Column> =
        written(mapping).into_iter().chain(attributes.iter().copied()).collect();
    let mut names: Vec<String> = columns.iter().map(|column| column.quoted()).collect();
    let mut values: Vec<String> = columns.iter().map(|column| column.given()).collect();
    for time in [&mapping.create_time, &mapping.update_time].into_iter().flatten() {
        if let Some(now) = now(time) {
            names.push(time.quoted());
            values.push(now.to_owned());
        }
    }
    names.push("hotshelf_version".to_owned());
    values.push("NULL".to_owned());
    let (table, id) = (mapping.quoted_table(), mapping.id.quoted());
    let (lock_timeout, given) = (with_lock_timeout("$2"), given(&columns, "$1"));
    let (names, values) = (names.join(", "), values.join(", "));
    let returned = self::columns(mapping, STRICT);
    format!(
        "{lock_timeout} INSERT INTO {table} AS product ({names}) SELECT {values} FROM lock_limit, {given} \
         ON CONFLICT ({id}) DO NOTHING RETURNING product.{id}::bigint, {returned}"
    )
}

fn delete(mapping: &Mapping) -> String {
    let (table, id) = (mapping.quoted_table(), mapping.id.of_product());
    let lock_timeout = with_lock_timeout("$3");
    format!(
        "{lock_timeout} DELETE FROM {table} AS product USING lock_limit \
         WHERE {id} = $1::bigint AND ($2::bigint IS NULL OR {VERSION} = $2) RETURNING {VERSION}"
    )
}

/// Advances the id sequence past taken ids, from its last value or from `$1`, because SQL may insert products with explicit ids.
/// Past more than 10,000 ids it uses `setval`; otherwise `nextval`, because a `setval` concurrent with a `nextval` could set the
/// sequence back. Returns NULL when the ids have no sequence.
fn next_free_id(mapping: &Mapping) -> String {
    let (table, id, sequence) = (mapping.quoted_table(), mapping.id.quoted(), mapping.sequence());
    let last = match mapping.id.kind.as_str() {
        "smallint" => i64::from(i16::MAX),
        "integer" => i64::from(i32::MAX),
        _ => i64::MAX,
    };
    format!(
        "WITH ids AS (SELECT {sequence} AS name, coalesce($1::bigint, pg_sequence_last_value({sequence}), 0) AS last), \
         free AS (SELECT name, last, ( \
             SELECT taken.id FROM (SELECT ids.last AS id UNION ALL \
                 (SELECT {id}::bigint FROM {table} WHERE {id} > ids.last ORDER BY {id})) AS taken \
             WHERE taken.id < {last} AND NOT EXISTS (SELECT FROM {table} AS next WHERE next.{id} = taken.id + 1) \
             ORDER BY taken.id LIMIT 1) AS before FROM ids) \
         SELECT CASE WHEN $1 IS NOT NULL OR before - last > 10000 THEN setval(name, greatest(before, 1), before > 0) \
             ELSE coalesce((SELECT max(id) FROM ( \
                 SELECT nextval(name) AS id FROM generate_series(last + 1, before)) AS walked), before) END \
         FROM free WHERE name IS NOT NULL"
    )
}

/// A change is pending until the `relayed` snapshot sees its transaction.
fn inspect(mapping: &Mapping) -> String {
    let (table, number, id) = (mapping.quoted_table(), mapping.number, mapping.id.of_product());
    let update_time = micros(mapping.update_time.as_ref());
    format!(
        "SELECT {id} IS NOT NULL, {VERSION}, {update_time}, \
         (SELECT count(*) FROM hotshelf.outbox AS change, hotshelf.feed \
          WHERE change.catalogue = {number} AND feed.catalogue = {number} \
              AND NOT pg_visible_in_snapshot(change.xid, feed.relayed) \
              AND (change.product_ids IS NULL OR asked.id = ANY(change.product_ids))) \
         FROM (SELECT $1::bigint AS id) AS asked LEFT JOIN {table} AS product ON {id} = asked.id"
    )
}

/// The columns of a product, in the order of `rows::decode`, as expressions that have a fixed type and cannot raise: neither a
/// value nor a changed type breaks the statement. Text is converted to `encoding`.
fn columns(mapping: &Mapping, encoding: &str) -> String {
    let text = |column: &Option<Column>| match column {
        Some(column) => format!("convert_to({}::text, {encoding})", column.of_product()),
        None => "NULL::bytea".to_owned(),
    };
    let currency = match (&mapping.currency, mapping.fixed_currency) {
        (None, Some(fixed)) => format!("convert_to('{}', 'UTF8')", fixed.code()),
        (column, _) => text(column),
    };
    let price = mapping.price.as_ref().map(|column| amount(mapping, &column.of_product()));
    [
        VERSION.to_owned(),
        text(&mapping.name),
        price.unwrap_or_else(|| "NULL::text".to_owned()),
        currency,
        text(&mapping.description),
        micros(mapping.create_time.as_ref()),
        micros(mapping.update_time.as_ref()),
        attributes(mapping, encoding),
    ]
    .join(", ")
}

/// The amount of a price as text.
fn amount(mapping: &Mapping, value: &str) -> String {
    match mapping.price_decimals {
        None | Some(0) => format!("{value}::text"),
        Some(decimals) => {
            let unit = format!("0.{:0>width$}", 1, width = decimals as usize);
            format!("({value}::numeric * {unit})::text")
        }
    }
}

/// The time in microseconds since 1970. A time without a time zone is one of UTC.
fn micros(time: Option<&Column>) -> String {
    let Some(time) = time.map(Column::of_product) else { return "NULL::bigint".to_owned() };
    format!(
        "CASE WHEN {time} IS NULL THEN NULL WHEN isfinite({time}) \
         THEN (extract(epoch FROM {time}) * 1000000)::bigint ELSE {INFINITE} END"
    )
}

/// The attributes as the text of a JSON object. A time without a time zone is one of UTC.
fn attributes(mapping: &Mapping, encoding: &str) -> String {
    if mapping.attributes.is_empty() {
        return "NULL::bytea".to_owned();
    }
    let pair = |column: &Column| {
        let value = column.of_product();
        match column.kind.as_str() {
            "timestamp without time zone" => {
                format!("{}, {value} AT TIME ZONE 'UTC'", literal(&column.name))
            }
            _ => format!("{}, {value}", literal(&column.name)),
        }
    };
    let pairs: Vec<String> = mapping.attributes.iter().map(pair).collect();
    let objects =
        pairs.chunks(PAIRS).map(|pairs| format!("jsonb_build_object({})", pairs.join(", ")));
    let object = objects.collect::<Vec<_>>().join(" || ");
    format!("convert_to(({object})::text, {encoding})")
}

/// The condition that the API can express the row after the UPDATE. `rows::decode` must accept every row that this accepts.
fn expressible(mapping: &Mapping) -> String {
    let after = |column: &Column| match column.computed {
        true => column.of_product(),
        false => format!("coalesce({}, {})", column.given(), column.of_product()),
    };
    let mut conditions = vec!["true".to_owned()];
    if let Some(price) = mapping.price.as_ref().map(after) {
        let amount = amount(mapping, &price);
        let currency = match &mapping.currency {
            Some(currency) => format!("{}::text ~ '^[A-Z]{{3}}$'", after(currency)),
            None => mapping.fixed_currency.is_some().to_string(),
        };
        conditions.push(format!(
            "({price} IS NULL OR {amount} ~ '^-?[0-9]{{1,18}}([.][0-9]{{1,9}}0*)?$' AND {currency})"
        ));
    }
    // The other time is set to the present by the UPDATE.
    if let Some(time) = &mapping.create_time {
        let (column, kind) = (time.of_product(), &time.kind);
        conditions.push(format!(
            "({column} IS NULL OR {column} >= '0001-01-01 00:00:00+00'::{kind} AND {column} < '10000-01-01 00:00:00+00'::{kind})"
        ));
    }
    format!("({})", conditions.join(" AND "))
}

fn set_to_now(time: &Column) -> Option<String> {
    now(time).map(|now| format!("{} = {now}", time.quoted()))
}

/// The present in the type of a time column; `None` when the column cannot be written.
fn now(time: &Column) -> Option<&'static str> {
    if time.computed {
        return None;
    }
    match time.kind.as_str() {
        "timestamp with time zone" => Some("clock_timestamp()"),
        "timestamp without time zone" => Some("clock_timestamp() AT TIME ZONE 'UTC'"),
        "date" => Some("(clock_timestamp() AT TIME ZONE 'UTC')::date"),
        _ => None,
    }
}
