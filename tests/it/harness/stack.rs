//! The environment of one test: a database of its own, and a key space in Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use devstack::{Postgres, Redis, RedisCluster};
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::prelude::{Client, Config};
use hotshelf::config::{Cli, ServeArgs};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};

use super::servers::TEMPLATE;
use super::{Node, Servers, eventually};

/// Polls, 10 ms apart, for a relay to apply a test's few changes; after them the test goes on, because without Redis
/// they are not relayed. A bound in polls instead of seconds, because a slow machine also polls more slowly.
const POLLS: usize = 300;

static NEXT: AtomicU64 = AtomicU64::new(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    Single,
    Cluster,
}

impl Topology {
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Cluster => "cluster",
        }
    }
}

pub struct Stack {
    /// The database, for the test's own SQL.
    pub sql: PgPool,
    pub database_url: String,
    pub redis_url: String,
    pub namespace: String,
    /// The part of each key before the id: the namespace and the scope of this database.
    pub key_prefix: String,
    has_relay: AtomicBool,
    redis: Client,
    // Keeps the servers running.
    servers: (Arc<Postgres>, Option<Arc<Redis>>, Option<Arc<RedisCluster>>),
}

/// A pool for the tests' own statements. Settings that a test makes for its database or role do not apply to it.
pub fn connect(url: &str, connections: u32) -> PgPool {
    let options: PgConnectOptions = url.parse().unwrap();
    let options = options.options([
        ("default_transaction_isolation", "read committed"),
        ("lock_timeout", "0"),
        ("search_path", "public"),
        ("statement_timeout", "0"),
    ]);
    PgPoolOptions::new().max_connections(connections).connect_lazy_with(options)
}

/// The scope of a database: the part of each key that depends on its catalogue and epochs.
pub async fn scope(sql: &PgPool) -> String {
    let scope = "SELECT substr(md5(concat_ws('/', id, (pg_control_system()).system_identifier, oid) \
            || '/' || epoch || '/' || redis_epoch), 1, 16) \
        FROM hotshelf.catalogue, pg_database WHERE datname = current_database()";
    sqlx::query_scalar(scope).fetch_one(sql).await.unwrap()
}

impl Stack {
    pub async fn new(servers: &Servers, topology: Topology) -> Self {
        let servers = servers.clone();
        let (postgres, single, cluster) = tokio::task::spawn_blocking(move || match topology {
            Topology::Single => (servers.postgres(), Some(servers.redis()), None),
            Topology::Cluster => (servers.postgres(), None, Some(servers.cluster())),
        })
        .await
        .unwrap();
        let redis_url = single.as_ref().map(|redis| redis.url());
        let redis_url = redis_url.or(cluster.as_ref().map(|cluster| cluster.url())).unwrap();
        let namespace = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&postgres.url(), 1);
        let create = format!("CREATE DATABASE {namespace} TEMPLATE {TEMPLATE}");
        admin.execute(AssertSqlSafe(create)).await.unwrap();
        admin.close().await;
        let database_url = postgres.url_of(&namespace);
        let redis = Client::new(Config::from_url(&redis_url).unwrap(), None, None, None);
        redis.init().await.unwrap();
        let sql = connect(&database_url, 5);
        let key_prefix = format!("{namespace}:{}", scope(&sql).await);
        let servers = (postgres, single, cluster);
        let has_relay = AtomicBool::new(false);
        Self { sql, database_url, redis_url, namespace, key_prefix, has_relay, redis, servers }
    }

    /// The program's defaults, with this test's servers, free ports and long timeouts.
    pub fn args(&self) -> ServeArgs {
        let options = self.options();
        let options = options.iter().flatten().copied();
        Cli::try_parse_from(["hotshelf"].into_iter().chain(options)).unwrap().serve
    }

    /// The same as command line options. Long timeouts, because a short one may expire when other tests load the
    /// machine: a test of a timeout sets it. Without shadow reads, because many tests count statements.
    pub fn options(&self) -> [[&str; 2]; 12] {
        [
            ["--database-url", &self.database_url],
            ["--redis-url", &self.redis_url],
            ["--redis-namespace", &self.namespace],
            ["--redis-timeout", "10s"],
            ["--lease-ttl", "10s"],
            ["--lease-wait", "1m"],
            ["--database-acquire-timeout", "1m"],
            ["--database-statement-timeout", "1m"],
            ["--max-call-time", "5m"],
            ["--shadow-reads", "0"],
            ["--grpc-addr", "127.0.0.1:0"],
            ["--admin-addr", "127.0.0.1:0"],
        ]
    }

    /// Runs `pg_dump` or another client program of PostgreSQL to its end.
    pub async fn run_postgres_client(&self, program: &'static str, arguments: &[&str]) {
        let server = Arc::clone(&self.servers.0);
        let arguments: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
        let run = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            server.run_client(program, &arguments)
        };
        tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    }

    /// An instance with the program's defaults.
    pub async fn node(&self) -> Node {
        self.node_with(|_| {}).await
    }

    /// An instance with changed options. Returns when earlier changes are relayed, so that the relay does not break a
    /// lease that the test relies on.
    pub async fn node_with(&self, change: impl FnOnce(&mut ServeArgs)) -> Node {
        let mut args = self.args();
        change(&mut args);
        let node = Node::start(&args).await;
        self.has_relay.store(true, Ordering::Relaxed);
        self.try_wait_until_relayed().await;
        node
    }

    /// Inserts a product by SQL and returns its id, after a relay has applied the change if an instance was started.
    pub async fn insert(&self, name: &str) -> i64 {
        let id = self.insert_unrelayed(name).await;
        if self.has_relay.load(Ordering::Relaxed) {
            self.try_wait_until_relayed().await;
        }
        id
    }

    /// Inserts a product by SQL, and does not wait for the relay.
    pub async fn insert_unrelayed(&self, name: &str) -> i64 {
        sqlx::query_scalar("INSERT INTO products (name, price) VALUES ($1, 9.99) RETURNING id")
            .bind(name)
            .fetch_one(&self.sql)
            .await
            .unwrap()
    }

    /// The loads for the caches that Postgres has counted. It counts a statement at its end, which may be after its rows
    /// have arrived, so this waits for running loads; it does not wait for one that waits for a lock.
    pub async fn loads(&self) -> i64 {
        let ending = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Lock' \
             AND query LIKE 'SELECT asked.id, %'";
        eventually("no load is about to end", async || {
            let ending: i64 = sqlx::query_scalar(ending).fetch_one(&self.sql).await.unwrap();
            ending == 0
        })
        .await;
        sqlx::query_scalar(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
             JOIN pg_database d ON d.oid = dbid WHERE datname = current_database() \
             AND query LIKE 'SELECT asked.id, %LEFT JOIN \"public\".\"products\" AS product %'",
        )
        .fetch_one(&self.sql)
        .await
        .unwrap()
    }

    pub fn entry_key(&self, id: i64) -> String {
        format!("{}:{{{id}}}:p", self.key_prefix)
    }

    fn lock_key(&self, id: i64) -> String {
        format!("{}:{{{id}}}:lock", self.key_prefix)
    }

    /// The version of the entry in Redis, and whether it is a tombstone.
    pub async fn redis_revision(&self, id: i64) -> Option<(i64, bool)> {
        let bytes: Option<Vec<u8>> = self.redis.get(self.entry_key(id)).await.unwrap();
        let bytes = bytes?;
        let version = i64::from_be_bytes(bytes[2..10].try_into().unwrap());
        Some((version, bytes[1] & 1 == 1))
    }

    pub async fn redis_value(&self, id: i64) -> Option<Vec<u8>> {
        self.redis.get(self.entry_key(id)).await.unwrap()
    }

    /// Stores any bytes under an entry's key.
    pub async fn redis_put(&self, id: i64, bytes: &[u8]) {
        let () = self.redis.set(self.entry_key(id), bytes, None, None, false).await.unwrap();
    }

    /// Stores bytes without an expiry under a lease's key.
    pub async fn redis_put_lock(&self, id: i64, bytes: &[u8]) {
        let () = self.redis.set(self.lock_key(id), bytes, None, None, false).await.unwrap();
    }

    /// Loads for the caches that Postgres executes at this moment, waits for locks included.
    pub async fn running_loads(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND state = 'active' AND query LIKE 'SELECT asked.id, %LEFT JOIN \"public\".\"products\" AS product %'",
        )
        .fetch_one(&self.sql)
        .await
        .unwrap()
    }

    /// Stores a list under an entry's key.
    pub async fn redis_put_list(&self, id: i64) {
        let script = "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'garbage')";
        let () = self.redis.eval(script, self.entry_key(id), "").await.unwrap();
    }

    /// Makes every load from Postgres hang until the transaction is rolled back.
    pub async fn lock_products(&self) -> sqlx::Transaction<'static, sqlx::Postgres> {
        let mut lock = self.sql.begin().await.unwrap();
        lock.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
        lock
    }

    /// The statements that wait for a lock.
    pub async fn waiting_statements(&self) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT query FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_all(&self.sql)
        .await
        .unwrap()
    }

    /// Deletes the entry, as memory pressure would.
    pub async fn redis_evict(&self, id: i64) {
        let () = self.redis.del(self.entry_key(id)).await.unwrap();
    }

    /// Publishes on a channel of this test's catalogue. Returns the number of subscribers of one Redis.
    pub async fn redis_publish(&self, channel: &str, message: &[u8]) -> i64 {
        let channel = format!("{}:{channel}", self.key_prefix);
        let script = "return redis.call('PUBLISH', ARGV[1], ARGV[2])";
        let args: Vec<Vec<u8>> = vec![channel.into_bytes(), message.to_vec()];
        let args: Vec<fred::types::Value> =
            args.into_iter().map(|arg| fred::types::Value::Bytes(arg.into())).collect();
        self.redis.eval(script, Vec::<String>::new(), args).await.unwrap()
    }

    /// The version in Postgres.
    pub async fn version(&self, id: i64) -> i64 {
        let version = sqlx::query_scalar("SELECT hotshelf_version FROM products WHERE id = $1");
        version.bind(id).fetch_one(&self.sql).await.unwrap()
    }

    /// The number of this test's keys on one Redis.
    pub async fn redis_keys(&self) -> i64 {
        let script = "return #redis.call('KEYS', ARGV[1])";
        self.redis
            .eval(script, Vec::<String>::new(), format!("{}:*", self.namespace))
            .await
            .unwrap()
    }

    /// Rows of the outbox that the relay has not applied to Redis.
    pub async fn outbox(&self) -> i64 {
        let unrelayed = "SELECT count(*) FROM hotshelf.outbox, hotshelf.feed \
                         WHERE NOT pg_visible_in_snapshot(xid, relayed)";
        sqlx::query_scalar(unrelayed).fetch_one(&self.sql).await.unwrap()
    }

    /// Waits until a relay has applied every change, at most [`POLLS`] polls.
    async fn try_wait_until_relayed(&self) {
        for _ in 0..POLLS {
            if self.outbox().await == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn wait_until_relayed(&self) {
        eventually("every change is relayed", || async { self.outbox().await == 0 }).await;
    }

    /// Rows of the outbox, relayed or not.
    pub async fn kept_changes(&self) -> i64 {
        let kept = sqlx::query_scalar("SELECT count(*) FROM hotshelf.outbox");
        kept.fetch_one(&self.sql).await.unwrap()
    }

    pub async fn is_leased(&self, id: i64) -> bool {
        let found: i64 = self.redis.exists(self.lock_key(id)).await.unwrap();
        found == 1
    }

    /// The remaining time of the lease of `id` without a renewal; zero if there is no lease.
    pub async fn lease_left(&self, id: i64) -> Duration {
        let left: i64 = self.redis.pttl(self.lock_key(id)).await.unwrap();
        Duration::from_millis(left.try_into().unwrap_or_default())
    }
}
