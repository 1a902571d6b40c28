//! JSON as the command-line tools of gRPC decode it. They do not agree on `google.protobuf.FieldMask`.

use hotshelf::proto::DESCRIPTORS;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage,
};
use serde_json::Value;

const FIELD_MASK: &str = "google.protobuf.FieldMask";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Json {
    /// grpcurl and ghz use golang/protobuf's jsonpb, to which a FieldMask is a message like any other
    /// (<https://github.com/fullstorydev/grpcurl/issues/393>).
    Jsonpb,
    /// buf curl and k6 use the canonical form, in which a FieldMask is a string.
    Canonical,
}

/// The method of a call `SERVICE/METHOD`.
pub fn method(call: &str) -> Result<MethodDescriptor, String> {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let unknown = || format!("{call} is not in the contract");
    let (service, method) = call.split_once('/').ok_or_else(unknown)?;
    let service = pool.get_service_by_name(service).ok_or_else(unknown)?;
    service.methods().find(|known| known.name() == method).ok_or_else(unknown)
}

/// Decodes the request of a call by the rules of a tool, and checks that each path of its mask is a field.
pub fn decode(json: Json, call: &str, request: &str) -> Result<DynamicMessage, String> {
    let input = method(call)?.input();
    let mut value: Value = serde_json::from_str(request).map_err(|error| error.to_string())?;
    if json == Json::Jsonpb {
        to_canonical(&mut value, &input)?;
    }
    let text = value.to_string();
    let mut json = serde_json::Deserializer::from_str(&text);
    let message =
        DynamicMessage::deserialize(input, &mut json).map_err(|error| error.to_string())?;
    for path in mask_of(&message) {
        let product = message.descriptor().get_field_by_name("product").unwrap();
        let known = product.kind().as_message().unwrap().get_field_by_name(&path).is_some();
        if !known && path != "*" {
            return Err(format!("{path} is not a field of a product"));
        }
    }
    Ok(message)
}

fn mask_of(message: &DynamicMessage) -> Vec<String> {
    let Some(mask) = message.get_field_by_name("update_mask") else { return Vec::new() };
    let paths = mask.as_message().unwrap().get_field_by_name("paths").unwrap();
    paths.as_list().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect()
}

/// Rewrites each field mask of jsonpb to the canonical form; `Err` when it is not of jsonpb's form.
fn to_canonical(value: &mut Value, message: &MessageDescriptor) -> Result<(), String> {
    // What is not an object and should be one fails when it is decoded.
    let Some(fields) = value.as_object_mut() else { return Ok(()) };
    for (name, value) in fields {
        let field =
            message.get_field_by_json_name(name).or_else(|| message.get_field_by_name(name));
        let Some(field) = field else { continue };
        let kind = field.kind();
        let Some(of) = kind.as_message() else { continue };
        if of.full_name() == FIELD_MASK {
            let canonical = canonical_mask(value);
            let wrong = || format!("{name} must be {{\"paths\": [...]}} for jsonpb");
            *value = Value::String(canonical.ok_or_else(wrong)?);
        } else if let Some(values) = value.as_array_mut() {
            values.iter_mut().try_for_each(|value| to_canonical(value, of))?;
        } else {
            to_canonical(value, of)?;
        }
    }
    Ok(())
}

/// The canonical form of `{"paths": ["name", "create_time"]}`: `name,createTime`.
fn canonical_mask(value: &Value) -> Option<String> {
    let object = value.as_object()?;
    let paths = object.get("paths").filter(|_| object.len() == 1)?.as_array()?;
    let paths: Option<Vec<String>> = paths.iter().map(|path| path.as_str().map(camel)).collect();
    Some(paths?.join(","))
}

fn camel(path: &str) -> String {
    let mut words = path.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel += &first.to_uppercase();
        camel += rest;
    }
    camel
}

/// Which form of a field mask each decoder accepts: without this, a command that fails in its tool would pass.
pub fn field_masks() {
    const CALL: &str = "hotshelf.v1.ProductService/UpdateProduct";
    let accepts = |json, mask: &str| {
        let request = format!(r#"{{"product": {{"id": 1}}, "update_mask": {mask}}}"#);
        decode(json, CALL, &request).map(|message| mask_of(&message))
    };
    let (object, text) = (r#"{"paths": ["name", "price"]}"#, r#""name,price""#);
    let paths = Ok(vec!["name".to_owned(), "price".to_owned()]);
    assert_eq!(accepts(Json::Jsonpb, object), paths);
    assert_eq!(accepts(Json::Canonical, text), paths);
    assert!(accepts(Json::Jsonpb, text).is_err());
    assert!(accepts(Json::Canonical, object).is_err());
    assert!(accepts(Json::Jsonpb, r#"{"paths": ["colour"]}"#).is_err());
    assert_eq!(
        accepts(Json::Jsonpb, r#"{"paths": ["create_time"]}"#),
        Ok(vec!["create_time".to_owned()])
    );
}
