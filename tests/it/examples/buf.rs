//! `buf curl`: a gRPC client without hotshelf's proto, which uses reflection.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use hotshelf::rpc::ServedOn;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::install;
use crate::harness::{HANG, Node, Stack, Suite, eventually, finish};

pub fn register(suite: &mut Suite<'_>) {
    suite.single_if(
        "examples::buf_curl_creates_reads_updates_and_deletes_by_reflection",
        install::buf,
        unary_calls,
    );
    suite.single_if(
        "examples::answers_come_from_postgres_then_redis_then_memory",
        install::buf,
        three_tiers,
    );
    suite.single_if(
        "examples::buf_curl_reads_in_each_protocol_by_its_own_reflection",
        install::buf,
        protocols,
    );
    suite.single_if("examples::buf_curl_watches_hot_keys", install::buf, hot_keys);
    suite.single_if(
        "examples::buf_curl_explains_a_product_through_the_admin_port",
        install::buf,
        explained,
    );
}

/// `buf curl` as in the README.
fn curl(buf: &Path, node: &Node, method: &str, request: &str) -> Command {
    let method = format!("ProductService/{method}");
    curl_at(buf, node.grpc_addr.port(), "grpc", &method, request)
}

fn curl_at(buf: &Path, port: u16, protocol: &str, method: &str, request: &str) -> Command {
    let mut command = Command::new(buf);
    command.args(["curl", "-v", "--protocol", protocol, "--http2-prior-knowledge", "-d", request]);
    command.arg(format!("http://127.0.0.1:{port}/hotshelf.v1.{method}"));
    command
}

/// Reflection is a stream in both directions, also in Connect and gRPC-Web.
async fn protocols(stack: Stack, buf: PathBuf) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let request = format!(r#"{{"id": "{id}"}}"#);
    for protocol in ["grpc", "grpcweb", "connect"] {
        let port = node.grpc_addr.port();
        let mut curl = curl_at(&buf, port, protocol, "ProductService/GetProduct", &request);
        let printed =
            finish(&mut curl, HANG).await.unwrap_or_else(|why| panic!("{protocol}: {why}"));
        assert!(printed.contains("walnut desk lamp"), "{protocol}: {printed}");
    }
}

/// AdminService and reflection on the admin port, next to `/metrics`.
async fn explained(stack: Stack, buf: PathBuf) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.switches.admin_service = ServedOn::AdminPort).await;
    node.product(id).await;
    let request = format!(r#"{{"id": "{id}"}}"#);
    let explain = |port| curl_at(&buf, port, "grpc", "AdminService/ExplainProduct", &request);
    let printed = finish(&mut explain(node.admin_addr.port()), HANG).await.unwrap();
    assert!(printed.contains("TIER_HOT"), "{printed}");
    finish(&mut explain(node.grpc_addr.port()), HANG).await.unwrap_err();
    assert_eq!(node.admin("/metrics").await.0, 200);
}

/// The headers, the response as JSON without spaces, and the trailers of a call; `Err` when it failed.
async fn call(buf: &Path, node: &Node, method: &str, request: &str) -> Result<String, String> {
    let dense = |printed: String| printed.replace([' ', '\n'], "");
    finish(&mut curl(buf, node, method, request), HANG).await.map(dense).map_err(dense)
}

async fn unary_calls(stack: Stack, buf: PathBuf) {
    let node = stack.node().await;
    let call = async |method, request: &str| call(&buf, &node, method, request).await;

    let product =
        r#"{"product": {"name": "teapot", "price": {"currencyCode": "EUR", "units": "24"}}}"#;
    let created = call("CreateProduct", product).await.unwrap();
    let (id, version) = (number(&created, "id"), number(&created, "version"));

    let got = call("GetProduct", &format!(r#"{{"id": "{id}"}}"#)).await.unwrap();
    assert!(got.contains(r#""name":"teapot""#), "{got}");

    let batch = call("BatchGetProducts", &format!(r#"{{"ids": ["{id}", "999"]}}"#)).await.unwrap();
    assert!(batch.contains(r#""notFoundIds":["999"]"#), "{batch}");
    assert_eq!(number(&batch, "version"), version);

    let update = format!(
        r#"{{"product": {{"id": "{id}", "name": "kettle"}}, "updateMask": "name", "expectedVersion": "{version}"}}"#
    );
    let updated = call("UpdateProduct", &update).await.unwrap();
    assert!(number(&updated, "version") > version, "{updated}");
    let refused = call("UpdateProduct", &update).await.unwrap_err();
    assert!(refused.contains(r#""code":"aborted""#), "{refused}");
    assert!(refused.contains(r#""type":"google.rpc.ErrorInfo""#), "{refused}");

    call("DeleteProduct", &format!(r#"{{"id": "{id}"}}"#)).await.unwrap();
    let gone = call("GetProduct", &format!(r#"{{"id": "{id}"}}"#)).await.unwrap_err();
    assert!(gone.contains(r#""code":"not_found""#), "{gone}");
}

async fn three_tiers(stack: Stack, buf: PathBuf) {
    let id = stack.insert("walnut desk lamp").await;
    let request = format!(r#"{{"id": "{id}"}}"#);
    let answered_by = async |node: &Node| {
        let printed = call(&buf, node, "GetProduct", &request).await.unwrap().to_lowercase();
        let (_, rest) = printed.split_once("cache-status:hotshelf;").expect(&printed);
        rest.split("buf:").next().unwrap().to_owned()
    };
    let first = stack.node().await;
    assert_eq!(answered_by(&first).await, "fwd=miss;detail=postgres");
    // With refresh on, a new instance would load it into memory at its start.
    let ranked = async || !first.catalog.fleet_hot_keys(1).await.keys.is_empty();
    eventually("the fleet's ranking has it", ranked).await;
    let second = stack.node_with(|args| args.caching.refresh_keys = 0).await;
    assert_eq!(answered_by(&second).await, "hit;detail=redis");
    assert_eq!(answered_by(&second).await, "hit;detail=hot");
}

async fn hot_keys(stack: Stack, buf: PathBuf) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let mut command = curl(&buf, &node, "StreamHotKeys", r#"{"interval": "0.1s"}"#);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut watcher = command.kill_on_drop(true).spawn().unwrap();
    let mut snapshots = BufReader::new(watcher.stdout.take().unwrap()).lines();
    let seen = async {
        while let Some(line) = snapshots.next_line().await.unwrap() {
            node.product(id).await;
            if line.replace(' ', "").contains(&format!(r#""productId":"{id}""#)) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(HANG, seen).await.expect("a snapshot has it"));
}

/// The first value of `field`, an int64, which JSON has as text.
fn number(json: &str, field: &str) -> i64 {
    let (_, rest) = json.split_once(&format!(r#""{field}":""#)).expect(json);
    rest.split('"').next().unwrap().parse().expect(json)
}
