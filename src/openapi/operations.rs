//! The paths: one operation for each method that has a `google.api.http` annotation.

use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, ServiceDescriptor};
use serde_json::{Map, Value, json};

use super::comments::summary;
use super::http::{self, Carries};
use super::schemas::{Behaviour, Schemas, describe, text};

const VERBS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// A `google.api.HttpRule`.
struct Rule {
    verb: &'static str,
    /// Such as `/v1/products/{product.id}`.
    path: String,
    /// The field that is the body. Empty: there is no body.
    body: String,
}

pub(super) fn paths(
    pool: &DescriptorPool,
    service: &ServiceDescriptor,
    schemas: &mut Schemas<'_>,
) -> Value {
    let annotation = pool.get_extension_by_name("google.api.http").expect("the proto imports it");
    let mut paths = Map::new();
    for method in service.methods() {
        let options = method.options();
        let value = options.get_extension(&annotation);
        let Some(rule) = value.as_message().and_then(Rule::of) else { continue };
        let operation = operation(service, &method, &rule, schemas);
        let path = paths.entry(rule.template()).or_insert_with(|| json!({}));
        path[rule.verb] = operation;
    }
    Value::Object(paths)
}

impl Rule {
    fn of(annotation: &DynamicMessage) -> Option<Self> {
        let of_verb = |verb: &'static str| Some((verb, text(annotation, verb)?));
        let (verb, path) = VERBS.into_iter().find_map(of_verb)?;
        Some(Self { verb, path, body: text(annotation, "body").unwrap_or_default() })
    }

    /// The fields that are in the path.
    fn variables(&self) -> impl Iterator<Item = &str> {
        self.path.split('{').skip(1).filter_map(|rest| rest.split('}').next())
    }

    /// The path with short names: paths that differ in the names of their variables only are the same one to OpenAPI.
    fn template(&self) -> String {
        let shorten = |path: String, name: &str| {
            path.replace(&format!("{{{name}}}"), &format!("{{{}}}", short(name)))
        };
        self.variables().fold(self.path.clone(), shorten)
    }
}

fn short(variable: &str) -> &str {
    variable.rsplit('.').next().unwrap_or(variable)
}

fn operation(
    service: &ServiceDescriptor,
    method: &MethodDescriptor,
    rule: &Rule,
    schemas: &mut Schemas<'_>,
) -> Value {
    let description = schemas.comments().text(method.parent_file().name(), method.path());
    let carries = Carries::of(method, rule.verb, !rule.body.is_empty());
    let mut operation = json!({
        "operationId": method.name(),
        "tags": [service.name()],
        "summary": summary(description),
        "description": description,
        "parameters": parameters(method, rule, &carries, schemas),
        "responses": responses(method, &carries, schemas),
    });
    if let Some(body) = method.input().get_field_by_name(&rule.body) {
        let is_patch = rule.verb == "patch";
        let schema = match body.kind().as_message() {
            Some(message) => schemas.of_body(message, is_patch),
            None => schemas.of_field(&body),
        };
        let mut content = json!({ "application/json": { "schema": schema } });
        if is_patch {
            content["application/merge-patch+json"] = json!({ "schema": schema });
        }
        operation["requestBody"] = json!({
            "required": true,
            "description": schemas.description(&body),
            "content": content,
        });
    }
    operation
}

fn parameters(
    method: &MethodDescriptor,
    rule: &Rule,
    carries: &Carries,
    schemas: &mut Schemas<'_>,
) -> Vec<Value> {
    let input = method.input();
    let mut parameters = Vec::new();
    for variable in rule.variables() {
        let mut names = variable.split('.');
        let first = names.next().and_then(|name| input.get_field_by_name(name));
        let field = names.fold(first, |field, name| {
            field?.kind().as_message().and_then(|message| message.get_field_by_name(name))
        });
        let field = field.expect("a path names fields of the request");
        let schema = schemas.of_field(&field);
        let mut parameter =
            json!({ "name": short(variable), "in": "path", "required": true, "schema": schema });
        describe(&mut parameter, schemas.description(&field));
        parameters.push(parameter);
    }
    let in_path = |name: &str| rule.variables().any(|variable| variable == name);
    for field in input.fields() {
        if field.name() == rule.body || in_path(field.name()) {
            continue;
        }
        let schema = schemas.of_field(&field);
        let mut parameter = json!({ "name": field.json_name(), "in": "query", "schema": schema });
        describe(&mut parameter, schemas.description(&field));
        if schemas.behaviour(&field) == Behaviour::Required {
            parameter["required"] = true.into();
        }
        parameters.push(parameter);
    }
    let header = |name: &&str| json!({ "$ref": format!("#/components/parameters/{name}") });
    parameters.extend(carries.request_headers().iter().map(header));
    parameters
}

fn responses(method: &MethodDescriptor, carries: &Carries, schemas: &mut Schemas<'_>) -> Value {
    let output = method.output();
    let schema = schemas.of_message(&output);
    let (description, content_type) = match method.is_server_streaming() {
        true => (
            format!("Events, each with the JSON of a {} as its `data`.", output.name()),
            "text/event-stream",
        ),
        false => ("The answer.".to_owned(), "application/json"),
    };
    let content = json!({ content_type: { "schema": schema } });
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({
            "description": description,
            "headers": http::header_references(carries.response_headers()),
            "content": content,
        }),
    );
    for (code, name) in carries.errors() {
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        responses.insert(code.to_string(), reference);
    }
    Value::Object(responses)
}
