//! Clusters of any shape, with every way in which nodes announce their address.

use devstack::{Redis, RedisOptions};

use crate::harness::{Node, Private, PrivateCluster, Suite, cache_status, eventually, free_port};

const HOSTNAME: [(&str, &str); 2] =
    [("cluster-preferred-endpoint-type", "hostname"), ("cluster-announce-hostname", "localhost")];

pub fn register(suite: &mut Suite<'_>) {
    suite.private("redis_cluster_shapes::a_node_without_a_name_is_used", |world| {
        one_node(world, &[])
    });
    suite.private("redis_cluster_shapes::a_node_of_unknown_endpoint_is_used", |world| {
        one_node(world, &[("cluster-preferred-endpoint-type", "unknown-endpoint")])
    });
    suite.private("redis_cluster_shapes::a_node_that_should_have_a_hostname_is_used", |world| {
        one_node(world, &[("cluster-preferred-endpoint-type", "hostname")])
    });
    suite.private("redis_cluster_shapes::a_node_with_a_hostname_is_used", |world| {
        one_node(world, &HOSTNAME)
    });
    suite.private("redis_cluster_shapes::slots_without_a_server_cost_only_their_keys", uncovered);
    suite.private_cluster(
        "redis_cluster_shapes::each_node_holds_its_own_replication_id_through_a_failover",
        failover,
    );
}

/// A cluster of one node with the slots up to `last`.
pub fn cluster(last: &str, more: &[(&str, &str)]) -> Redis {
    let bus = free_port().to_string();
    let settings = [("cluster-enabled", "yes"), ("cluster-port", &bus)];
    let settings = settings.iter().chain(more);
    let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let options = RedisOptions { settings: settings.collect(), ..RedisOptions::default() };
    let node = Redis::start(options).unwrap();
    node.command(&["CLUSTER", "ADDSLOTSRANGE", "0", last]).unwrap();
    node
}

async fn node_of(world: &Private, redis: &Redis) -> Node {
    let url = format!("redis-cluster://127.0.0.1:{}", redis.port());
    world
        .node_with_short_timeouts(|args| {
            args.redis.redis_url = url;
            args.caching.refresh_keys = 0;
        })
        .await
}

fn holds(redis: &Redis, world: &Private, id: i64) -> bool {
    let key = world.entry_key(id);
    redis.command(&["EXISTS", &key]).is_ok_and(|found| found.trim() == "1")
}

/// A node that has just started refuses commands for some seconds.
async fn is_sound(redis: &Redis) {
    eventually("it is sound", || async {
        redis.command(&["CLUSTER", "INFO"]).unwrap().contains("cluster_state:ok")
    })
    .await;
}

async fn one_node(world: Private, more: &'static [(&'static str, &'static str)]) {
    let redis = cluster("16383", more);
    is_sound(&redis).await;
    let (one, other) = tokio::join!(node_of(&world, &redis), node_of(&world, &redis));
    let id = world.insert("lamp").await;
    one.product(id).await;
    assert!(holds(&redis, &world, id));
    let read = other.get(id).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; hit; detail=redis");
    assert_eq!(other.admin("/readyz").await.1, "ready\n");
}

async fn uncovered(world: Private) {
    let redis = cluster("8191", &[("cluster-require-full-coverage", "no")]);
    is_sound(&redis).await;
    let node = node_of(&world, &redis).await;
    let mut held = 0;
    for _ in 0..30 {
        let id = world.insert_unrelayed("lamp").await;
        assert_eq!(node.product(id).await.id, id);
        held += u32::from(holds(&redis, &world, id));
    }
    assert!((1..30).contains(&held), "{held} of 30 are cached");
    assert_eq!(node.metric("hotshelf_redis_refusing{reason=\"no_slots\"}").await, 1.0);
    assert!(node.admin("/readyz").await.1.contains("8192 of 16384 slots"));
    assert_eq!(node.metric("hotshelf_redis_breakers_open{dependency=\"commands\"}").await, 0.0);
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]).unwrap();
    eventually("it is sound", || async { node.admin("/readyz").await.1 == "ready\n" }).await;
}

/// The replication id of a node, and the one stored in hotshelf's key on it.
fn ids_of(redis: &Redis, namespace: &str) -> (String, String) {
    let info = redis.command(&["INFO", "replication"]).unwrap();
    let id = info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap();
    let key = redis.command(&["KEYS", &format!("{namespace}:*:replication")]).unwrap();
    let held = redis.command(&["GET", key.trim()]).unwrap_or_default();
    (id.trim().to_owned(), held.split(' ').next().unwrap().to_owned())
}

async fn failover(world: PrivateCluster) {
    let node = world.node_with(|_| {}).await;
    let nodes = world.cluster.nodes();
    for master in &nodes[..3] {
        eventually("it is stored", || async {
            let (id, held) = ids_of(master, &world.namespace);
            id == held
        })
        .await;
    }
    let changes = || node.metric("hotshelf_redis_replication_changes_total");
    assert_eq!(changes().await, 0.0);
    nodes[0].kill();
    eventually("its replica has taken over", || async {
        nodes[3].role().unwrap() == devstack::Role::Master
    })
    .await;
    eventually("it has another id, which is stored", || async {
        let (id, held) = ids_of(&nodes[3], &world.namespace);
        id == held
    })
    .await;
    eventually("it is counted", || async { changes().await >= 1.0 }).await;
}
