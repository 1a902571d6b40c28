//! Nodes of a Redis Cluster fail, and slots move.

use devstack::{Redis, RedisCluster, Role};

use crate::Error;
use crate::fault::Fault;
use crate::instance::is_frozen;
use crate::scenario::{Scenario, blocking};

pub(super) const MASTERS: usize = 3;
/// First hash slot of each master as the cluster is created, and the end.
const FIRST_SLOTS: [u16; MASTERS + 1] = [0, 5461, 10923, 16384];
/// Hot products whose slots move.
const MOVED: usize = 30;

pub(super) fn all() -> Vec<Fault> {
    // The replica may lack the last writes of its master.
    let failover = |fault| Fault { redis_goes_back: true, ..fault };
    let all = [
        failover(Fault::of_cluster("cluster-master-killed", "kill -9, failover", |scenario| {
            Box::pin(master_killed(scenario))
        })),
        failover(Fault::of_cluster("cluster-master-frozen", "SIGSTOP, failover", |scenario| {
            Box::pin(master_frozen(scenario))
        })),
        Fault::of_cluster(
            "cluster-resharding",
            "hot slots move: ASK, TRYAGAIN, MOVED",
            |scenario| Box::pin(resharding(scenario)),
        ),
        Fault::of_cluster("cluster-half-gone", "two masters and a replica killed", |scenario| {
            Box::pin(half_gone(scenario))
        }),
    ];
    all.map(|fault| Fault { demands: super::UNFELT, ..fault }).into()
}

/// A key in the slot of the product: only the text in braces is hashed.
fn key_of(product: i64) -> String {
    format!("x:{{{product}}}:p")
}

/// The slot of a key, and the index of the master that first owned it.
fn slot_and_master(cluster: &RedisCluster, key: &str) -> Result<(u16, usize), Error> {
    let slot = cluster.nodes()[0].command(&["CLUSTER", "KEYSLOT", key])?;
    let slot = slot.parse().unwrap_or(0);
    Ok((slot, FIRST_SLOTS.iter().rposition(|first| *first <= slot).unwrap_or(0)))
}

pub(super) fn master_of(cluster: &RedisCluster, product: i64) -> Result<usize, Error> {
    Ok(slot_and_master(cluster, &key_of(product))?.1)
}

/// The master of the hottest product, and its replica.
pub(super) fn hottest_shard<'a>(scenario: &Scenario<'a>) -> Result<[&'a Redis; 2], Error> {
    let cluster = scenario.cluster()?;
    let index = master_of(cluster, scenario.products[0])?;
    Ok([index, index + MASTERS].map(|index| &cluster.nodes()[index]))
}

async fn replica_takes_over(scenario: &Scenario<'_>, replica: &Redis) -> Result<(), Error> {
    let took_over = async || blocking(|| replica.role()).is_ok_and(|role| role == Role::Master);
    scenario.prove_soon("its replica became master", took_over).await
}

/// How many nodes have this flag in the node's own CLUSTER NODES.
pub(super) fn nodes_flagged(node: &Redis, flag: &str) -> usize {
    let nodes = blocking(|| node.command(&["CLUSTER", "NODES"])).unwrap_or_default();
    nodes.lines().filter(|line| line.split([' ', ',']).any(|field| field == flag)).count()
}

async fn master_killed(scenario: &Scenario<'_>) -> Result<(), Error> {
    let cluster = scenario.cluster()?;
    let [master, replica] = hottest_shard(scenario)?;
    master.kill();
    scenario.prove("the master of the hottest product is gone", master.pid().is_none())?;
    replica_takes_over(scenario, replica).await?;
    scenario.prove("CLUSTER NODES flags it as failed", nodes_flagged(replica, "fail") > 0)?;
    scenario.hold().await;
    blocking(|| master.start_again().and_then(|()| cluster.wait_until_sound()))?;
    Ok(())
}

async fn master_frozen(scenario: &Scenario<'_>) -> Result<(), Error> {
    let cluster = scenario.cluster()?;
    let [master, replica] = hottest_shard(scenario)?;
    master.pause();
    scenario
        .prove_soon("its process is in state T", async || master.pid().is_some_and(is_frozen))
        .await?;
    replica_takes_over(scenario, replica).await?;
    scenario.hold().await;
    master.resume();
    blocking(|| cluster.wait_until_sound())?;
    Ok(())
}

async fn half_gone(scenario: &Scenario<'_>) -> Result<(), Error> {
    let cluster = scenario.cluster()?;
    let gone = [&cluster.nodes()[0], &cluster.nodes()[1], &cluster.nodes()[MASTERS]];
    gone.iter().for_each(|node| node.kill());
    let left = &cluster.nodes()[2];
    let state = async || {
        let info = blocking(|| left.command(&["CLUSTER", "INFO"])).unwrap_or_default();
        info.contains("cluster_state:fail")
    };
    scenario.prove_soon("the remaining master reports cluster_state:fail", state).await?;
    scenario.hold().await;
    for node in gone {
        blocking(|| node.start_again())?;
    }
    blocking(|| cluster.wait_until_sound())?;
    Ok(())
}

async fn resharding(scenario: &Scenario<'_>) -> Result<(), Error> {
    let cluster = scenario.cluster()?;
    let hottest = scenario.products.iter().take(MOVED);
    let keys: Vec<String> = hottest.map(|product| key_of(*product)).collect();
    let pause = scenario.hold / u32::try_from(keys.len()).unwrap_or(1) / 2;
    let (mut asked, mut moved) = (0, 0);
    for key in &keys {
        let (slot, from) = slot_and_master(cluster, key)?;
        let from = &cluster.nodes()[from];
        let to = cluster.nodes()[..MASTERS].iter().find(|node| node.port() != from.port());
        let Some(to) = to else { continue };
        asked += usize::from(start_moving(from, to, slot, key)?);
        tokio::time::sleep(pause).await;
        moved += usize::from(finish_moving(cluster, from, to, slot, key)?);
        tokio::time::sleep(pause).await;
    }
    scenario
        .prove(format!("{asked} keys were answered with ASK, {moved} with MOVED"), asked > 0)?;
    // Every node can know the new owners from here on.
    blocking(|| cluster.wait_until_sound())?;
    let agreed = async || blocking(|| keys.iter().all(|key| nodes_agree(cluster, key)));
    scenario.prove_soon("all nodes agree where they are now", agreed).await
}

/// Whether the node answers with this redirection, ASK or MOVED.
fn redirects(node: &Redis, key: &str, redirection: &str) -> bool {
    node.command(&["TYPE", key]).is_err_and(|error| error.to_string().contains(redirection))
}

/// Whether exactly one master answers for this key, and all other nodes redirect to it.
fn nodes_agree(cluster: &RedisCluster, key: &str) -> bool {
    let nodes = cluster.nodes().iter();
    let answers: Vec<_> = nodes.map(|node| node.command(&["TYPE", key])).collect();
    let moved = answers.iter().filter_map(|answer| match answer {
        Err(devstack::Error::Refused { reply, .. }) => Some(reply),
        _ => None,
    });
    let moved: std::collections::HashSet<&String> = moved.collect();
    answers.iter().filter(|answer| answer.is_ok()).count() == 1 && moved.len() == 1
}

/// Begins to migrate the slot. Returns whether the old owner answers ASK.
fn start_moving(from: &Redis, to: &Redis, slot: u16, key: &str) -> Result<bool, Error> {
    let slot = slot.to_string();
    let (source, target) = (from.command(&["CLUSTER", "MYID"])?, to.command(&["CLUSTER", "MYID"])?);
    if !from.command(&["CLUSTER", "NODES"])?.lines().any(|line| is_owner(line, &slot)) {
        // The slot has moved already, with another product.
        return Ok(false);
    }
    to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source])?;
    from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target])?;
    move_keys(from, to, &slot)?;
    Ok(redirects(from, key, "ASK"))
}

/// Whether this line of CLUSTER NODES is the node's own, and its ranges contain the slot.
fn is_owner(line: &str, slot: &str) -> bool {
    let slot: u16 = slot.parse().unwrap_or(0);
    let ranges = line.split(' ').skip(8).filter(|range| !range.starts_with('['));
    let mut has = ranges.map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bound = |text: &str| text.parse::<u16>().unwrap_or(u16::MAX);
        (bound(first)..=bound(last)).contains(&slot)
    });
    line.contains("myself") && has.any(|has| has)
}

fn move_keys(from: &Redis, to: &Redis, slot: &str) -> Result<(), Error> {
    let keys = from.command(&["CLUSTER", "GETKEYSINSLOT", slot, "100"])?;
    let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let port = to.port().to_string();
    let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "1000", "KEYS"];
    command.extend(keys);
    from.command(&command)?;
    Ok(())
}

/// Assigns the slot to the new owner. Returns whether the old owner answers MOVED.
fn finish_moving(
    cluster: &RedisCluster,
    from: &Redis,
    to: &Redis,
    slot: u16,
    key: &str,
) -> Result<bool, Error> {
    let slot = slot.to_string();
    let target = to.command(&["CLUSTER", "MYID"])?;
    // Keys that were written meanwhile.
    let mut left = from.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot])?;
    while left != "0" {
        move_keys(from, to, &slot)?;
        left = from.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot])?;
    }
    // The new owner first, so that no client is redirected in circles.
    for node in std::iter::once(to).chain(&cluster.nodes()[..MASTERS]) {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target])?;
    }
    Ok(redirects(from, key, "MOVED"))
}
