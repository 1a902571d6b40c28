//! The Redis tier: one string per product, stored by version, and the leases under which products are loaded.
//! The only module that uses fred.

mod address;
mod admission;
mod breaker;
mod catalogues;
mod checks;
mod clean;
mod entry_bytes;
mod hints;
mod inspect;
mod keys;
mod lease;
mod node;
mod nodes;
mod observed;
mod probe;
mod ranking;
mod read;
mod reasons;
mod refusal;
mod replication;
mod scripts;
mod slots;
mod tls;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use fred::types::Value;
use fred::types::config::{
    ConnectionConfig, Options, ReconnectError, ReconnectPolicy, TcpConfig, UnresponsiveConfig,
};
use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;

use crate::caller::Caller;
use crate::controls::{Controls, Protection};
use crate::entry::Entry;
use crate::metrics::{Metrics, RedisDependency, RedisOperation};
use crate::product::ProductId;
use admission::{Admitted, CommandAdmission};
use breaker::Breaker;
use entry_bytes::{HEAD, decode, encode};
pub(crate) use hints::Hint;
pub use inspect::{LeaseState, RedisState};
use keys::{Keys, Scope};
pub(crate) use lease::{Filled, Lease};
use lease::{lifetime, number};
use node::{NoReply, NodeCommand};
use nodes::Nodes;
pub(crate) use ranking::RANKING_TTL;
pub(crate) use read::CHUNK;
use refusal::CONNECT;
pub use tls::RedisTls;

use scripts::Scripts;

/// How to reach Redis, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    pub url: String,
    pub tls: RedisTls,
    /// Cluster mode, whatever the scheme.
    pub cluster: bool,
    /// The first part of every key.
    pub namespace: String,
    /// The name of the database, which operators see when two catalogues share the namespace.
    pub database: String,
    /// Connections per server; each is pipelined.
    pub connections: usize,
    /// The timeout of a command.
    pub command_timeout: Duration,
    /// The lease of a crashed holder expires after this long.
    pub lease_ttl: Duration,
    /// Entries known to be current less than this long before a restart or failover stay trusted, because recent changes cover
    /// that time. Too high: old entries are served for which Redis lost the newer ones. Too low: needless loads afterwards.
    pub coverage: Duration,
}

/// One Redis, or one Redis Cluster.
#[derive(Debug)]
pub struct Redis {
    nodes: Arc<Nodes>,
    admission: Arc<CommandAdmission>,
    ranking_breaker: Breaker,
    /// What this instance is called in the ranking.
    instance: String,
    ranking_instances: AtomicU32,
    keys: Scope,
    scripts: Scripts,
    options: RedisOptions,
    metrics: Arc<Metrics>,
    controls: Controls,
    /// The databases of other catalogues in the namespace.
    other_catalogues: Mutex<Vec<String>>,
}

/// A Redis command failed or was not sent: Redis is down, frozen, loading or full. It is counted and logged where it happens,
/// and never becomes a caller's error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unavailable;

/// The source of a committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    /// A write. It breaks the lease, so that loads which began before it cannot fill.
    Written,
    /// A read of Postgres without a lease.
    Read,
}

impl Redis {
    /// Connects in the background; failed attempts are retried without limit.
    ///
    /// # Errors
    /// When fred rejects the URL: a message for the operator.
    pub fn connect(
        options: RedisOptions,
        metrics: Arc<Metrics>,
        controls: Controls,
    ) -> Result<Self, String> {
        let nodes = Nodes::new(address::config(&options)?, &options, Arc::clone(&metrics))
            .map_err(|error| format!("REDIS_URL cannot be used: {}", error.details()))?;
        Ok(Self {
            nodes: Arc::new(nodes),
            admission: CommandAdmission::new(options.command_timeout),
            ranking_breaker: Breaker::new(RedisDependency::Ranking, Arc::clone(&metrics)),
            instance: format!("{:016x}", fastrand::u64(..)),
            ranking_instances: AtomicU32::new(0),
            keys: Arc::new(ArcSwap::from_pointee(Keys::new(&options.namespace, "", ""))),
            scripts: Scripts::new(),
            options,
            metrics,
            controls,
            other_catalogues: Mutex::default(),
        })
    }

    /// Switches to the keys of this catalogue and epoch.
    pub(crate) fn set_scope(&self, scope: &str, catalogue: &str) {
        let keys = Keys::new(&self.options.namespace, scope, catalogue);
        if self.keys.load().prefix != keys.prefix {
            self.keys.store(Arc::new(keys));
        }
    }

    pub(crate) fn has_scope(&self, scope: &str) -> bool {
        self.keys.load().prefix == Keys::new(&self.options.namespace, scope, "").prefix
    }

    fn keys(&self) -> arc_swap::Guard<Arc<Keys>> {
        self.keys.load()
    }

    fn scope(&self) -> Scope {
        Arc::clone(&self.keys)
    }

    /// Waits until every connection is established, Redis refuses one, or `timeout` has passed. Returns whether all are
    /// established; the reason why not is logged.
    pub async fn wait_until_connected(&self, timeout: Duration) -> bool {
        let began = Instant::now();
        loop {
            self.nodes.remap().await;
            let nodes = self.nodes.all();
            if !nodes.is_empty() && nodes.iter().all(|node| node.connections() == node.size()) {
                return true;
            }
            for node in &nodes {
                node.record_errors();
            }
            if self.nodes.refusals().iter().any(|refusals| refusals.refuses(CONNECT)) {
                return false;
            }
            if began.elapsed() >= timeout {
                self.nodes.note_unreachable(&format!(
                    "no connection after {}",
                    humantime::format_duration(timeout)
                ));
                return false;
            }
            // With no node known yet, each attempt opens a new connection to every seed.
            let pause = if nodes.is_empty() { 250 } else { 10 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn admit(&self, caller: Caller, keys: usize) -> Result<Admitted, Unavailable> {
        self.admission.admit(caller, keys).await.ok_or(Unavailable)
    }

    pub async fn close(&self) {
        join_all(self.nodes.all().iter().map(|node| node.close())).await;
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.nodes.is_cluster()
    }

    /// Replaces the entry in Redis by a committed one, unless Redis holds a newer entry or none.
    pub(crate) async fn publish(
        &self,
        id: ProductId,
        entry: &Entry,
        why: Publish,
    ) -> Result<(), Unavailable> {
        self.forget_versions(id).await;
        let args = vec![encode(entry).into(), lifetime(entry)];
        let reply = async {
            match why {
                Publish::Written => self.run_and_break_lease(&self.scripts.publish, id, args).await,
                Publish::Read => {
                    self.run(&self.scripts.publish, vec![self.keys().entry(id)], args).await
                }
            }
        };
        let _: i64 = self.counted(RedisOperation::Publish, reply).await?;
        Ok(())
    }

    /// With the protection off, gives the entry in Redis the lowest revision, so that any entry replaces it.
    async fn forget_versions(&self, id: ProductId) {
        if self.controls.holds(Protection::RedisVersions) {
            return;
        }
        let key = self.keys().entry(id);
        let oldest = entry_bytes::head_of(crate::product::Revision::NONE);
        let args = vec![key.clone().into(), oldest.into(), "XX".into()];
        let _ = self.nodes.send(&key, NodeCommand::new("SET", args)).await;
    }

    /// Decodes a value. An unreadable value counts as a miss and is removed, so that no script takes it for a newer entry.
    async fn read_value(&self, id: ProductId, value: Value) -> Option<Entry> {
        match self.entry_in(id, value) {
            Ok(entry) => entry,
            Err(unreadable) => {
                self.discard(id, unreadable).await;
                None
            }
        }
    }

    /// Decodes a value; returns the bytes of an unreadable one.
    fn entry_in(&self, id: ProductId, value: Value) -> Result<Option<Entry>, Bytes> {
        let bytes = match value {
            Value::Null | Value::Boolean(false) => return Ok(None),
            value => value.into_bytes().unwrap_or_default(),
        };
        let entry = decode(&bytes).filter(|entry| entry.is_of(id));
        entry.map(|entry| Some(self.judge(id, entry))).ok_or(bytes)
    }

    async fn discard(&self, id: ProductId, bytes: Bytes) {
        self.metrics.redis_corrupt.inc(());
        tracing::warn!(%id, length = bytes.len(), "an entry in Redis cannot be read; removing it");
        let head = bytes.slice(..bytes.len().min(HEAD));
        let args = vec![head.into(), number(bytes.len() as u64)];
        let reply = self.run::<i64>(&self.scripts.discard, vec![self.keys().entry(id)], args);
        // If the removal fails, the next read of the key repeats it.
        let _ = self.counted(RedisOperation::Get, reply).await;
    }

    /// The one place that measures commands, and that counts and logs those that failed.
    ///
    /// Not an async function: its future would contain `reply` twice.
    fn counted<T>(
        &self,
        operation: RedisOperation,
        reply: impl Future<Output = Result<T, NoReply>>,
    ) -> impl Future<Output = Result<T, Unavailable>> {
        let began = Instant::now();
        reply.map(move |reply| self.count(operation, began, reply))
    }

    fn count<T>(
        &self,
        operation: RedisOperation,
        began: Instant,
        reply: Result<T, NoReply>,
    ) -> Result<T, Unavailable> {
        // A command that was not sent is already counted as a transition of its breaker.
        if !matches!(reply, Err(NoReply::Refused)) {
            self.metrics.redis_seconds.record(operation, began.elapsed());
        }
        reply.map_err(|why| {
            if let NoReply::Failed(error) = why {
                self.metrics.redis_errors.inc(operation);
                tracing::debug!(?operation, %error, "a Redis command failed; the call continues without Redis");
            }
            Unavailable
        })
    }
}

impl RedisOptions {
    fn command(&self) -> Options {
        Options {
            timeout: Some(self.command_timeout),
            fail_fast: true,
            // With more attempts a caller would wait for the sum of their timeouts. A failed command falls back to Postgres.
            max_attempts: Some(1),
            ..Options::default()
        }
    }
}

/// Attempts without limit, 50 ms apart at first and at most 1 s.
fn reconnect_policy() -> ReconnectPolicy {
    ReconnectPolicy::new_exponential(0, 50, 1_000, 2)
}

fn connection_config() -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: Duration::from_secs(1),
        internal_command_timeout: Duration::from_secs(2),
        max_command_attempts: 1,
        // fred sends ASKING on a connection with commands in flight and takes the next reply for its own, so that each
        // command in flight gets the reply of another. Without redirections the command fails; `Nodes` follows MOVED and ASK.
        max_redirections: 0,
        max_command_buffer_len: 10_000,
        // Not READONLY: a reconnection would fail every command in flight, while reads still work.
        reconnect_errors: vec![ReconnectError::ClusterDown, ReconnectError::Loading],
        unresponsive: UnresponsiveConfig {
            max_timeout: Some(Duration::from_secs(2)),
            interval: Duration::from_millis(500),
        },
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        ..ConnectionConfig::default()
    }
}
