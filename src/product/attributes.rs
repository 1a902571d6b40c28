//! Attributes: the columns of a table that are no field of a product of their own, as JSON values by their names.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::Invalid;

/// The deepest nesting. Too high: protobuf parsers of callers, which allow 100 levels of messages, two or three of which each
/// level takes, refuse the product.
const DEPTH: usize = 30;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(pub Map<String, Value>);

impl Attributes {
    /// Reads the JSON object that PostgreSQL makes of the columns. A number that a double cannot hold becomes a string.
    ///
    /// # Errors
    /// When it is nested too deeply, or is not a JSON object.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        let raw = serde_json::from_str(json).map_err(|why| Invalid::new(why.to_string()))?;
        match parse(raw, 0)? {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(Invalid::new("is not a JSON object")),
        }
    }
}

fn parse(raw: &RawValue, depth: usize) -> Result<Value, Invalid> {
    let text = raw.get();
    let wrong = |why: serde_json::Error| Invalid::new(why.to_string());
    if depth > DEPTH {
        return Err(Invalid::new(format!("is nested deeper than {DEPTH} levels")));
    }
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(wrong)?;
            let members = members.into_iter();
            let members = members.map(|(name, raw)| Ok((name, parse(raw, depth + 1)?)));
            Value::Object(members.collect::<Result<_, Invalid>>()?)
        }
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
            let elements = elements.into_iter().map(|raw| parse(raw, depth + 1));
            Value::Array(elements.collect::<Result<_, _>>()?)
        }
        Some(b'-' | b'0'..=b'9') => number(text),
        _ => serde_json::from_str(text).map_err(wrong)?,
    })
}

/// A number, if the nearest double is written with the same digits, else a string.
fn number(text: &str) -> Value {
    let double: f64 = text.parse().unwrap_or(f64::NAN);
    let same = double.is_finite() && digits(&format!("{double:e}")) == digits(text);
    let number = same.then(|| Number::from_f64(double)).flatten();
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// Sign, digits and exponent of a number, without zeros at either end.
fn digits(text: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => (true, mantissa),
        None => (false, mantissa),
    };
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{decimals}");
    let mut exponent = exponent.parse::<i64>().unwrap_or(i64::MAX / 2) - decimals.len() as i64;
    let significant = all.trim_end_matches('0');
    exponent += (all.len() - significant.len()) as i64;
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    (negative, significant.to_owned(), exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_a_double_cannot_hold_is_a_string() {
        let json = r#"{"a": 9007199254740993, "b": 9.990, "c": 0.1, "d": [12345678901234567890.5, 0.00], "e": 1e400, "f": -12}"#;
        let parsed = Attributes::parse(json).unwrap();
        let expected = r#"{"a":"9007199254740993","b":9.99,"c":0.1,"d":["12345678901234567890.5",0.0],"e":"1e400","f":-12.0}"#;
        assert_eq!(serde_json::to_string(&parsed.0).unwrap(), expected);
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused() {
        let nested = |depth| format!("{{\"a\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(Attributes::parse(&nested(DEPTH)).is_ok());
        assert!(Attributes::parse(&nested(DEPTH + 1)).is_err());
    }
}
