//! Requests that no generated client sends: each gets an error, and the connection stays open.

use std::time::Duration;

use bytes::Bytes;
use hotshelf::config::ServeArgs;
use hotshelf::proto::{CreateProductRequest, DeleteProductRequest, Money, Product};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{HANG, Raw, Stack, Suite, eventually, framed, get};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const CREATE: &str = "/hotshelf.v1.ProductService/CreateProduct";
const DELETE: &str = "/hotshelf.v1.ProductService/DeleteProduct";
const STREAM: &str = "/hotshelf.v1.ProductService/StreamHotKeys";
const EXPLAIN: &str = "/hotshelf.v1.AdminService/ExplainProduct";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("wire::an_oversized_request_is_refused_with_its_reason", oversized);
    suite.single("wire::an_unknown_method_or_service_is_unimplemented", unknown);
    suite.single("wire::garbage_for_a_request_is_malformed_in_every_method", garbage);
    suite.single("wire::what_is_not_grpc_changes_nothing", other_protocols);
    suite.single("wire::what_is_not_http_is_closed_and_other_connections_are_served", not_http);
}

fn described(description: String) -> CreateProductRequest {
    let price = Money { currency_code: "USD".to_owned(), units: 3, nanos: 0 };
    let name = "oak shelf".to_owned();
    let product = Product { name, price: Some(price), description, ..Product::default() };
    CreateProductRequest { product: Some(product) }
}

async fn oversized(stack: Stack) {
    let node = stack.node().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let refused = raw.call(CREATE, &described("x".repeat(300_000))).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let details = refused.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), ("REQUEST_TOO_LARGE", "hotshelf"));
    assert!(details.retry_info().is_none(), "the same call always fails");
    let series = concat!(
        r#"grpc_server_handled_total{grpc_code="ResourceExhausted",grpc_method="CreateProduct","#,
        r#"grpc_service="hotshelf.v1.ProductService",grpc_type="unary"}"#
    );
    eventually("it is counted", async || node.metric(series).await == 1.0).await;
    let largest = raw.call(CREATE, &described("x".repeat(64 * 1024))).await;
    assert_eq!(largest.code(), Code::Ok, "the largest product fits: {largest}");
}

async fn unknown(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let paths = [
        "/hotshelf.v1.ProductService/ListProducts",
        "/hotshelf.v1.ProductService/getproduct",
        "/hotshelf.v2.ProductService/GetProduct",
        "/GetProduct",
        "/",
    ];
    for path in paths {
        let answer = raw.call(path, &get(id)).await;
        assert_eq!(answer.code(), Code::Unimplemented, "{path}");
        assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok, "the next call");
    }
    let series = concat!(
        r#"grpc_server_handled_total{grpc_code="Unimplemented",grpc_method="unknown","#,
        r#"grpc_service="unknown",grpc_type="unknown"}"#
    );
    eventually("they are counted", async || node.metric(series).await == 5.0).await;
    let (_, exposition) = node.admin("/metrics").await;
    assert!(!exposition.contains("ListProducts"), "a caller cannot make up a label");
}

async fn garbage(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let bodies: [(&str, Bytes); 8] = [
        ("nothing", Bytes::new()),
        ("half a head", Bytes::from_static(&[0, 0, 0])),
        ("less than announced", Bytes::from_static(&[0, 0, 0, 0, 9, 8])),
        ("more than announced", Bytes::from_static(&[0, 0, 0, 0, 0, 8])),
        ("an unknown compression flag", Bytes::from_static(&[7, 0, 0, 0, 0])),
        ("compressed, with no encoding named", Bytes::from_static(&[1, 0, 0, 0, 1, 0])),
        ("no protobuf", framed(&[0xff; 64])),
        ("a name that is not UTF-8", framed(&[0x0a, 0x04, 0x12, 0x02, 0xff, 0xfe])),
    ];
    for (what, body) in bodies {
        for path in [GET, BATCH, CREATE, EXPLAIN, STREAM, CHECK, WATCH] {
            let answer = raw.call_with(path, HeaderMap::new(), body.clone()).await.unwrap();
            assert_malformed(&answer, &format!("{path}: {what}"));
            assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok, "after {what}");
        }
    }
    let four_gib = Bytes::from_static(&[0, 255, 255, 255, 255]);
    for path in [GET, CREATE] {
        let answer = raw.call_with(path, HeaderMap::new(), four_gib.clone()).await.unwrap();
        assert_eq!(answer.code(), Code::ResourceExhausted, "{answer}");
    }
    for deadline in ["20s", "soon", "123456789S"] {
        let answer = raw.call_within(deadline, GET, &get(id)).await;
        assert_malformed(&answer, &format!("grpc-timeout {deadline}"));
    }
}

fn assert_malformed(status: &Status, what: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), ("MALFORMED_REQUEST", "hotshelf"), "{what}");
}

async fn other_protocols(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let request = framed(&DeleteProductRequest { id, ..Default::default() }.encode_to_vec());
    let send = async |method, path, content_type: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        headers.extend(content_type.map(|value| (CONTENT_TYPE, HeaderValue::from_static(value))));
        headers.insert("origin", HeaderValue::from_static("https://evil.example"));
        raw.http(method, path, headers, request.clone()).await
    };
    // The content types that a web page can send to any address: these three, or none.
    let simple = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];
    let unknown = ["application/xml", "application/connect+json"];
    let names = simple.into_iter().chain(unknown).map(Some).chain([None]);
    for name in names {
        for path in [DELETE, GET, CHECK, EXPLAIN] {
            let status = send(Method::POST, path, name).await;
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path} {name:?}");
        }
    }
    // Those that it can send only after a preflight, should its browser not ask.
    for name in ["application/json", "application/proto", "application/grpc-web"] {
        let status = send(Method::POST, DELETE, Some(name)).await;
        let expected = if name == "application/grpc-web" { 200 } else { 403 };
        assert_eq!(status, expected, "{name}");
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let status = send(method.clone(), DELETE, Some("application/grpc")).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert_eq!(node.product(id).await.id, id, "none of them has deleted it");
    let series = concat!(
        r#"grpc_server_handled_total{grpc_code="Unimplemented",grpc_method="DeleteProduct","#,
        r#"grpc_service="hotshelf.v1.ProductService",grpc_type="unary"}"#
    );
    eventually("they are counted", async || node.metric(series).await == 9.0).await;
    let deleted = send(Method::POST, DELETE, Some("application/grpc+proto")).await;
    assert_eq!(deleted, StatusCode::OK);
    assert_eq!(node.get(id).await.unwrap_err().code(), Code::NotFound);
}

async fn not_http(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let quick = |args: &mut ServeArgs| args.serving.keepalive_timeout = Duration::from_millis(500);
    let node = stack.node_with(quick).await;
    node.product(id).await;
    for hello in ["GET / HTTP/1.1\r\nHost: ", "\0\0\0\0\0\0\0\0", "\r\n\r\n", "PRI * HTTP/2"] {
        let mut socket =
            tokio::net::TcpStream::connect(("127.0.0.1", node.grpc_addr.port())).await.unwrap();
        socket.write_all(hello.as_bytes()).await.unwrap();
        // The server may have closed it.
        let _ = socket.write_all(&[b'x'; 64]).await;
        let closed = async {
            let mut answer = Vec::new();
            // With or without a reset.
            let _ = socket.read_to_end(&mut answer).await;
        };
        tokio::time::timeout(HANG, closed).await.expect("it is closed");
        assert_eq!(node.product(id).await.id, id, "the next call");
    }
    eventually("their places are free again", async || {
        node.metric("hotshelf_connections").await == 1.0
    })
    .await;
}
