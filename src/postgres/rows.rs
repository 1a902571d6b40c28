//! Rows of products, selected and decoded so that no value can fail the statement or another row.
//!
//! The columns are selected by expressions that cannot raise and that have a fixed type, so neither a value nor a changed column
//! type breaks the statement. Each row is decoded on its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgRow;
use sqlx::{Error as SqlxError, Row as _};

use crate::product::{Currency, Price, Product, ProductId, Version};

/// The columns of a product, in the order of [`decode`]. Text is converted to `$encoding`: see [`readable!`] and [`strict!`].
macro_rules! columns {
    ($encoding:literal) => {
        concat!(
            "product.version::bigint, \
             convert_to(product.name::text, ",
            $encoding,
            "), product.price::text, convert_to(product.currency::text, ",
            $encoding,
            "), convert_to(product.description::text, ",
            $encoding,
            "), CASE WHEN isfinite(product.create_time) \
                 THEN (extract(epoch FROM product.create_time) * 1000000)::bigint END, \
             CASE WHEN isfinite(product.update_time) \
                 THEN (extract(epoch FROM product.update_time) * 1000000)::bigint END"
        )
    };
}

/// The columns of a read. A database with the encoding `SQL_ASCII` may contain any bytes, and converting them would raise.
macro_rules! readable {
    () => {
        $crate::postgres::rows::columns!(
            "CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END"
        )
    };
}

/// The columns that a write returns. Text that is not UTF-8 raises, so that the write is rolled back.
macro_rules! strict {
    () => {
        $crate::postgres::rows::columns!("'UTF8'")
    };
}

/// The condition that the API can express the row after the UPDATE. The parameters are those of `writes::UPDATE`. [`decode`] must
/// accept every row that this accepts.
macro_rules! expressible {
    () => {
        "(coalesce($3::text, product.name::text) IS NOT NULL \
          AND coalesce($6::text, product.description::text) IS NOT NULL \
          AND coalesce($5::text, product.currency::text) ~ '^[A-Z]{3}$' \
          AND coalesce(($4::bigint / 100::numeric)::text, product.price::text) \
              ~ '^-?[0-9]{1,18}([.][0-9]{1,9}0*)?$' \
          AND product.create_time >= '0001-01-01 00:00:00+00'::timestamptz \
          AND product.create_time < '10000-01-01 00:00:00+00'::timestamptz)"
    };
}

pub(super) use {columns, expressible, readable, strict};

/// The range of `google.protobuf.Timestamp` in Unix seconds: the years 1 to 9999.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const MICROS: i64 = 1_000_000;

/// Decodes the columns of [`columns!`], which begin at index `first`. `Err` contains the column that cannot be expressed, and
/// why.
pub(super) fn decode(id: ProductId, row: &PgRow, first: usize) -> Result<Product, String> {
    let version = value(row, first, "version")?;
    let currency = text(row, first + 3, "currency")?;
    let currency = Currency::stored(&currency)
        .ok_or_else(|| format!("currency: {currency:?} is not three capital letters"))?;
    let price: String = value(row, first + 2, "price")?;
    Ok(Product {
        id,
        name: text(row, first + 1, "name")?,
        price: Price::stored(&price, currency).map_err(|why| format!("price: {why}"))?,
        description: text(row, first + 4, "description")?,
        version: Version(version),
        create_time: time(row, first + 5, "create_time")?,
        update_time: time(row, first + 6, "update_time")?,
    })
}

/// The version of a row, which may be unreadable otherwise; 0 if the version is.
pub(super) fn version(row: &PgRow, first: usize) -> Version {
    Version(row.try_get::<Option<i64>, _>(first).ok().flatten().unwrap_or_default())
}

fn value<T>(row: &PgRow, place: usize, column: &str) -> Result<T, String>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let value: Result<Option<T>, SqlxError> = row.try_get(place);
    value.map_err(|error| format!("{column}: {error}"))?.ok_or_else(|| format!("{column}: is NULL"))
}

fn text(row: &PgRow, place: usize, column: &str) -> Result<String, String> {
    String::from_utf8(value(row, place, column)?).map_err(|_| format!("{column}: is not UTF-8"))
}

fn time(row: &PgRow, place: usize, column: &str) -> Result<SystemTime, String> {
    let micros: Option<i64> = row.try_get(place).map_err(|error| format!("{column}: {error}"))?;
    let micros = micros.ok_or_else(|| format!("{column}: is NULL or infinite"))?;
    if !TIMESTAMPS.contains(&micros.div_euclid(MICROS)) {
        return Err(format!("{column}: is outside the years 1 to 9999"));
    }
    Ok(unix(micros))
}

pub(super) fn unix(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
