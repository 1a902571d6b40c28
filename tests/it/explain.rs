//! ExplainProduct: why a read returns an old price.

use hotshelf::pause::Point;
use hotshelf::product::{Change, ProductId, Revision, Version};
use hotshelf::proto::{
    AdminServiceClient, DeleteProductRequest, ExplainProductRequest, ExplainProductResponse,
    SlotState, Tier,
};
use tonic::Code;

use crate::harness::{Node, Stack, Suite, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("explain::it_follows_a_product_through_the_tiers", tiers);
    suite.both("explain::it_shows_a_load_in_flight_and_its_lease", in_flight);
    suite.both("explain::it_shows_why_memory_is_not_served", invalidated);
    suite.single("explain::it_changes_nothing_and_counts_as_no_read", no_traces);
}

async fn explain(node: &Node, id: i64) -> ExplainProductResponse {
    let mut client = AdminServiceClient::new(node.channel.clone());
    client.explain_product(ExplainProductRequest { id }).await.unwrap().into_inner()
}

async fn tiers(stack: Stack) {
    let id = stack.insert("lamp").await;
    let (a, b) = tokio::join!(stack.node(), stack.node());
    let nowhere = explain(&a, id).await;
    assert_eq!(nowhere.served_from(), Tier::Postgres);
    assert_eq!(nowhere.memory.unwrap().state(), SlotState::Empty);
    assert!(nowhere.redis.unwrap().copy.is_none());
    let version = nowhere.postgres.unwrap().version;

    assert_eq!(a.product(id).await.version, version);
    let (here, there) = (explain(&a, id).await, explain(&b, id).await);
    assert_eq!(here.served_from(), Tier::Hot);
    let memory = here.memory.unwrap();
    assert_eq!(memory.state(), SlotState::Fresh);
    assert_eq!(memory.copy.unwrap().version, version);
    assert_eq!(there.served_from(), Tier::Redis);
    let copy = there.redis.unwrap().copy.unwrap();
    assert_eq!((copy.version, copy.tombstone), (version, false));
    assert!(copy.soft_ttl_remaining.unwrap().seconds > 0);

    let request = DeleteProductRequest { id, expected_version: None };
    a.client.clone().delete_product(request).await.unwrap();
    let gone = explain(&a, id).await;
    assert!(gone.memory.unwrap().copy.unwrap().tombstone);
    assert!(!gone.postgres.unwrap().exists);
}

async fn in_flight(stack: Stack) {
    let id = stack.insert("lamp").await;
    let node = stack.node().await;
    let mut held = node.pauses.arm(Point::LoadedFromPostgres);
    let mut client = node.client.clone();
    let read = tokio::spawn(async move { client.get_product(get(id)).await });
    let paused = held.recv().await.unwrap();
    let explained = explain(&node, id).await;
    assert!(explained.memory.unwrap().load_in_flight);
    let redis = explained.redis.unwrap();
    assert!(redis.leased && redis.lease_age.is_some());
    assert_eq!(redis.lease_token.len(), 32);
    assert!(explained.reason.contains("lease"), "{}", explained.reason);
    drop(paused);
    assert!(read.await.unwrap().is_ok());
}

async fn invalidated(stack: Stack) {
    let id = stack.insert("lamp").await;
    let node = stack.node().await;
    let version = node.product(id).await.version;
    // Invalidated directly: after a change from the feed the instance would reload it before the call.
    let revision = Revision::live(Version(version + 1));
    node.hot.invalidate(Change { id: ProductId::new(id).unwrap(), revision });
    let explained = explain(&node, id).await;
    let memory = explained.memory.as_ref().unwrap();
    assert_eq!(memory.state(), SlotState::Invalidated);
    assert_eq!(memory.floor_version, version + 1);
    assert_eq!(memory.copy.unwrap().version, version);
    assert_eq!(explained.served_from(), Tier::Redis);
    assert!(explained.reason.contains("invalidated"), "{}", explained.reason);
}

async fn no_traces(stack: Stack) {
    let id = stack.insert("lamp").await;
    let node = stack.node().await;
    explain(&node, id).await;
    let mut client = AdminServiceClient::new(node.channel.clone());
    let error = client.explain_product(ExplainProductRequest { id: 0 }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(stack.redis_revision(id).await, None);
    assert_eq!(node.metric(r#"hotshelf_reads_total{served_by="postgres"}"#).await, 0.0);
    assert_eq!(node.catalog.hot_keys(10).keys, []);
}
