//! StreamHotKeys: the most read products of one instance, and of the fleet.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hotshelf::proto::{
    BatchGetProductsRequest, HotKey, ProductServiceClient, Scope, StreamHotKeysRequest,
    StreamHotKeysResponse,
};
use tonic::{Code, Request, Streaming};

use crate::harness::{HANG, Node, Private, Stack, Suite, channel, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("hot_keys::every_kind_of_read_counts_once_for_each_id", kinds_of_reads);
    suite.both("hot_keys::rates_are_what_was_read_over_how_long", rates);
    suite.both("hot_keys::the_fleets_ranking_is_the_sum_and_the_same_everywhere", fleet);
    suite.both("hot_keys::a_stream_that_is_not_read_does_not_delay_others", slow_reader);
    suite.single("hot_keys::a_stream_ends_at_its_callers_deadline", deadline);
    suite.single("hot_keys::one_connection_leaves_streams_for_others", shares);
    suite.private("hot_keys::many_streams_cost_redis_as_much_as_one", one_computation);
    suite
        .private("hot_keys::without_redis_the_fleets_ranking_grows_old_and_goes_on", without_redis);
}

fn request(scope: Scope, limit: i32) -> StreamHotKeysRequest {
    let interval = Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 });
    StreamHotKeysRequest { limit, interval, scope: scope.into() }
}

async fn watch(node: &Node, scope: Scope, limit: i32) -> Streaming<StreamHotKeysResponse> {
    node.client.clone().stream_hot_keys(request(scope, limit)).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<StreamHotKeysResponse>) -> Vec<HotKey> {
    next_whole(stream).await.hot_keys
}

async fn next_whole(stream: &mut Streaming<StreamHotKeysResponse>) -> StreamHotKeysResponse {
    let snapshot = tokio::time::timeout(HANG, stream.message()).await.unwrap();
    snapshot.unwrap().expect("a stream without an end")
}

fn age(snapshot: &StreamHotKeysResponse) -> Duration {
    snapshot.age.unwrap().try_into().unwrap()
}

async fn snapshot(node: &Node, scope: Scope, limit: i32) -> Vec<HotKey> {
    next(&mut watch(node, scope, limit).await).await
}

async fn read(node: &Node, id: i64, times: usize) {
    for read in join_all((0..times).map(|_| node.get(id))).await {
        read.unwrap();
    }
}

async fn kinds_of_reads(stack: Stack) {
    let (often, seldom) = (stack.insert("often").await, stack.insert("seldom").await);
    let node = stack.node().await;
    assert_eq!(snapshot(&node, Scope::Instance, 0).await, [], "at once, and empty");
    // A miss and 19 hits, then 10 batches that name it twice.
    node.product(often).await;
    read(&node, often, 19).await;
    for _ in 0..10 {
        let ids = vec![often, seldom, often];
        let request = BatchGetProductsRequest { ids, ..Default::default() };
        node.client.clone().batch_get_products(request).await.unwrap();
    }
    let keys = snapshot(&node, Scope::Instance, 0).await;
    let ranked: Vec<_> = keys.iter().map(|key| (key.rank, key.product_id)).collect();
    assert_eq!(ranked, [(1, often), (2, seldom)]);
    let ratio = keys[0].requests_per_second / keys[1].requests_per_second;
    assert!((ratio - 3.0).abs() < 0.01, "30 reads to 10: {keys:?}");
    assert_eq!(snapshot(&node, Scope::Instance, 1).await.len(), 1, "the limit");
}

async fn rates(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let before = Instant::now();
    let node = stack.node().await;
    let ready = Instant::now();
    read(&node, id, 500).await;
    let shortest = ready.elapsed().as_secs_f64().max(1.0);
    let key = snapshot(&node, Scope::Instance, 5).await.remove(0);
    let longest = before.elapsed().as_secs_f64().max(1.0);
    let (least, most) = (500.0 / longest, 500.0 / shortest);
    let near = least - key.error_bound..=most + key.error_bound;
    assert!(near.contains(&key.requests_per_second), "{least} to {most}: {key:?}");
    assert!(key.error_bound > 0.0 && key.error_bound < key.requests_per_second / 2.0, "{key:?}");
}

async fn fleet(stack: Stack) {
    let (both, one) = (stack.insert("both").await, stack.insert("one").await);
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let ids = |keys: &[HotKey]| keys.iter().map(|key| key.product_id).collect::<Vec<_>>();
    // Each instance adds its counts at its own times, and earlier counts have decayed: repeat until the ratio is right.
    let about_right = |keys: &[HotKey]| {
        let ratio = keys[0].requests_per_second / keys[1].requests_per_second;
        (1.1..2.0).contains(&ratio)
    };
    eventually("60 of both are ranked above 40 of one", || async {
        tokio::join!(read(&a, both, 30), read(&b, both, 30), read(&b, one, 40));
        let keys = snapshot(&a, Scope::Fleet, 10).await;
        ids(&keys) == [both, one] && about_right(&keys)
    })
    .await;
    let (from_a, from_b) =
        (snapshot(&a, Scope::Fleet, 10).await, snapshot(&b, Scope::Fleet, 10).await);
    assert_eq!(ids(&from_a), ids(&from_b));
    assert_eq!(snapshot(&a, Scope::Fleet, 1).await.len(), 1, "the limit");
    let basis = async || next_whole(&mut watch(&b, Scope::Fleet, 10).await).await;
    // Each learns it when it adds its own reads.
    eventually("both instances count", async || basis().await.instances == 2).await;
    let basis = basis().await;
    assert_eq!(age(&basis), Duration::ZERO);
    let (first, second) = (&basis.hot_keys[0], &basis.hot_keys[1]);
    assert!((first.share + second.share - 1.0).abs() < 0.1, "{first:?} {second:?}");
    assert_eq!(first.redis_share, None);
    let own = next_whole(&mut watch(&a, Scope::Instance, 10).await).await;
    assert_eq!(own.instances, 1);
    assert!(own.hot_keys[0].postgres_share.is_some_and(|share| share < 0.5), "{own:?}");
    eventually("it decays", || async {
        let now = snapshot(&b, Scope::Fleet, 10).await;
        now[0].requests_per_second < from_a[0].requests_per_second * 0.8
    })
    .await;
}

async fn slow_reader(stack: Stack) {
    let node = stack.node().await;
    let mut ids = Vec::new();
    for n in 0..200 {
        ids.push(stack.insert(&format!("shelf {n}")).await);
    }
    let request = BatchGetProductsRequest { ids: ids.clone(), ..Default::default() };
    node.client.clone().batch_get_products(request).await.unwrap();
    let unread = join_all((0..30).map(|_| watch(&node, Scope::Fleet, 1_000))).await;
    let mut stream = watch(&node, Scope::Instance, 1_000).await;
    for _ in 0..10 {
        assert_eq!(next(&mut stream).await.len(), ids.len());
        read(&node, ids[0], 20).await;
    }
    drop(unread);
}

async fn deadline(stack: Stack) {
    let node = stack.node().await;
    let mut request = Request::new(request(Scope::Instance, 5));
    request.set_timeout(Duration::from_secs(3));
    let mut stream = node.client.clone().stream_hot_keys(request).await.unwrap().into_inner();
    let (began, mut snapshots) = (Instant::now(), 0);
    let end = loop {
        match tokio::time::timeout(HANG, stream.message()).await.unwrap() {
            Ok(Some(_)) => snapshots += 1,
            Ok(None) => panic!("ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end:?}");
    assert!(snapshots > 0 && began.elapsed() < HANG);
}

async fn without_redis(world: Private) {
    let id = world.insert("walnut desk lamp").await;
    let node = world.node_with_short_timeouts(|_| {}).await;
    node.product(id).await;
    let mut stream = watch(&node, Scope::Fleet, 10).await;
    let began = Instant::now();
    while next(&mut stream).await.is_empty() {
        read(&node, id, 1).await;
        assert!(began.elapsed() < HANG, "the fleet's ranking never came");
    }
    world.redis.kill();
    assert_eq!(world.redis.pid(), None);
    let mut before = next_whole(&mut stream).await;
    while age(&before).is_zero() {
        before = next_whole(&mut stream).await;
        assert!(began.elapsed() < 2 * HANG, "as if Redis were there");
    }
    for _ in 0..3 {
        let old = next_whole(&mut stream).await;
        assert!(age(&old) > age(&before), "{old:?}");
        assert_eq!(old.hot_keys, before.hot_keys);
        before = old;
    }
    world.redis.start_again().unwrap();
    while !age(&next_whole(&mut stream).await).is_zero() {
        assert!(began.elapsed() < 3 * HANG, "the fleet's ranking never came back");
    }
    while next(&mut stream).await.is_empty() {
        read(&node, id, 1).await;
        assert!(began.elapsed() < 4 * HANG, "the fleet's ranking never came back");
    }
}

async fn shares(stack: Stack) {
    let node = stack.node_with(|args| args.serving.max_watchers = 100).await;
    let mut greedy = Vec::new();
    let refused = loop {
        let request = request(Scope::Instance, 5);
        match node.client.clone().stream_hot_keys(request).await {
            Ok(stream) => greedy.push(stream.into_inner()),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(greedy.len(), 34, "a third, and what passes it");
    assert_eq!(node.metric(r#"hotshelf_shed_total{reason="streams"}"#).await, 1.0);
    let mut other = ProductServiceClient::new(channel(node.grpc_addr.port()).await);
    let mut streams = Vec::new();
    for _ in 0..20 {
        let stream = other.stream_hot_keys(request(Scope::Instance, 5)).await;
        streams.push(stream.unwrap().into_inner());
    }
    for stream in streams.iter_mut().chain(&mut greedy) {
        next(stream).await;
    }
    drop(greedy);
    let open = async || node.metric("hotshelf_hot_keys_watchers").await;
    eventually("their places are free again", async || open().await == 20.0).await;
    node.client.clone().stream_hot_keys(request(Scope::Instance, 5)).await.unwrap();
}

/// The ranking is read at most once in 100 ms, for any number of streams of any interval. The bound counts elapsed
/// intervals, so that a busy machine does not matter.
async fn one_computation(world: Private) {
    const SNAPSHOTS: usize = 5;
    let id = world.insert("walnut desk lamp").await;
    let node = world.node_with(|args| args.caching.refresh_keys = 0).await;
    node.product(id).await;
    let before = rankings_read(&world);
    let began = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let client = ProductServiceClient::new(channel(node.grpc_addr.port()).await);
        for n in 0..15 {
            let mut request = request(Scope::Fleet, 10);
            let nanos = (100 + 7 * n) * 1_000_000;
            request.interval = Some(prost_types::Duration { seconds: 0, nanos });
            let stream = client.clone().stream_hot_keys(request).await.unwrap();
            streams.push(stream.into_inner());
        }
    }
    join_all(streams.into_iter().map(async |mut stream| {
        for _ in 0..SNAPSHOTS {
            next(&mut stream).await;
        }
    }))
    .await;
    let read = rankings_read(&world) - before;
    let ticks = began.elapsed().as_millis() / 100 + 1;
    assert!(u128::from(read) <= ticks, "{read} reads in {ticks} intervals");
}

/// The number of reads of the fleet's ranking from Redis.
fn rankings_read(world: &Private) -> u64 {
    let stats = world.redis.command(&["INFO", "commandstats"]).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_zrevrange:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}
