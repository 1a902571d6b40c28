//! The edge's limits: deadlines, load shedding, connections and streams; health, readiness and reflection.

use std::time::Duration;

use hotshelf::proto::{BatchGetProductsRequest, StreamHotKeysRequest};
use http::HeaderMap;
use prost::Message;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::{
    HANG, Node, Raw, Stack, Suite, admin, channel, eventually, framed, free_port, get,
};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const CHECK: &str = "/grpc.health.v1.Health/Check";

pub fn register(suite: &mut Suite<'_>) {
    suite.both("edge::a_callers_deadline_ends_its_call_and_not_the_load", callers_deadline);
    suite.both("edge::a_caller_that_hangs_up_does_not_end_the_load", hang_up);
    suite.single("edge::a_connection_that_breaks_gives_the_places_of_its_calls_back", broken_off);
    suite.single("edge::no_call_takes_longer_than_the_server_allows", longest_call);
    suite.single("edge::past_the_limit_calls_are_refused_and_health_checks_pass", shedding);
    suite.single("edge::past_the_limit_connections_are_closed", connections);
    suite.single("edge::past_the_limit_watchers_are_refused", watchers);
    suite.single("edge::past_the_limit_of_its_connection_a_call_waits", streams);
    suite.both("edge::not_serving_until_warm_and_serving_after", readiness);
    suite.single("edge::reflection_lists_the_service_in_both_versions", reflection);
}

fn assert_refused(status: &Status, code: Code, reason: &str, retry: bool) {
    assert_eq!(status.code(), code, "{status}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), (reason, "hotshelf"));
    assert_eq!(details.retry_info().is_some_and(|hint| hint.retry_delay.is_some()), retry);
}

fn spawn_get(node: &Node, id: i64) -> tokio::task::JoinHandle<Result<(), Status>> {
    let mut client = node.client.clone();
    tokio::spawn(async move { client.get_product(get(id)).await.map(drop) })
}

/// An instance that loads only for calls.
async fn without_refresh(stack: &Stack) -> Node {
    stack.node_with(|args| args.caching.refresh_keys = 0).await
}

/// The next reader joins the load whose caller has ended.
async fn next_reader_joins(stack: &Stack, node: &Node, id: i64, lock: Lock) {
    let next = spawn_get(node, id);
    let joined = async || node.metric("hotshelf_singleflight_joined_total").await == 1.0;
    eventually("the next reader joins", joined).await;
    lock.rollback().await.unwrap();
    tokio::time::timeout(HANG, next).await.unwrap().unwrap().unwrap();
    assert_eq!(stack.loads().await, 1);
}

type Lock = sqlx::Transaction<'static, sqlx::Postgres>;

async fn callers_deadline(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = without_refresh(&stack).await;
    let lock = stack.lock_products().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let request = get(id);
    let hangs = eventually("it hangs", async || stack.waiting_statements().await.len() == 1);
    let (late, ()) = tokio::join!(raw.call_within("5S", GET, &request), hangs);
    assert_refused(&late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", false);
    next_reader_joins(&stack, &node, id, lock).await;
}

async fn hang_up(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = without_refresh(&stack).await;
    let lock = stack.lock_products().await;
    let first = spawn_get(&node, id);
    eventually("it hangs", async || stack.waiting_statements().await.len() == 1).await;
    first.abort();
    let cancelled = concat!(
        r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="GetProduct","#,
        r#"grpc_service="hotshelf.v1.ProductService",grpc_type="unary"}"#
    );
    eventually("it is counted", async || node.metric(cancelled).await == 1.0).await;
    next_reader_joins(&stack, &node, id, lock).await;
}

/// The client sends no RST_STREAM: its connection breaks.
async fn broken_off(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let lock = stack.lock_products().await;
    let mut socket =
        tokio::net::TcpStream::connect(("127.0.0.1", node.grpc_addr.port())).await.unwrap();
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let wire = tokio::spawn(async move {
        tokio::io::copy_bidirectional(&mut far, &mut socket).await.unwrap();
    });
    let raw = Raw::over(near).await.unwrap();
    let batch = BatchGetProductsRequest { ids: vec![id], ..Default::default() };
    for (path, message) in [(GET, get(id).encode_to_vec()), (BATCH, batch.encode_to_vec())] {
        let raw = raw.clone();
        drop(tokio::spawn(
            async move { raw.call_with(path, HeaderMap::new(), framed(&message)).await },
        ));
    }
    let in_flight = async |calls| node.metric("hotshelf_calls_in_flight").await == calls;
    eventually("both are in flight", async || in_flight(2.0).await).await;
    wire.abort();
    eventually("their places are free again", async || in_flight(0.0).await).await;
    lock.rollback().await.unwrap();
}

async fn longest_call(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node =
        stack.node_with(|args| args.serving.max_call_time = Duration::from_millis(300)).await;
    let lock = stack.lock_products().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let without = raw.call(GET, &get(id)).await;
    assert_refused(&without, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", false);
    let long_deadline = raw.call_within("1H", GET, &get(id)).await;
    assert_refused(&long_deadline, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", false);
    lock.rollback().await.unwrap();
    eventually("the load completes", async || node.get(id).await.is_ok()).await;
}

async fn shedding(stack: Stack) {
    let (a, b) = (stack.insert("a").await, stack.insert("b").await);
    let node = stack.node_with(|args| args.serving.max_calls = 2).await;
    let lock = stack.lock_products().await;
    let held = [spawn_get(&node, a), spawn_get(&node, b)];
    let in_flight = async |calls| node.metric("hotshelf_calls_in_flight").await == calls;
    eventually("both are in flight", async || in_flight(2.0).await).await;
    let refused = node.get(a).await.unwrap_err();
    assert_refused(&refused, Code::ResourceExhausted, "TOO_MANY_REQUESTS", true);
    assert_eq!(node.metric(r#"hotshelf_shed_total{reason="calls"}"#).await, 1.0);
    assert_eq!(health(node.grpc_addr.port()).await, Some(ServingStatus::Serving));
    lock.rollback().await.unwrap();
    for call in held {
        call.await.unwrap().unwrap();
    }
    eventually("the places are free again", async || in_flight(0.0).await).await;
    node.product(a).await;
}

async fn connections(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.max_connections = 2).await;
    let open = async |count| node.metric("hotshelf_connections").await == count;
    let second = Raw::connect(node.grpc_addr.port()).await;
    assert_eq!(second.call(GET, &get(id)).await.code(), Code::Ok);
    assert!(open(2.0).await);
    let third = async {
        let raw = Raw::try_connect(node.grpc_addr.port()).await?;
        raw.call_with(GET, HeaderMap::new(), framed(&get(id).encode_to_vec())).await
    };
    let third = tokio::time::timeout(HANG, third).await.expect("closed at once");
    assert!(third.is_err());
    assert_eq!(node.metric(r#"hotshelf_shed_total{reason="connections"}"#).await, 1.0);
    node.product(id).await;
    drop(second);
    eventually("its place is free again", async || open(1.0).await).await;
    let next = Raw::connect(node.grpc_addr.port()).await;
    assert_eq!(next.call(GET, &get(id)).await.code(), Code::Ok);
}

async fn watchers(stack: Stack) {
    let node = stack.node_with(|args| args.serving.max_watchers = 1).await;
    let watch = async || node.client.clone().stream_hot_keys(StreamHotKeysRequest::default()).await;
    let mut first = watch().await.unwrap().into_inner();
    assert!(first.message().await.unwrap().is_some());
    let refused = watch().await.unwrap_err();
    assert_refused(&refused, Code::ResourceExhausted, "TOO_MANY_STREAMS", true);
    assert_eq!(node.metric(r#"hotshelf_shed_total{reason="streams"}"#).await, 1.0);
    drop(first);
    let gone = async || node.metric("hotshelf_hot_keys_watchers").await == 0.0;
    eventually("its place is free again", gone).await;
    assert!(watch().await.unwrap().into_inner().message().await.unwrap().is_some());
}

async fn streams(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.serving.max_streams_per_connection = 1).await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    // After one response the client has the server's SETTINGS.
    raw.call(CHECK, &HealthCheckRequest::default()).await;
    let lock = stack.lock_products().await;
    let spawn = |path, message: Vec<u8>| {
        let raw = raw.clone();
        tokio::spawn(async move {
            raw.call_with(path, HeaderMap::new(), framed(&message)).await.unwrap()
        })
    };
    let first = spawn(GET, get(id).encode_to_vec());
    eventually("it hangs", async || stack.waiting_statements().await.len() == 1).await;
    let second = spawn(CHECK, Vec::new());
    for _ in 0..20 {
        assert_eq!(health(node.grpc_addr.port()).await, Some(ServingStatus::Serving));
    }
    assert!(!second.is_finished(), "it waits for the first, and others do not wait");
    lock.rollback().await.unwrap();
    for call in [first, second] {
        assert_eq!(tokio::time::timeout(HANG, call).await.unwrap().unwrap().code(), Code::Ok);
    }
}

/// `None` while the port is closed.
async fn health(port: u16) -> Option<ServingStatus> {
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut client = HealthClient::new(channel(port).await);
    let request = HealthCheckRequest { service: "hotshelf.v1.ProductService".to_owned() };
    Some(client.check(request).await.ok()?.into_inner().status())
}

async fn readiness(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let ranker =
        stack.node_with(|args| args.caching.refresh_interval = Duration::from_millis(50)).await;
    ranker.product(id).await;
    let ranked = async || !ranker.catalog.fleet_hot_keys(1).await.keys.is_empty();
    eventually("the fleet ranks it", ranked).await;
    ranker.app.stop().await;
    stack.redis_evict(id).await;
    let lock = stack.lock_products().await;
    let mut args = stack.args();
    let (grpc, admin_port) = (free_port(), free_port());
    args.serving.grpc_addr.set_port(grpc);
    args.serving.admin_addr.set_port(admin_port);
    args.caching.warm_timeout = HANG;
    let start = tokio::spawn(async move { hotshelf::app::App::start(&args).await.unwrap() });
    let not_yet = async || health(grpc).await == Some(ServingStatus::NotServing);
    eventually("it is not ready", not_yet).await;
    let (status, reason) = ready_at(admin_port).await;
    assert_eq!((status, &*reason), (503, "loading the hottest products\n"));
    assert!(!start.is_finished());
    lock.rollback().await.unwrap();
    let app = tokio::time::timeout(HANG, start).await.unwrap().unwrap();
    assert_eq!(health(grpc).await, Some(ServingStatus::Serving));
    assert_eq!(ready_at(admin_port).await, (200, "ready\n".to_owned()));
    assert!(app.hot.peek(hotshelf::product::ProductId::new(id).unwrap()).is_some());
}

/// `/readyz`, once it has a reason: the gRPC port opens a moment before.
async fn ready_at(port: u16) -> (u16, String) {
    eventually("started", async || admin(port, "/readyz").await.1 != "starting\n").await;
    admin(port, "/readyz").await
}

macro_rules! services {
    ($version:ident, $port:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new(channel($port).await);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let details = "google/rpc/error_details.proto".to_owned();
        let details = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileByFilename(details)),
        };
        let requests = futures_util::stream::iter([request, details]);
        let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        let details = answers.message().await.unwrap().unwrap().message_response;
        let has_details = matches!(details, Some(MessageResponse::FileDescriptorResponse(_)));
        assert!(has_details, "the details of errors are described: {details:?}");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("no list: {answer:?}");
        };
        list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
    }};
}

async fn reflection(stack: Stack) {
    let node = stack.node().await;
    for names in [services!(v1, node.grpc_addr.port()), services!(v1alpha, node.grpc_addr.port())] {
        for name in ["hotshelf.v1.ProductService", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
        }
    }
}

/// The services that reflection lists on a port.
pub async fn listed(port: u16) -> Vec<String> {
    services!(v1, port)
}
