//! Background tasks: a task that ends, by error or panic, is restarted, counted and named on `/readyz`; an instance
//! that cannot keep one running stops.

use std::sync::Arc;
use std::time::Duration;

use hotshelf::entry::{Entry, Ttl};
use hotshelf::hot_cache::{HotCache, HotCacheOptions};
use hotshelf::metrics::{BackgroundTask, Metrics};
use hotshelf::moment::Moment;
use hotshelf::pause::Point;
use hotshelf::product::{ProductId, Version};
use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{GetProductRequest, Product, UpdateProductRequest};
use hotshelf::recent_changes::RecentChanges;
use hotshelf::supervisor::{Fault, Supervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{HANG, Node, Program, Stack, Suite, eventually};

/// Without the admin port, which cannot report that it is down itself: the tests read its metrics only.
const TASKS: [BackgroundTask; 9] = [
    BackgroundTask::GrpcPort,
    BackgroundTask::ChangeFeed,
    BackgroundTask::ChangeHints,
    BackgroundTask::Relay,
    BackgroundTask::RedisProbe,
    BackgroundTask::RefreshOnRequest,
    BackgroundTask::RefreshAhead,
    BackgroundTask::ShadowReads,
    BackgroundTask::EvictionPolicy,
];
/// Consecutive restarts of a task before the instance stops.
const RESTARTS: usize = 5;
const CAPACITY: u64 = 500;
/// Bound on the keys that the table takes before the policy has decided their admission.
const CANDIDATES: u64 = 1_024;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("supervision::a_task_that_panics_is_restarted_counted_and_named", panics);
    suite.single("supervision::a_task_that_ends_is_restarted_counted_and_named", ends);
    suite.single("supervision::restarted_tasks_do_their_work", work);
    suite.single("supervision::connections_wait_while_a_port_is_restarted", ports);
    suite.single("supervision::a_task_that_keeps_failing_stops_the_process", gives_up);
    suite.both("supervision::a_load_that_panics_fails_its_own_readers_only", loads);
    suite.single("supervision::a_write_that_panics_may_have_been_committed", writes);
    suite.plain("supervision::the_eviction_policy_survives_panics", eviction);
    suite.plain("supervision::without_an_eviction_policy_memory_is_bounded", no_eviction);
}

fn restarts(task: BackgroundTask) -> String {
    format!("hotshelf_background_task_restarts_total{{task=\"{}\"}}", task.name())
}

async fn panics(stack: Stack) {
    restarted(&with_shadow_reads(&stack).await, Fault::Panic, "panicked: ").await;
}

async fn ends(stack: Stack) {
    restarted(&with_shadow_reads(&stack).await, Fault::Error, "").await;
}

async fn with_shadow_reads(stack: &Stack) -> Node {
    stack.node_with(|args| args.caching.shadow_reads = 100).await
}

/// Loads an absent product: the eviction policy's thread sleeps until the next insert.
async fn wake_policy(node: &Node) {
    let _ = node.get(rand::random_range(1_000..i64::MAX)).await;
}

/// Each task in turn fails three times, so that the backoff of the last restart is long enough to be observed; the
/// other tasks keep running.
async fn restarted(node: &Node, fault: Fault, how: &str) {
    for task in TASKS.into_iter().chain([BackgroundTask::AdminPort]) {
        assert_eq!(node.metric(&restarts(task)).await, 0.0, "{task:?} starts at zero");
    }
    for task in TASKS {
        // The thread of the policy cannot end with an error.
        let how = if task == BackgroundTask::EvictionPolicy { "panicked: " } else { how };
        let name = task.name();
        let down =
            format!("background task `{name}` is down: {how}a test made it fail; restarting\n");
        node.app.inject(task, fault, 3);
        wake_policy(node).await;
        eventually(&format!("{down} on /readyz"), || async {
            node.admin("/readyz").await == (503, down.clone())
        })
        .await;
        eventually(&format!("{task:?} is restarted three times"), || async {
            wake_policy(node).await;
            node.metric(&restarts(task)).await == 3.0
        })
        .await;
        eventually(&format!("{task:?} is up"), || async {
            node.admin("/readyz").await == (200, "ready\n".to_owned())
        })
        .await;
        assert_eq!(node.admin("/livez").await.0, 200);
    }
    node.app.inject(BackgroundTask::AdminPort, fault, 1);
    eventually("the admin port is restarted", || async {
        node.app.metrics.task_restarts.get(BackgroundTask::AdminPort) == 1
    })
    .await;
    assert_eq!(node.metric(&restarts(BackgroundTask::AdminPort)).await, 1.0, "it answers again");
    for task in TASKS {
        assert_eq!(node.metric(&restarts(task)).await, 3.0, "{task:?} did not fail again");
    }
}

/// After its restart each task does work that no other part of the instance does.
async fn work(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack
        .node_with(|args| {
            args.caching.soft_ttl = Duration::from_millis(300);
            args.caching.shadow_reads = 100;
        })
        .await;
    assert_eq!(node.product(id).await.name, "old");
    for task in TASKS {
        node.app.inject(task, Fault::Panic, 1);
        wake_policy(&node).await;
        eventually(&format!("{task:?} is restarted"), || async {
            wake_policy(&node).await;
            node.metric(&restarts(task)).await == 1.0
        })
        .await;
    }
    for name in ["new", "newer"] {
        let rename = "UPDATE products SET name = $1 WHERE id = $2";
        sqlx::query(rename).bind(name).bind(id).execute(&stack.sql).await.unwrap();
        eventually("the relay and the change feed work", || async {
            node.product(id).await.name == name
        })
        .await;
    }
    eventually("the outbox watch works", || async {
        node.metric("hotshelf_relay_lag_seconds").await < 1.0
    })
    .await;
    eventually("memory has a valid lease", || async {
        node.metric("hotshelf_hot_lease_valid").await == 1.0
    })
    .await;
    let refreshed = node.metric("hotshelf_postgres_loads_total").await;
    eventually("what is read past its soft TTL is loaded again", || async {
        node.product(id).await;
        node.metric("hotshelf_postgres_loads_total").await > refreshed
    })
    .await;
}

/// A connection that arrives while a port's accept loop is down waits in the listener's backlog, and is served after the
/// restart.
async fn ports(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    node.product(id).await;
    node.app.inject(BackgroundTask::GrpcPort, Fault::Panic, 2);
    node.app.inject(BackgroundTask::AdminPort, Fault::Panic, 2);
    for _ in 0..20 {
        let channel = crate::harness::channel(node.app.grpc_addr.port()).await;
        let mut client = hotshelf::proto::ProductServiceClient::new(channel);
        let read = client.get_product(crate::harness::get(id)).await;
        assert_eq!(read.unwrap().into_inner().name, "walnut desk lamp");
        let mut socket = tokio::net::TcpStream::connect(node.app.admin_addr).await.unwrap();
        let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = socket.read_to_string(&mut answer);
        tokio::time::timeout(HANG, read).await.unwrap().unwrap();
        assert!(answer.ends_with("alive\n"), "{answer}");
    }
    assert_eq!(node.metric(&restarts(BackgroundTask::GrpcPort)).await, 2.0);
    node.product(id).await;
}

async fn gives_up(stack: Stack) {
    for task in ["relay", "eviction-policy"] {
        let ended = Program::finish(Program::serving(&stack, &["--fail-always", task])).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let name = task.replace('-', "_");
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("hotshelf: "), "{last}");
        assert!(last.contains(&format!("background task `{name}` is down: ")), "{last}");
        assert!(last.contains("a test made it fail; stopped after 5 restarts"), "{last}");
        let said = |text: &str| ended.stderr.lines().filter(|line| line.contains(text)).count();
        assert_eq!(said("a background task ended; restarting it"), RESTARTS, "{}", ended.stderr);
        assert_eq!(said("given up, this instance stops"), 1, "{}", ended.stderr);
        assert_eq!(said("draining"), 1, "{}", ended.stderr);
    }
}

async fn loads(stack: Stack) {
    let (id, other) = (stack.insert("walnut desk lamp").await, stack.insert("shelf").await);
    let node = stack.node_with(|args| args.caching.refresh_keys = 0).await;
    for point in [Point::LoadedFromPostgres, Point::FilledRedis] {
        stack.redis_evict(id).await;
        let held = stack.lock_products().await;
        let latest = || async {
            let freshness = Some(Freshness::Latest(true));
            node.client.clone().get_product(GetProductRequest { id, freshness }).await
        };
        let readers = futures_util::future::join_all((0..20).map(|_| latest()));
        let unlock = async {
            eventually("they are loading", async || stack.running_loads().await > 0).await;
            node.app.pauses.panic_at(point);
            held.rollback().await.unwrap();
        };
        let (read, ()) = tokio::time::timeout(HANG, async { tokio::join!(readers, unlock) })
            .await
            .expect("all of them are answered");
        let failed = read.iter().filter_map(|read| read.as_ref().err());
        assert!(failed.clone().all(|status| status.code() == Code::Internal), "{read:?}");
        assert!(failed.count() > 0, "{read:?}");
        assert_eq!(node.product(other).await.name, "shelf", "others are served");
        assert_eq!(node.product(id).await.name, "walnut desk lamp", "and so are later reads");
    }
    assert_eq!(node.admin("/readyz").await.0, 200);
}

async fn writes(stack: Stack) {
    let id = stack.insert("old").await;
    let node = stack.node().await;
    assert_eq!(node.product(id).await.name, "old");
    node.app.pauses.panic_at(Point::Committed);
    let product = Product { id, name: "new".to_owned(), ..Product::default() };
    let request = UpdateProductRequest { product: Some(product), ..Default::default() };
    let status = node.client.clone().update_product(request).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "WRITE_OUTCOME_UNKNOWN", "{status}");
    eventually("it was committed", async || node.product(id).await.name == "new").await;
}

/// A hot tier, the supervisor of its policy's thread, and their metrics.
fn hot_tier() -> (Arc<HotCache>, Supervisor, Arc<Metrics>) {
    let minute = Duration::from_secs(60);
    let options =
        HotCacheOptions { capacity: CAPACITY, largest: 1_000, trust: minute, lease: minute };
    let metrics = Metrics::new();
    let supervisor = Supervisor::new(Arc::clone(&metrics));
    let recent = Arc::new(RecentChanges::new(1_000));
    let hot = HotCache::supervised(options, recent, Arc::clone(&metrics), &supervisor);
    (Arc::new(hot), supervisor, metrics)
}

/// Loads a product into memory, and reads it.
fn load(hot: &Arc<HotCache>, number: u64) {
    let id = ProductId::new(number.cast_signed()).unwrap();
    let ttl = Ttl { soft: Duration::from_secs(60), hard: Duration::from_secs(60) };
    let _ = hot.begin_load(id).finish(Entry::tombstone(Version(1), Moment::now(), ttl));
    assert!(hot.len() <= CAPACITY + CANDIDATES);
}

fn holds(hot: &HotCache, number: u64) -> bool {
    hot.peek(ProductId::new(number.cast_signed()).unwrap()).is_some()
}

fn eviction() {
    let (hot, supervisor, metrics) = hot_tier();
    (1..=CAPACITY).for_each(|number| load(&hot, number));
    assert_eq!(hot.count_admitted(), CAPACITY);
    for panics in 1..=3 {
        supervisor.faults().inject(BackgroundTask::EvictionPolicy, Fault::Panic, 1);
        // It waits for the restart, and does not hang.
        let _ = hot.count_admitted();
        assert_eq!(metrics.task_restarts.get(BackgroundTask::EvictionPolicy), panics);
        assert_eq!(hot.count_admitted(), CAPACITY, "the new policy has all entries");
        let kept = (1..=CAPACITY).filter(|number| holds(&hot, *number)).count();
        assert_eq!(kept as u64, CAPACITY, "and nothing was lost");
    }
    // A scan while the thread panics again: the policy decides every insert, and the surplus is evicted.
    supervisor.faults().inject(BackgroundTask::EvictionPolicy, Fault::Panic, 1);
    (1..=20 * CAPACITY).for_each(|number| load(&hot, number));
    assert_eq!(hot.count_admitted(), CAPACITY);
    assert_eq!(hot.len(), CAPACITY, "the surplus is evicted");
    // A product that is read often is admitted.
    let new = 100 * CAPACITY;
    let began = std::time::Instant::now();
    while !(holds(&hot, new) && hot.count_admitted() == CAPACITY && holds(&hot, new)) {
        assert!(began.elapsed() < HANG, "new products are admitted");
        load(&hot, new);
        for _ in 0..100 {
            hot.read(ProductId::new(new.cast_signed()).unwrap(), |_| ());
        }
    }
    assert_eq!(hot.len(), CAPACITY);
    assert_eq!(supervisor.down(), Vec::<String>::new());
}

fn no_eviction() {
    let (hot, supervisor, metrics) = hot_tier();
    supervisor.faults().inject(BackgroundTask::EvictionPolicy, Fault::Panic, usize::MAX);
    // The request waits through all restarts.
    let asking = Arc::clone(&hot);
    let asked = std::thread::spawn(move || asking.count_admitted());
    let began = std::time::Instant::now();
    while metrics.task_restarts.get(BackgroundTask::EvictionPolicy) < RESTARTS as u64 {
        assert!(began.elapsed() < HANG);
        (1..=10 * CAPACITY).for_each(|number| load(&hot, number));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let failed = runtime.block_on(async { tokio::time::timeout(HANG, supervisor.failed()).await });
    assert!(failed.unwrap().contains("`eviction_policy`"), "the supervisor reports the failure");
    while !asked.is_finished() {
        assert!(began.elapsed() < HANG, "the waiting request is answered");
        std::thread::yield_now();
    }
    assert_eq!(hot.count_admitted(), 0, "and so is a later one");
    (1..=10 * CAPACITY).for_each(|number| load(&hot, number));
    assert_eq!(hot.len(), CAPACITY + CANDIDATES, "full, and no more than that");
}
