//! A private Redis Cluster: three masters, three replicas.

use std::path::PathBuf;
use std::thread;

use super::{Redis, RedisOptions};
use crate::Error;
use crate::ports;
use crate::process::wait_until;

const MASTERS: usize = 3;
const NODES: usize = 6;
/// First and last hash slot of each master.
const SLOTS: [(&str, &str); MASTERS] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// Settings of every node.
const SETTINGS: [(&str, &str); 5] = [
    ("cluster-enabled", "yes"),
    // Milliseconds. Too high: a test of failover takes as long. Too low: a busy machine causes
    // failovers.
    ("cluster-node-timeout", "2000"),
    ("cluster-announce-ip", "127.0.0.1"),
    // Otherwise each master waits five seconds for more replicas before it sends its data.
    ("repl-diskless-sync-delay", "0"),
    // Otherwise a master waits up to ten seconds for its replicas on SIGTERM.
    ("shutdown-timeout", "0"),
];

/// How to start a [`RedisCluster`].
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// The directory of the nodes' logs. Nothing else is kept: each start forms a new, empty cluster.
    pub dir: Option<PathBuf>,
    /// More of redis.conf for every node, for instance `("maxmemory", "64mb")`.
    pub settings: Vec<(String, String)>,
}

/// Six nodes that cover all slots, each master with one replica.
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes, forms the cluster, and waits until every node reports it as sound.
    pub fn start(options: &ClusterOptions) -> Result<Self, Error> {
        let nodes = start_nodes(options)?;
        let cluster = Self { nodes };
        cluster.form()?;
        Ok(cluster)
    }

    /// The address, with the initial masters:
    /// `redis-cluster://127.0.0.1:P1?node=127.0.0.1:P2&node=127.0.0.1:P3`.
    #[must_use]
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.nodes[..MASTERS].iter().map(Redis::port).collect();
        format!(
            "redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}&node=127.0.0.1:{}",
            ports[0], ports[1], ports[2]
        )
    }

    /// The initial masters, by ascending slots, and then the replica of each in the same order. A
    /// failover changes their [`role`](Redis::role), not this order.
    #[must_use]
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// Waits until every running node reports that all slots are served, and every replica follows
    /// its master. Fails while a node is paused.
    pub fn wait_until_sound(&self) -> Result<(), Error> {
        wait_until("a sound Redis Cluster", || self.running().all(is_sound))
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.pid().is_some())
    }

    fn form(&self) -> Result<(), Error> {
        self.assign_slots()?;
        self.meet()?;
        self.assign_replicas()?;
        wait_until("propagating the replicas to all nodes", || {
            self.nodes.iter().all(|node| count_lines(node, "slave") == NODES - MASTERS)
        })?;
        self.wait_until_sound()
    }

    fn assign_slots(&self) -> Result<(), Error> {
        for (index, (master, (first, last))) in self.nodes.iter().zip(SLOTS).enumerate() {
            // Distinct epochs, so that the masters have no epoch collision to resolve.
            master.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()])?;
            master.command(&["CLUSTER", "ADDSLOTSRANGE", first, last])?;
        }
        Ok(())
    }

    /// Each node meets each other node: gossip alone would take seconds.
    fn meet(&self) -> Result<(), Error> {
        for (index, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[index + 1..] {
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string()])?;
            }
        }
        wait_until("meeting of six Redis nodes", || {
            self.nodes.iter().all(|node| {
                count_lines(node, "connected") == NODES && count_lines(node, "handshake") == 0
            })
        })
    }

    fn assign_replicas(&self) -> Result<(), Error> {
        let (masters, replicas) = self.nodes.split_at(MASTERS);
        for (master, replica) in masters.iter().zip(replicas) {
            let id = master.command(&["CLUSTER", "MYID"])?;
            replica.command(&["CLUSTER", "REPLICATE", &id])?;
        }
        Ok(())
    }
}

fn start_nodes(options: &ClusterOptions) -> Result<Vec<Redis>, Error> {
    thread::scope(|scope| {
        let starting: Vec<_> =
            (0..NODES).map(|index| scope.spawn(move || start_node(options, index))).collect();
        // A panic of one start is propagated to the caller.
        starting
            .into_iter()
            .map(|node| node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn start_node(options: &ClusterOptions, index: usize) -> Result<Redis, Error> {
    let dir = options.dir.as_ref().map(|dir| dir.join(format!("node-{index}")));
    if let Some(dir) = &dir {
        forget_peers(dir)?;
    }
    let usual = SETTINGS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let settings = usual.chain(options.settings.iter().cloned()).collect();
    Redis::start_on(RedisOptions { dir, settings, ..RedisOptions::default() }, ports::free_with_bus)
}

/// The ports of an earlier cluster's nodes may belong to other servers now.
fn forget_peers(dir: &std::path::Path) -> Result<(), Error> {
    match std::fs::remove_file(dir.join("nodes.conf")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("empty {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The lines of `CLUSTER NODES` on `node` that have this word among their flags or states.
fn count_lines(node: &Redis, word: &str) -> usize {
    let known = node.command(&["CLUSTER", "NODES"]).unwrap_or_default();
    known.lines().filter(|line| line.split([' ', ',']).any(|field| field == word)).count()
}

fn is_sound(node: &Redis) -> bool {
    let cluster = node.command(&["CLUSTER", "INFO"]).unwrap_or_default();
    let replication = node.command(&["INFO", "replication"]).unwrap_or_default();
    cluster.contains("cluster_state:ok") && !replication.contains("master_link_status:down")
}
