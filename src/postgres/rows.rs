//! Rows of products, decoded so that no value can fail the statement or another row: each row is decoded on its own. The columns
//! are those of `statements::columns`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::PgRow;
use sqlx::{Error as SqlxError, Row as _};

use super::statements::INFINITE;
use crate::product::{Attributes, Currency, Invalid, Price, Product, ProductId, Version};

/// The range of `google.protobuf.Timestamp` in Unix seconds: the years 1 to 9999.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const MICROS: i64 = 1_000_000;

/// Decodes a product whose columns begin at index `first`. `Err` contains the field that cannot be expressed, and why. What is NULL
/// is served as unset.
pub(super) fn decode(id: ProductId, row: &PgRow, first: usize) -> Result<Product, String> {
    let version: Option<i64> = value(row, first, "version")?;
    Ok(Product {
        id,
        name: text(row, first + 1, "name")?.unwrap_or_default(),
        price: price(row, first + 2)?,
        description: text(row, first + 4, "description")?.unwrap_or_default(),
        version: Version(version.unwrap_or_default()),
        create_time: time(row, first + 5, "create_time")?,
        update_time: time(row, first + 6, "update_time")?,
        attributes: attributes(row, first + 7)?,
    })
}

/// The price, whose currency is in the next column. Without a price the currency does not matter.
fn price(row: &PgRow, place: usize) -> Result<Option<Price>, String> {
    let Some(amount) = value::<String>(row, place, "price")? else { return Ok(None) };
    let code = text(row, place + 1, "currency")?.ok_or("currency: is NULL")?;
    let currency = Currency::stored(&code);
    let currency =
        currency.ok_or_else(|| format!("currency: {code:?} is not three capital letters"))?;
    Price::stored(&amount, currency).map(Some).map_err(|why| format!("price: {why}"))
}

fn attributes(row: &PgRow, place: usize) -> Result<Option<Attributes>, String> {
    let json = text(row, place, "attributes")?;
    let parse = |json: String| Attributes::parse(&json);
    json.map(parse).transpose().map_err(|why: Invalid| format!("attributes: {why}"))
}

/// The version of a row, which may be unreadable otherwise; 0 if the version is.
pub(super) fn version(row: &PgRow, first: usize) -> Version {
    Version(row.try_get::<Option<i64>, _>(first).ok().flatten().unwrap_or_default())
}

fn value<T>(row: &PgRow, place: usize, column: &str) -> Result<Option<T>, String>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let value: Result<Option<T>, SqlxError> = row.try_get(place);
    value.map_err(|error| format!("{column}: {error}"))
}

fn text(row: &PgRow, place: usize, column: &str) -> Result<Option<String>, String> {
    let bytes: Option<Vec<u8>> = value(row, place, column)?;
    let text = bytes.map(String::from_utf8).transpose();
    text.map_err(|_| format!("{column}: is not UTF-8"))
}

fn time(row: &PgRow, place: usize, column: &str) -> Result<Option<SystemTime>, String> {
    let Some(micros) = value::<i64>(row, place, column)? else { return Ok(None) };
    if micros == INFINITE {
        return Err(format!("{column}: is infinite"));
    }
    if !TIMESTAMPS.contains(&micros.div_euclid(MICROS)) {
        return Err(format!("{column}: is outside the years 1 to 9999"));
    }
    Ok(Some(unix(micros)))
}

/// A time in microseconds since 1970, unless it is infinite.
pub(super) fn finite(micros: i64) -> Option<SystemTime> {
    (micros != INFINITE).then(|| unix(micros))
}

fn unix(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
