//! The OpenAPI document, and the descriptors for clients that have neither the proto nor reflection.

use std::path::PathBuf;

use hotshelf::openapi;
use hotshelf::proto::DESCRIPTORS;
use hotshelf::rpc::ServedOn;
use prost_reflect::DescriptorPool;
use serde_json::Value;
use tokio::process::Command;

use crate::examples::install;
use crate::harness::{HANG, Program, Stack, Suite, admin, finish};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

pub fn register(suite: &mut Suite<'_>) {
    suite.plain("openapi::the_file_in_the_tree_is_the_one_of_the_program", in_the_tree);
    suite.single("openapi::the_document_is_served", served);
    suite.plain("openapi::every_method_is_there_with_every_field_of_its_request", complete);
    suite.single_if(
        "openapi::the_descriptors_of_the_program_replace_reflection",
        install::buf,
        descriptors,
    );
}

fn in_the_tree() {
    let same = std::fs::read_to_string(FILE).unwrap() == openapi::document();
    assert!(same, "make it anew: cargo run --locked -- openapi > docs/openapi.json");
}

async fn served(stack: Stack) {
    let node = stack.node().await;
    let answer = admin(node.grpc_addr.port(), "/openapi.json").await;
    assert_eq!(answer, (200, openapi::document()));
}

fn complete() {
    let document: Value = serde_json::from_str(&openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let operations: Vec<&Value> =
        paths.values().flat_map(|path| path.as_object().unwrap().values()).collect();

    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let service = pool.get_service_by_name("hotshelf.v1.ProductService").unwrap();
    for method in service.methods() {
        let is_it = |operation: &&&Value| operation["operationId"] == method.name();
        let operation =
            operations.iter().find(is_it).unwrap_or_else(|| panic!("{}", method.name()));
        let parameters = operation["parameters"].as_array().unwrap();
        for field in method.input().fields() {
            let named = parameters.iter().any(|known| known["name"] == field.json_name());
            // The body of a write.
            let is_body = field.name() == "product" && operation["requestBody"].is_object();
            assert!(named || is_body, "{}: {}", method.name(), field.name());
        }
        assert!(!operation["description"].as_str().unwrap().is_empty(), "{}", method.name());
    }
    assert_eq!(operations.len(), service.methods().len());

    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 50, "{references:?}");
    for reference in references {
        let target = reference.strip_prefix('#').and_then(|path| document.pointer(path));
        assert!(target.is_some_and(Value::is_object), "{reference} leads nowhere");
    }
}

fn collect_references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_references(value, found)),
        _ => {}
    }
}

/// grpcurl reads the same file.
async fn descriptors(stack: Stack, buf: PathBuf) {
    let printed = Program::command(&["descriptors"]).output().await.unwrap();
    let file = tempfile::Builder::new().suffix(".binpb").tempfile().unwrap();
    std::fs::write(&file, &printed.stdout).unwrap();

    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.switches.reflection = ServedOn::Nowhere).await;
    let mut curl = Command::new(buf);
    curl.args(["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--schema"]);
    curl.arg(file.path()).arg("-d").arg(format!(r#"{{"id": "{id}"}}"#));
    let port = node.grpc_addr.port();
    curl.arg(format!("http://127.0.0.1:{port}/hotshelf.v1.ProductService/GetProduct"));
    let answer = finish(&mut curl, HANG).await.unwrap();
    assert!(answer.contains("walnut desk lamp"), "{answer}");

    assert_eq!(Program::run(&["openapi"]).await.stdout, openapi::document());
}
