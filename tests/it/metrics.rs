//! Metrics: the names that dashboards rely on, and counters that move by exactly what was done.

use std::collections::BTreeMap;
use std::time::Duration;

use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use tonic::Code;

use crate::harness::{HANG, Node, Program, Raw, Stack, Suite, admin, eventually, free_port, get};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("metrics::each_has_its_name_a_type_and_help", names);
    suite.both("metrics::counters_move_by_exactly_what_was_done", exact);
    suite.single("metrics::a_call_that_its_caller_gave_up_is_cancelled", cancelled);
    suite.single("metrics::no_id_is_ever_a_label", no_ids);
    suite.single("metrics::alive_and_not_ready_while_postgres_is_awaited", waiting);
}

async fn names(stack: Stack) {
    const COUNTERS: [&str; 14] = [
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "hotshelf_cache_lookups_total",
        "hotshelf_reads_total",
        "hotshelf_postgres_loads_total",
        "hotshelf_singleflight_joined_total",
        "hotshelf_lease_total",
        "hotshelf_fills_rejected_total",
        "hotshelf_redis_corrupt_total",
        "hotshelf_redis_errors_total",
        "hotshelf_shed_total",
        "hotshelf_served_stale_total",
        "hotshelf_refreshed_total",
        "hotshelf_refresh_requests_total",
    ];
    const GAUGES: [&str; 9] = [
        "hotshelf_hot_entries",
        "hotshelf_build_info",
        "hotshelf_redis_connected",
        "hotshelf_postgres_connections",
        "hotshelf_postgres_connections_idle",
        "hotshelf_postgres_loads_in_flight",
        "hotshelf_connections",
        "hotshelf_calls_in_flight",
        "hotshelf_hot_keys_watchers",
    ];
    let node = stack.node().await;
    let (status, text) = node.admin("/metrics").await;
    assert_eq!(status, 200);
    let typed = COUNTERS.map(|name| (name, "counter")).into_iter();
    let typed = typed.chain(GAUGES.map(|name| (name, "gauge")));
    for (name, kind) in typed.chain([("grpc_server_handling_seconds", "histogram")]) {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| help.len() > 10), "{name}: {help:?}");
        let shown = |line: &str| line.starts_with(name) && !line.starts_with('#');
        assert!(text.lines().any(shown), "{name} starts at zero, not at its first event");
    }
    assert!(text.contains(r#"hotshelf_build_info{version=""#));
    let unknown = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for name in unknown.map(|line| line.split(' ').next().unwrap()) {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

/// Every counter that is not zero, by its series.
async fn counters(node: &Node) -> BTreeMap<String, f64> {
    let (_, text) = node.admin("/metrics").await;
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let series = series.filter_map(|line| line.rsplit_once(' '));
    series
        // Either instance's relay may apply a change, and background tasks send statements and commands.
        .filter(|(name, _)| !name.contains("relayed") && !name.starts_with("process_"))
        .filter(|(name, _)| name.contains("_total") || name.contains("handling_seconds_count"))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// The changes of counters since `before`, by [`brief`] name.
async fn moved(node: &Node, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut moved = BTreeMap::new();
    for (series, value) in counters(node).await {
        let by = value - before.get(&series).unwrap_or(&0.0);
        if by != 0.0 {
            moved.insert(brief(&series), by);
        }
    }
    moved
}

/// `hotshelf_reads_total{served_by="hot"}` is `reads hot`.
fn brief(series: &str) -> String {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let name = name.trim_start_matches("hotshelf_").trim_start_matches("grpc_server_");
    let values = labels.split('"').skip(1).step_by(2);
    let named = values.filter(|value| !value.contains("ProductService") && *value != "unary");
    [name.trim_end_matches("_total")].into_iter().chain(named).collect::<Vec<_>>().join(" ")
}

/// Waits until exactly these counters have moved by exactly these amounts. A call is counted when its last part is
/// dropped, which may be after its caller has the response.
async fn assert_moved(what: &str, node: &Node, before: &BTreeMap<String, f64>, by: &[(&str, f64)]) {
    let expected: BTreeMap<String, f64> =
        by.iter().map(|(series, by)| ((*series).to_owned(), *by)).collect();
    let began = std::time::Instant::now();
    loop {
        let moved = moved(node, before).await;
        if moved == expected {
            return;
        }
        assert!(began.elapsed() < HANG, "{what}: {moved:#?}, not {expected:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const STARTED: (&str, f64) = ("started GetProduct", 1.0);
const ENDED: (&str, f64) = ("handling_seconds_count GetProduct", 1.0);
const OK: (&str, f64) = ("handled OK GetProduct", 1.0);

async fn exact(stack: Stack) {
    let ids = [stack.insert("a").await, stack.insert("b").await, stack.insert("c").await];
    // Without background refreshes.
    let (a, b) = tokio::join!(quiet(&stack), quiet(&stack));
    let id = ids[0];

    let before = counters(&a).await;
    a.product(id).await;
    let cold = [
        STARTED,
        OK,
        ENDED,
        ("cache_lookups miss hot", 1.0),
        ("cache_lookups miss redis", 1.0),
        ("lease acquired", 1.0),
        ("postgres_loads", 1.0),
        ("reads postgres", 1.0),
    ];
    assert_moved("a cold read", &a, &before, &cold).await;

    let before = counters(&a).await;
    a.product(id).await;
    let hot = [STARTED, OK, ENDED, ("cache_lookups hit hot", 1.0), ("reads hot", 1.0)];
    assert_moved("a hot read", &a, &before, &hot).await;

    let before = counters(&b).await;
    b.product(id).await;
    let warm = [
        STARTED,
        OK,
        ENDED,
        ("cache_lookups miss hot", 1.0),
        ("cache_lookups hit redis", 1.0),
        ("reads redis", 1.0),
    ];
    assert_moved("a read of what another loaded", &b, &before, &warm).await;

    let before = counters(&a).await;
    let latest = GetProductRequest { id, freshness: Some(Freshness::Latest(true)) };
    a.client.clone().get_product(latest).await.unwrap();
    let fresh = [
        STARTED,
        OK,
        ENDED,
        ("cache_lookups stale hot", 1.0),
        ("cache_lookups stale redis", 1.0),
        ("lease acquired", 1.0),
        ("postgres_loads", 1.0),
        ("reads postgres", 1.0),
    ];
    assert_moved("a read of the latest", &a, &before, &fresh).await;

    let before = counters(&a).await;
    let request = BatchGetProductsRequest { ids: ids.to_vec(), ..Default::default() };
    a.client.clone().batch_get_products(request).await.unwrap();
    let batch = [
        ("started BatchGetProducts", 1.0),
        ("handled OK BatchGetProducts", 1.0),
        ("handling_seconds_count BatchGetProducts", 1.0),
        ("cache_lookups hit hot", 1.0),
        ("cache_lookups miss hot", 2.0),
        ("cache_lookups miss redis", 2.0),
        ("lease acquired", 2.0),
        ("postgres_loads", 2.0),
        ("reads hot", 1.0),
        ("reads postgres", 2.0),
    ];
    assert_moved("a batch, a third of it hot", &a, &before, &batch).await;
    failures_and_writes(&a, id).await;
}

async fn failures_and_writes(node: &Node, id: i64) {
    let before = counters(node).await;
    assert_eq!(node.get(id + 1_000).await.unwrap_err().code(), Code::NotFound);
    let absent = [
        STARTED,
        ("handled NotFound GetProduct", 1.0),
        ENDED,
        ("cache_lookups miss hot", 1.0),
        ("cache_lookups miss redis", 1.0),
        ("lease acquired", 1.0),
        ("postgres_loads", 1.0),
        ("reads postgres", 1.0),
    ];
    assert_moved("a read of what is not there", node, &before, &absent).await;

    let before = counters(node).await;
    node.get(0).await.unwrap_err();
    let invalid = [STARTED, ("handled InvalidArgument GetProduct", 1.0), ENDED];
    assert_moved("a bad id", node, &before, &invalid).await;

    let before = counters(node).await;
    rename(node, id, "renamed").await;
    let write = [
        ("started UpdateProduct", 1.0),
        ("handled OK UpdateProduct", 1.0),
        ("handling_seconds_count UpdateProduct", 1.0),
    ];
    assert_moved("a write", node, &before, &write).await;

    let before = counters(node).await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    raw.call("/hotshelf.v1.ProductService/Nonsense", &get(id)).await;
    let unknown = [
        ("started unknown unknown unknown", 1.0),
        ("handled Unimplemented unknown unknown unknown", 1.0),
        ("handling_seconds_count unknown unknown unknown", 1.0),
    ];
    assert_moved("an unknown method", node, &before, &unknown).await;
}

async fn quiet(stack: &Stack) -> Node {
    stack
        .node_with(|args| {
            args.caching.refresh_keys = 0;
            args.caching.max_staleness = Duration::from_secs(600);
            args.caching.soft_ttl = Duration::from_secs(600);
        })
        .await
}

async fn cancelled(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = quiet(&stack).await;
    let lock = stack.lock_products().await;
    let before = counters(&node).await;
    let mut client = node.client.clone();
    let call = tokio::spawn(async move { client.get_product(get(id)).await });
    eventually("it hangs", async || stack.waiting_statements().await.len() == 1).await;
    call.abort();
    let given_up = [
        STARTED,
        ("handled Canceled GetProduct", 1.0),
        ENDED,
        ("cache_lookups miss hot", 1.0),
        ("cache_lookups miss redis", 1.0),
        ("lease acquired", 1.0),
        ("postgres_loads", 1.0),
    ];
    assert_moved("a cancelled call", &node, &before, &given_up).await;
    lock.rollback().await.unwrap();
}

async fn no_ids(stack: Stack) {
    const ID: i64 = 918_273_645;
    sqlx::query("INSERT INTO products (id, name, price) VALUES ($1, 'unlabelled', 1)")
        .bind(ID)
        .execute(&stack.sql)
        .await
        .unwrap();
    let node = stack.node().await;
    node.product(ID).await;
    rename(&node, ID, "never a label").await;
    node.product(ID).await;
    assert!(node.get(ID + 1).await.is_err());
    let (_, text) = node.admin("/metrics").await;
    for word in ["91827364", "label", &stack.namespace] {
        let line = text.lines().find(|line| line.contains(&format!("\"{word}")));
        assert_eq!(line, None);
    }
}

async fn waiting(stack: Stack) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("postgres://hotshelf@{}/db", socket.local_addr().unwrap());
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let arguments = ["--database-url", &url, "--database-acquire-timeout", "500ms"];
    let more = ["--startup-timeout", "1h", "--admin-addr", &address];
    let arguments = [&arguments[..], &more].concat();
    // Killed on drop.
    let _child = Program::serving(&stack, &arguments).spawn().unwrap();
    let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
    eventually("it is up", listens).await;
    let waits = async || admin(port, "/readyz").await.1.starts_with("waiting for PostgreSQL: ");
    eventually("/readyz names the server", waits).await;
    assert_eq!(admin(port, "/readyz").await.0, 503);
    assert_eq!(admin(port, "/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(admin(port, "/metrics").await.0, 200);
}
