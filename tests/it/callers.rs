//! P9: the load of one caller does not affect the others, and its own calls are refused. A caller is a connection.

use std::time::Duration;

use futures_util::future::join_all;
use hotshelf::config::ServeArgs;
use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{
    AdminServiceClient, BatchGetProductsRequest, ExplainProductRequest, GetProductRequest,
    ProductServiceClient,
};
use sqlx::{AssertSqlSafe, Executor};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Raw, Stack, Suite, cache_status, channel, eventually, get};
use crate::schema::run;
use crate::statements::{new_product, renamed};

type Client = ProductServiceClient<Channel>;
type Calls = Vec<JoinHandle<Result<(), Status>>>;

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("callers::a_thousand_updates_of_one_product_cost_others_nothing", updates);
    suite.single("callers::a_dozen_callers_of_a_held_row_cost_others_nothing", held_row);
    suite.single("callers::a_dozen_held_rows_cost_others_nothing", held_rows);
    suite.single("callers::a_thousand_creations_cost_others_nothing", creations);
    suite.single("callers::a_thousand_explanations_cost_others_nothing", explanations);
    suite.single("callers::batches_of_a_thousand_cost_others_nothing", batches);
    suite.single("callers::a_thousand_latest_reads_cost_others_nothing", latest_reads);
    suite.single("callers::a_read_that_would_wait_in_vain_is_answered_at_once", in_vain);
    suite.both("callers::a_batch_is_loaded_in_chunks", chunks);
}

async fn client(node: &Node) -> Client {
    ProductServiceClient::new(channel(node.grpc_addr.port()).await)
}

/// Starts `calls` concurrent calls.
fn flood<F: Future<Output = Result<(), Status>> + Send + 'static>(
    calls: usize,
    call: impl Fn(usize) -> F,
) -> Calls {
    (0..calls).map(|n| tokio::spawn(call(n))).collect()
}

fn ended(calls: &Calls) -> usize {
    calls.iter().filter(|call| call.is_finished()).count()
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    assert!(details.retry_info().is_some(), "{status:?}");
    details.error_info().unwrap().reason.clone()
}

/// Waits for the calls and returns the number of refused ones, each with this code and reason.
async fn refused(calls: Calls, code: Code, expected: &str) -> usize {
    let ended = tokio::time::timeout(HANG, join_all(calls)).await.unwrap();
    let refused: Vec<Status> = ended.into_iter().filter_map(|call| call.unwrap().err()).collect();
    for status in &refused {
        assert_eq!((status.code(), &*reason(status)), (code, expected), "{status:?}");
    }
    refused.len()
}

/// Hits, misses and writes on another connection, one after the other.
async fn assert_unharmed(stack: &Stack, node: &Node) {
    let mut client = client(node).await;
    let hot = stack.insert_unrelayed("hot").await;
    let in_time = async {
        client.get_product(get(hot)).await.unwrap();
        for round in 0..10 {
            client.get_product(get(hot)).await.unwrap();
            let cold = stack.insert_unrelayed("cold").await;
            client.get_product(get(cold)).await.unwrap();
            client.update_product(renamed(cold, &format!("round {round}"))).await.unwrap();
            client.create_product(new_product("new")).await.unwrap();
        }
    };
    tokio::time::timeout(HANG, in_time).await.unwrap();
}

async fn gauge(node: &Node, what: &str, share: &str) -> f64 {
    node.metric(&format!("hotshelf_postgres_share_{what}{{share=\"{share}\"}}")).await
}

async fn hold_row(stack: &Stack, id: i64) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut held = stack.sql.begin().await.unwrap();
    let row = format!("SELECT FROM products WHERE id = {id} FOR UPDATE");
    held.execute(AssertSqlSafe(row)).await.unwrap();
    held
}

async fn updates(stack: Stack) {
    const CALLS: usize = 1_000;
    let id = stack.insert("lamp").await;
    let node = stack.node().await;
    let held = hold_row(&stack, id).await;
    let abuser = client(&node).await;
    let calls = flood(CALLS, |n| {
        let mut client = abuser.clone();
        async move { client.update_product(renamed(id, &format!("{n}"))).await.map(drop) }
    });
    eventually("one runs, four wait, the rest is refused", async || ended(&calls) == CALLS - 5)
        .await;
    assert_unharmed(&stack, &node).await;
    held.rollback().await.unwrap();
    assert_eq!(refused(calls, Code::Aborted, "PRODUCT_BUSY").await, CALLS - 5);
}

async fn held_row(stack: Stack) {
    const CALLERS: usize = 12;
    let id = stack.insert("lamp").await;
    let node = stack.node().await;
    let held = hold_row(&stack, id).await;
    let abusers = join_all((0..CALLERS).map(|_| client(&node))).await;
    let calls = flood(CALLERS, |n| {
        let mut client = abusers[n].clone();
        async move { client.update_product(renamed(id, &format!("{n}"))).await.map(drop) }
    });
    eventually("one runs, four wait, the rest is refused", async || ended(&calls) == CALLERS - 5)
        .await;
    assert_eq!(gauge(&node, "in_use", "writes").await, 1.0);
    assert_unharmed(&stack, &node).await;
    held.rollback().await.unwrap();
    assert_eq!(refused(calls, Code::Aborted, "PRODUCT_BUSY").await, CALLERS - 5);
}

/// More rows are locked, and more callers wait for them, than there are connections for writes.
async fn held_rows(stack: Stack) {
    const ROWS: usize = 12;
    let mut ids = Vec::new();
    for _ in 0..ROWS {
        ids.push(stack.insert("lamp").await);
    }
    // The program's own timeouts, not the long ones of the harness.
    let limits = |args: &mut ServeArgs| {
        args.postgres.database_statement_timeout = Duration::from_secs(2);
        args.postgres.database_acquire_timeout = Duration::from_millis(500);
        args.serving.max_call_time = HANG;
    };
    let node = stack.node_with(limits).await;
    let mut held = stack.sql.begin().await.unwrap();
    held.execute("SELECT FROM products FOR UPDATE").await.unwrap();
    let abusers = join_all(ids.iter().map(|_| client(&node))).await;
    let calls = flood(ROWS, |n| {
        let (mut client, id) = (abusers[n].clone(), ids[n]);
        async move { client.update_product(renamed(id, "new")).await.map(drop) }
    });
    let connections = gauge(&node, "in_use_limit", "writes").await;
    eventually("all connections for writes are in use, and a write waits", async || {
        let waiting = gauge(&node, "waiting", "writes").await;
        gauge(&node, "in_use", "writes").await == connections && waiting > 0.0
    })
    .await;
    assert_unharmed(&stack, &node).await;
    assert_eq!(ended(&calls), 0, "the rows are still held, and none has timed out");
    held.rollback().await.unwrap();
    for call in calls {
        tokio::time::timeout(HANG, call).await.unwrap().unwrap().unwrap();
    }
}

async fn creations(stack: Stack) {
    const CALLS: usize = 1_000;
    const QUEUED: usize = 256;
    run(
        &stack.sql,
        "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
        IF NEW.name = 'held' THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NEW; END$$",
    )
    .await;
    run(
        &stack.sql,
        "CREATE TRIGGER hold BEFORE INSERT ON products FOR EACH ROW EXECUTE FUNCTION public.hold()",
    )
    .await;
    let node = stack.node().await;
    let mut held = stack.sql.begin().await.unwrap();
    held.execute("SELECT pg_advisory_xact_lock(1)").await.unwrap();
    let abuser = client(&node).await;
    let calls = flood(CALLS, |_| {
        let mut client = abuser.clone();
        async move { client.create_product(new_product("held")).await.map(drop) }
    });
    let running = gauge(&node, "in_use_limit", "writes").await - 1.0;
    eventually("all but one run", async || gauge(&node, "in_use", "writes").await == running).await;
    let rejected = CALLS - QUEUED - running as usize;
    eventually("all that do not wait are refused", async || ended(&calls) >= rejected).await;
    assert_unharmed(&stack, &node).await;
    held.rollback().await.unwrap();
    // Each write of the neighbour that found no free connection evicted one from the queue.
    assert!(refused(calls, Code::ResourceExhausted, "TOO_MANY_WRITES").await >= rejected);
}

async fn explanations(stack: Stack) {
    const CALLS: usize = 1_000;
    const QUEUED: usize = 16;
    let [hot, cold] = [stack.insert("hot").await, stack.insert("cold").await];
    let node = stack.node().await;
    node.product(hot).await;
    let lock = stack.lock_products().await;
    let abuser = channel(node.grpc_addr.port()).await;
    let calls = flood(CALLS, |_| {
        let mut client = AdminServiceClient::new(abuser.clone());
        async move { client.explain_product(ExplainProductRequest { id: hot }).await.map(drop) }
    });
    let rejected = CALLS - QUEUED - 1;
    eventually("one runs, the rest is refused", async || ended(&calls) == rejected).await;
    let neighbours = client(&node).await;
    let [mut reads, mut writes] = [neighbours.clone(), neighbours];
    let read = tokio::spawn(async move { reads.get_product(get(cold)).await });
    let write = tokio::spawn(async move { writes.update_product(renamed(cold, "new")).await });
    eventually("the neighbour's statements have connections", async || {
        let waiting = stack.waiting_statements().await;
        let waits = |part| waiting.iter().any(|statement| statement.contains(part));
        waits("SELECT asked.id") && waits("UPDATE \"public\".\"products\" AS product")
    })
    .await;
    node.product(hot).await;
    lock.rollback().await.unwrap();
    read.await.unwrap().unwrap();
    write.await.unwrap().unwrap();
    assert_eq!(refused(calls, Code::ResourceExhausted, "TOO_MANY_EXPLANATIONS").await, rejected);
}

/// An instance in which one load runs and ten wait, with timeouts longer than the test.
pub async fn with_ten_places(stack: &Stack, more: impl FnOnce(&mut ServeArgs)) -> Node {
    let change = |args: &mut ServeArgs| {
        args.postgres.database_loads = 1;
        args.postgres.database_connections = 4;
        args.postgres.database_queued_loads = 10;
        args.caching.refresh_keys = 0;
        args.postgres.database_acquire_timeout = 100 * HANG;
        args.postgres.database_statement_timeout = 3 * HANG;
        args.serving.max_call_time = 100 * HANG;
        more(args);
    };
    stack.node_with(change).await
}

async fn batches(stack: Stack) {
    const CALLS: usize = 32;
    let cold = stack.insert("cold").await;
    let node = with_ten_places(&stack, |_| {}).await;
    let lock = stack.lock_products().await;
    let abuser = client(&node).await;
    let calls = flood(CALLS, |n| {
        let mut client = abuser.clone();
        let first = 1_000_000 + n as i64 * 1_000;
        let ids = (first..first + 1_000).collect();
        let batch = BatchGetProductsRequest { ids, ..Default::default() };
        async move { client.batch_get_products(batch).await.map(drop) }
    });
    let rejected = CALLS - 11;
    eventually("one runs, ten wait, the rest is refused", async || ended(&calls) == rejected).await;
    let mut neighbour = client(&node).await;
    let read = tokio::spawn(async move { neighbour.get_product(get(cold)).await });
    eventually("it evicts one of them from the queue", async || ended(&calls) == rejected + 1)
        .await;
    assert!(!read.is_finished());
    lock.rollback().await.unwrap();
    read.await.unwrap().unwrap();
    refused(calls, Code::ResourceExhausted, "DATABASE_BUDGET_EXHAUSTED").await;
    let opened = r#"hotshelf_redis_breaker_moves_total{dependency="commands",to="open"}"#;
    assert_eq!(node.metric(opened).await, 0.0);
}

async fn latest_reads(stack: Stack) {
    const CALLS: usize = 1_000;
    let [read, cold] = [stack.insert("read").await, stack.insert("cold").await];
    let node = with_ten_places(&stack, |_| {}).await;
    let lock = stack.lock_products().await;
    let abuser = client(&node).await;
    let calls = flood(CALLS, |n| {
        let mut client = abuser.clone();
        let freshness = Some(Freshness::Latest(true));
        let request = GetProductRequest { id: read + 1_000_000 + n as i64, freshness };
        async move { client.get_product(request).await.map(drop) }
    });
    let rejected = CALLS - 11;
    eventually("one runs, ten wait, the rest is refused", async || ended(&calls) == rejected).await;
    let mut neighbour = client(&node).await;
    let read = tokio::spawn(async move { neighbour.get_product(get(cold)).await });
    eventually("it runs in its own share", async || stack.running_loads().await == 2).await;
    assert_eq!(ended(&calls), rejected, "it evicted none of them");
    lock.rollback().await.unwrap();
    read.await.unwrap().unwrap();
    let ended = tokio::time::timeout(HANG, join_all(calls)).await.unwrap();
    let errors: Vec<Status> = ended.into_iter().filter_map(|call| call.unwrap().err()).collect();
    let refused = errors.iter().filter(|error| error.code() == Code::ResourceExhausted);
    let mut refused = refused.map(reason).collect::<Vec<_>>();
    refused.dedup();
    assert_eq!(refused, ["TOO_MANY_LATEST_READS"]);
}

async fn in_vain(stack: Stack) {
    let [running, stale, absent] =
        [stack.insert("a").await, stack.insert("b").await, stack.insert("c").await];
    let node = stack
        .node_with(|args| {
            args.postgres.database_loads = 1;
            args.postgres.database_acquire_timeout = Duration::from_secs(1_000);
            args.postgres.database_statement_timeout = Duration::from_secs(1_000);
            // Memory is never fresh.
            args.caching.max_staleness = Duration::ZERO;
            args.caching.hot_lease = Duration::ZERO;
            args.caching.refresh_keys = 0;
        })
        .await;
    node.product(stale).await;
    stack.redis_evict(stale).await;
    let lock = stack.lock_products().await;
    let mut client = client(&node).await;
    let first = tokio::spawn(async move { client.get_product(get(running)).await });
    eventually("one runs", async || stack.running_loads().await == 1).await;
    // The estimate of the wait: behind a load that has run for this long, two loads will not both run within 2 s.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let refused = raw.call_within("2S", GET, &get(absent)).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(reason(&refused), "DATABASE_BUDGET_EXHAUSTED");
    let mut request = tonic::Request::new(get(stale));
    request.set_timeout(Duration::from_secs(2));
    let served = node.client.clone().get_product(request).await.unwrap();
    assert_eq!(cache_status(&served), "hotshelf; hit; detail=hot; stale");
    lock.rollback().await.unwrap();
    first.await.unwrap().unwrap();
}

async fn chunks(stack: Stack) {
    let node = stack.node().await;
    let loads = stack.loads().await;
    let ids = (1_000_000..1_001_000).collect();
    let batch = BatchGetProductsRequest { ids, ..Default::default() };
    node.client.clone().batch_get_products(batch.clone()).await.unwrap();
    // Postgres counts the last statement at the end of its transaction, which may be after its rows have arrived.
    eventually("a hundred each", async || stack.loads().await - loads == 10).await;
    node.client.clone().batch_get_products(batch).await.unwrap();
    assert_eq!(stack.loads().await - loads, 10, "and no more");
}
