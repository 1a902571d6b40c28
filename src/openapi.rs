//! The OpenAPI document of JSON over HTTP, made from the descriptors of the proto: paths by the `google.api.http` annotations,
//! schemas by the messages, descriptions by the comments. What HTTP adds (headers, codes of errors) is in [`http`].

mod comments;
mod http;
mod operations;
mod schemas;

use prost_reflect::DescriptorPool;
use serde_json::{Value, json};

use crate::proto::DESCRIPTORS;
use comments::Comments;
use schemas::Schemas;

const SERVICE: &str = "hotshelf.v1.ProductService";

const ABOUT: &str = "\
Products, read at very high rates and never older than promised. The same port speaks gRPC, gRPC-Web and Connect.

The document is generated from `proto/hotshelf/v1/product_service.proto`. Bodies are ProtoJSON: an int64 is a string, and a \
number is accepted, too; a field that has its default value is left out; `min_version` of a description is `minVersion` in JSON, \
and both are accepted.

Every error is a `google.rpc.Status` as JSON, whose `details` have a `google.rpc.ErrorInfo` with a stable reason. A path that \
does not exist is 404, a method that the path does not have is 405 with `Allow`, and headers that are too large are 431.";

/// The document, as JSON with line breaks. It is the same for the same proto, so that a file of it can be compared.
#[must_use]
pub fn document() -> String {
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("build.rs generates valid descriptors");
    let service = pool.get_service_by_name(SERVICE).expect("the proto has it");
    let comments = Comments::of(&pool);
    let mut schemas = Schemas::new(&pool, &comments);
    let paths = operations::paths(&pool, &service, &mut schemas);
    let mut schemas = schemas.into_components();
    schemas.extend(http::status());
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "hotshelf",
            "version": "v1",
            "description": ABOUT,
            "license": { "name": "Apache License 2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{}, { "bearer": [] }, { "clientCertificate": [] }],
        "tags": [{
            "name": service.name(),
            "description": comments.text(service.parent_file().name(), service.path()),
        }],
        "paths": paths,
        "components": {
            "schemas": Value::Object(schemas),
            "headers": http::headers(),
            "parameters": http::parameters(),
            "responses": http::errors(),
            "securitySchemes": http::security_schemes(),
        },
    });
    format!("{document:#}\n")
}
