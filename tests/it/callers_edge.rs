//! Connections: the bound on cancelled calls, and the maximum age.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hotshelf::proto::StreamHotKeysRequest;
use http::HeaderMap;
use nix::sys::signal::Signal;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::{HANG, Node, Program, Raw, Stack, Suite, eventually, framed, get};
use crate::hostile::frames::{
    END_HEADERS, HEADERS, RST_STREAM, SETTINGS, Socket, body, frame, headers,
};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
/// Clients behind the balancer.
const CLIENTS: usize = 8;
const SHORT_AGE: Duration = Duration::from_millis(300);

pub fn register(suite: &mut Suite<'_>) {
    suite.single("callers::half_of_its_calls_cancelled_at_once_leave_the_other_half", cancelled);
    suite.single("callers::rapid_reset_costs_the_connection_and_is_counted", rapid_reset);
    suite.single("callers::a_new_instance_gets_its_share_within_one_age", shared_load);
    suite.single("callers::a_call_in_flight_outlives_the_age_of_its_connection", aged_call);
    suite.single("callers::a_stream_is_cut_after_the_grace", aged_stream);
    suite.single("callers::a_connection_without_calls_ends", idle);
}

fn stream(number: usize) -> u32 {
    u32::try_from(2 * number + 1).unwrap()
}

fn reset(number: usize) -> Vec<u8> {
    frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes())
}

async fn closed(node: &Node, reason: &str) -> f64 {
    node.metric(&format!("hotshelf_connections_closed_total{{reason=\"{reason}\"}}")).await
}

async fn flooded(program: &Program) -> bool {
    let (_, text) = program.admin("/metrics").await;
    text.contains("hotshelf_connections_closed_total{reason=\"flood\"} 1\n")
}

/// Sends bytes to the stopped program, which reads all of them at once when it continues.
async fn at_once(program: &Program, bytes: &[u8]) -> Socket {
    program.signal(Signal::SIGSTOP);
    let mut socket = Socket::greeted(program.port(), &frame(SETTINGS, 0, 0, &[])).await.unwrap();
    assert!(socket.send_within(HANG, bytes).await);
    program.signal(Signal::SIGCONT);
    socket
}

async fn cancelled(stack: Stack) {
    const CALLS: usize = 200;
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &[]).await;
    program.client().await.get_product(get(id)).await.unwrap();
    let call = |number| {
        let head = frame(HEADERS, END_HEADERS, stream(number), &headers("POST", GET));
        [head, body(stream(number), &get(id).encode_to_vec())].concat()
    };
    let calls = (0..CALLS).flat_map(call);
    let cancels = (0..CALLS).step_by(2).flat_map(reset);
    let bytes: Vec<u8> = calls.chain(cancels).collect();
    let mut caller = at_once(&program, &bytes).await;
    assert_eq!(caller.ended(CALLS / 2, HANG).await, Some(0), "the others are answered");
    assert!(caller.send(&call(CALLS)).await);
    assert_eq!(caller.ended(1, HANG).await, Some(0), "and so is the next");
    assert!(!flooded(&program).await);
}

async fn rapid_reset(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &["--max-streams-per-connection", "100"]).await;
    let mut client = program.client().await;
    client.get_product(get(id)).await.unwrap();
    let pair = |number| {
        let head = frame(HEADERS, END_HEADERS, stream(number), &headers("POST", GET));
        [head, reset(number)].concat()
    };
    let bytes: Vec<u8> = (0..1_000).flat_map(pair).collect();
    let mut attacker = at_once(&program, &bytes).await;
    assert!(attacker.hung_up(HANG).await);
    eventually("it is counted", async || flooded(&program).await).await;
    client.get_product(get(id)).await.unwrap();
}

/// A layer-4 balancer: gives connections to the backends in turn.
async fn balancer(backends: Arc<parking_lot::Mutex<Vec<u16>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut links = JoinSet::new();
        for turn in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let backend = {
                let backends = backends.lock();
                backends[turn % backends.len()]
            };
            links.spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", backend)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    port
}

/// Whether the server has certainly not started the call: gRPC clients retry such a call transparently.
fn was_not_begun(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let refused =
        source.and_then(|source| source.downcast_ref::<h2::Error>()).is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
    error.is_canceled() || error.is_closed() || refused
}

/// Calls until `stop`, and returns the number of calls. None of them fails.
async fn caller(port: u16, id: i64, stop: Arc<AtomicBool>, connected: Arc<AtomicUsize>) -> usize {
    let request = framed(&get(id).encode_to_vec());
    let (mut raw, mut calls) = (Raw::connect(port).await, 0);
    connected.fetch_add(1, Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) {
        match raw.call_with(GET, HeaderMap::new(), request.clone()).await {
            Ok(status) => assert_eq!(status.code(), Code::Ok, "{status}"),
            Err(error) => {
                assert!(was_not_begun(&error), "{error:?}");
                raw = Raw::connect(port).await;
                continue;
            }
        }
        calls += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    calls
}

async fn shared_load(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let aging = async || {
        let age = Duration::from_secs(1);
        stack.node_with(|args| args.serving.edge.max_connection_age = age).await
    };
    let (first, second) = (aging().await, aging().await);
    let backends = Arc::new(parking_lot::Mutex::new(vec![first.grpc_addr.port()]));
    let port = balancer(Arc::clone(&backends)).await;
    let (stop, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..CLIENTS {
        callers.spawn(caller(port, id, Arc::clone(&stop), Arc::clone(&connected)));
    }
    let all = async || connected.load(Ordering::Relaxed) == CLIENTS;
    eventually("all are connected, to the first instance", all).await;
    backends.lock().push(second.grpc_addr.port());
    let share = (CLIENTS / 4) as f64;
    // Each node's own client does not call, and its connection ends.
    let shared = async || {
        let open = async |node: &Node| node.metric("hotshelf_connections").await;
        open(&first).await > share && open(&second).await > share
    };
    eventually("both have a share of the connections", shared).await;
    stop.store(true, Ordering::Relaxed);
    let mut calls = 0;
    while let Some(ended) = callers.join_next().await {
        calls += ended.unwrap();
    }
    assert!(calls > CLIENTS);
    assert!(closed(&first, "age").await > 0.0);
    assert_eq!(closed(&first, "grace").await + closed(&second, "grace").await, 0.0);
}

async fn aged_call(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.edge.max_connection_age = SHORT_AGE).await;
    let lock = stack.lock_products().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let call = tokio::spawn(async move { raw.call(GET, &get(id)).await });
    eventually("it hangs", async || stack.waiting_statements().await.len() == 1).await;
    // The node's own client has a connection, too.
    eventually("both connections reach the maximum age", async || {
        closed(&node, "age").await >= 2.0
    })
    .await;
    lock.rollback().await.unwrap();
    let answer = tokio::time::timeout(HANG, call).await.unwrap().unwrap();
    assert_eq!(answer.code(), Code::Ok, "{answer}");
}

async fn aged_stream(stack: Stack) {
    let short = |args: &mut hotshelf::config::ServeArgs| {
        args.serving.edge.max_connection_age = SHORT_AGE;
        args.serving.edge.max_connection_age_grace = SHORT_AGE;
    };
    let node = stack.node_with(short).await;
    let stream = node.client.clone().stream_hot_keys(StreamHotKeysRequest::default()).await;
    let mut stream = stream.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let ended = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(HANG, ended).await.expect("it ends");
    eventually("it is counted", async || closed(&node, "grace").await == 1.0).await;
}

async fn idle(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.edge.max_connection_idle = SHORT_AGE).await;
    let stream = node.client.clone().stream_hot_keys(StreamHotKeysRequest::default()).await;
    let mut stream = stream.unwrap().into_inner();
    let raw = Raw::connect(node.grpc_addr.port()).await;
    assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok);
    eventually("the one that is idle has ended", async || closed(&node, "idle").await == 1.0).await;
    for _ in 0..2 {
        assert!(stream.message().await.unwrap().is_some(), "the one with a stream has not");
    }
    assert_eq!(node.metric("hotshelf_connections").await, 1.0);
}
