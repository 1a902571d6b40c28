//! Traces: the spans of sampled calls reach a collector, with what each tier did; a collector that is down harms nothing.

mod collector;

use std::collections::HashMap;
use std::time::Duration;

use hotshelf::config::{SamplerName, ServeArgs};
use hotshelf::pause::Point;
use hotshelf::proto::{Product, UpdateProductRequest};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost_types::FieldMask;
use sqlx::AssertSqlSafe;
use tonic::{Code, Request, Response, Status};

use crate::harness::{HANG, Node, Program, Stack, Suite, eventually, free_port, get};
use collector::{Behaviour, Collector};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("traces::a_hot_read_is_one_span_below_that_of_its_caller", hot);
    suite.both("traces::a_redis_hit_and_a_miss_are_trees_of_what_they_asked", cold);
    suite.both("traces::a_joined_read_links_to_the_load_that_answered_it", joined);
    suite.both("traces::an_update_shows_its_statement_and_its_publication", update);
    suite.single("traces::failed_calls_have_their_status", failed);
    suite.single("traces::an_unsampled_parent_makes_nothing", unsampled);
    suite.single("traces::without_a_parent_the_sampler_decides", roots);
    suite.single("traces::requests_have_the_headers_path_and_resource", request);
    suite.single("traces::a_collector_that_hangs_or_refuses_costs_only_spans", broken);
    suite.single("traces::a_full_queue_drops_spans_and_counts_them", full);
    suite.single("traces::a_stop_exports_the_last_spans", stop);
    suite.single("traces::lines_of_the_log_have_the_ids_of_their_call", logged);
}

/// A trace of a caller: its id, and the id of the caller's span.
#[derive(Clone, Copy)]
struct Caller(u128, u64);

impl Caller {
    fn new() -> Self {
        Self(rand::random_range(1..u128::MAX), rand::random_range(1..u64::MAX))
    }

    fn request<T>(self, message: T, flags: &str) -> Request<T> {
        let mut request = Request::new(message);
        let parent = format!("00-{:032x}-{:016x}-{flags}", self.0, self.1);
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        request
    }

    async fn read(self, node: &Node, id: i64) -> Result<Response<Product>, Status> {
        node.client.clone().get_product(self.request(get(id), "01")).await
    }
}

fn to(collector: &Collector) -> impl FnOnce(&mut ServeArgs) {
    let url = collector.url();
    move |args| args.traces.otel_exporter_otlp_endpoint = url
}

fn attributes(span: &Span) -> HashMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let pair = |one: &'_ opentelemetry_proto::tonic::common::v1::KeyValue| {
        text(one.value.as_ref().unwrap().value.as_ref().unwrap())
    };
    span.attributes.iter().map(|one| (one.key.as_str(), pair(one))).collect()
}

/// The names of the spans below `parent`, each with those below it.
fn tree(spans: &[Span], parent: &[u8]) -> Vec<String> {
    let mut below: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == parent).collect();
    below.sort_by_key(|span| span.start_time_unix_nano);
    let name = |span: &&Span| {
        let inner = tree(spans, &span.span_id);
        match inner.is_empty() {
            true => span.name.clone(),
            false => format!("{}({})", span.name, inner.join(", ")),
        }
    };
    below.iter().map(name).collect()
}

fn call(spans: &[Span]) -> &Span {
    spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap()
}

const READ: &str = "hotshelf.v1.ProductService/GetProduct";

async fn hot(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack.node_with(to(&collector)).await;
    let version = node.product(id).await.version;
    let caller = Caller::new();
    caller.read(&node, id).await.unwrap();
    let spans = collector.trace(caller.0, 1).await;
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((span.name.as_str(), span.kind()), (READ, SpanKind::Server));
    assert_eq!(span.parent_span_id, caller.1.to_be_bytes());
    assert_eq!(span.flags, 0x301);
    assert!(span.start_time_unix_nano < span.end_time_unix_nano);
    assert_eq!(span.status, None);
    let attributes = attributes(span);
    let expected = [
        ("rpc.system", "grpc"),
        ("rpc.service", "hotshelf.v1.ProductService"),
        ("rpc.method", "GetProduct"),
        ("rpc.grpc.status_code", "0"),
        ("hotshelf.tier", "hot"),
        ("hotshelf.cache_status", "hotshelf; hit; detail=hot"),
        ("hotshelf.version", &version.to_string()),
    ];
    assert_eq!(attributes, expected.map(|(key, value)| (key, value.to_owned())).into());
}

async fn cold(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let a = stack.node_with(to(&collector)).await;
    let to_collector = to(&collector);
    let b = stack.node_with(|args| {
        to_collector(args);
        // Otherwise it would load the fleet's hottest product before the read.
        args.caching.refresh_keys = 0;
    });
    let b = b.await;
    let (miss, hit) = (Caller::new(), Caller::new());
    miss.read(&a, id).await.unwrap();
    let spans = collector.trace(miss.0, 6).await;
    let asked = "redis get, redis lease, postgresql load, redis fill";
    assert_eq!(tree(&spans, &miss.1.to_be_bytes()), [format!("{READ}(load({asked}))")]);
    let of_call = attributes(call(&spans));
    assert_eq!((&*of_call["hotshelf.tier"], &*of_call["hotshelf.load"]), ("postgres", "led"));
    assert!(of_call["hotshelf.queue_wait_ms"].parse::<f64>().unwrap() >= 0.0);
    let load = spans.iter().find(|span| span.name == "postgresql load").unwrap();
    assert_eq!(load.kind(), SpanKind::Client);
    assert_eq!(attributes(load)["db.system.name"], "postgresql");

    hit.read(&b, id).await.unwrap();
    let spans = collector.trace(hit.0, 3).await;
    assert_eq!(tree(&spans, &hit.1.to_be_bytes()), [format!("{READ}(load(redis get))")]);
    assert_eq!(attributes(call(&spans))["hotshelf.tier"], "redis");
}

async fn joined(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack.node_with(to(&collector)).await;
    let mut held = node.pauses.arm(Point::LoadedFromPostgres);
    let (first, second) = (Caller::new(), Caller::new());
    let read = |caller: Caller| {
        let mut client = node.client.clone();
        tokio::spawn(async move { client.get_product(caller.request(get(id), "01")).await })
    };
    let leader = read(first);
    let paused = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
    let waiter = read(second);
    eventually("the second read has joined", async || {
        node.metric("hotshelf_singleflight_joined_total").await == 1.0
    })
    .await;
    node.pauses.release(Point::LoadedFromPostgres);
    drop(paused);
    leader.await.unwrap().unwrap();
    waiter.await.unwrap().unwrap();
    let led = collector.trace(first.0, 6).await;
    let load = led.iter().find(|span| span.name == "load").unwrap();
    let spans = collector.trace(second.0, 1).await;
    assert_eq!(tree(&spans, &second.1.to_be_bytes()), [READ]);
    assert_eq!(attributes(&spans[0])["hotshelf.load"], "joined");
    let [link] = &spans[0].links[..] else { panic!("{spans:?}") };
    assert_eq!((&link.trace_id, &link.span_id), (&load.trace_id, &load.span_id));
}

async fn update(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack.node_with(to(&collector)).await;
    let caller = Caller::new();
    let message = UpdateProductRequest {
        product: Some(Product { id, name: "new".to_owned(), ..Product::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
        expected_version: None,
    };
    let updated = node.client.clone().update_product(caller.request(message, "01")).await;
    let version = updated.unwrap().into_inner().version;
    let spans = collector.trace(caller.0, 4).await;
    let asked = "postgresql update, redis publish, redis hint";
    let method = "hotshelf.v1.ProductService/UpdateProduct";
    assert_eq!(tree(&spans, &caller.1.to_be_bytes()), [format!("{method}({asked})")]);
    let of_call = attributes(call(&spans));
    assert_eq!(of_call["hotshelf.version"], version.to_string());
    assert!(of_call.contains_key("hotshelf.queue_wait_ms"));
}

async fn failed(stack: Stack) {
    let (known, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack.node_with(to(&collector)).await;
    let absent = Caller::new();
    let status = absent.read(&node, known + 1_000).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let spans = collector.trace(absent.0, 6).await;
    assert_eq!(attributes(call(&spans))["rpc.grpc.status_code"], "5");
    assert_eq!(call(&spans).status, None, "the caller's mistake");

    let lock = stack.lock_products().await;
    let (late, id) = (Caller::new(), stack_id(known));
    let mut request = late.request(get(id), "01");
    request.set_timeout(Duration::from_millis(100));
    let status = node.client.clone().get_product(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let spans = collector.trace(late.0, 1).await;
    let code = &attributes(call(&spans))["rpc.grpc.status_code"];
    // The client may cancel its call before the server's timer.
    assert!(["4", "1"].contains(&code.as_str()), "{code}");
    lock.rollback().await.unwrap();
}

/// A product that memory does not hold.
fn stack_id(known: i64) -> i64 {
    known + 2_000
}

async fn unsampled(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack.node_with(to(&collector)).await;
    let (without, with) = (Caller::new(), Caller::new());
    let mut client = node.client.clone();
    client.get_product(without.request(get(id), "00")).await.unwrap();
    client.get_product(without.request(get(id), "00")).await.unwrap();
    with.read(&node, id).await.unwrap();
    // Spans are exported in the order in which they end.
    collector.trace(with.0, 1).await;
    assert!(collector.spans().iter().all(|span| span.trace_id == with.0.to_be_bytes()));
}

async fn roots(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let on = stack.node_with(to(&collector)).await;
    on.product(id).await;
    eventually("a call without a parent is a trace", async || {
        collector.spans().iter().any(|span| span.parent_span_id.is_empty() && span.name == READ)
    })
    .await;
    let second = Collector::start().await;
    let off = stack
        .node_with(|args| {
            to(&second)(args);
            args.traces.otel_traces_sampler = SamplerName::ParentBasedTraceIdRatio;
            args.traces.otel_traces_sampler_arg = 0.0;
        })
        .await;
    for _ in 0..10 {
        off.product(id).await;
    }
    let caller = Caller::new();
    caller.read(&off, id).await.unwrap();
    second.trace(caller.0, 1).await;
    assert_eq!(second.spans().len(), 1, "the caller's trace only");
}

async fn request(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack
        .node_with(|args| {
            args.traces.otel_exporter_otlp_endpoint = format!("{}/base/", collector.url());
            args.traces.otel_exporter_otlp_headers =
                "authorization=Bearer%20secret, x-tenant=a".to_owned();
        })
        .await;
    let caller = Caller::new();
    caller.read(&node, id).await.unwrap();
    collector.trace(caller.0, 1).await;
    let head = collector.head();
    for line in [
        "post /base/v1/traces http/1.1",
        "content-type: application/x-protobuf",
        "authorization: bearer secret",
        "x-tenant: a",
    ] {
        assert!(head.lines().any(|have| have == line), "{line} is not in {head}");
    }
    let resource = collector.resource();
    let name = resource.iter().find(|(key, _)| key == "service.version").unwrap();
    assert_eq!(name.1, env!("CARGO_PKG_VERSION"));
    assert!(resource.iter().any(|(key, _)| key == "service.name"));
}

async fn outcome(node: &Node, outcome: &str) -> f64 {
    node.metric(&format!("hotshelf_trace_spans_total{{outcome=\"{outcome}\"}}")).await
}

async fn broken(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    collector.behave(Behaviour::Hangs);
    let node = stack
        .node_with(|args| {
            to(&collector)(args);
            args.traces.otel_exporter_otlp_timeout = 200;
        })
        .await;
    assert_eq!((outcome(&node, "exported").await, outcome(&node, "dropped").await), (0.0, 0.0));
    for behaviour in [Behaviour::Hangs, Behaviour::Fails] {
        collector.behave(behaviour);
        let before = outcome(&node, "dropped").await;
        eventually("spans are dropped", async || {
            assert_eq!(node.product(id).await.name, "lamp");
            outcome(&node, "dropped").await > before
        })
        .await;
    }
    collector.behave(Behaviour::Answers);
    let caller = Caller::new();
    caller.read(&node, id).await.unwrap();
    collector.trace(caller.0, 1).await;
    assert!(outcome(&node, "exported").await > 0.0);

    let url = format!("http://127.0.0.1:{}", free_port());
    let refused = stack.node_with(|args| args.traces.otel_exporter_otlp_endpoint = url).await;
    eventually("spans are dropped when nothing listens", async || {
        assert_eq!(refused.product(id).await.name, "lamp");
        outcome(&refused, "dropped").await > 0.0
    })
    .await;
}

async fn full(stack: Stack) {
    const READS: usize = 6_000;
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    collector.behave(Behaviour::Hangs);
    let node = stack
        .node_with(|args| {
            to(&collector)(args);
            args.traces.otel_exporter_otlp_timeout = 600_000;
        })
        .await;
    for _ in 0..READS {
        node.product(id).await;
    }
    let dropped = outcome(&node, "dropped").await;
    // All but those in the queue and in the batch that the collector holds.
    assert!(dropped >= (READS - 4_096 - 512) as f64, "{dropped}");
    assert_eq!(outcome(&node, "exported").await, 0.0);
}

async fn stop(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let node = stack.node_with(to(&collector)).await;
    let caller = Caller::new();
    caller.read(&node, id).await.unwrap();
    let Node { app, client, channel } = node;
    drop((client, channel));
    assert!(app.stop().await);
    let trace = caller.0.to_be_bytes();
    let spans = collector.spans();
    assert!(spans.iter().any(|span| span.trace_id == trace), "{spans:?}");
}

/// A row that the API cannot express is logged by the load of a call.
async fn logged(stack: Stack) {
    let (id, collector) = (stack.insert("lamp").await, Collector::start().await);
    let broken = format!("UPDATE products SET create_time = 'infinity' WHERE id = {id}");
    sqlx::query(AssertSqlSafe(broken)).execute(&stack.sql).await.unwrap();
    let url = collector.url();
    let options = ["--log-format", "json", "--otel-exporter-otlp-endpoint", &url];
    let program = Program::serve(&stack, &options).await;
    let caller = Caller::new();
    let read = program.client().await.get_product(caller.request(get(id), "01")).await;
    assert_eq!(read.unwrap_err().code(), Code::FailedPrecondition);
    let spans = collector.trace(caller.0, 5).await;
    let load = spans.iter().find(|span| span.name == "load").unwrap();
    let log = program.log();
    let line = log.lines().find(|line| line.contains("cannot be expressed")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["trace_id"], format!("{:032x}", caller.0));
    let hex: String = load.span_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(line["span_id"], hex);
    assert_eq!(line["fields"]["id"], id.to_string());
}
