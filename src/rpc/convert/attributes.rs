//! Attributes of requests, and their paths in `update_mask`.

use prost_types::Struct;
use prost_types::value::Kind;
use serde_json::{Map, Number, Value};
use tonic::Status;

use super::invalid;
use crate::product::{Attributes, AttributesPatch};

/// What a mask says about attributes.
#[derive(Default)]
pub(super) struct Named {
    /// The path `attributes`.
    pub(super) all: bool,
    /// The names of the paths `attributes.NAME`.
    pub(super) names: Vec<String>,
}

/// The name in the path `attributes.NAME`, which may have backticks around it (AIP-161).
pub(super) fn name_in(path: &str) -> Option<&str> {
    let name = path.strip_prefix("attributes.")?;
    let quoted = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
    Some(quoted.unwrap_or(name)).filter(|name| !name.is_empty())
}

/// The attributes of a request.
pub(super) fn given(fields: Option<Struct>) -> Result<Option<Attributes>, Status> {
    fields.map(|fields| object(fields, "product.attributes").map(Attributes)).transpose()
}

/// The attributes that a mask names. A named one that is not given becomes NULL.
pub(super) fn patch(named: &Named, given: Option<Attributes>) -> AttributesPatch {
    let Attributes(mut given) = given.unwrap_or_default();
    if named.all {
        return AttributesPatch { replace_all: true, values: Attributes(given) };
    }
    let values = named.names.iter().map(|name| (name.clone(), given.remove(name)));
    let values = values.map(|(name, value)| (name, value.unwrap_or_default())).collect();
    AttributesPatch { replace_all: false, values: Attributes(values) }
}

fn object(fields: Struct, path: &str) -> Result<Map<String, Value>, Status> {
    let member = |(name, value): (String, prost_types::Value)| {
        let path = format!("{path}.{name}");
        if name.contains('\0') {
            return Err(invalid(path, NUL));
        }
        Ok((name, json(value.kind, &path)?))
    };
    fields.fields.into_iter().map(member).collect()
}

const NUL: &str = "must not contain the character NUL, which Postgres cannot store";

fn json(kind: Option<Kind>, path: &str) -> Result<Value, Status> {
    Ok(match kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(one)) => Value::Bool(one),
        Some(Kind::NumberValue(double)) => {
            let number = number(double);
            Value::Number(number.ok_or_else(|| invalid(path, "must be a finite number"))?)
        }
        Some(Kind::StringValue(text)) if text.contains('\0') => return Err(invalid(path, NUL)),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => {
            let values = list.values.into_iter().map(|value| json(value.kind, path));
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        Some(Kind::StructValue(fields)) => Value::Object(object(fields, path)?),
    })
}

/// Whole numbers without a decimal point: PostgreSQL takes `5.0` for no integer.
fn number(double: f64) -> Option<Number> {
    /// Up to here doubles hold every whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
    match double.fract() == 0.0 && double.abs() <= EXACT {
        true => Some(Number::from(double as i64)),
        false => Number::from_f64(double),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(kind: Kind) -> Struct {
        Struct { fields: [("sku".to_owned(), prost_types::Value { kind: Some(kind) })].into() }
    }

    #[test]
    fn whole_numbers_have_no_point() {
        for (double, text) in [(5.0, "5"), (-0.5, "-0.5"), (1e15, "1000000000000000")] {
            let given = given(Some(one(Kind::NumberValue(double)))).unwrap().unwrap();
            assert_eq!(given.0["sku"].to_string(), text);
        }
    }

    #[test]
    fn what_json_cannot_express_is_refused_with_its_name() {
        for kind in [Kind::NumberValue(f64::NAN), Kind::StringValue("a\0".to_owned())] {
            let refused = given(Some(one(kind))).unwrap_err();
            assert!(refused.message().starts_with("product.attributes.sku: "), "{refused:?}");
        }
    }

    #[test]
    fn a_path_names_one_attribute() {
        assert_eq!(name_in("attributes.sku"), Some("sku"));
        assert_eq!(name_in("attributes.a.b"), Some("a.b"));
        assert_eq!(name_in("attributes.`a.b`"), Some("a.b"));
        assert_eq!(name_in("attributes."), None);
        assert_eq!(name_in("attributes"), None);
    }
}
