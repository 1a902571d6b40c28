//! Bounds on the memory that callers can make an instance hold, and the refusals at these bounds.

use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use hotshelf::proto::{BatchGetProductsRequest, UpdateProductRequest};
use http::HeaderMap;
use prost::Message;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Raw, Stack, Suite, channel, eventually, framed, get};
use crate::hostile::frames::{DATA, END_HEADERS, HEADERS, SETTINGS, Socket, frame, headers};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const UPDATE: &str = "/hotshelf.v1.ProductService/UpdateProduct";
const INCOMPLETE: &str = "hotshelf_incomplete_request_bytes";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("callers::requests_without_an_end_take_no_place_of_a_call", heads);
    suite.single("callers::bodies_without_an_end_are_bounded_and_end", bodies);
    suite.single("callers::streams_of_all_services_are_bounded", streams);
    suite.single("callers::a_gzip_request_is_read_and_a_bomb_is_refused", gzip);
    suite.single("callers::a_gzip_request_is_read_only_when_the_call_has_a_place", gzip_placed);
    suite.single("callers::an_answer_above_the_callers_limit_is_refused", too_large);
}

fn assert_refused(status: &Status, code: Code, reason: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert_eq!(status.get_error_details().error_info().unwrap().reason, reason);
}

/// A connection with this many incomplete requests.
async fn begun(port: u16, path: &str, requests: u32, part: &[u8]) -> Socket {
    let mut socket = Socket::greeted(port, &frame(SETTINGS, 0, 0, &[])).await.unwrap();
    for number in 0..requests {
        let stream = 2 * number + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &headers("POST", path));
        if !part.is_empty() {
            bytes.extend(frame(DATA, 0, stream, part));
        }
        assert!(socket.send_within(HANG, &bytes).await);
    }
    socket
}

async fn heads(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.max_calls = 10).await;
    node.product(id).await;
    let mut crowd = Vec::new();
    for path in [GET, BATCH, UPDATE] {
        crowd.push(begun(node.grpc_addr.port(), path, 200, &[]).await);
    }
    let held = async || node.metric(INCOMPLETE).await;
    eventually("all have begun", async || held().await >= 600.0 * 4_096.0).await;
    assert_eq!(node.metric("hotshelf_calls_in_flight").await, 0.0);
    node.product(id).await;
    drop(crowd);
    eventually("all bytes are released", async || held().await == 0.0).await;
}

async fn bodies(stack: Stack) {
    const LIMIT: usize = 1 << 20;
    /// All of a connection's parts fit into the initial flow-control window.
    const PART: usize = 1_500;
    let id = stack.insert("walnut desk lamp").await;
    let node = stack
        .node_with(|args| {
            args.serving.max_request_bytes = LIMIT / 16;
            args.serving.edge.max_incomplete_request_bytes = LIMIT;
            args.serving.max_call_time = std::time::Duration::from_secs(3);
        })
        .await;
    let mut part = vec![0, 0, 0, 128, 0];
    part.resize(PART, 7);
    let mut crowd = Vec::new();
    for path in [GET, BATCH, UPDATE].repeat(4) {
        crowd.push(begun(node.grpc_addr.port(), path, 40, &part).await);
        let held = node.metric(INCOMPLETE).await;
        assert!(held <= LIMIT as f64, "{held}");
        node.product(id).await;
    }
    let refused = r#"hotshelf_shed_total{reason="request_bytes"}"#;
    // More than twice the limit was sent.
    eventually("most are refused", async || node.metric(refused).await > 100.0).await;
    let connections = node.metric("hotshelf_connections").await;
    assert!(connections > 12.0, "none was closed for it: {connections}");
    eventually("the others end", async || node.metric(INCOMPLETE).await == 0.0).await;
    drop(crowd);
}

async fn watch(client: &mut HealthClient<tonic::transport::Channel>) -> Result<Watch, Status> {
    Ok(client.watch(HealthCheckRequest::default()).await?.into_inner())
}

type Watch = tonic::Streaming<tonic_health::pb::HealthCheckResponse>;

async fn streams(stack: Stack) {
    let node = stack.node_with(|args| args.serving.edge.max_streams = 64).await;
    let mut client = HealthClient::new(node.channel.clone());
    let mut open = Vec::new();
    let refused = loop {
        match watch(&mut client).await {
            Ok(stream) => open.push(stream),
            Err(refused) => break refused,
        }
        assert!(open.len() < 64, "one connection has them all");
    };
    assert_refused(&refused, Code::ResourceExhausted, "TOO_MANY_STREAMS");
    assert_eq!(node.metric("hotshelf_streams").await, open.len() as f64);
    assert_eq!(node.metric(r#"hotshelf_shed_total{reason="streams"}"#).await, 1.0);
    let mut other = HealthClient::new(channel(node.grpc_addr.port()).await);
    other.check(HealthCheckRequest::default()).await.unwrap();
    // Health checks pass when other connections hold all streams.
    let mut crowd = Vec::new();
    loop {
        let mut another = HealthClient::new(channel(node.grpc_addr.port()).await);
        let Ok(first) = watch(&mut another).await else { break };
        open.push(first);
        while let Ok(stream) = watch(&mut another).await {
            open.push(stream);
        }
        crowd.push(another);
    }
    other.check(HealthCheckRequest::default()).await.unwrap();
    drop((open, crowd));
    eventually("their streams have ended", async || node.metric("hotshelf_streams").await == 0.0)
        .await;
    watch(&mut client).await.unwrap();
}

fn gzipped(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(message).unwrap();
    let compressed = encoder.finish().unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(1);
    frame.put_u32(u32::try_from(compressed.len()).unwrap());
    frame.put_slice(&compressed);
    frame.freeze()
}

async fn gzip(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let call = async |path, encoding: &'static str, body: Bytes| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", encoding.parse().unwrap());
        raw.call_with(path, headers, body).await.unwrap()
    };
    let batch = BatchGetProductsRequest { ids: vec![id], ..Default::default() };
    let update = UpdateProductRequest { product: None, ..Default::default() };
    let requests = [(GET, get(id).encode_to_vec()), (BATCH, batch.encode_to_vec())];
    for (path, message) in requests {
        assert_eq!(call(path, "gzip", gzipped(&message)).await.code(), Code::Ok, "{path}");
        // With `grpc-encoding: gzip`, each message may still be uncompressed.
        assert_eq!(call(path, "gzip", framed(&message)).await.code(), Code::Ok, "{path}");
    }
    let read = call(UPDATE, "gzip", gzipped(&update.encode_to_vec())).await;
    assert_refused(&read, Code::InvalidArgument, "INVALID_FIELD");
    let bomb = gzipped(&vec![0; 64 << 20]);
    for path in [GET, BATCH, UPDATE] {
        let refused = call(path, "gzip", bomb.clone()).await;
        assert_refused(&refused, Code::ResourceExhausted, "REQUEST_TOO_LARGE");
        let broken = Bytes::from_static(&[1, 0, 0, 0, 2, 31, 139]);
        let refused = call(path, "gzip", broken.clone()).await;
        assert_refused(&refused, Code::InvalidArgument, "MALFORMED_REQUEST");
        let unnamed = call(path, "identity", broken.clone()).await;
        assert_refused(&unnamed, Code::InvalidArgument, "MALFORMED_REQUEST");
        let unknown = call(path, "snappy", broken).await;
        assert_refused(&unknown, Code::Unimplemented, "UNKNOWN_ENCODING");
        let accepted = unknown.metadata().get("grpc-accept-encoding").unwrap();
        assert_eq!(accepted, "identity,gzip");
    }
}

/// A request is decompressed, at the cost of the server, only when its call has a place.
async fn gzip_placed(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.max_calls = 1).await;
    let lock = stack.lock_products().await;
    let mut client = node.client.clone();
    let held = tokio::spawn(async move { client.get_product(get(id)).await });
    eventually("it has the only place", async || {
        node.metric("hotshelf_calls_in_flight").await == 1.0
    })
    .await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let headers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-encoding"),
        http::HeaderValue::from_static("gzip"),
    )]);
    let bomb = gzipped(&vec![0; 64 << 20]);
    for path in [GET, BATCH, UPDATE] {
        let refused = raw.call_with(path, headers.clone(), bomb.clone()).await.unwrap();
        assert_refused(&refused, Code::ResourceExhausted, "TOO_MANY_REQUESTS");
    }
    lock.rollback().await.unwrap();
    held.await.unwrap().unwrap();
}

async fn described(stack: &Stack, products: i32, bytes: i32) -> Vec<i64> {
    let insert = "INSERT INTO products (name, price, description)
        SELECT 'lamp', 9.99, repeat('x', $2) FROM generate_series(1, $1) RETURNING id";
    sqlx::query_scalar(insert).bind(products).bind(bytes).fetch_all(&stack.sql).await.unwrap()
}

async fn reads(node: &Node) -> f64 {
    node.metric(r#"hotshelf_reads_total{served_by="hot"}"#).await
}

async fn too_large(stack: Stack) {
    // Memory holds the first kind; the second is too large for memory.
    let (held, large) = (described(&stack, 300, 15_000).await, described(&stack, 75, 60_000).await);
    let node = stack.node().await;
    let mut client = node.client.clone().max_decoding_message_size(8 << 20);
    let batch = |ids: &[i64], most| BatchGetProductsRequest {
        ids: ids.to_vec(),
        max_response_bytes: most,
        ..Default::default()
    };
    for ids in held.chunks(100) {
        client.batch_get_products(batch(ids, 0)).await.unwrap();
    }
    let kept = async || {
        let before = reads(&node).await;
        client.clone().batch_get_products(batch(&held, 8 << 20)).await.unwrap();
        reads(&node).await - before == 300.0
    };
    eventually("memory holds them", kept).await;
    let before = reads(&node).await;
    let refused = client.batch_get_products(batch(&held, 0)).await.unwrap_err();
    assert_refused(&refused, Code::ResourceExhausted, "RESPONSE_TOO_LARGE");
    assert_eq!(reads(&node).await, before, "memory was not read");

    let refused = client.batch_get_products(batch(&large, 0)).await.unwrap_err();
    assert_refused(&refused, Code::ResourceExhausted, "RESPONSE_TOO_LARGE");
    let answer = client.batch_get_products(batch(&large, 8 << 20)).await.unwrap().into_inner();
    assert_eq!(answer.products.len(), large.len());
    let refused = client.batch_get_products(batch(&large[..2], 100_000)).await.unwrap_err();
    assert_refused(&refused, Code::ResourceExhausted, "RESPONSE_TOO_LARGE");
    let refused = client.batch_get_products(batch(&large[..2], -1)).await.unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "INVALID_FIELD");
}
