//! Query parameters: the fields of a request message that are in neither the path nor the body (AIP-127).

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use tonic::Status;

use super::types::from_value;
use crate::rpc::status::invalid;

/// Encodes a request message from its query parameters. `preset` are the fields from elsewhere.
///
/// # Errors
/// INVALID_ARGUMENT, which names the parameter.
pub(super) fn message(
    message: &MessageDescriptor,
    query: Option<&str>,
    mut preset: Map<String, Value>,
) -> Result<Vec<u8>, Status> {
    for (name, text) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let field = message.get_field_by_json_name(&name);
        let field = field.or_else(|| message.get_field_by_name(&name));
        let shown: String = name.chars().take(50).collect();
        let field = field.ok_or_else(|| invalid(shown, "is no parameter of this method"))?;
        let value = value(&field, &text)?;
        let before = preset.remove(field.json_name());
        let value = match (field.is_list(), before) {
            (true, Some(Value::Array(mut values))) => {
                values.push(value);
                Value::Array(values)
            }
            (true, _) => Value::Array(vec![value]),
            (false, None) => value,
            (false, Some(_)) => return Err(invalid(field.name(), "is given twice")),
        };
        preset.insert(field.json_name().to_owned(), value);
    }
    from_value(message.clone(), Value::Object(preset))
}

fn value(field: &FieldDescriptor, text: &str) -> Result<Value, Status> {
    let wrong = |why: &str| Err(invalid(field.name(), why));
    match field.kind() {
        Kind::Bool => match text {
            "true" | "1" | "" => Ok(Value::Bool(true)),
            "false" | "0" => Ok(Value::Bool(false)),
            _ => wrong("must be true or false"),
        },
        Kind::Int64 if text.parse::<i64>().is_err() => wrong("must be a whole number"),
        Kind::Int32 if text.parse::<i32>().is_err() => wrong("must be a whole number"),
        Kind::Enum(values) => match values.values().any(|value| value.name() == text) {
            true => Ok(text.into()),
            false => {
                let known: Vec<String> =
                    values.values().map(|value| value.name().to_owned()).collect();
                wrong(&format!("must be one of {}", known.join(", ")))
            }
        },
        Kind::Message(kind) if kind.full_name() == "google.protobuf.Duration" => {
            let seconds = text.strip_suffix('s').unwrap_or(text);
            match seconds.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(format!("{seconds}s").into()),
                _ => wrong("must be a number of seconds, such as 2s or 0.5s"),
            }
        }
        _ => Ok(text.into()),
    }
}
