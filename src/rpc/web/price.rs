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
    // 19.900 is what a program may write for 19.9; more than two decimals that count are refused.
    let shortest = match text.split_once('.') {
        Some((units, decimals)) if decimals.len() > 2 && !decimals.is_empty() => {
            let kept = decimals.trim_end_matches('0');
            format!("{units}.{}", if kept.is_empty() { "0" } else { kept })
        }
        _ => text.to_owned(),
    };
    let amount = Amount::parse(&shortest);
    let amount = amount.map_err(|why| status::invalid("product.price", why.to_string()))?;
    let hundredths = amount.hundredths();
    let nanos = i32::try_from(hundredths % 100).unwrap_or_default() * 10_000_000;
    Ok(Money { currency_code: String::new(), units: hundredths / 100, nanos })
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
        for bad in ["-1", "1.234", "1e2", "\"\"", "\"ten\"", "100000000"] {
            assert_eq!(read(bad), Some(None), "{bad}");
        }
        assert_eq!(read("{}"), None);
        assert_eq!(read("null"), None);
    }
}
