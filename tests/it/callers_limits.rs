//! Limits of calls, streams and bytes: a named caller has one share of them on all its connections, and two callers on one
//! connection do not share one.

use std::sync::Arc;

use futures_util::future::join_all;
use hotshelf::config::ServeArgs;
use hotshelf::proto::{BatchGetProductsRequest, StreamHotKeysRequest};
use http::HeaderMap;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::auth::tokens::{Signer, claims};
use crate::auth::{Jwks, bearer};
use crate::harness::{HANG, Node, Protocol, Raw, Stack, Suite, eventually, framed, get};
use crate::hostile::frames::{
    DATA, END_HEADERS, HEADERS, Socket, body, field, frame, headers, setting,
};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const HOT_KEYS: &str = "/hotshelf.v1.ProductService/StreamHotKeys";
/// Connections of the greedy caller. The polite one uses the first of them.
const CONNECTIONS: usize = 4;
const NAME: &str = "x-forwarded-for";
const INITIAL_WINDOW_SIZE: u16 = 4;

pub fn register(suite: &mut Suite<'_>) {
    let calls = |protocol| format!("callers::a_named_caller_has_one_share_of_calls::{protocol}");
    suite.single(&calls("grpc"), |stack| calls_by_proxy(stack, Protocol::Grpc));
    suite.single(&calls("grpc_web"), |stack| calls_by_token(stack, Protocol::GrpcWeb));
    suite.single(&calls("connect"), |stack| calls_by_proxy(stack, Protocol::Connect));
    suite.single(&calls("json"), |stack| calls_by_token(stack, Protocol::Json));
    let streams =
        |protocol| format!("callers::a_named_caller_has_one_share_of_streams::{protocol}");
    suite.single(&streams("grpc"), |stack| streams_by_token(stack, Protocol::Grpc));
    suite.single(&streams("grpc_web"), |stack| streams_by_proxy(stack, Protocol::GrpcWeb));
    suite.single(&streams("connect"), |stack| streams_by_token(stack, Protocol::Connect));
    suite.single(&streams("json"), |stack| streams_by_proxy(stack, Protocol::Json));
    suite.single("callers::a_named_caller_has_one_share_of_incomplete_requests", incomplete);
    suite.single("callers::a_named_caller_has_one_share_of_unsent_bytes", unsent);
    suite.single("callers::unread_answers_of_a_caller_leave_places_for_others", unread);
}

fn by_proxy(args: &mut ServeArgs) {
    args.identity.caller_metadata = NAME.to_owned();
}

fn named(name: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NAME, name.parse().unwrap());
    headers
}

/// Tokens for any subject.
fn tokens() -> (Jwks, impl Fn(&str) -> HeaderMap) {
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let of = move |subject: &str| {
        let mut claims = claims("products.read");
        claims["sub"] = subject.into();
        bearer(&signer.token(&claims))
    };
    (jwks, of)
}

struct Calls(Vec<JoinHandle<Status>>);

impl Calls {
    /// The greedy caller's calls, spread over its connections, and then one of the polite caller.
    async fn start(
        node: &Node,
        count: usize,
        (protocol, path): (Protocol, &'static str),
        message: &impl Message,
        headers: impl Fn(&str) -> HeaderMap,
        admitted: usize,
    ) -> Self {
        let port = node.grpc_addr.port();
        let connections = join_all((0..CONNECTIONS).map(|_| Raw::connect(port))).await;
        let message = message.encode_to_vec();
        let call = |n: usize, name| {
            let (raw, headers) = (connections[n % CONNECTIONS].clone(), headers(name));
            let message = message.clone();
            let call = async move { protocol.call(&raw, path, headers, &message).await.unwrap() };
            tokio::spawn(call)
        };
        let mut calls = Self((0..count).map(|n| call(n, "greedy")).collect());
        let what = format!("all but {admitted} of the greedy caller's are refused");
        eventually(&what, async || calls.ended() == count - admitted).await;
        let refused = std::mem::take(&mut calls.0).into_iter().filter_map(|call| {
            if call.is_finished() {
                return Some(call);
            }
            calls.0.push(call);
            None
        });
        let refused: Vec<_> = refused.collect();
        for call in refused {
            let status = call.await.unwrap();
            let info = status.get_details_error_info().unwrap();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(info.reason.starts_with("TOO_MANY_"), "{info:?}");
            assert!(status.get_details_retry_info().is_some(), "{status}");
        }
        calls.0.push(call(0, "polite"));
        let most = format!("{} greedy\n", count - admitted);
        assert_eq!(node.admin("/callers").await.1, most, "the abuser is told, and named");
        calls
    }

    fn ended(&self) -> usize {
        self.0.iter().filter(|call| call.is_finished()).count()
    }
}

async fn one_share_of_calls(
    stack: Stack,
    node: Node,
    protocol: Protocol,
    headers: impl Fn(&str) -> HeaderMap,
) {
    // Half of the places, and one more.
    const ADMITTED: usize = 11;
    let id = stack.insert("walnut desk lamp").await;
    let lock = stack.lock_products().await;
    let calls = Calls::start(&node, 40, (protocol, GET), &get(id), headers, ADMITTED).await;
    let places = async || node.metric("hotshelf_calls_in_flight").await as usize;
    eventually("the polite call has a place", async || places().await == ADMITTED + 1).await;
    lock.rollback().await.unwrap();
    for call in calls.0 {
        let status = tokio::time::timeout(HANG, call).await.unwrap().unwrap();
        assert_eq!(status.code(), Code::Ok, "{status}");
    }
}

async fn calls_by_proxy(stack: Stack, protocol: Protocol) {
    let change = |args: &mut ServeArgs| {
        args.serving.max_calls = 20;
        by_proxy(args);
    };
    let node = stack.node_with(change).await;
    one_share_of_calls(stack, node, protocol, named).await;
}

async fn calls_by_token(stack: Stack, protocol: Protocol) {
    let (jwks, of) = tokens();
    let change = |args: &mut ServeArgs| {
        args.serving.max_calls = 20;
        jwks.configure(args);
    };
    let node = stack.node_with(change).await;
    one_share_of_calls(stack, node, protocol, of).await;
}

async fn one_share_of_streams(node: Node, protocol: Protocol, headers: impl Fn(&str) -> HeaderMap) {
    // With eight, there are seven for each one that would be free.
    const ADMITTED: usize = 8;
    let request = StreamHotKeysRequest::default();
    let calls = Calls::start(&node, 40, (protocol, HOT_KEYS), &request, headers, ADMITTED).await;
    let open = async || node.metric("hotshelf_streams").await as usize;
    eventually("the polite stream is open", async || open().await == ADMITTED + 1).await;
    assert_eq!(calls.ended(), 0);
    assert_eq!(node.metric("hotshelf_callers_named").await, 2.0);
    calls.0.iter().for_each(JoinHandle::abort);
}

async fn streams_by_proxy(stack: Stack, protocol: Protocol) {
    let change = |args: &mut ServeArgs| {
        args.serving.edge.max_streams = 64;
        by_proxy(args);
    };
    one_share_of_streams(stack.node_with(change).await, protocol, named).await;
}

async fn streams_by_token(stack: Stack, protocol: Protocol) {
    let (jwks, of) = tokens();
    let change = |args: &mut ServeArgs| {
        args.serving.edge.max_streams = 64;
        jwks.configure(args);
    };
    one_share_of_streams(stack.node_with(change).await, protocol, of).await;
}

/// The HEADERS of a call that a proxy forwards.
fn forwarded(stream: u32, path: &str, name: &str) -> Vec<u8> {
    let mut block = headers("POST", path);
    field(&mut block, NAME, name);
    frame(HEADERS, END_HEADERS, stream, &block)
}

fn stream(number: usize) -> u32 {
    u32::try_from(2 * number + 1).unwrap()
}

async fn sockets(node: &Node) -> Vec<Socket> {
    let connect = || async {
        let settings = setting(INITIAL_WINDOW_SIZE, 0);
        Socket::greeted(node.grpc_addr.port(), &settings).await.unwrap()
    };
    join_all((0..CONNECTIONS).map(|_| connect())).await
}

async fn incomplete(stack: Stack) {
    const LIMIT: usize = 1 << 20;
    const EACH: usize = 40;
    let change = |args: &mut ServeArgs| {
        args.serving.max_request_bytes = LIMIT / 16;
        args.serving.edge.max_incomplete_request_bytes = LIMIT;
        by_proxy(args);
    };
    let node = stack.node_with(change).await;
    let mut sockets = sockets(&node).await;
    for socket in &mut sockets {
        for number in 0..EACH {
            let mut begun = forwarded(stream(number), GET, "greedy");
            begun.extend(frame(DATA, 0, stream(number), &[0, 0]));
            assert!(socket.send_within(HANG, &begun).await);
        }
    }
    let held = async || node.metric("hotshelf_incomplete_request_bytes").await;
    let refused =
        async || node.metric(r#"hotshelf_shed_total{reason="request_bytes"}"#).await as usize;
    // An eighth of what is free: a ninth of all, and the one that exceeds it.
    let admitted = LIMIT / 9 / 4_096 + 1;
    let rest = CONNECTIONS * EACH - admitted;
    eventually("all but one share is refused", async || refused().await == rest).await;
    let before = held().await;
    assert!(before <= (LIMIT / 9 + 4_200) as f64, "{before}");
    assert!(sockets[0].send_within(HANG, &forwarded(stream(EACH), GET, "polite")).await);
    eventually("the polite one's is received", async || held().await > before).await;
    assert_eq!(refused().await, rest);
}

async fn unsent(stack: Stack) {
    const PRODUCTS: i64 = 50;
    const BYTES: i32 = 1_000;
    const BATCHES: usize = 20;
    const LIMIT: usize = 1_000_000;
    let insert = "INSERT INTO products (name, price, description)
        SELECT 'lamp', 9.99, repeat('x', $2) FROM generate_series(1, $1) RETURNING id";
    let ids: Vec<i64> =
        sqlx::query_scalar(insert).bind(PRODUCTS).bind(BYTES).fetch_all(&stack.sql).await.unwrap();
    let change = |args: &mut ServeArgs| {
        args.serving.max_unsent_bytes = LIMIT;
        by_proxy(args);
    };
    let node = Arc::new(stack.node_with(change).await);
    let batch = BatchGetProductsRequest { ids, ..Default::default() };
    node.client.clone().batch_get_products(batch.clone()).await.unwrap();
    let batch = batch.encode_to_vec();
    let call = |number, name| {
        let mut call = forwarded(stream(number), BATCH, name);
        call.extend(body(stream(number), &batch));
        call
    };
    let mut sockets = sockets(&node).await;
    for socket in &mut sockets {
        for number in 0..BATCHES {
            assert!(socket.send_within(HANG, &call(number, "greedy")).await);
        }
    }
    let held = async || node.metric("hotshelf_unsent_bytes").await;
    let refused =
        async || node.metric(r#"hotshelf_shed_total{reason="unsent_bytes"}"#).await as usize;
    // Each is about 52 kB, and the third exceeds a ninth of the limit.
    const ADMITTED: usize = 3;
    let rest = CONNECTIONS * BATCHES - ADMITTED;
    eventually("all but one share is refused", async || refused().await == rest).await;
    let before = held().await;
    assert!(sockets[0].send_within(HANG, &call(BATCHES, "polite")).await);
    eventually("the polite one's is answered", async || held().await > before).await;
    assert_eq!(refused().await, rest);
    drop(sockets);
    eventually("all is released", async || held().await == 0.0).await;
}

/// An answer that is not read keeps the place of its call, because it takes memory.
async fn unread(stack: Stack) {
    const EACH: usize = 10;
    let id = stack.insert("walnut desk lamp").await;
    let change = |args: &mut ServeArgs| {
        args.serving.max_calls = 20;
        by_proxy(args);
    };
    let node = stack.node_with(change).await;
    node.product(id).await;
    let mut sockets = sockets(&node).await;
    for socket in &mut sockets {
        for number in 0..EACH {
            let mut call = forwarded(stream(number), GET, "greedy");
            call.extend(body(stream(number), &get(id).encode_to_vec()));
            assert!(socket.send_within(HANG, &call).await);
        }
    }
    let refused = async || node.metric(r#"hotshelf_shed_total{reason="calls"}"#).await as usize;
    // Half of the places, and one more.
    let rest = CONNECTIONS * EACH - 11;
    eventually("all but one share is refused", async || refused().await == rest).await;
    let polite = Raw::connect(node.grpc_addr.port()).await;
    for _ in 0..100 {
        let body = framed(&get(id).encode_to_vec());
        let answer = polite.call_with(GET, named("polite"), body).await.unwrap();
        assert_eq!(answer.code(), Code::Ok, "{answer}");
    }
    assert_eq!(refused().await, rest);
    drop(sockets);
}
