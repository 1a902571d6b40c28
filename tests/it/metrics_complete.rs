//! Metrics are complete: limits stand beside what is used, series of errors begin at 0, and the process, the statements and
//! the commands are measured.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hotshelf::config::ServeArgs;
use hotshelf::proto::StreamHotKeysRequest;

use crate::harness::{Node, Stack, Suite, channel, eventually, get};
use crate::newest_wins::rename;

const METRICS: &str = include_str!("../../docs/metrics.md");
const PROTOS: [&str; 2] = [
    include_str!("../../proto/hotshelf/v1/product_service.proto"),
    include_str!("../../proto/hotshelf/v1/admin_service.proto"),
];
/// As Go's library writes them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// Gauges of amounts that have no limit, each with the reason.
const WITHOUT_LIMIT: [&str; 5] = [
    // A part of those that are open.
    "hotshelf_postgres_connections_idle",
    // States of servers.
    "hotshelf_redis_breakers_open",
    "hotshelf_redis_refusing",
    "hotshelf_redis_limited",
    "hotshelf_redis_other_catalogues",
];

pub fn register(suite: &mut Suite<'_>) {
    suite.single("metrics::a_limit_is_beside_what_it_bounds_and_both_are_right", limits);
    suite.single("metrics::every_series_of_an_outcome_is_there_from_the_start", from_the_start);
    suite.single("metrics::the_process_has_the_names_of_prometheus_clients", process);
    suite.single("metrics::statements_and_commands_are_measured_by_operation", operations);
}

/// The series of an exposition, with their values.
async fn series(node: &Node) -> BTreeMap<String, f64> {
    let (_, text) = node.admin("/metrics").await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    pairs.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// The names of the metrics of a kind.
async fn named(node: &Node, kind: &str) -> BTreeSet<String> {
    let (_, text) = node.admin("/metrics").await;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let named = types.filter_map(|line| line.split_once(' '));
    named.filter(|(_, of)| *of == kind).map(|(name, _)| name.to_owned()).collect()
}

/// Limits that differ from each other and from the defaults.
fn configured(args: &mut ServeArgs) {
    args.serving.max_calls = 101;
    args.serving.max_connections = 102;
    args.serving.edge.max_streams = 103;
    args.serving.max_watchers = 104;
    args.serving.max_unsent_bytes = 131_173;
    args.serving.edge.max_incomplete_request_bytes = 5_000_106;
    args.caching.hot_capacity = 107;
    args.caching.max_recent_changes = 108;
    args.postgres.database_connections = 20;
    args.postgres.database_loads = 9;
    args.postgres.database_queued_loads = 109;
    args.redis.redis_connections = 3;
    args.caching.refresh_keys = 0;
    args.caching.change_retention = Duration::from_secs(600);
}

const LIMITS: [(&str, f64); 22] = [
    ("hotshelf_calls_in_flight_limit", 101.0),
    ("hotshelf_connections_limit", 102.0),
    ("hotshelf_streams_limit", 103.0),
    ("hotshelf_hot_keys_watchers_limit", 104.0),
    ("hotshelf_unsent_bytes_limit", 131_173.0),
    ("hotshelf_incomplete_request_bytes_limit", 5_000_106.0),
    ("hotshelf_callers_named_limit", 16_384.0),
    ("hotshelf_hot_entries_limit", 107.0),
    ("hotshelf_hot_bytes_limit", 107.0 * (16_384.0 + 250.0)),
    ("hotshelf_recent_changes_limit", 108.0),
    // The callers' 20, and 4 of background tasks.
    ("hotshelf_postgres_connections_limit", 24.0),
    // Of loads and `latest` reads: 9 and 2 run, 109 each wait.
    ("hotshelf_postgres_loads_in_flight_limit", 9.0 + 2.0 + 2.0 * 109.0),
    ("hotshelf_postgres_share_in_use_limit{share=\"loads\"}", 9.0),
    ("hotshelf_postgres_share_in_use_limit{share=\"latest\"}", 2.0),
    ("hotshelf_postgres_share_in_use_limit{share=\"writes\"}", 8.0),
    ("hotshelf_postgres_share_in_use_limit{share=\"operators\"}", 1.0),
    ("hotshelf_postgres_share_waiting_limit{share=\"loads\"}", 109.0),
    ("hotshelf_postgres_share_waiting_limit{share=\"latest\"}", 109.0),
    ("hotshelf_postgres_share_waiting_limit{share=\"writes\"}", 256.0),
    ("hotshelf_postgres_share_waiting_limit{share=\"operators\"}", 16.0),
    ("hotshelf_redis_commands_in_flight_limit", 512.0),
    ("hotshelf_redis_commands_waiting_limit", 16_384.0),
];

async fn limits(stack: Stack) {
    let id = stack.insert("hot").await;
    let cold = stack.insert("cold").await;
    let node = stack.node_with(configured).await;
    let exposed = series(&node).await;
    for (limit, expected) in LIMITS {
        assert_eq!(exposed.get(limit), Some(&expected), "{limit}");
    }
    assert_eq!(exposed.get("hotshelf_redis_connected_limit"), Some(&3.0));
    // Each limit has its gauge with the same labels, and each gauge of an amount has its limit.
    let with_limit = exposed.keys().filter(|series| series.contains("_limit"));
    for limit in with_limit.filter(|series| !series.contains("redis_limited")) {
        let used = limit.replacen("_limit", "", 1);
        let value = exposed.get(&used).unwrap_or_else(|| panic!("{limit}, and no {used}"));
        assert!(*value <= exposed[limit], "{used} is {value}");
    }
    let ours = named(&node, "gauge").await;
    let of_amounts = ours.iter().filter(|name| {
        name.starts_with("hotshelf_")
            && !["_limit", "_seconds", "_info", "_valid"].iter().any(|end| name.ends_with(end))
    });
    for used in of_amounts.filter(|name| !WITHOUT_LIMIT.contains(&name.as_str())) {
        assert!(ours.contains(&format!("{used}_limit")), "{used} has no limit beside it");
    }
    used(&stack, &node, id, cold).await;
}

/// What is used is shown as used.
async fn used(stack: &Stack, node: &Node, id: i64, cold: i64) {
    node.product(id).await;
    let recent = node.metric("hotshelf_recent_changes").await;
    rename(node, id, "changed").await;
    let _second = channel(node.grpc_addr.port()).await;
    let stream = node.client.clone().stream_hot_keys(StreamHotKeysRequest::default()).await;
    let _stream = stream.unwrap();
    let lock = stack.lock_products().await;
    let mut client = node.client.clone();
    let call = tokio::spawn(async move { client.get_product(get(cold)).await });
    for (series, expected) in [
        ("hotshelf_calls_in_flight", 1.0),
        ("hotshelf_postgres_loads_in_flight", 1.0),
        ("hotshelf_postgres_share_in_use{share=\"loads\"}", 1.0),
        ("hotshelf_postgres_share_waiting{share=\"loads\"}", 0.0),
        ("hotshelf_connections", 2.0),
        ("hotshelf_streams", 1.0),
        ("hotshelf_hot_keys_watchers", 1.0),
        ("hotshelf_hot_entries", 1.0),
        ("hotshelf_redis_connected", 3.0),
        ("hotshelf_recent_changes", recent + 1.0),
    ] {
        let shown = async || node.metric(series).await == expected;
        eventually(&format!("{series} is {expected}"), shown).await;
    }
    lock.rollback().await.unwrap();
    call.await.unwrap().unwrap();
    eventually("the call has ended", async || node.metric("hotshelf_calls_in_flight").await == 0.0)
        .await;
}

async fn from_the_start(stack: Stack) {
    let node = stack.node().await;
    let exposed = series(&node).await;
    for line in PROTOS.iter().flat_map(|proto| proto.lines()) {
        let Some(method) = line.trim().strip_prefix("rpc ") else { continue };
        let (method, _) = method.split_once('(').unwrap();
        for code in CODES {
            let of_method = format!("grpc_method=\"{method}\"");
            let of_code = format!("grpc_code=\"{code}\"");
            let found = exposed.iter().find(|(series, _)| {
                series.starts_with("grpc_server_handled_total{")
                    && series.contains(&of_method)
                    && series.contains(&of_code)
            });
            assert_eq!(found.map(|(_, value)| *value), Some(0.0), "{method} {code}");
        }
    }
    // The values in the rows of the documentation are those that are exposed.
    let mut checked = 0;
    for row in METRICS.lines().filter(|line| line.starts_with("| `hotshelf_")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (name, labels, meaning) = (cells[1].trim_matches('`'), cells[2], cells[3]);
        let counts = ["_total", "_seconds"].iter().any(|end| name.ends_with(end));
        if !counts || labels.is_empty() {
            continue;
        }
        let documented: BTreeSet<&str> = code(meaning)
            .filter(|word| {
                word.chars().all(|char| char.is_ascii_lowercase() || char == '_')
                    && !word.starts_with("hotshelf_")
            })
            .collect();
        let found: Vec<(&String, &f64)> = exposed
            .iter()
            .filter(|(series, _)| {
                [name, &format!("{name}_count")].contains(&series.split('{').next().unwrap())
            })
            .collect();
        let values: BTreeSet<&str> =
            found.iter().flat_map(|(series, _)| series.split('"').skip(1).step_by(2)).collect();
        assert_eq!(values, documented, "{name}: exposed at the start, and documented");
        checked += 1;
    }
    assert!(checked >= 12, "{checked}");
}

/// The pieces of a text in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

async fn process(stack: Stack) {
    let node = stack.node().await;
    let exposed = series(&node).await;
    let value = |name: &str| exposed[&format!("process_{name}")];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(value("cpu_seconds_total") > 0.0);
    assert!(value("resident_memory_bytes") > 1e6);
    assert!(value("virtual_memory_bytes") > value("resident_memory_bytes"));
    assert!(value("start_time_seconds") < now.as_secs_f64() + 1.0);
    assert!(value("start_time_seconds") > now.as_secs_f64() - 86_400.0);
    assert!(value("threads") >= 2.0);
    assert!(value("open_fds") >= 3.0 && value("open_fds") <= value("max_fds"));
    assert!(named(&node, "counter").await.contains("process_cpu_seconds_total"));
}

async fn operations(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node_with(|args| args.caching.refresh_keys = 0).await;
    let count = async |tier: &str, operation: &str| {
        node.metric(&format!("hotshelf_{tier}_seconds_count{{operation=\"{operation}\"}}")).await
    };
    eventually("the outbox is polled", async || count("postgres", "poll").await >= 1.0).await;
    let operations = [
        ("postgres", "load"),
        ("postgres", "update"),
        ("redis", "get"),
        ("redis", "lease"),
        ("redis", "fill"),
        ("redis", "publish"),
    ];
    let mut before = Vec::new();
    for (tier, operation) in operations {
        before.push(count(tier, operation).await);
    }
    let lock = stack.lock_products().await;
    let mut client = node.client.clone();
    let call = tokio::spawn(async move { client.get_product(get(id)).await });
    eventually("it waits", async || stack.waiting_statements().await.len() == 1).await;
    let began = std::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let least = began.elapsed().as_secs_f64();
    let sum = "hotshelf_postgres_seconds_sum{operation=\"load\"}";
    let before_load = node.metric(sum).await;
    lock.rollback().await.unwrap();
    call.await.unwrap().unwrap();
    assert!(node.metric(sum).await - before_load >= least, "the load waited for a lock");
    rename(&node, id, "new").await;
    for ((tier, operation), before) in operations.into_iter().zip(before) {
        let more = async || count(tier, operation).await > before;
        eventually(&format!("{tier} {operation}"), more).await;
    }
}
