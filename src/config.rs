//! Every setting, read once, and the only reader of the environment. Each part gets options of its own (`options.rs`), never all
//! settings.

mod commands;
mod edge;
mod effective;
mod http;
mod identity;
mod limits;
mod options;
mod redis_tls;
mod secrets;
mod switches;
#[cfg(test)]
mod tests;
mod traces;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use commands::{
    AttachArgs, ChangeArgs, DetachArgs, DoctorArgs, FailOn, HealthArgs, ImportArgs, ReportFormat,
};
pub use edge::EdgeArgs;
pub use effective::effective;
pub use http::HttpArgs;
pub use identity::IdentityArgs;
use limits::{
    DAY, HOUR, LONGEST_TTL, MILLISECOND, MINUTE, address, boolean, duration, namespace, number,
};

use crate::logging::LogFormat;
use crate::postgres::Migrate;
pub use redis_tls::RedisTlsArgs;
pub use switches::SwitchArgs;
pub use traces::{SamplerName, TraceArgs, TraceOptions};

/// A gRPC product catalogue that reads through memory, Redis and PostgreSQL.
///
/// Every option can also be given in the environment, or in a file named .env in the working directory; flags win.
/// Durations are written like 250ms, 5s, 1m 30s. A value that cannot work is refused with the values that work.
#[derive(Debug, Parser)]
#[command(name = "hotshelf", version = env!("HOTSHELF_VERSION"), max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `serve`, which is the default command.
    #[command(flatten)]
    pub serve: ServeArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct LogArgs {
    /// The format of the log: text, or json with one object in each line.
    #[arg(long, env, value_enum, default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves products. The default command.
    Serve(Box<ServeArgs>),
    /// Makes an existing table servable: maps its columns, and adds one column and triggers, without rewriting it.
    ///
    /// The table has an integer primary key of one column. The mapping is guessed, printed, and confirmed on the terminal.
    Attach(Box<AttachArgs>),
    /// Takes everything away again that attach added.
    Detach(DetachArgs),
    /// Brings the schema hotshelf up to date, then exits. `attach` and `serve` do so too at their start.
    Migrate(DatabaseArgs),
    /// Imports products from a CSV file: all of them or none, unless --commit-every is given.
    ///
    /// The first line of the file names its columns, in any order and case: name and price, and optionally id, currency (USD when
    /// missing), description and the attributes of the table. A row with the id of an existing product replaces its values, apart
    /// from those of columns that the file lacks; a row with the same values changes nothing. An empty attribute is NULL.
    Import(ImportArgs),
    /// Checks everything that `serve` would need, with the same options, and prints what is fine, what is wrong, what that costs, and
    /// how to mend it. Changes nothing.
    ///
    /// An error means that `serve` does not start or calls fail, a warning that it serves at a cost. Ends with 0 if all is fine, 1 if
    /// there are errors, 2 if there are warnings only, and 64 if a setting cannot be used.
    Doctor(Box<DoctorArgs>),
    /// Asks a running instance whether it is ready, and ends with 0 if it is, else with 1: for health checks of containers.
    Health(HealthArgs),
    /// Prints the settings in effect and where each comes from, passwords hidden, without connecting to anything.
    Config(Box<ServeArgs>),
    /// Prints completions for a shell: source <(hotshelf completions bash).
    Completions { shell: Shell },
    /// Prints the OpenAPI document of JSON over HTTP, the one at /openapi.json.
    Openapi,
    /// Writes the descriptors of the protos to standard output: hotshelf descriptors > hotshelf.binpb, for grpcurl -protoset.
    Descriptors,
}

#[derive(Args, Clone, Debug)]
pub struct DatabaseArgs {
    /// The URL of PostgreSQL, the truth: postgres://USER:PASSWORD@HOST:PORT/DATABASE.
    ///
    /// Has to be the primary, or several HOST:PORT,HOST:PORT of which one is: a lagging replica would fill the caches with old versions.
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    #[arg(default_value = Self::DEFAULT)]
    pub database_url: String,
    /// A file that holds this URL in one line, in place of DATABASE_URL; for a mounted secret.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub database_url_file: String,
}

#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten, next_help_heading = "PostgreSQL")]
    pub postgres: PostgresArgs,
    #[command(flatten, next_help_heading = "Redis")]
    pub redis: RedisArgs,
    #[command(flatten, next_help_heading = "Caching")]
    pub caching: CachingArgs,
    #[command(flatten, next_help_heading = "Serving")]
    pub serving: ServingArgs,
    #[command(flatten, next_help_heading = "Callers")]
    pub identity: IdentityArgs,
    #[command(flatten, next_help_heading = "HTTP")]
    pub http: HttpArgs,
    #[command(flatten, next_help_heading = "Switches")]
    pub switches: SwitchArgs,
    #[command(flatten, next_help_heading = "Traces")]
    pub traces: TraceArgs,
    /// The pause point at which the process stops until it is killed.
    #[cfg(feature = "test-hooks")]
    #[arg(long, hide = true)]
    pub hold_at: Option<crate::pause::Point>,
    /// The background task that fails at each start.
    #[cfg(feature = "test-hooks")]
    #[arg(long, hide = true)]
    pub fail_always: Option<crate::metrics::BackgroundTask>,
}

#[derive(Args, Clone, Debug)]
pub struct PostgresArgs {
    /// Connections for reads and writes, opened at the start; background tasks use up to five more.
    ///
    /// They are divided into shares: database-loads for loads, one for ExplainProduct, a fifth of the rest for `latest` reads and
    /// the others for writes. No share can use the connections of another. Too high: many instances exhaust max_connections. Too
    /// low: calls wait.
    #[arg(long, env, default_value_t = 12, value_name = "N", value_parser = number::<u32>(4, 10_000))]
    pub database_connections: u32,
    /// The longest wait for a free connection.
    ///
    /// Too high: calls pile up behind a slow database. Too low: short bursts are refused.
    #[arg(long, env, default_value = "500ms", value_name = "DURATION", value_parser = duration(MILLISECOND, HOUR))]
    pub database_acquire_timeout: Duration,
    /// The longest that a statement may run; then PostgreSQL cancels it.
    ///
    /// Too high: a hung statement holds its connection for longer. Too low: writes fail while the database is busy.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub database_statement_timeout: Duration,
    /// Loads for the caches that may run at once: their share of the connections. At most database-connections less three.
    ///
    /// Too high: `latest` reads and writes have fewer connections. Too low: a cold start takes longer.
    #[arg(long, env, default_value_t = 5, value_name = "N", value_parser = number::<usize>(1, 9_997))]
    pub database_loads: usize,
    /// The bound of the queue of loads, and of the separate queue of `latest` reads; 0: none wait.
    ///
    /// A load that does not fit is refused with RESOURCE_EXHAUSTED, first those of the caller with the most in the queue. While
    /// PostgreSQL is slow the bound is lower: as many loads as get their turn within half of database-acquire-timeout.
    ///
    /// Too high: overload becomes timeouts. Too low: loads of a cold start are refused needlessly.
    #[arg(long, env, default_value_t = 256, value_name = "N", value_parser = number::<usize>(0, 100_000))]
    pub database_queued_loads: usize,
    /// The catalogue to serve, where several tables of the database are attached; empty: the only one.
    #[arg(long, env, default_value = "", value_name = "NAME")]
    pub catalog: String,
    /// Whether `serve` brings the database schema up to date at its start.
    ///
    /// With never, or when the schema is up to date, `serve` needs no right to create anything.
    #[arg(long, env, value_enum, default_value = "auto", value_name = "WHEN")]
    pub migrate: Migrate,
    /// The longest that `serve` waits for PostgreSQL at its start, live and not ready, before it exits; 0s: it tries once.
    ///
    /// Too high: a wrong URL is noticed late. Too low: the instance exits while PostgreSQL restarts.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub startup_timeout: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct RedisArgs {
    /// The URL of Redis: redis://USER:PASSWORD@HOST:PORT/DB, rediss:// for TLS, or
    /// redis-cluster://HOST:PORT?node=HOST:PORT&node=HOST:PORT.
    #[arg(
        long,
        env,
        hide_env_values = true,
        default_value = Self::DEFAULT,
        value_name = "URL"
    )]
    pub redis_url: String,
    /// A file that holds this URL in one line, in place of REDIS_URL; for a mounted secret.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub redis_url_file: String,
    #[command(flatten)]
    pub tls: RedisTlsArgs,
    /// Treats REDIS_URL as a node of a Redis Cluster, whatever its scheme.
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "BOOL", value_parser = boolean)]
    pub redis_cluster: bool,
    /// The first part of every key and channel, so that several catalogues can share one Redis.
    #[arg(long, env, default_value = "hotshelf", value_name = "NAME", value_parser = namespace)]
    pub redis_namespace: String,
    /// Connections to Redis, or to each node of a cluster. Commands are pipelined on each.
    ///
    /// Too high: connections that Redis has to keep for every instance. Too low: one slow response delays more commands.
    #[arg(long, env, default_value_t = 4, value_name = "N", value_parser = number::<usize>(1, 128))]
    pub redis_connections: usize,
    /// The timeout of a command; then the read goes on without Redis.
    ///
    /// Too high: a frozen Redis slows every miss. Too low: a busy Redis causes needless loads from PostgreSQL.
    #[arg(long, env, default_value = "100ms", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub redis_timeout: Duration,
    /// The TTL of the lease for a load: after a crash of its holder, the time until another instance can take the lease.
    ///
    /// The holder renews the lease while its load runs. Too high: reads wait longer after a crash. Too low: an instance that
    /// pauses loses its lease, and another loads the same product.
    #[arg(long, env, default_value = "1s", value_name = "DURATION", value_parser = duration(10 * MILLISECOND, HOUR))]
    pub lease_ttl: Duration,
    /// The longest wait for another instance's load; then PostgreSQL is read without the lease.
    ///
    /// At least lease-ttl, so that a waiter takes over the lease of a crashed holder first. Too high: reads wait longer for a
    /// load that hangs. Too low: slow loads are repeated by other instances.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = duration(10 * MILLISECOND, HOUR))]
    pub lease_wait: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct CachingArgs {
    /// Products that this process keeps in memory.
    ///
    /// Each takes its encoded size and about 250 bytes, 8 of which are allocated at the start. Too high: memory. Too low: more
    /// reads go to Redis.
    #[arg(long, env, default_value_t = 100_000, value_name = "N", value_parser = number::<u64>(1, 100_000_000))]
    pub hot_capacity: u64,
    /// The largest product that is kept in memory, in bytes of its encoding; larger ones are read from Redis.
    ///
    /// Memory is bounded by hot-capacity times the sum of this and 250 bytes. Too high: memory. Too low: more reads go to Redis.
    #[arg(long, env, default_value_t = 16_384, value_name = "BYTES", value_parser = number::<usize>(1, 1 << 30))]
    pub hot_max_product_bytes: usize,
    /// The bound on the age of an answer that is not marked stale, under any single fault.
    ///
    /// While the outbox cannot be read, a copy is trusted for half of this time after its last comparison with PostgreSQL. Too
    /// high: older prices during a fault. Too low: more reads go to Redis and PostgreSQL during a fault.
    #[arg(long, env, default_value = "5s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub max_staleness: Duration,
    /// How long memory is trusted after a read of the outbox; at most max-staleness. 0s: not at all.
    ///
    /// Too high: changes are observed later while the outbox cannot be read. Too low: a pause of PostgreSQL sends reads to Redis.
    #[arg(long, env, default_value = "3s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub hot_lease: Duration,
    /// The age past which a cached product is refreshed in the background, and served meanwhile.
    ///
    /// Too high: a change that no trigger recorded is served later. Too low: more load on PostgreSQL.
    #[arg(long, env, default_value = "1m", value_name = "DURATION", value_parser = duration(MILLISECOND, LONGEST_TTL))]
    pub soft_ttl: Duration,
    /// How long past its soft TTL a cached product may be served, marked stale, when it cannot be loaded; 0s: not at all.
    ///
    /// Too high: memory of Redis. Too low: reads fail sooner in an outage of PostgreSQL.
    #[arg(long, env, default_value = "1h", value_name = "DURATION", value_parser = duration(Duration::ZERO, LONGEST_TTL))]
    pub stale_if_error: Duration,
    /// How long a tombstone, the absence of a product, is cached.
    ///
    /// Too high: memory for ids that do not exist. Too low: repeated reads of such ids go to PostgreSQL.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(MILLISECOND, LONGEST_TTL))]
    pub tombstone_ttl: Duration,
    /// The interval at which each instance reads the outbox in PostgreSQL.
    ///
    /// Too high: changes are observed later while Redis is down. Too low: every instance sends idle queries to PostgreSQL.
    #[arg(long, env, default_value = "250ms", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub change_poll_interval: Duration,
    /// The interval at which the relay, in one instance, reads the outbox, updates Redis and publishes the changes.
    ///
    /// Too high: changes by plain SQL are observed later. Too low: idle queries on PostgreSQL.
    #[arg(long, env, default_value = "50ms", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub relay_interval: Duration,
    /// How long a change is kept in the outbox after it became visible.
    ///
    /// Too high: memory in every instance. Too low: an instance that pauses for longer loads everything in its memory again.
    #[arg(long, env, default_value = "1m", value_name = "DURATION", value_parser = duration(100 * MILLISECOND, DAY))]
    pub change_retention: Duration,
    /// Recent changes that an instance keeps in memory, 24 to 40 bytes each: those that are still in the outbox.
    ///
    /// When there are more, everything that is cached is loaded again. Too high: memory. Too low: a large bulk job causes that.
    #[arg(long, env, default_value_t = 2_000_000, value_name = "N", value_parser = number::<usize>(1, 1_000_000_000))]
    pub max_recent_changes: usize,
    /// The interval at which the fleet's ranking of hot products is updated, and the hottest refreshed ahead of their soft TTL.
    ///
    /// Too high: a product that becomes hot is refreshed ahead later. Too low: commands to Redis.
    #[arg(long, env, default_value = "1s", value_name = "DURATION", value_parser = duration(10 * MILLISECOND, HOUR))]
    pub refresh_interval: Duration,
    /// How many of the fleet's hottest products are refreshed ahead; 0: none.
    ///
    /// Too high: loads of products that are rarely read. Too low: more reads pass a soft TTL.
    #[arg(long, env, default_value_t = 100, value_name = "N", value_parser = number::<u16>(0, 1_000))]
    pub refresh_keys: u16,
    /// The longest that a start loads the fleet's hottest products before the instance reports ready; 0s: it does not wait.
    ///
    /// Too high: a start takes longer while Redis or PostgreSQL is slow. Too low: the first reads of hot products are misses.
    #[arg(long, env, default_value = "5s", value_name = "DURATION", value_parser = duration(Duration::ZERO, HOUR))]
    pub warm_timeout: Duration,
    /// Products in memory that are compared with PostgreSQL in a second, a sample of what is read; 0: none.
    ///
    /// Too high: statements on PostgreSQL. Too low: a wrong answer is found later.
    #[arg(long, env, default_value_t = 100, value_name = "N", value_parser = number::<u16>(0, 10_000))]
    pub shadow_reads: u16,
}

#[derive(Args, Clone, Debug)]
pub struct ServingArgs {
    /// The address of the gRPC port.
    #[arg(long, env, default_value = "0.0.0.0:50051", value_name = "ADDRESS", value_parser = address)]
    pub grpc_addr: SocketAddr,
    /// A PEM file with the server's certificate chain; with it gRPC is served over TLS only.
    ///
    /// The chain and its key are read again when they change, and on SIGHUP.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_cert: String,
    /// A PEM file with the private key of that certificate.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_key: String,
    /// The address of the admin port: a live page at /, /metrics, /livez, /readyz and /callers.
    ///
    /// The default is reachable from this machine only. The container image sets 0.0.0.0:9464.
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDRESS", value_parser = address)]
    pub admin_addr: SocketAddr,
    /// Connections at once; a connection above the limit is closed as soon as it is accepted.
    ///
    /// Too high: memory, and file descriptors that the process may not get. Too low: clients cannot connect.
    #[arg(long, env, default_value_t = 10_000, value_name = "N", value_parser = number::<usize>(1, 1_000_000))]
    pub max_connections: usize,
    /// Calls at once on one connection (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS).
    ///
    /// Too high: memory, 512 bytes for each on its way in. Too low: calls of a busy client wait in the client.
    #[arg(long, env, default_value_t = 1_024, value_name = "N", value_parser = number::<u32>(1, 1_000_000))]
    pub max_streams_per_connection: u32,
    /// Unary calls at once; a call above the limit is refused with RESOURCE_EXHAUSTED.
    ///
    /// Once half of them are in use, a caller gets no more when it has more than an eighth of those that are free. Too high:
    /// overload becomes latency and memory. Too low: bursts are refused needlessly.
    #[arg(long, env, default_value_t = 10_000, value_name = "N", value_parser = number::<usize>(1, 1_000_000))]
    pub max_calls: usize,
    /// Bytes of batch responses that wait to be sent; a batch above the limit is refused with RESOURCE_EXHAUSTED.
    ///
    /// A caller gets no more when it holds more than an eighth of what is free. Too high: memory for callers that do not
    /// read. Too low: large batches are refused; the largest possible one is about 70 MB.
    #[arg(long, env, default_value_t = 268_435_456, value_name = "BYTES", value_parser = number::<usize>(131_072, 1 << 40))]
    pub max_unsent_bytes: usize,
    /// The longest that a unary call may take, also when the caller's deadline is later.
    ///
    /// Too high: calls that hang hold their memory. Too low: slow loads and writes fail.
    #[arg(long, env, default_value = "10s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub max_call_time: Duration,
    /// The largest request in bytes; a larger one is refused. A product is at most about 70 kB.
    #[arg(long, env, default_value_t = 262_144, value_name = "BYTES", value_parser = number::<usize>(1_024, 1 << 26))]
    pub max_request_bytes: usize,
    /// Streams of hot keys at once; a stream above the limit is refused with RESOURCE_EXHAUSTED. 0: none.
    ///
    /// A caller gets no more when it has more than half of those that are free. Too high: memory, and messages to send. Too
    /// low: dashboards are refused.
    #[arg(long, env, default_value_t = 100, value_name = "N", value_parser = number::<usize>(0, 100_000))]
    pub max_watchers: usize,
    /// The time without any frame of a peer after which the server sends an HTTP/2 ping.
    ///
    /// Too high: dead peers hold connections for longer. Too low: pings on idle connections.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(100 * MILLISECOND, DAY))]
    pub keepalive_interval: Duration,
    /// The timeout of a ping, and of the first frame of a connection; then the connection is closed.
    ///
    /// Too high: dead peers hold connections for longer. Too low: peers on slow networks lose theirs.
    #[arg(long, env, default_value = "20s", value_name = "DURATION", value_parser = duration(100 * MILLISECOND, HOUR))]
    pub keepalive_timeout: Duration,
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// How long to report NOT_SERVING and serve on after SIGTERM, so that load balancers stop sending calls; 0s: not at all.
    #[arg(long, env, default_value = "0s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub drain_delay: Duration,
    /// How long calls in flight may take after drain-delay; then they are cut off.
    #[arg(long, env, default_value = "20s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub drain_grace: Duration,
}
