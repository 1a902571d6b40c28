//! Products as JSON text, written without the detour through a dynamic message, which would cost more than the read.

use std::io::Write;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp};
use serde::Serialize;
use tonic::Status;

use super::price;
use crate::proto::{BatchGetProductsResponse, Product};
use crate::rpc::status;

/// The form of a product in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// That of protobuf: 64-bit numbers are strings, a price is `google.type.Money`, and what is not set is left out.
    Proto,
    /// The id, the version and the price are numbers; `currency` is a field of its own, and every field is there.
    Plain,
}

/// An encoded product as JSON.
///
/// # Errors
/// INTERNAL: the cache holds bytes that are no product.
pub(super) fn product(encoded: &[u8], style: Style) -> Result<Vec<u8>, Status> {
    let product = Product::decode(encoded).map_err(|why| status::internal(&why.to_string()))?;
    let mut json = Vec::with_capacity(encoded.len() * 2 + 256);
    write_product(&mut json, &product, style);
    Ok(json)
}

/// An encoded response to BatchGetProducts as JSON.
///
/// # Errors
/// INTERNAL: it is none.
pub(super) fn batch(encoded: &[u8]) -> Result<Vec<u8>, Status> {
    let batch = BatchGetProductsResponse::decode(encoded);
    let batch = batch.map_err(|why| status::internal(&why.to_string()))?;
    let mut json = Vec::with_capacity(encoded.len() * 2 + 256);
    let mut object = Object::begin(&mut json);
    if !batch.products.is_empty() {
        list(object.key("products"), &batch.products, |json, product| {
            write_product(json, product, Style::Proto);
        });
    }
    for (name, ids) in
        [("notFoundIds", &batch.not_found_ids), ("unreadableIds", &batch.unreadable_ids)]
    {
        if !ids.is_empty() {
            list(object.key(name), ids, |json, id| value(json, &id.to_string()));
        }
    }
    object.end();
    Ok(json)
}

fn write_product(json: &mut Vec<u8>, product: &Product, style: Style) {
    let plain = style == Style::Plain;
    let mut object = Object::begin(json);
    match plain {
        true => value(object.key("id"), &product.id),
        false => value(object.key("id"), &product.id.to_string()),
    }
    if plain || !product.name.is_empty() {
        value(object.key("name"), &product.name);
    }
    match (&product.price, plain) {
        (Some(money), true) => {
            object.key("price").extend_from_slice(price::text(money.units, money.nanos).as_bytes());
            value(object.key("currency"), &money.currency_code);
        }
        (None, true) => {
            value(object.key("price"), &());
            value(object.key("currency"), &());
        }
        (Some(money), false) => {
            let mut object = Object::begin(object.key("price"));
            if !money.currency_code.is_empty() {
                value(object.key("currencyCode"), &money.currency_code);
            }
            if money.units != 0 {
                value(object.key("units"), &money.units.to_string());
            }
            if money.nanos != 0 {
                value(object.key("nanos"), &money.nanos);
            }
            object.end();
        }
        (None, false) => {}
    }
    if plain || !product.description.is_empty() {
        value(object.key("description"), &product.description);
    }
    match plain {
        true => value(object.key("version"), &product.version),
        false if product.version != 0 => value(object.key("version"), &product.version.to_string()),
        false => {}
    }
    let times = [("createTime", &product.create_time), ("updateTime", &product.update_time)];
    for (name, time) in times {
        match time {
            Some(time) => timestamp(object.key(name), time),
            None if plain => value(object.key(name), &()),
            None => {}
        }
    }
    match &product.attributes {
        Some(attributes) => write_struct(object.key("attributes"), attributes),
        None if plain => object.key("attributes").extend_from_slice(b"{}"),
        None => {}
    }
    object.end();
}

fn write_struct(json: &mut Vec<u8>, fields: &Struct) {
    let mut object = Object::begin(json);
    for (name, field) in &fields.fields {
        // A name may need escapes.
        write_value(object.any_key(name), field);
    }
    object.end();
}

fn write_value(json: &mut Vec<u8>, field: &prost_types::Value) {
    match &field.kind {
        None | Some(Kind::NullValue(_)) => value(json, &()),
        Some(Kind::BoolValue(one)) => value(json, one),
        // The attributes of a product are finite; a whole number is written without a fraction.
        Some(Kind::NumberValue(double)) => match whole(*double) {
            Some(whole) => value(json, &whole),
            None => value(json, double),
        },
        Some(Kind::StringValue(text)) => value(json, text),
        Some(Kind::StructValue(fields)) => write_struct(json, fields),
        Some(Kind::ListValue(ListValue { values })) => list(json, values, write_value),
    }
}

/// A double without a fraction, if an integer holds it exactly.
fn whole(double: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is in the range")]
    let whole = double as i64;
    (double.fract() == 0.0
        && double.abs() <= EXACT
        && !(double == 0.0 && double.is_sign_negative()))
    .then_some(whole)
}

fn timestamp(json: &mut Vec<u8>, time: &Timestamp) {
    // RFC 3339, which needs no escapes.
    let _ = write!(json, "\"{time}\"");
}

fn value(json: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    // Numbers, texts and null cannot fail.
    let _ = serde_json::to_writer(json, value);
}

fn list<T>(json: &mut Vec<u8>, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    json.push(b'[');
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            json.push(b',');
        }
        write(json, item);
    }
    json.push(b']');
}

/// Writes an object, a key after the other.
struct Object<'a> {
    json: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Object<'a> {
    fn begin(json: &'a mut Vec<u8>) -> Self {
        json.push(b'{');
        Self { json, is_empty: true }
    }

    /// Begins a member, whose value has to follow. `name` needs no escapes.
    fn key(&mut self, name: &'static str) -> &mut Vec<u8> {
        self.separate();
        self.json.push(b'"');
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
        self.json
    }

    fn any_key(&mut self, name: &str) -> &mut Vec<u8> {
        self.separate();
        value(self.json, name);
        self.json.push(b':');
        self.json
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.is_empty) {
            self.json.push(b',');
        }
    }

    fn end(self) {
        self.json.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::proto::Money;
    use crate::rpc::web::types::{Types, to_value};

    /// Whole numbers as protobuf writes them: 5, where serde's double is 5.0.
    fn normal(value: Value) -> Value {
        match value {
            Value::Number(number) => {
                number.as_f64().and_then(whole).map_or(Value::Number(number), Value::from)
            }
            Value::Array(values) => values.into_iter().map(normal).collect(),
            Value::Object(fields) => {
                fields.into_iter().map(|(name, value)| (name, normal(value))).collect()
            }
            other => other,
        }
    }

    fn text(text: &str) -> prost_types::Value {
        prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn number(double: f64) -> prost_types::Value {
        prost_types::Value { kind: Some(Kind::NumberValue(double)) }
    }

    #[test]
    fn products_are_written_as_protobuf_defines_it() {
        let types = Types::new();
        let odd = "quote \" backslash \\ control \u{1} \u{2028} emoji \u{1F600}";
        let list = ListValue { values: vec![number(-0.5), number(1e300), text(odd)] };
        let fields = [
            (odd.to_owned(), text(odd)),
            ("whole".to_owned(), number(3.0)),
            ("large".to_owned(), number(9_007_199_254_740_992.0)),
            ("null".to_owned(), prost_types::Value { kind: Some(Kind::NullValue(0)) }),
            ("list".to_owned(), prost_types::Value { kind: Some(Kind::ListValue(list)) }),
        ];
        let full = Product {
            id: i64::MAX,
            name: odd.to_owned(),
            price: Some(Money { currency_code: "EUR".to_owned(), units: -3, nanos: -50_000_000 }),
            description: odd.to_owned(),
            version: 7,
            create_time: Some(Timestamp { seconds: -62_135_596_800, nanos: 0 }),
            update_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 123_456_000 }),
            attributes: Some(Struct { fields: fields.into() }),
        };
        let bare = Product { price: Some(Money::default()), ..Product::default() };
        let empty = Product { attributes: Some(Struct::default()), id: 1, ..Product::default() };
        for written in [full, bare, empty] {
            let encoded = written.encode_to_vec();
            let message = types.message("hotshelf.v1.Product").expect("a product");
            let mut expected = to_value(message, &encoded).expect("a product");
            // Every product has an id.
            expected["id"] = written.id.to_string().into();
            let json = product(&encoded, Style::Proto).expect("a product");
            let json: Value = serde_json::from_slice(&json).expect("JSON");
            assert_eq!(normal(json), normal(expected));
            let plain = product(&encoded, Style::Plain).expect("a product");
            let plain: Value = serde_json::from_slice(&plain).expect("JSON");
            assert_eq!(plain.as_object().map(serde_json::Map::len), Some(9));
        }
    }
}
