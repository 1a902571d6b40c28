//! P6 with a Redis Cluster that has lost nodes or moves slots: the other slots serve, nothing fails, and the lost
//! slots recover.

use std::time::Duration;

use futures_util::future::join_all;
use hotshelf::config::ServeArgs;
use hotshelf::proto::BatchGetProductsRequest;

use crate::harness::{Node, PrivateCluster, Suite, cache_status, eventually};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.private_cluster("cluster::a_master_that_is_killed_costs_only_its_own_slots", killed);
    suite.private_cluster("cluster::a_master_that_is_frozen_costs_only_its_own_slots", frozen);
    suite.private_cluster("cluster::without_half_of_it_reads_and_writes_go_on", half);
    suite.private_cluster("cluster::while_slots_are_moved_nothing_fails_or_gets_old", moved);
}

fn options(args: &mut ServeArgs) {
    args.redis.redis_timeout = Duration::from_secs(1);
    // A refresh would bring into memory what the test reads from Redis.
    args.caching.refresh_keys = 0;
}

/// Products of each of the three masters, in Redis and in the memory of the first instance; the second is empty.
async fn filled(world: &PrivateCluster) -> (Node, Node, [Vec<i64>; 3]) {
    let insert = "INSERT INTO products (name, price) \
                  SELECT 'lamp', 1 FROM generate_series(1, 30) RETURNING id";
    let ids: Vec<i64> = sqlx::query_scalar(insert).fetch_all(&world.sql).await.unwrap();
    let (reader, node) = tokio::join!(world.node_with(options), world.node_with(options));
    join_all(ids.iter().map(|id| reader.product(*id))).await;
    let of = |master| ids.iter().copied().filter(|id| world.master_of(*id) == master).collect();
    let ids = [of(0), of(1), of(2)];
    assert!(ids.iter().all(|ids: &Vec<i64>| ids.len() >= 4), "{ids:?}");
    (reader, node, ids)
}

async fn breakers_open(node: &Node) -> f64 {
    node.metric("hotshelf_redis_breakers_open{dependency=\"commands\"}").await
}

/// Reads one batch of everything, in which only the first master's products are loaded from Postgres.
async fn only_its_slots_are_loaded(world: &PrivateCluster, node: &Node, ids: &[Vec<i64>; 3]) {
    let series = |tier| format!("hotshelf_reads_total{{served_by=\"{tier}\"}}");
    let from_redis = node.metric(&series("redis")).await;
    let request = BatchGetProductsRequest { ids: ids.concat(), ..Default::default() };
    let read = node.client.clone().batch_get_products(request).await.unwrap();
    assert_eq!(read.into_inner().products.len(), ids.concat().len());
    let from_redis = node.metric(&series("redis")).await - from_redis;
    let others = (ids[1].len() + ids[2].len()) as f64;
    assert_eq!(from_redis, others, "the others answer");
    assert_eq!(node.metric(&series("postgres")).await, ids[0].len() as f64);
    assert!(world.cluster.nodes()[0].command(&["PING"]).is_err(), "all the time");
}

/// Waits until the replica has taken over and the slots of the lost master are cached again.
async fn recovers(world: &PrivateCluster, node: &Node, id: i64) {
    eventually("its slots are cached again", || async {
        let renamed = rename(node, id, "afterwards").await;
        assert_eq!(node.product(id).await, renamed);
        let new = world.insert_unrelayed("new").await;
        node.product(new).await;
        world.master_of(new) == 0 && world.is_held(new)
    })
    .await;
    eventually("every breaker is closed", || async { breakers_open(node).await == 0.0 }).await;
    world.wait_until_relayed().await;
}

async fn killed(cluster: PrivateCluster) {
    let (reader, node, ids) = filled(&cluster).await;
    cluster.cluster.nodes()[0].kill();
    only_its_slots_are_loaded(&cluster, &node, &ids).await;
    let renamed = rename(&node, ids[0][0], "renamed").await;
    assert_eq!(node.product(ids[0][0]).await, renamed);
    eventually("the other instance serves it", || async {
        reader.product(ids[0][0]).await == renamed
    })
    .await;
    recovers(&cluster, &node, ids[0][1]).await;
}

async fn frozen(cluster: PrivateCluster) {
    let (_reader, node, ids) = filled(&cluster).await;
    cluster.cluster.nodes()[0].pause();
    let first = ids[0][..2].iter().chain(&ids[1][..2]);
    for read in join_all(first.map(|id| node.get(*id))).await {
        read.unwrap();
    }
    let others = node.get(ids[2][0]).await.unwrap();
    assert_eq!(cache_status(&others), "hotshelf; hit; detail=redis");
    let renamed = rename(&node, ids[0][0], "renamed").await;
    assert_eq!(node.product(ids[0][0]).await, renamed);
    recovers(&cluster, &node, ids[0][1]).await;
    cluster.cluster.nodes()[0].resume();
}

async fn half(cluster: PrivateCluster) {
    let (_reader, node, ids) = filled(&cluster).await;
    let gone = [0, 1, 3];
    gone.iter().for_each(|node| cluster.cluster.nodes()[*node].kill());
    eventually("the cluster reports the lost slots", || async {
        let info = cluster.cluster.nodes()[2].command(&["CLUSTER", "INFO"]).unwrap();
        info.contains("cluster_state:fail")
    })
    .await;
    for id in ids.concat() {
        assert_eq!(node.product(id).await.id, id);
    }
    let renamed = rename(&node, ids[0][0], "renamed").await;
    assert_eq!(node.product(ids[0][0]).await, renamed);
    for node in gone {
        cluster.cluster.nodes()[node].start_again().unwrap();
    }
    recovers(&cluster, &node, ids[0][1]).await;
}

/// Sends CLUSTER SETSLOT to one node.
fn set_slot(cluster: &PrivateCluster, node: usize, slot: &str, words: &[&str]) {
    let command: Vec<&str> = ["CLUSTER", "SETSLOT", slot].iter().chain(words).copied().collect();
    cluster.cluster.nodes()[node].command(&command).unwrap();
}

async fn moved(cluster: PrivateCluster) {
    let (reader, node, ids) = filled(&cluster).await;
    let id = ids[0][0];
    let (from, to) = (&cluster.cluster.nodes()[0], &cluster.cluster.nodes()[1]);
    let (slot, key) = (cluster.slot_of(id).to_string(), cluster.entry_key(id));
    let names = [from, to].map(|node| node.command(&["CLUSTER", "MYID"]).unwrap());
    let [from_name, to_name] = [names[0].trim(), names[1].trim()];
    set_slot(&cluster, 1, &slot, &["IMPORTING", from_name]);
    set_slot(&cluster, 0, &slot, &["MIGRATING", to_name]);
    let absent = from.command(&["GET", &format!("{key}:absent")]);
    assert!(absent.unwrap_err().to_string().contains("ASK"), "an absent key is redirected");
    // The entry is on the old node, and after MIGRATE on the new one.
    assert_eq!(node.product(id).await.id, id);
    let renamed = rename(&node, id, "renamed").await;
    assert_eq!(reader.product(id).await.id, id);
    let port = to.port().to_string();
    from.command(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]).unwrap();
    assert!(from.command(&["GET", &key]).unwrap_err().to_string().contains("ASK"), "it happened");
    assert_eq!(node.product(id).await, renamed);
    let again = rename(&node, id, "renamed again").await;
    eventually("the other instance serves it", || async { reader.product(id).await == again })
        .await;
    for place in 0..3 {
        set_slot(&cluster, place, &slot, &["NODE", to_name]);
    }
    assert!(from.command(&["GET", &key]).unwrap_err().to_string().contains("MOVED"));
    let last = rename(&node, id, "at its new place").await;
    eventually("the other instance serves that", || async { reader.product(id).await == last })
        .await;
    cluster.wait_until_relayed().await;
    let other = cluster.node_with(options).await;
    assert_eq!(other.product(id).await, last);
    eventually("it is cached there", || async {
        other.product(id).await;
        to.command(&["EXISTS", &key]).unwrap().trim() == "1"
    })
    .await;
}
