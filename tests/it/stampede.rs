//! P1: one load per miss, counted by Postgres.

use std::collections::HashMap;

use futures_util::future::join_all;
use hotshelf::controls::Protection;
use hotshelf::pause::Point;
use hotshelf::proto::get_product_request::Freshness;
use hotshelf::proto::{
    BatchGetProductsRequest, CreateProductRequest, GetProductRequest, Money, Product,
};
use tonic::Code;

use crate::harness::{HANG, Node, Stack, Suite, cache_status, eventually};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("stampede::a_thousand_first_readers_cost_one_select", one_instance);
    suite.both(
        "stampede::a_thousand_first_readers_of_three_instances_cost_one_select",
        three_instances,
    );
    suite.both("stampede::a_product_comes_from_postgres_then_redis_then_memory", tiers);
    suite.both("stampede::absent_ids_cost_one_select_each_until_they_are_created", absent);
    suite.both("stampede::a_batch_shares_its_loads_with_single_reads", batch_and_singles);
    suite.both("stampede::readers_of_the_latest_share_their_queries", latest);
}

async fn read_concurrently(nodes: &[&Node], id: i64, readers: usize) {
    let reads = (0..readers).map(|reader| nodes[reader % nodes.len()].get(id));
    for read in join_all(reads).await {
        assert_eq!(read.unwrap().into_inner().id, id);
    }
}

async fn one_instance(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    // A late hint of the insert would start another load.
    node.controls.turn_off(Protection::Hints);
    let mut loaded = node.pauses.arm(Point::LoadedFromPostgres);
    let held = async {
        let load = tokio::time::timeout(HANG, loaded.recv()).await.unwrap();
        node.pauses.release(Point::LoadedFromPostgres);
        // The refresh-ahead task may join, too: this is the hottest product.
        eventually("the others join", || async {
            node.metric("hotshelf_singleflight_joined_total").await >= 999.0
        })
        .await;
        drop(load);
    };
    let nodes = [&node];
    tokio::join!(read_concurrently(&nodes, id, 1_000), held);
    assert_eq!(stack.loads().await, 1);
}

async fn three_instances(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (a, b, c) = tokio::join!(stack.node(), stack.node(), stack.node());
    for node in [&a, &b, &c] {
        node.controls.turn_off(Protection::Hints);
    }
    read_concurrently(&[&a, &b, &c], id, 1_000).await;
    assert_eq!(stack.loads().await, 1);
}

async fn tiers(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let from_postgres = a.get(id).await.unwrap();
    assert_eq!(cache_status(&from_postgres), "hotshelf; fwd=miss; detail=postgres");
    let from_redis = b.get(id).await.unwrap();
    assert_eq!(cache_status(&from_redis), "hotshelf; hit; detail=redis");
    let from_memory = a.get(id).await.unwrap();
    assert_eq!(cache_status(&from_memory), "hotshelf; hit; detail=hot");
    assert_eq!(from_postgres.get_ref(), from_redis.get_ref());
    assert_eq!(from_postgres.get_ref(), from_memory.get_ref());
    assert_eq!(from_memory.get_ref().price.as_ref().unwrap().nanos, 990_000_000);
}

async fn absent(stack: Stack) {
    const IDS: i64 = 500;
    // No load is refused or times out on a busy machine.
    let options = |args: &mut hotshelf::config::ServeArgs| {
        args.postgres.database_acquire_timeout = HANG;
        args.postgres.database_queued_loads = 2 * IDS as usize;
        args.redis.lease_wait = HANG;
        args.caching.tombstone_ttl = 5 * HANG;
    };
    let (a, b) = tokio::join!(stack.node_with(options), stack.node_with(options));
    for chunk in (0..10_000).collect::<Vec<i64>>().chunks(1_000) {
        let reads = chunk.iter().map(|n| [&a, &b][(n % 2) as usize].get(n % IDS + 1));
        for read in join_all(reads).await {
            assert_eq!(read.unwrap_err().code(), Code::NotFound);
        }
    }
    let loads = stack.loads().await;
    assert!(loads <= IDS, "{loads} SELECTs for {IDS} absent ids");

    let price = Money { currency_code: "EUR".to_owned(), units: 3, nanos: 500_000_000 };
    let product =
        Product { name: "oak shelf".to_owned(), price: Some(price), ..Product::default() };
    let request = CreateProductRequest { product: Some(product) };
    let created = a.client.clone().create_product(request).await.unwrap().into_inner();
    assert!((1..=IDS).contains(&created.id), "an id that was cached as absent");
    assert_eq!(a.product(created.id).await, created);
    let latest = GetProductRequest {
        id: created.id,
        freshness: Some(Freshness::MinVersion(created.version)),
    };
    assert_eq!(b.client.clone().get_product(latest).await.unwrap().into_inner(), created);
}

async fn batch_and_singles(stack: Stack) {
    let mut ids = Vec::new();
    for n in 0..50 {
        ids.push(stack.insert(&format!("shelf {n}")).await);
    }
    let node = stack.node().await;
    let batch = || async {
        let request = BatchGetProductsRequest { ids: ids.clone(), ..Default::default() };
        node.client.clone().batch_get_products(request).await.unwrap().into_inner()
    };
    let singles = join_all(ids.iter().map(|id| node.get(*id)));
    let (first, second, singles) = tokio::join!(batch(), batch(), singles);
    assert_eq!(first, second);
    assert_eq!(first.products.iter().map(|product| product.id).collect::<Vec<_>>(), ids);
    let by_id: HashMap<i64, Product> =
        first.products.into_iter().map(|product| (product.id, product)).collect();
    for single in singles {
        let single = single.unwrap().into_inner();
        assert_eq!(by_id[&single.id], single);
    }
    assert_eq!(node.metric("hotshelf_postgres_loads_total").await, 50.0);
}

async fn latest(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let request = GetProductRequest { id, freshness: Some(Freshness::Latest(true)) };
    let reads = (0..1_000).map(|_| {
        let (mut client, request) = (node.client.clone(), request);
        async move { client.get_product(request).await }
    });
    node.product(id).await;
    sqlx::query("UPDATE products SET name = 'by SQL' WHERE id = $1")
        .bind(id)
        .execute(&stack.sql)
        .await
        .unwrap();
    for read in join_all(reads).await {
        assert_eq!(read.unwrap().into_inner().name, "by SQL", "no cached version is served");
    }
    let loads = stack.loads().await;
    assert!(loads < 100, "{loads} queries for 1000 concurrent readers");
}
