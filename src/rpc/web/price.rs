//! Prices as plain numbers.

use serde_json::value::RawValue;
use tonic::Status;

use crate::product::Amount;
use crate::proto::Money;
use crate::rpc::status;

/// The units and nanos of `Money` as a decimal number, with at least two decimals: 19.90.
pub(super) fn text(units: i64, nanos: i32) -> String {
    let sign = if units < 0 || nanos < 0 { "-" } else { "" };
    let decimals = format!("{:09}", nanos.unsigned_abs());
    let kept = decimals.trim_end_matches('0').len().max(2);
    format!("{sign}{}.{}", units.unsigned_abs(), &decimals[..kept])
}

/// A price that is a number, or a text of one, rather than an object. `None`: it is neither.
pub(super) fn plain(raw: &RawValue) -> Option<Result<Money, Status>> {
    let text = raw.get();
    match text.as_bytes().first()? {
        b'-' | b'0'..=b'9' => Some(money(text)),
        b'"' => Some(money(text.trim_matches('"'))),
        _ => None,
    }
}

/// An amount without a currency.
fn money(text: &str) -> Result<Money, Status> {
    let amount = Amount::parse(&shortest(text).unwrap_or_else(|| text.to_owned()));
    let amount = amount.map_err(|why| status::invalid("product.price", why.to_string()))?;
    let hundredths = amount.hundredths();
    let nanos = i32::try_from(hundredths % 100).unwrap_or_default() * 10_000_000;
    Ok(Money { currency_code: String::new(), units: hundredths / 100, nanos })
}

/// A number as JSON allows it, such as 1.230E1, as [`Amount::parse`] reads it: 12.3. `None`: it is no such number, or is far out of
/// range.
fn shortest(text: &str) -> Option<String> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().ok().filter(|exponent: &i32| exponent.abs() < 30)?;
    let (units, decimals) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let (sign, units) = match units.strip_prefix('-') {
        Some(units) => ("-", units),
        None => ("", units),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(units) || !is_number(decimals) {
        return None;
    }
    let digits = format!("{units}{decimals}");
    // Where the point is.
    let point = i32::try_from(units.len()).ok()? + exponent;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    let length = i32::try_from(digits.len()).ok()?;
    let padded = format!("{}{digits}{}", zeros(1 - point), zeros(point - length));
    let (units, decimals) = padded.split_at(usize::try_from(point.max(1)).ok()?);
    let (units, decimals) = (units.trim_start_matches('0'), decimals.trim_end_matches('0'));
    let sign = if units.is_empty() && decimals.is_empty() { "" } else { sign };
    let [units, decimals] = [units, decimals].map(|part| if part.is_empty() { "0" } else { part });
    Some(format!("{sign}{units}.{decimals}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_written_exactly() {
        assert_eq!(text(19, 900_000_000), "19.90");
        assert_eq!(text(0, 50_000_000), "0.05");
        assert_eq!(text(-3, -5), "-3.000000005");
        assert_eq!(text(0, -500_000_000), "-0.50");
        assert_eq!(text(7, 0), "7.00");
    }

    #[test]
    fn a_number_or_its_text_is_read_exactly() {
        let read = |json: &str| {
            let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
            plain(&raw).map(|money| money.map(|money| (money.units, money.nanos)).ok())
        };
        assert_eq!(read("99.99"), Some(Some((99, 990_000_000))));
        assert_eq!(read("\"99.99\""), Some(Some((99, 990_000_000))));
        assert_eq!(read("5"), Some(Some((5, 0))));
        assert_eq!(read("5.000"), Some(Some((5, 0))));
        assert_eq!(read("1.10e1"), Some(Some((11, 0))));
        assert_eq!(read("1.23456789E7"), Some(Some((12_345_678, 900_000_000))));
        assert_eq!(read("1999e-2"), Some(Some((19, 990_000_000))));
        assert_eq!(read("5e-2"), Some(Some((0, 50_000_000))));
        assert_eq!(read("-0.0"), Some(Some((0, 0))));
        for bad in ["-1", "1.234", "1e-3", "1e9", "1e999", "\"\"", "\"ten\"", "\"1e\"", "100000000"]
        {
            assert_eq!(read(bad), Some(None), "{bad}");
        }
        assert_eq!(read("{}"), None);
        assert_eq!(read("null"), None);
    }
}
