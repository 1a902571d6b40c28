//! HTTP/1.1 connections: hostile ones, and their lives.

use std::time::Duration;

use hotshelf::config::ServeArgs;
use http::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{HANG, Http, Node, Stack, Suite, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.single(
        "web::requests_that_proxies_read_differently_are_refused_or_end_the_connection",
        smuggled,
    );
    suite.single("web::forms_of_http_1_are_understood", forms);
    suite.single("web::a_head_that_does_not_come_ends_the_connection", slow_head);
    suite.single("web::a_body_that_does_not_come_ends_at_the_deadline", slow_body);
    suite.single("web::an_answer_that_is_not_read_ends_the_connection", unread);
    suite.single("web::idle_and_old_http_1_connections_end", ages);
    suite.single("web::http_1_connections_drain", drains);
}

async fn socket(node: &Node) -> TcpStream {
    TcpStream::connect(("127.0.0.1", node.grpc_addr.port())).await.unwrap()
}

/// Sends bytes, and reads until the server closes the connection.
async fn answer_to(node: &Node, bytes: &[u8]) -> String {
    let mut socket = socket(node).await;
    // The server may have closed it.
    let _ = socket.write_all(bytes).await;
    read_to_end(&mut socket).await
}

async fn read_to_end(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(HANG, socket.read_to_end(&mut answer)).await;
    // With or without a reset.
    let _ = read.expect("it is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

async fn smuggled(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let put = format!("PUT /products/{id} HTTP/1.1\r\ncontent-type: application/json\r\n");
    let stolen = format!("DELETE /products/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    let body = "b\r\n{\"price\":5}\r\n0\r\n\r\n";
    // The second request must not be answered, or the first be refused.
    let at_most_one = [
        format!(
            "{put}host: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{body}{stolen}"
        ),
        format!(
            "{put}host: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{body}{stolen}"
        ),
        format!("{put}host: x\r\ntransfer-encoding: chunked, chunked\r\n\r\n{body}{stolen}"),
    ];
    for text in at_most_one {
        let answer = answer_to(&node, text.as_bytes()).await;
        assert!(answers(&answer) <= 1, "{text:?}: {answer}");
        assert!(!answer.contains("204"), "{text:?}: {answer}");
    }
    let bad = [
        format!(
            "{put}host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n{body}{stolen}"
        ),
        format!("{put}host: x\r\ntransfer-encoding: gzip\r\n\r\n{body}{stolen}"),
        format!("{put}host: x\r\ntransfer-encoding: xchunked\r\n\r\n{body}{stolen}"),
        format!(
            "{put}host: x\r\ncontent-length: 11\r\ncontent-length: 12\r\n\r\n{{\"price\":5}}{stolen}"
        ),
        format!("{put}host: x\r\ncontent-length: +11\r\n\r\n{{\"price\":5}}{stolen}"),
        format!("{put}host: x\r\ncontent-length: 0x0b\r\n\r\n{{\"price\":5}}{stolen}"),
        format!("{put}host: x\r\ncontent-length : 11\r\n\r\n{{\"price\":5}}{stolen}"),
        format!("{put}host: x\r\n folded: 1\r\n\r\n{stolen}"),
        format!("{put}host: x\r\nhost: y\r\ncontent-length: 0\r\n\r\n{stolen}"),
        format!("{put}content-length: 0\r\n\r\n{stolen}"),
        format!("PUT /products/{id} HTTP/1.1\nhost x\n\n{stolen}"),
        format!("{put}host: x\r\nname\0: 1\r\n\r\n{stolen}"),
        "GET / HTTP/3.0\r\nhost: x\r\n\r\n".to_owned(),
        "GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3} a TLS hello to a plain port\r\n\r\n"
            .to_owned(),
    ];
    for text in bad {
        let answer = answer_to(&node, text.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(), "{text:?}: {answer}");
        assert!(answers(&answer) <= 1, "{text:?}: {answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    let answer = answer_to(&node, long.as_bytes()).await;
    let refused = ["HTTP/1.1 414 ", "HTTP/1.1 431 "];
    assert!(
        refused.iter().any(|status| answer.starts_with(status)) || answer.is_empty(),
        "{answer}"
    );
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nname: {}\r\n\r\n", "x".repeat(20_000));
    assert!(answer_to(&node, large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many = "name: 1\r\n".repeat(200);
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    assert!(answer_to(&node, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    for lie in ["fffffffffffffffff\r\n", "-1\r\n", "5\r\n12345678\r\n", "x\r\n"] {
        let text = format!("{put}host: x\r\ntransfer-encoding: chunked\r\n\r\n{lie}{stolen}");
        let answer = answer_to(&node, text.as_bytes()).await;
        assert!(!answer.contains("HTTP/1.1 20"), "{lie:?}: {answer}");
    }
    assert_eq!(node.product(id).await.id, id, "none has deleted it");
    eventually("their connections are gone", async || {
        node.metric("hotshelf_connections").await == 1.0
    })
    .await;
}

async fn forms(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let close = "host: x\r\nconnection: close\r\n\r\n";
    let absolute = format!("GET http://any.example/products/{id} HTTP/1.1\r\n{close}");
    assert!(answer_to(&node, absolute.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    let old = format!("GET /products/{id} HTTP/1.0\r\n\r\n");
    let answer = answer_to(&node, old.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.0 200 ") || answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let grpc = format!(
        "POST /hotshelf.v1.ProductService/GetProduct HTTP/1.1\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n{close}"
    );
    let answer = answer_to(&node, grpc.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 505 "), "its trailers would be lost: {answer}");
    let tunnel = format!("CONNECT any.example:80 HTTP/1.1\r\n{close}");
    assert!(answer_to(&node, tunnel.as_bytes()).await.starts_with("HTTP/1.1 404 "));
    let upgrade = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n";
    let upgrade = format!("GET /products/{id} HTTP/1.1\r\n{upgrade}host: x\r\n\r\n");
    let mut http = socket(&node).await;
    http.write_all(upgrade.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    http.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200", "it is served, and not upgraded");
    let one = format!("GET /products/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    let pipelined = format!("{one}{one}{one}GET /products/{id} HTTP/1.1\r\n{close}");
    let answer = answer_to(&node, pipelined.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 4, "{answer}");
    let chunked = format!(
        "PUT /products/{id} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n5\r\n{{\"pri\r\n6\r\nce\":5}}\r\n0\r\n\r\nGET /products/{id} HTTP/1.1\r\n{close}"
    );
    let answer = answer_to(&node, chunked.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "the connection stays: {answer}");
    let expect = format!(
        "PUT /products/{id} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 11\r\nexpect: 100-continue\r\n{close}"
    );
    let mut waiting = socket(&node).await;
    waiting.write_all(expect.as_bytes()).await.unwrap();
    let mut line = [0; 25];
    waiting.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    waiting.write_all(b"{\"price\":5}").await.unwrap();
    assert!(read_to_end(&mut waiting).await.starts_with("HTTP/1.1 200 "));
}

fn quick(args: &mut ServeArgs) {
    args.serving.keepalive_timeout = Duration::from_millis(200);
    args.serving.max_call_time = Duration::from_millis(200);
}

async fn closed(node: &Node, reason: &str) -> f64 {
    node.metric(&format!("hotshelf_connections_closed_total{{reason=\"{reason}\"}}")).await
}

async fn slow_head(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(quick).await;
    for begun in ["G", "GET /products/1 HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n"] {
        let before = closed(&node, "silent").await;
        let mut slow = socket(&node).await;
        slow.write_all(begun.as_bytes()).await.unwrap();
        // Drop by drop, so that it is never quiet for long.
        let drops = async {
            while slow.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(HANG, drops).await.expect("it is closed");
        eventually("it is counted", async || {
            closed(&node, "silent").await > before || begun.starts_with("PRI")
        })
        .await;
    }
    // The second head of a connection, too.
    let mut second = socket(&node).await;
    let request = format!("GET /products/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    second.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    second.read_exact(&mut first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    second.write_all(request.as_bytes()).await.expect("an idle connection stays");
    second.write_all(b"GET").await.unwrap();
    read_to_end(&mut second).await;
}

async fn slow_body(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node =
        stack.node_with(|args| args.serving.max_call_time = Duration::from_millis(200)).await;
    let head = format!(
        "PUT /products/{id} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{{"
    );
    let answer = answer_to(&node, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let held = async || node.metric("hotshelf_incomplete_request_bytes").await;
    eventually("its bytes are released", async || held().await == 0.0).await;
}

async fn unread(stack: Stack) {
    let insert = "INSERT INTO products (name, price, description)
        SELECT 'lamp', 9.99, repeat('x', 60000) FROM generate_series(1, 150) RETURNING id";
    let ids: Vec<i64> = sqlx::query_scalar(insert).fetch_all(&stack.sql).await.unwrap();
    let change = |args: &mut ServeArgs| {
        args.serving.max_call_time = Duration::from_secs(3);
        args.caching.hot_max_product_bytes = 131_072;
    };
    let node = stack.node_with(change).await;
    let ids: Vec<String> = ids.iter().map(|id| format!("ids={id}")).collect();
    // More than the sockets take.
    let path = format!("/v1/products:batchGet?maxResponseBytes=67108864&{}", ids.join("&"));
    eventually("memory has them", async || {
        let mut http = Http::connect(Version::HTTP_11, node.grpc_addr.port()).await;
        http.get(&path).await.status.is_success()
    })
    .await;
    let unread = tokio::net::TcpSocket::new_v4().unwrap();
    unread.set_recv_buffer_size(8_192).unwrap();
    let mut unread = unread.connect(node.grpc_addr).await.unwrap();
    unread.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let held = async || node.metric("hotshelf_unsent_bytes").await;
    eventually("the answer waits", async || held().await > 0.0).await;
    eventually("the connection is closed", async || closed(&node, "unread").await == 1.0).await;
    eventually("its bytes are released", async || held().await == 0.0).await;
    drop(unread);
}

async fn ages(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let change = |args: &mut ServeArgs| {
        args.serving.edge.max_connection_idle = Duration::from_millis(200);
    };
    let node = stack.node_with(change).await;
    let mut idle = Http::connect(Version::HTTP_11, node.grpc_addr.port()).await;
    assert_eq!(idle.get(&format!("/products/{id}")).await.status.as_u16(), 200);
    eventually("idle", async || closed(&node, "idle").await >= 1.0).await;
    let change = |args: &mut ServeArgs| {
        args.serving.edge.max_connection_age = Duration::from_millis(200);
    };
    let node = stack.node_with(change).await;
    let mut old = Http::connect(Version::HTTP_11, node.grpc_addr.port()).await;
    assert_eq!(old.get(&format!("/products/{id}")).await.status.as_u16(), 200);
    eventually("old", async || closed(&node, "age").await >= 1.0).await;
}

async fn drains(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.drain_grace = Duration::from_secs(3_600)).await;
    let port = node.grpc_addr.port();
    let lock = stack.lock_products().await;
    let mut idle = socket(&node).await;
    idle.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut begun = socket(&node).await;
    begun.write_all(b"GET /prod").await.unwrap();
    let mut busy = Http::connect(Version::HTTP_11, port).await;
    let call = tokio::spawn(async move { busy.get(&format!("/products/{id}")).await });
    eventually("the load waits", async || stack.running_loads().await > 0).await;
    let stop = tokio::spawn(node.app.stop());
    read_to_end(&mut idle).await;
    read_to_end(&mut begun).await;
    lock.rollback().await.unwrap();
    let answer = call.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, "close"), "{answer:?}");
    assert!(stop.await.unwrap(), "it drains");
}
