//! The environment of a test that breaks servers: a Postgres and a Redis of its own, each behind a proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use devstack::{ChaosProxy, Postgres, Redis, RedisCluster};
use hotshelf::config::ServeArgs;

use super::{Node, Servers, Stack, Topology};

/// Instances connect to the servers through the proxies; the test's own SQL does not.
pub struct Private {
    stack: Stack,
    pub postgres: Arc<Postgres>,
    pub redis: Arc<Redis>,
    pub to_postgres: ChaosProxy,
    pub to_redis: ChaosProxy,
}

impl Private {
    pub async fn new() -> Self {
        let servers = Servers::default();
        let mut stack = Stack::new(&servers, Topology::Single).await;
        let (postgres, redis) = (servers.postgres(), servers.redis());
        let to_postgres = through_proxy(&mut stack.database_url, postgres.port());
        let to_redis = through_proxy(&mut stack.redis_url, redis.port());
        Self { stack, postgres, redis, to_postgres, to_redis }
    }

    /// An instance with short timeouts for its servers, and with changed options. The timeouts are long enough for a
    /// healthy server on a busy machine.
    pub async fn node_with_short_timeouts(&self, change: impl FnOnce(&mut ServeArgs)) -> Node {
        let options = |args: &mut ServeArgs| {
            args.redis.redis_timeout = Duration::from_secs(1);
            args.redis.lease_wait = Duration::from_secs(2);
            args.postgres.database_acquire_timeout = Duration::from_secs(2);
            args.postgres.database_statement_timeout = Duration::from_secs(3);
            change(args);
        };
        self.stack.node_with(options).await
    }

    /// Whether Redis has an entry of `id`, read on a connection of its own.
    pub fn redis_holds(&self, id: i64) -> bool {
        let key = self.entry_key(id);
        self.redis.command(&["EXISTS", &key]).is_ok_and(|found| found.trim() == "1")
    }

    /// The SHA-1 of the entry of `id` in Redis, read on a connection of its own.
    pub fn redis_digest(&self, id: i64) -> Option<String> {
        let key = self.entry_key(id);
        let digest = "local held = redis.call('GET', KEYS[1]) return held and redis.sha1hex(held)";
        let digest = self.redis.command(&["EVAL", digest, "1", &key]).ok()?;
        (digest.len() == 40).then_some(digest)
    }
}

impl Deref for Private {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        &self.stack
    }
}

/// Puts a proxy in front of the server at `port`, and into the URL.
fn through_proxy(url: &mut String, port: u16) -> ChaosProxy {
    let proxy = ChaosProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
    *url = url.replace(&format!(":{port}"), &format!(":{}", proxy.addr().port()));
    proxy
}

/// The environment of a test that breaks nodes of a cluster.
pub struct PrivateCluster {
    stack: Stack,
    pub cluster: Arc<RedisCluster>,
}

impl PrivateCluster {
    pub async fn new() -> Self {
        let servers = Servers::default();
        let stack = Stack::new(&servers, Topology::Cluster).await;
        Self { stack, cluster: servers.cluster() }
    }

    /// The index, among the cluster's nodes, of the initial master of the slot of `id`.
    pub fn master_of(&self, id: i64) -> usize {
        self.slot_of(id) / 5_461
    }

    pub fn slot_of(&self, id: i64) -> usize {
        let slot = self.cluster.nodes()[5].command(&["CLUSTER", "KEYSLOT", &self.entry_key(id)]);
        slot.unwrap().trim().parse().unwrap()
    }

    /// Whether any master has an entry of `id`.
    pub fn is_held(&self, id: i64) -> bool {
        let key = self.entry_key(id);
        let holds =
            |node: &Redis| node.command(&["EXISTS", &key]).is_ok_and(|found| found.trim() == "1");
        self.cluster.nodes().iter().any(holds)
    }
}

impl Deref for PrivateCluster {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        &self.stack
    }
}
