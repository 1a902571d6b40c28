//! JSON schemas of messages, by the rules of ProtoJSON.

use std::collections::BTreeMap;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, Kind,
    MessageDescriptor, Value as Field,
};
use serde_json::{Map, Value, json};

use super::comments::Comments;

/// What `google.api.field_behavior` says of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Required,
    /// Output only, or the identifier that the server assigns: a value in a request is ignored, or refused.
    Assigned,
    Optional,
}

/// What a message is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Answer,
    /// The body of a request that creates.
    New,
    /// The body of a request that changes: no field is required.
    Patch,
}

impl Use {
    /// `None`: that of the message.
    fn description(self) -> Option<&'static str> {
        match self {
            Self::Answer => None,
            Self::New => Some(
                "A product without what the server assigns. A price that is a number has the currency of all products, if they have one.",
            ),
            Self::Patch => Some(
                "The fields to change; without `updateMask` those that are there, and one that is null is cleared. A price that is a \
                 number keeps the currency of the product.",
            ),
        }
    }
}

/// The schemas that the document refers to, by the names of their messages.
pub(super) struct Schemas<'a> {
    comments: &'a Comments,
    behaviour: ExtensionDescriptor,
    made: BTreeMap<String, Value>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(pool: &DescriptorPool, comments: &'a Comments) -> Self {
        let behaviour = pool.get_extension_by_name("google.api.field_behavior");
        let behaviour = behaviour.expect("the proto imports it");
        Self { comments, behaviour, made: BTreeMap::new() }
    }

    pub(super) fn into_components(self) -> Map<String, Value> {
        self.made.into_iter().collect()
    }

    pub(super) fn comments(&self) -> &'a Comments {
        self.comments
    }

    pub(super) fn description(&self, field: &FieldDescriptor) -> &'a str {
        self.comments.text(field.parent_file().name(), field.path())
    }

    pub(super) fn behaviour(&self, field: &FieldDescriptor) -> Behaviour {
        let options = field.options();
        let values = options.get_extension(&self.behaviour);
        let names = |value: &Field| {
            let number = value.as_enum_number()?;
            let kind = self.behaviour.kind();
            let name = kind.as_enum()?.get_value(number)?.name().to_owned();
            Some(name)
        };
        let values: Vec<String> =
            values.as_list().into_iter().flatten().filter_map(names).collect();
        let has = |name: &str| values.iter().any(|value| value == name);
        match () {
            () if has("REQUIRED") => Behaviour::Required,
            () if has("OUTPUT_ONLY") || has("IDENTIFIER") => Behaviour::Assigned,
            () => Behaviour::Optional,
        }
    }

    /// The type of a field, without its description.
    pub(super) fn of_field(&mut self, field: &FieldDescriptor) -> Value {
        let one = match field.kind() {
            Kind::Message(message) => self.of_message(&message),
            Kind::Enum(values) => self.of_enum(&values),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "format": "byte" }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Double => json!({ "type": "number", "format": "double" }),
            Kind::Float => json!({ "type": "number", "format": "float" }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({ "type": "integer", "format": "int32" })
            }
            Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "format": "uint32" }),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({ "type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$" })
            }
            Kind::Uint64 | Kind::Fixed64 => {
                json!({ "type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$" })
            }
        };
        if field.is_list() { json!({ "type": "array", "items": one }) } else { one }
    }

    pub(super) fn of_message(&mut self, message: &MessageDescriptor) -> Value {
        match message.full_name() {
            "google.protobuf.Timestamp" => json!({ "type": "string", "format": "date-time" }),
            "google.protobuf.Duration" => json!({
                "type": "string",
                "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$",
                "examples": ["0.5s"],
            }),
            "google.protobuf.FieldMask" => json!({ "type": "string", "examples": ["name,price"] }),
            "google.protobuf.Struct" => json!({ "type": "object", "additionalProperties": true }),
            "google.protobuf.Empty" => json!({ "type": "object" }),
            _ => self.named(message.name(), |all| all.object(message, Use::Answer)),
        }
    }

    /// A message as the body of a request. `is_patch`: it changes only what is there.
    pub(super) fn of_body(&mut self, message: &MessageDescriptor, is_patch: bool) -> Value {
        let (name, of) = match is_patch {
            true => (format!("{}Changes", message.name()), Use::Patch),
            false => (format!("New{}", message.name()), Use::New),
        };
        self.named(&name, |all| all.object(message, of))
    }

    fn named(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Value) -> Value {
        if !self.made.contains_key(name) {
            // First, so that a message may contain itself.
            self.made.insert(name.to_owned(), Value::Null);
            let schema = make(self);
            self.made.insert(name.to_owned(), schema);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    fn object(&mut self, message: &MessageDescriptor, of: Use) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in message.fields() {
            let behaviour = self.behaviour(&field);
            if of != Use::Answer && behaviour == Behaviour::Assigned {
                continue;
            }
            let mut schema = self.of_field(&field);
            if of != Use::Answer && is_money(&field) {
                schema = json!({ "anyOf": [schema, { "type": "number" }] });
            }
            describe(&mut schema, self.description(&field));
            if behaviour == Behaviour::Assigned {
                schema["readOnly"] = true.into();
            }
            if of != Use::Patch && behaviour == Behaviour::Required {
                required.push(field.json_name().to_owned());
            }
            properties.insert(field.json_name().to_owned(), schema);
        }
        let mut schema = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        let comment = self.comments.text(message.parent_file().name(), message.path());
        describe(&mut schema, of.description().unwrap_or(comment));
        schema
    }

    fn of_enum(&mut self, values: &EnumDescriptor) -> Value {
        let (comments, file) = (self.comments, values.parent_file());
        self.named(values.name(), |_| {
            let names: Vec<_> = values.values().map(|value| value.name().to_owned()).collect();
            let mut text = comments.text(file.name(), values.path()).to_owned();
            for value in values.values() {
                let meaning = comments.text(file.name(), value.path());
                text += &format!("\n\n- `{}`: {meaning}", value.name());
            }
            json!({ "type": "string", "enum": names, "description": text })
        })
    }
}

fn is_money(field: &FieldDescriptor) -> bool {
    field.kind().as_message().is_some_and(|message| message.full_name() == "google.type.Money")
}

/// Adds a description, if there is one.
pub(super) fn describe(schema: &mut Value, text: &str) {
    if !text.is_empty() {
        schema["description"] = text.into();
    }
}

/// The value of a field of a message of options, `None` if it is not set.
pub(super) fn text(message: &DynamicMessage, field: &str) -> Option<String> {
    message
        .has_field_by_name(field)
        .then(|| message.get_field_by_name(field)?.as_str().map(str::to_owned))?
}
