//! Every knob, and the only reader of the environment. Each part gets its own options, never the whole.

mod edge;
mod identity;
mod limits;
mod options;
mod secrets;
mod switches;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};

pub use edge::EdgeArgs;
pub use identity::IdentityArgs;
use limits::{DAY, HOUR, LONGEST_TTL, MILLISECOND, MINUTE, duration, namespace, number};

use crate::postgres::Migrate;
pub use switches::SwitchArgs;

/// A gRPC product catalogue that is read through memory, Redis and PostgreSQL.
///
/// Every option can also be given in the environment, or in a file named .env in the working directory.
/// Durations are written like 250ms, 5s, 1m 30s. A value that cannot work is refused, and the refusal says what works.
#[derive(Debug, Parser)]
#[command(name = "hotshelf", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `serve`, which is what happens without a command.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves products. This is what happens without a command.
    Serve(Box<ServeArgs>),
    /// Brings the database schema up to date, and ends. `serve` does so too, when it starts.
    Migrate(DatabaseArgs),
    /// Imports products from a CSV file in one transaction: all of them, or none.
    ///
    /// The file begins with a line that names its columns: name and price, and optionally id, currency
    /// (USD if it is left out) and description, in any order. A product whose id exists is changed to what
    /// the file says; one that is the same already is left alone.
    Import(ImportArgs),
}

/// Where PostgreSQL is.
#[derive(Args, Clone, Debug)]
pub struct DatabaseArgs {
    /// PostgreSQL, the truth: postgres://USER:PASSWORD@HOST:PORT/DATABASE.
    ///
    /// Must be the primary: a lagging replica would fill the caches with old versions.
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    #[arg(default_value = Self::DEFAULT)]
    pub database_url: String,
    /// A file with that URL in one line, instead of DATABASE_URL: for a mounted secret.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub database_url_file: String,
}

/// The options of `import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// Where to.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The file; - reads standard input.
    pub file: PathBuf,
    /// Leaves bad rows out and says which, instead of importing nothing.
    #[arg(long)]
    pub skip_bad: bool,
    /// Does nothing when there are products already.
    #[arg(long)]
    pub if_empty: bool,
}

/// The options of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Where PostgreSQL is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Connections, limits and deadlines of PostgreSQL.
    #[command(flatten, next_help_heading = "PostgreSQL")]
    pub postgres: PostgresArgs,
    /// Redis.
    #[command(flatten, next_help_heading = "Redis")]
    pub redis: RedisArgs,
    /// What is kept, and for how long.
    #[command(flatten, next_help_heading = "Caching")]
    pub caching: CachingArgs,
    /// The gRPC port.
    #[command(flatten, next_help_heading = "Serving")]
    pub serving: ServingArgs,
    /// Who may call.
    #[command(flatten, next_help_heading = "Callers")]
    pub identity: IdentityArgs,
    /// What is offered at all.
    #[command(flatten, next_help_heading = "Switches")]
    pub switches: SwitchArgs,
    /// Where to stand still until the process is killed.
    #[cfg(feature = "test-hooks")]
    #[arg(long, hide = true)]
    pub hold_at: Option<crate::pause::Point>,
    /// The background task that ends as soon as it is started.
    #[cfg(feature = "test-hooks")]
    #[arg(long, hide = true)]
    pub fail_always: Option<crate::metrics::BackgroundTask>,
}

/// Connections, limits and deadlines of PostgreSQL.
#[derive(Args, Clone, Debug)]
pub struct PostgresArgs {
    /// Connections for reads and writes, opened ahead; background tasks have up to five more.
    ///
    /// Divided into shares, none of which can take those of another: database-loads, one for ExplainProduct, and of the rest a
    /// fifth for `latest` reads and four fifths for writes. Too high: many instances exhaust max_connections. Too low: calls wait.
    #[arg(long, env, default_value_t = 12, value_name = "N", value_parser = number::<u32>(4, 10_000))]
    pub database_connections: u32,
    /// How long to wait for a free connection.
    ///
    /// Too high: callers pile up behind a slow database. Too low: short bursts are refused.
    #[arg(long, env, default_value = "500ms", value_name = "DURATION", value_parser = duration(MILLISECOND, HOUR))]
    pub database_acquire_timeout: Duration,
    /// How long a statement may take; the server ends it then. There is always a limit.
    ///
    /// Too high: a hung statement holds its connection. Too low: a busy database fails writes.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub database_statement_timeout: Duration,
    /// Loads for the caches that may run at once: their share of the connections, at most three less than all.
    ///
    /// Too high: `latest` reads and writes have fewer. Too low: a cold start takes longer.
    #[arg(long, env, default_value_t = 5, value_name = "N", value_parser = number::<usize>(1, 9_997))]
    pub database_loads: usize,
    /// Loads, and apart from them `latest` reads, that may wait for their turn; 0: none wait.
    ///
    /// More are refused with RESOURCE_EXHAUSTED, those of the caller with the most first.
    ///
    /// Fewer may while PostgreSQL is slow: as many as will have their turn within half the acquire timeout.
    /// Too high: overload becomes timeouts. Too low: a cold start is refused needlessly.
    #[arg(long, env, default_value_t = 256, value_name = "N", value_parser = number::<usize>(0, 100_000))]
    pub database_queued_loads: usize,
    /// Whether `serve` brings the database schema up to date when it starts: auto or never.
    ///
    /// With never, or where nothing is missing, it needs no rights to create anything.
    #[arg(long, env, value_enum, default_value = "auto", value_name = "WHEN")]
    pub migrate: Migrate,
    /// How long `serve` waits for PostgreSQL when it starts, alive and not ready, before it gives up;
    /// 0s: it tries once.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub startup_timeout: Duration,
}

/// Redis.
#[derive(Args, Clone, Debug)]
pub struct RedisArgs {
    /// Redis: redis://USER:PASSWORD@HOST:PORT/DB, rediss:// for TLS, or
    /// redis-cluster://HOST:PORT?node=HOST:PORT&node=HOST:PORT.
    #[arg(
        long,
        env,
        hide_env_values = true,
        default_value = Self::DEFAULT,
        value_name = "URL"
    )]
    pub redis_url: String,
    /// A file with that URL in one line, instead of REDIS_URL: for a mounted secret.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub redis_url_file: String,
    /// Treats REDIS_URL as a node of a Redis Cluster, whatever its scheme.
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub redis_cluster: bool,
    /// The first part of every key, so that several catalogues can share one Redis.
    #[arg(long, env, default_value = "hotshelf", value_name = "NAME", value_parser = namespace)]
    pub redis_namespace: String,
    /// Connections to Redis, or to each node of a cluster; each is pipelined.
    #[arg(long, env, default_value_t = 4, value_name = "N", value_parser = number::<usize>(1, 128))]
    pub redis_connections: usize,
    /// How long a command may take before the read goes on without Redis.
    ///
    /// Too high: a frozen Redis slows every miss. Too low: a busy one sends needless load to PostgreSQL.
    #[arg(long, env, default_value = "100ms", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub redis_timeout: Duration,
    /// How long the lease of an instance that died in the middle of a load keeps others from loading.
    ///
    /// It is renewed while the load runs. Too high: readers wait longer after a crash. Too low: an
    /// instance that pauses loses its lease, and the load is done twice.
    #[arg(long, env, default_value = "1s", value_name = "DURATION", value_parser = duration(10 * MILLISECOND, HOUR))]
    pub lease_ttl: Duration,
    /// How long to wait for another instance's load before asking PostgreSQL without the lease.
    ///
    /// At least the lease TTL, so that a dead holder's lease is taken over instead.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = duration(10 * MILLISECOND, HOUR))]
    pub lease_wait: Duration,
}

/// What is kept, and for how long.
#[derive(Args, Clone, Debug)]
pub struct CachingArgs {
    /// Products that are kept in this process' memory.
    ///
    /// Too high: memory; each costs its encoded size and about 250 bytes, 8 of them at the start. Too low: more reads go
    /// to Redis. At most 100,000,000.
    #[arg(long, env, default_value_t = 100_000, value_name = "N", value_parser = number::<u64>(1, 100_000_000))]
    pub hot_capacity: u64,
    /// Largest product that is kept in this process' memory, encoded, in bytes; larger ones are read from Redis.
    ///
    /// Memory holds at most hot-capacity times this and 250 bytes. Too high: that bound. Too low: more reads
    /// go to Redis.
    #[arg(long, env, default_value_t = 16_384, value_name = "BYTES", value_parser = number::<usize>(1, 1 << 30))]
    pub hot_max_product_bytes: usize,
    /// How old an answer may be, whatever has failed, that is not marked stale.
    ///
    /// While the outbox cannot be read, a copy is trusted for half of it after it was compared with PostgreSQL. Too high:
    /// prices are older after a fault. Too low: more reads go to Redis and PostgreSQL during one.
    #[arg(long, env, default_value = "5s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub max_staleness: Duration,
    /// For how long a read of the outbox lets memory be trusted; at most max-staleness. 0s: not at all.
    ///
    /// Too high: changes are seen later when the outbox cannot be read. Too low: a pause of PostgreSQL sends reads to Redis.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub hot_lease: Duration,
    /// After this long a cached product is loaded again in the background, and served meanwhile.
    ///
    /// Too high: what no write made known is seen later. Too low: more load on PostgreSQL.
    #[arg(long, env, default_value = "1m", value_name = "DURATION", value_parser = duration(MILLISECOND, LONGEST_TTL))]
    pub soft_ttl: Duration,
    /// For how long past its soft TTL a cached product may be served, marked stale, when it cannot be
    /// loaded again; 0s: it is not.
    ///
    /// Too high: memory of Redis. Too low: an outage of PostgreSQL is felt sooner.
    #[arg(long, env, default_value = "1h", value_name = "DURATION", value_parser = duration(Duration::ZERO, LONGEST_TTL))]
    pub stale_if_error: Duration,
    /// How long the absence of a product is cached.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(MILLISECOND, LONGEST_TTL))]
    pub tombstone_ttl: Duration,
    /// How often each instance reads the outbox of changes in PostgreSQL.
    ///
    /// Too high: while Redis is away, changes are seen later. Too low: idle queries on PostgreSQL, of every instance.
    #[arg(long, env, default_value = "250ms", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub change_poll_interval: Duration,
    /// How often the one instance that relays reads the outbox, to bring Redis up to date and to tell the others.
    ///
    /// Too high: changes by plain SQL are seen later. Too low: idle queries on PostgreSQL.
    #[arg(long, env, default_value = "50ms", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub relay_interval: Duration,
    /// For how long changes are kept in the outbox after they became visible.
    ///
    /// Too high: more memory, in every instance. Too low: an instance that stands still for longer compares all of its
    /// memory with PostgreSQL.
    #[arg(long, env, default_value = "1m", value_name = "DURATION", value_parser = duration(100 * MILLISECOND, DAY))]
    pub change_retention: Duration,
    /// Changes that an instance keeps in its memory, about 40 bytes each: those of the outbox.
    ///
    /// With more at once everything that is cached is compared with PostgreSQL. Too low: large bulk jobs do that. Too high: memory.
    #[arg(long, env, default_value_t = 2_000_000, value_name = "N", value_parser = number::<usize>(1, 1_000_000_000))]
    pub max_recent_changes: usize,
    /// How often the fleet's ranking of hot products is updated, and the hottest refreshed ahead of time.
    #[arg(long, env, default_value = "1s", value_name = "DURATION", value_parser = duration(10 * MILLISECOND, HOUR))]
    pub refresh_interval: Duration,
    /// How many of the fleet's hottest products are kept warm; 0 for none.
    #[arg(long, env, default_value_t = 100, value_name = "N", value_parser = number::<u16>(0, 1_000))]
    pub refresh_keys: u16,
    /// How long an instance that starts may take to load the fleet's hottest products before it reports
    /// that it is ready; 0s: it does not wait.
    #[arg(long, env, default_value = "5s", value_name = "DURATION", value_parser = duration(Duration::ZERO, HOUR))]
    pub warm_timeout: Duration,
}

/// The ports.
#[derive(Args, Clone, Debug)]
pub struct ServingArgs {
    /// Where gRPC is served.
    #[arg(long, env, default_value = "0.0.0.0:50051", value_name = "ADDRESS")]
    pub grpc_addr: SocketAddr,
    /// A PEM file with the certificate to serve gRPC over TLS with, and those that lead to one that clients know.
    ///
    /// It and its key are read again when they change, and on SIGHUP.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_cert: String,
    /// A PEM file with the certificate's private key.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_key: String,
    /// Where /metrics, /livez and /readyz are served.
    ///
    /// By default to this machine only. In a container: 0.0.0.0:9464, as its image has it.
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    pub admin_addr: SocketAddr,
    /// Connections at once; more are closed as they come. Leave file descriptors for Redis and PostgreSQL.
    #[arg(long, env, default_value_t = 10_000, value_name = "N", value_parser = number::<usize>(1, 1_000_000))]
    pub max_connections: usize,
    /// Calls at once on one connection (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS).
    #[arg(long, env, default_value_t = 1_024, value_name = "N", value_parser = number::<u32>(1, 1_000_000))]
    pub max_streams_per_connection: u32,
    /// Unary calls at once; more are refused with RESOURCE_EXHAUSTED.
    ///
    /// When half are taken a connection that has more than an eighth of those that are free gets no more. Too high: overload becomes latency and memory. Too low: bursts are refused needlessly.
    #[arg(long, env, default_value_t = 10_000, value_name = "N", value_parser = number::<usize>(1, 1_000_000))]
    pub max_calls: usize,
    /// Bytes of batches that wait for their callers to read them; past it more are refused with RESOURCE_EXHAUSTED.
    ///
    /// A connection that holds more than an eighth of what is free gets no more. Too high: callers that do not read cost
    /// that memory. Too low: large batches are refused; the largest that can be asked for is about 70 MB.
    #[arg(long, env, default_value_t = 268_435_456, value_name = "BYTES", value_parser = number::<usize>(131_072, 1 << 40))]
    pub max_unsent_bytes: usize,
    /// The longest that a unary call may take, whatever the caller allows.
    #[arg(long, env, default_value = "10s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub max_call_time: Duration,
    /// Largest request in bytes; larger ones are refused. A product is at most about 70 kB.
    #[arg(long, env, default_value_t = 262_144, value_name = "BYTES", value_parser = number::<usize>(1_024, 1 << 26))]
    pub max_request_bytes: usize,
    /// Streams of hot keys at once; more are refused. 0: none.
    ///
    /// A connection that holds more than half of what is free gets no more. Too high: memory, and messages to send. Too
    /// low: dashboards are refused.
    #[arg(long, env, default_value_t = 100, value_name = "N", value_parser = number::<usize>(0, 100_000))]
    pub max_watchers: usize,
    /// After this long without a sign of life a peer is pinged.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(100 * MILLISECOND, DAY))]
    pub keepalive_interval: Duration,
    /// A peer that does not answer a ping, or does not begin to speak HTTP/2, for this long is gone.
    #[arg(long, env, default_value = "20s", value_name = "DURATION", value_parser = duration(100 * MILLISECOND, HOUR))]
    pub keepalive_timeout: Duration,
    /// Connections.
    #[command(flatten)]
    pub edge: EdgeArgs,
    /// On SIGTERM, how long to report NOT_SERVING and serve on, so that load balancers notice; 0s: not at all.
    #[arg(long, env, default_value = "0s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub drain_delay: Duration,
    /// After that, how long calls in flight may take to finish.
    #[arg(long, env, default_value = "20s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub drain_grace: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_what_happens_without_a_command() {
        let cli = Cli::try_parse_from(["hotshelf", "--soft-ttl", "7s"]).expect("valid");
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.caching.soft_ttl, Duration::from_secs(7));
    }

    #[test]
    fn every_knob_says_what_it_is_for() {
        let command = Cli::command();
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }
}
