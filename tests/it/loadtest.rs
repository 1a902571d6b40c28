//! The load tests for operators: the k6 script runs for a few seconds, and the configurations of ghz, which is not
//! installed, are compared with the contract by the rules of ghz' own decoder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::docs::tools::{self, Json};
use crate::examples::install;
use crate::harness::{HANG, Stack, Suite, finish};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub fn register(suite: &mut Suite<'_>) {
    suite.alone(|suite| {
        suite.single_if("loadtest::k6_finds_every_answer_right", install::k6, k6);
        suite.single_if("loadtest::k6_finds_every_answer_of_http_right", install::k6, k6_http);
    });
    suite.single_if("loadtest::k6_fails_without_the_products", install::k6, k6_without_products);
    suite.plain("loadtest::ghz_calls_what_the_contract_has", ghz);
    suite.plain("loadtest::k6_gets_field_masks_in_the_canonical_form", k6_field_masks);
}

const PRODUCTS: i32 = 200;

/// `k6 run` as in the directory's README, but shorter, and the file of its summary.
fn run(k6: &Path, script: &str, address: &str) -> (Command, tempfile::NamedTempFile) {
    let summary = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(k6);
    command.args(["run", "--quiet", "--no-color", "--no-usage-report", "--summary-export"]);
    command.arg(summary.path());
    let products = PRODUCTS.to_string();
    let load = [("PRODUCTS", &*products), ("RATE", "100"), ("RAMP", "1s"), ("DURATION", "3s")];
    // Thresholds that a busy machine does not miss.
    let target = [("ADDRESS", address), ("P99_MS", "10000"), ("DROPPED", "1000")];
    for (name, value) in load.into_iter().chain(target) {
        command.arg("-e").arg(format!("{name}={value}"));
    }
    command.arg(Path::new(ROOT).join("loadtest").join(script));
    (command, summary)
}

async fn k6(stack: Stack, k6: PathBuf) {
    finds_every_answer_right(&stack, &k6, "products.js").await;
}

async fn k6_http(stack: Stack, k6: PathBuf) {
    let metrics = finds_every_answer_right(&stack, &k6, "products_http.js").await;
    assert_eq!(metrics["http_req_failed"]["value"], 0, "{metrics}");
}

/// Runs a script, and returns its metrics.
async fn finds_every_answer_right(stack: &Stack, k6: &Path, script: &str) -> Value {
    let insert =
        "INSERT INTO products (name, price) SELECT 'lamp', 9.99 FROM generate_series(1, $1)";
    sqlx::query(insert).bind(PRODUCTS).execute(&stack.sql).await.unwrap();
    let node = stack.node().await;
    let (mut command, summary) = run(k6, script, &node.grpc_addr.to_string());
    finish(&mut command, HANG * 2).await.unwrap_or_else(|printed| panic!("{printed}"));

    let summary: Value = serde_json::from_reader(summary.reopen().unwrap()).unwrap();
    let metrics = &summary["metrics"];
    assert_eq!(metrics["checks"]["fails"], 0, "{metrics}");
    // Three checks per GetProduct; 100 calls per second for three seconds, and half as many in the ramp.
    assert!(metrics["checks"]["passes"].as_u64().unwrap() > 100, "{metrics}");
    let thresholds = metrics.as_object().unwrap().values().filter_map(|of| of.get("thresholds"));
    let missed: Vec<_> = thresholds.flat_map(|of| of.as_object().unwrap()).collect();
    assert!(missed.len() >= 3 && missed.iter().all(|(_, missed)| **missed == false), "{missed:?}");
    for method in ["GetProduct", "BatchGetProducts", "UpdateProduct"] {
        let series = format!(
            r#"grpc_server_handled_total{{grpc_code="OK",grpc_method="{method}",grpc_service="hotshelf.v1.ProductService",grpc_type="unary"}}"#
        );
        assert!(node.metric(&series).await > 0.0, "{method} was called");
    }
    metrics.clone()
}

async fn k6_without_products(stack: Stack, k6: PathBuf) {
    let node = stack.node().await;
    for script in ["products.js", "products_http.js"] {
        let (mut command, _summary) = run(&k6, script, &node.grpc_addr.to_string());
        let printed = finish(&mut command, HANG * 2).await.unwrap_err();
        assert!(printed.contains("product 200 cannot be read"), "{script}: {printed}");
    }
}

/// The options of ghz: the names in its `runner.Config`. It ignores others silently.
const GHZ_OPTIONS: [&str; 24] = [
    "async",
    "call",
    "concurrency",
    "connect-timeout",
    "connections",
    "cpus",
    "data",
    "duration",
    "duration-stop",
    "host",
    "import-paths",
    "insecure",
    "keepalive",
    "load-end",
    "load-schedule",
    "load-start",
    "load-step",
    "load-step-duration",
    "max-duration",
    "name",
    "proto",
    "rps",
    "timeout",
    "total",
];

fn ghz() {
    let mut called = BTreeSet::new();
    for file in std::fs::read_dir(Path::new(ROOT).join("loadtest")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "json") {
            let config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            called.insert(check(&file.display().to_string(), &config));
        }
    }
    let expected = ["BatchGetProducts", "GetProduct", "UpdateProduct"].map(str::to_owned);
    assert_eq!(called, BTreeSet::from(expected));
}

/// Checks a configuration of ghz, and returns the method that it calls.
fn check(file: &str, config: &Value) -> String {
    for option in config.as_object().unwrap().keys() {
        assert!(GHZ_OPTIONS.contains(&&**option), "{file}: ghz has no option {option}");
    }
    let text = |option: &str| config[option].as_str().unwrap_or_else(|| panic!("{file}: {option}"));
    let proto = Path::new(ROOT).join(text("proto"));
    assert!(proto.is_file(), "{file}: {}", proto.display());
    for path in config["import-paths"].as_array().unwrap() {
        let path = Path::new(ROOT).join(path.as_str().unwrap());
        assert!(path.is_dir(), "{file}: {}", path.display());
        assert!(proto.starts_with(path), "{file}: the proto is found there by its own name");
    }
    for option in ["duration", "timeout"] {
        humantime::parse_duration(text(option)).unwrap();
    }
    assert!(["close", "wait", "ignore"].contains(&text("duration-stop")), "{file}");
    let call = text("call");
    for end in [first_of, last_of] {
        let data = filled_in(&config["data"].to_string(), end);
        let message = tools::decode(Json::Jsonpb, call, &data);
        message.unwrap_or_else(|error| panic!("{file}: {error}: {data}"));
    }
    tools::method(call).unwrap().name().to_owned()
}

/// The run of the script shows the same; this shows it where k6 cannot be installed.
fn k6_field_masks() {
    let script = include_str!("../../loadtest/products.js");
    let fields = ["updateMask:", "update_mask:"];
    let masks = fields.iter().flat_map(|field| script.split(field).skip(1));
    let masks: Vec<&str> = masks.map(|rest| rest.trim_start()).collect();
    assert!(!masks.is_empty());
    for mask in masks {
        let path = mask.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
        let path = path.unwrap_or_else(|| panic!("k6 takes a field mask as a string: {mask}"));
        let request = json!({ "product": { "id": 1 }, "updateMask": path }).to_string();
        let call = "hotshelf.v1.ProductService/UpdateProduct";
        tools::decode(Json::Canonical, call, &request)
            .unwrap_or_else(|why| panic!("{path}: {why}"));
    }
}

fn first_of(from: i64, _to: i64) -> i64 {
    from
}

fn last_of(_from: i64, to: i64) -> i64 {
    to
}

/// The data as ghz sends it, with one end of each range for `{{randomInt FROM TO}}`.
fn filled_in(data: &str, end: fn(i64, i64) -> i64) -> String {
    let mut parts = data.split("{{");
    let mut filled = parts.next().unwrap().to_owned();
    for part in parts {
        let (expression, rest) = part.split_once("}}").expect("a template has an end");
        let numbers = expression.strip_prefix("randomInt ").expect("no other function is used");
        let (from, to) = numbers.split_once(' ').unwrap();
        let (from, to): (i64, i64) = (from.parse().unwrap(), to.parse().unwrap());
        assert!(from < to, "{expression}");
        filled += &end(from, to).to_string();
        filled += rest;
    }
    filled
}
