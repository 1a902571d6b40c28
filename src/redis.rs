//! The Redis tier: one string for each product, stored by version, and the leases of those who load.
//! The only module that knows fred.

mod changes;
mod entry_bytes;
mod inspect;
mod lease;
mod ranking;
mod reconnects;
mod scripts;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Pool;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::config::{
    Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, ServerConfig, TcpConfig,
    UnresponsiveConfig,
};
use fred::types::{Builder, Key, Value};
use futures_util::future::join_all;

use crate::controls::{Controls, Protection};
use crate::entry::Entry;
use crate::metrics::{Metrics, RedisOperation};
use crate::product::ProductId;
pub(crate) use changes::{Follower, Poll};
use entry_bytes::{HEAD, decode, encode};
pub use inspect::{LeaseState, RedisState};
pub(crate) use lease::{Filled, Lease};
use lease::{lifetime, number};
use scripts::Scripts;

/// How to reach Redis, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://`, `rediss://`, `redis-cluster://` or `rediss-cluster://`.
    pub url: String,
    /// Cluster mode whatever the scheme says.
    pub cluster: bool,
    /// The first part of every key.
    pub namespace: String,
    /// Connections; each is pipelined.
    pub connections: usize,
    /// How long any command may take.
    pub command_timeout: Duration,
    /// After this long the lease of a holder that died is free.
    pub lease_ttl: Duration,
}

/// A pool of connections to one Redis, or to one Redis Cluster.
#[derive(Debug)]
pub struct Redis {
    pool: Pool,
    command: Options,
    clustered: bool,
    keys: Keys,
    scripts: Scripts,
    options: RedisOptions,
    metrics: Arc<Metrics>,
    controls: Controls,
}

/// Redis did not do what it was asked: down, frozen, loading, full. Counted and logged where it happened;
/// never the caller's error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unavailable;

/// Where something that is known to be committed comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    /// A write: loads that began before it must not fill, so it breaks the lease.
    Written,
    /// Postgres was read without a lease.
    Read,
}

#[derive(Debug)]
struct Keys {
    namespace: String,
}

impl Keys {
    fn entry(&self, id: ProductId) -> Key {
        format!("{}:{{{id}}}:p", self.namespace).into()
    }

    // The same hash tag, so the same slot of a cluster: one script may see both.
    fn lock(&self, id: ProductId) -> Key {
        format!("{}:{{{id}}}:lock", self.namespace).into()
    }

    fn changes(&self) -> Vec<Key> {
        let key = |part| format!("{}:{{changes}}:{part}", self.namespace).into();
        vec![key("stream"), key("number")]
    }

    fn ranking(&self) -> Vec<Key> {
        let key = |part| format!("{}:{{hot}}:{part}", self.namespace).into();
        vec![key("ranking"), key("decayed")]
    }
}

impl Redis {
    /// A pool that connects in the background, and goes on trying for ever.
    ///
    /// # Errors
    /// When the URL is not one that fred understands, in words for the operator.
    pub fn connect(
        options: RedisOptions,
        metrics: Arc<Metrics>,
        controls: Controls,
    ) -> Result<Self, String> {
        let config = config(&options)?;
        let clustered = matches!(config.server, ServerConfig::Clustered { .. });
        let pool = Builder::from_config(config)
            .set_policy(reconnect_policy())
            .set_performance_config(PerformanceConfig {
                default_command_timeout: options.command_timeout,
                ..PerformanceConfig::default()
            })
            .set_connection_config(connection_config())
            .build_pool(options.connections)
            .map_err(|error| format!("REDIS_URL cannot be used: {}", error.details()))?;
        // The handles end with the pool.
        drop(pool.connect_pool());
        let command = Options {
            timeout: Some(options.command_timeout),
            fail_fast: true,
            // Once, or a caller waits for the sum: what fails here has Postgres to turn to.
            max_attempts: Some(1),
            ..Options::default()
        };
        let keys = Keys { namespace: options.namespace.clone() };
        Ok(Self {
            pool,
            command,
            clustered,
            keys,
            scripts: Scripts::new(),
            options,
            metrics,
            controls,
        })
    }

    /// Waits until the first connections stand.
    ///
    /// # Errors
    /// Why they do not yet, after `patience`.
    pub async fn wait_until_connected(&self, patience: Duration) -> Result<(), String> {
        match tokio::time::timeout(patience, self.pool.wait_for_connect()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.details().to_owned()),
            Err(_) => Err(format!("no connection after {}", humantime::format_duration(patience))),
        }
    }

    /// How many of the pool's clients are connected.
    #[must_use]
    pub fn connected(&self) -> u64 {
        self.pool.clients().iter().filter(|client| client.is_connected()).count() as u64
    }

    /// Closes the connections.
    pub async fn close(&self) {
        // Nothing is lost with a connection that does not close.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.quit()).await;
    }

    /// What Redis holds of several products; one round trip, or one for each node of a cluster.
    pub(crate) async fn get_many(
        &self,
        ids: &[ProductId],
    ) -> Result<Vec<Option<Entry>>, Unavailable> {
        let client = self.pool.next_connected().with_options(&self.command);
        let keys: Vec<Key> = ids.iter().map(|id| self.keys.entry(*id)).collect();
        let reply: Result<Vec<Value>, _> = if self.clustered || ids.len() == 1 {
            let gets = join_all(keys.into_iter().map(|key| client.get::<Value, _>(key))).await;
            gets.into_iter().map(wrong_type_as_value).collect()
        } else {
            client.mget(keys).await
        };
        let values = self.counted(RedisOperation::Get, reply)?;
        let entries = ids.iter().zip(values).map(|(id, value)| self.read_value(*id, value));
        Ok(join_all(entries).await)
    }

    /// Replaces what Redis holds by what is known to be committed, if that is newer.
    pub(crate) async fn publish(
        &self,
        id: ProductId,
        entry: &Entry,
        why: Publish,
    ) -> Result<(), Unavailable> {
        self.forget_versions(id).await;
        let keys = vec![self.keys.entry(id), self.keys.lock(id)];
        let breaks_lease = number(u64::from(why == Publish::Written));
        let args = vec![encode(entry).into(), lifetime(entry), breaks_lease];
        let reply = self.run(&self.scripts.publish, keys, args).await;
        let _: i64 = self.counted(RedisOperation::Publish, reply)?;
        Ok(())
    }

    /// With the protection off, what Redis holds is made to look like the oldest of all.
    async fn forget_versions(&self, id: ProductId) {
        if self.controls.holds(Protection::RedisVersions) {
            return;
        }
        let key = self.keys.entry(id);
        let oldest = entry_bytes::head_of(crate::product::Revision::NONE);
        let xx = Some(fred::types::SetOptions::XX);
        let _: Result<Value, _> =
            self.pool.next_connected().set(key, oldest, None, xx, false).await;
    }

    /// The entry in a value. Bytes that are none count as a miss, and are removed, so that no script takes
    /// them for something newer.
    async fn read_value(&self, id: ProductId, value: Value) -> Option<Entry> {
        let bytes = match value {
            Value::Null | Value::Boolean(false) => return None,
            value => value.into_bytes().unwrap_or_default(),
        };
        let entry = decode(&bytes);
        if entry.is_none() {
            self.metrics.redis_corrupt.inc(());
            tracing::warn!(%id, length = bytes.len(), "an entry in Redis cannot be read; removing it");
            self.discard(id, &bytes).await;
        }
        entry
    }

    async fn discard(&self, id: ProductId, bytes: &Bytes) {
        let head = bytes.slice(..bytes.len().min(HEAD));
        let args = vec![head.into(), number(bytes.len() as u64)];
        let reply = self.run::<i64>(&self.scripts.discard, vec![self.keys.entry(id)], args).await;
        // What could not be removed is found again.
        let _ = self.counted(RedisOperation::Get, reply);
    }

    /// Counts and logs a failure, once, here; the callers only need to know that there was one.
    fn counted<T>(
        &self,
        operation: RedisOperation,
        reply: Result<T, fred::error::Error>,
    ) -> Result<T, Unavailable> {
        reply.map_err(|error| {
            self.metrics.redis_errors.inc(operation);
            tracing::debug!(?operation, %error, "Redis did not answer");
            Unavailable
        })
    }
}

/// A key of another type than string is as good as garbage: an empty value, which cannot be read.
fn wrong_type_as_value(
    reply: Result<Value, fred::error::Error>,
) -> Result<Value, fred::error::Error> {
    match reply {
        Err(error) if error.details().starts_with("WRONGTYPE") => Ok(Value::Bytes(Bytes::new())),
        reply => reply,
    }
}

fn config(options: &RedisOptions) -> Result<Config, String> {
    const SCHEMES: [&str; 4] = ["redis", "rediss", "redis-cluster", "rediss-cluster"];
    let scheme = options.url.split_once("://").map(|(scheme, _)| scheme).unwrap_or_default();
    if !SCHEMES.contains(&scheme) {
        return Err(format!(
            "REDIS_URL has the scheme \"{scheme}\"; use redis://HOST:PORT, rediss:// for TLS, or redis-cluster://HOST:PORT?node=HOST:PORT for a cluster"
        ));
    }
    let parse = if options.cluster { Config::from_url_clustered } else { Config::from_url };
    let mut config = parse(&options.url)
        .map_err(|error| format!("REDIS_URL cannot be read: {}", error.details()))?;
    // Starting with Redis down is slow, not broken.
    config.fail_fast = false;
    Ok(config)
}

/// For ever, soon at first, at most a second apart.
fn reconnect_policy() -> ReconnectPolicy {
    ReconnectPolicy::new_exponential(0, 50, 1_000, 2)
}

fn connection_config() -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: Duration::from_secs(1),
        internal_command_timeout: Duration::from_secs(2),
        max_command_attempts: 1,
        // fred says ASKING on a connection with commands in flight, and takes the first reply that comes for its
        // own: everything in flight gets its neighbour's. What moves fails instead, and has Postgres to turn
        // to; fred learns from MOVED where it is now all the same.
        max_redirections: 0,
        max_command_buffer_len: 10_000,
        unresponsive: UnresponsiveConfig {
            max_timeout: Some(Duration::from_secs(2)),
            interval: Duration::from_millis(500),
        },
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        ..ConnectionConfig::default()
    }
}
