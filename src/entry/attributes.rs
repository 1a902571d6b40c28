//! Attributes as `google.protobuf.Struct`.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as Message};
use serde_json::{Map, Value};

pub(super) fn to_struct(map: &Map<String, Value>) -> Struct {
    let field = |(name, value): (&String, &Value)| (name.clone(), to_message(value));
    Struct { fields: map.iter().map(field).collect() }
}

fn to_message(value: &Value) -> Message {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(one) => Kind::BoolValue(*one),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(to_message).collect() })
        }
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    Message { kind: Some(kind) }
}
