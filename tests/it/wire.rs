//! What no generated client would send: each gets an error, and the connection lives on.

use bytes::Bytes;
use hotshelf::proto::{CreateProductRequest, Money, Product};
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{HANG, Raw, Stack, Suite, eventually, framed, get};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const CREATE: &str = "/hotshelf.v1.ProductService/CreateProduct";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("wire::an_oversized_request_is_refused_and_says_so", oversized);
    suite.single("wire::an_unknown_method_or_service_is_unimplemented", unknown);
    suite.single("wire::garbage_for_a_request_gets_an_error_and_no_dead_connection", garbage);
    suite.single("wire::what_is_not_http2_is_closed_and_harms_nobody", not_http2);
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
        r#"grpc_server_handled_total{grpc_code="RESOURCE_EXHAUSTED",grpc_method="CreateProduct","#,
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
        r#"grpc_server_handled_total{grpc_code="UNIMPLEMENTED",grpc_method="unknown","#,
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
        ("an unknown compression flag", Bytes::from_static(&[7, 0, 0, 0, 0])),
        ("compressed, with no encoding named", Bytes::from_static(&[1, 0, 0, 0, 1, 0])),
        ("4 GiB announced", Bytes::from_static(&[0, 255, 255, 255, 255])),
        ("no protobuf", framed(&[0xff; 64])),
        ("a name that is not UTF-8", framed(&[0x0a, 0x04, 0x12, 0x02, 0xff, 0xfe])),
    ];
    for (what, body) in bodies {
        for path in [GET, CREATE] {
            let answer = raw.call_with(path, HeaderMap::new(), body.clone()).await.unwrap();
            assert_ne!(answer.code(), Code::Ok, "{what}");
            assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok, "after {what}");
        }
    }
}

async fn not_http2(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    node.product(id).await;
    for hello in ["GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "\0\0\0\0\0\0\0\0", "\r\n\r\n"] {
        let mut socket =
            tokio::net::TcpStream::connect(("127.0.0.1", node.grpc_addr.port())).await.unwrap();
        socket.write_all(hello.as_bytes()).await.unwrap();
        // It may have been closed by now.
        let _ = socket.write_all(&[b'x'; 64]).await;
        let closed = async {
            let mut answer = Vec::new();
            // However it closes.
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
