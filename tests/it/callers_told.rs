//! A caller that holds too much is told what happened, in every method, and others are served meanwhile.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Stack, Suite, channel, eventually};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const METHODS: [&str; 6] = [
    "/hotshelf.v1.ProductService/GetProduct",
    "/hotshelf.v1.ProductService/BatchGetProducts",
    "/hotshelf.v1.ProductService/UpdateProduct",
    "/hotshelf.v1.AdminService/ExplainProduct",
    CHECK,
    WATCH,
];
/// Requests of one connection, several times as many as its share of the bytes admits.
const REQUESTS: usize = 40;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("callers::requests_without_an_end_are_told_the_limit_in_every_method", incomplete);
    suite.single("callers::requests_without_an_end_are_told_that_they_took_too_long", too_long);
    suite.single("callers::streams_of_reflection_are_told_the_limit", reflection);
}

/// A request whose body does not end.
struct Begun {
    response: ResponseFuture,
    _body: SendStream<Bytes>,
}

impl Begun {
    async fn status(self) -> Status {
        let response = tokio::time::timeout(HANG, self.response).await.unwrap().unwrap();
        Status::from_header_map(response.headers()).expect("an answer without a message")
    }
}

async fn connect(node: &Node) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(("127.0.0.1", node.grpc_addr.port())).await.unwrap();
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn begin(sender: &mut SendRequest<Bytes>, path: &str) -> Begun {
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    futures_util::future::poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let (response, _body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    Begun { response, _body }
}

fn assert_told(status: &Status, reason: &str, path: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, reason, "{path}");
    assert!(details.retry_info().is_some(), "{path}");
}

async fn assert_served(node: &Node, id: i64) {
    node.product(id).await;
    let mut health = HealthClient::new(channel(node.grpc_addr.port()).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
}

async fn incomplete(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack
        .node_with(|args| {
            args.serving.max_request_bytes = 1 << 14;
            args.serving.edge.max_incomplete_request_bytes = 1 << 18;
        })
        .await;
    for path in METHODS {
        let mut sender = connect(&node).await;
        let mut held = Vec::new();
        for _ in 0..REQUESTS {
            held.push(begin(&mut sender, path).await);
        }
        let last = held.pop().unwrap();
        assert_told(&last.status().await, "TOO_MANY_REQUEST_BYTES", path);
        let bytes = async || node.metric("hotshelf_incomplete_request_bytes").await;
        assert!(bytes().await > 0.0, "the first are still awaited");
        assert_served(&node, id).await;
        drop((held, sender));
        eventually("all is released", async || bytes().await == 0.0).await;
    }
    let (_, callers) = node.admin("/callers").await;
    assert!(callers.ends_with(" 127.0.0.1\n"), "the operator is told, too: {callers:?}");
}

async fn too_long(stack: Stack) {
    let node = stack.node_with(|args| args.serving.max_call_time = Duration::from_secs(1)).await;
    let mut sender = connect(&node).await;
    for path in METHODS {
        let begun = begin(&mut sender, path).await;
        let status = begun.status().await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{path}: {status}");
    }
}

async fn reflection(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.edge.max_streams = 64).await;
    let mut sender = connect(&node).await;
    let mut open: Vec<RecvStream> = Vec::new();
    let mut bodies = Vec::new();
    let status = loop {
        assert!(open.len() < 64, "one connection has them all");
        let begun = begin(&mut sender, REFLECTION).await;
        let response = tokio::time::timeout(HANG, begun.response).await.unwrap().unwrap();
        match Status::from_header_map(response.headers()) {
            Some(refused) => break refused,
            None => open.push(response.into_body()),
        }
        bodies.push(begun._body);
    };
    assert_told(&status, "TOO_MANY_STREAMS", REFLECTION);
    assert_eq!(node.metric("hotshelf_streams").await, open.len() as f64);
    assert_served(&node, id).await;
    drop((open, bodies, sender));
    eventually("all are released", async || node.metric("hotshelf_streams").await == 0.0).await;
}
