//! Every knob, and the only reader of the environment. Each part gets its own options, never the whole.

mod options;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use humantime::parse_duration;

use crate::postgres::Migrate;

/// A gRPC product catalogue that is read through memory, Redis and PostgreSQL.
///
/// Every option can also be given in the environment, or in a file named .env in the working directory.
/// Durations are written like 250ms, 5s, 1m 30s.
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
    #[arg(default_value = "postgres://hotshelf:hotshelf@localhost:5432/hotshelf")]
    pub database_url: String,
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
    /// Where to stand still until the process is killed.
    #[cfg(feature = "test-hooks")]
    #[arg(long, hide = true)]
    pub hold_at: Option<crate::pause::Point>,
}

/// Connections, limits and deadlines of PostgreSQL.
#[derive(Args, Clone, Debug)]
pub struct PostgresArgs {
    /// Connections for reads and writes, opened ahead; background tasks have up to five more.
    ///
    /// Writes take at most half of them. Too high: many instances exhaust max_connections. Too low: callers wait for each
    /// other.
    #[arg(long, env, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub database_connections: u32,
    /// How long to wait for a free connection.
    ///
    /// Too high: callers pile up behind a slow database. Too low: short bursts are refused.
    #[arg(long, env, default_value = "500ms", value_name = "DURATION", value_parser = parse_duration)]
    pub database_acquire_timeout: Duration,
    /// How long a statement may take; the server ends it then.
    ///
    /// Too high: a hung statement holds its connection. Too low: a busy database fails writes.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = parse_duration)]
    pub database_statement_timeout: Duration,
    /// Loads for the caches that may run at once; leave some connections to writes.
    #[arg(long, env, default_value_t = 8, value_name = "N", value_parser = at_least_one)]
    pub database_loads: usize,
    /// Loads that may wait for their turn; more are refused with RESOURCE_EXHAUSTED, the least wanted first.
    ///
    /// Fewer may while PostgreSQL is slow: as many as will have their turn within half the acquire timeout.
    /// Too high: overload becomes timeouts. Too low: a cold start is refused needlessly.
    #[arg(long, env, default_value_t = 256, value_name = "N")]
    pub database_queued_loads: usize,
    /// Whether `serve` brings the database schema up to date when it starts: auto or never.
    ///
    /// With never, or where nothing is missing, it needs no rights to create anything.
    #[arg(long, env, value_enum, default_value = "auto", value_name = "WHEN")]
    pub migrate: Migrate,
    /// How long `serve` waits for PostgreSQL when it starts, alive and not ready, before it gives up.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
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
        default_value = "redis://localhost:6379",
        value_name = "URL"
    )]
    pub redis_url: String,
    /// Treats REDIS_URL as a node of a Redis Cluster, whatever its scheme.
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub redis_cluster: bool,
    /// The first part of every key, so that several catalogues can share one Redis.
    #[arg(long, env, default_value = "hotshelf", value_name = "NAME", value_parser = namespace)]
    pub redis_namespace: String,
    /// Connections to Redis, or to each node of a cluster; each is pipelined.
    #[arg(long, env, default_value_t = 4, value_name = "N", value_parser = at_least_one)]
    pub redis_connections: usize,
    /// How long a command may take before the read goes on without Redis.
    ///
    /// Too high: a frozen Redis slows every miss. Too low: a busy one sends needless load to PostgreSQL.
    #[arg(long, env, default_value = "100ms", value_name = "DURATION", value_parser = parse_duration)]
    pub redis_timeout: Duration,
    /// How long the lease of an instance that died in the middle of a load keeps others from loading.
    ///
    /// It is renewed while the load runs. Too high: readers wait longer after a crash. Too low: an
    /// instance that pauses loses its lease, and the load is done twice.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = parse_duration)]
    pub lease_ttl: Duration,
    /// How long to wait for another instance's load before asking PostgreSQL without the lease.
    ///
    /// Should be above the lease TTL, so that a dead holder's lease is taken over instead.
    #[arg(long, env, default_value = "3s", value_name = "DURATION", value_parser = parse_duration)]
    pub lease_wait: Duration,
}

/// What is kept, and for how long.
#[derive(Args, Clone, Debug)]
pub struct CachingArgs {
    /// Products that are kept in this process' memory.
    ///
    /// Too high: memory; each costs its encoded size and about 250 bytes, 8 of them at the start. Too low: more reads go
    /// to Redis. At most 100,000,000.
    #[arg(long, env, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub hot_capacity: u64,
    /// Largest product that is kept in this process' memory, encoded, in bytes; larger ones are read from Redis.
    ///
    /// Memory holds at most hot-capacity times this and 250 bytes. Too high: that bound. Too low: more reads
    /// go to Redis.
    #[arg(long, env, default_value_t = 16_384, value_name = "BYTES", value_parser = at_least_one)]
    pub hot_max_product_bytes: usize,
    /// How old an answer may be, whatever has failed, that is not marked stale.
    ///
    /// Half of it the relays may be behind (not less than 2s), and for the other half memory is trusted after it was
    /// compared with Redis, while the change stream cannot be followed. Too high: prices are older after a fault.
    /// Too low: more reads go to Redis and PostgreSQL during one.
    #[arg(long, env, default_value = "5s", value_name = "DURATION", value_parser = parse_duration)]
    pub max_staleness: Duration,
    /// For how long a proof that the change stream has been followed to its end lets memory be trusted.
    ///
    /// Too high: changes are seen later when the stream stops. Too low: a pause of Redis sends reads there.
    #[arg(long, env, default_value = "2s", value_name = "DURATION", value_parser = parse_duration)]
    pub hot_lease: Duration,
    /// After this long a cached product is loaded again in the background, and served meanwhile.
    ///
    /// Too high: what no write made known is seen later. Too low: more load on PostgreSQL.
    #[arg(long, env, default_value = "1m", value_name = "DURATION", value_parser = parse_duration)]
    pub soft_ttl: Duration,
    /// For how long past its soft TTL a cached product may be served, marked stale, when it cannot be
    /// loaded again.
    ///
    /// Too high: memory of Redis. Too low: an outage of PostgreSQL is felt sooner.
    #[arg(long, env, default_value = "1h", value_name = "DURATION", value_parser = parse_duration)]
    pub stale_if_error: Duration,
    /// How long the absence of a product is cached.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub tombstone_ttl: Duration,
    /// How often the relay looks into an empty outbox.
    ///
    /// Too high: changes by plain SQL are seen later. Too low: idle queries on PostgreSQL.
    #[arg(long, env, default_value = "100ms", value_name = "DURATION", value_parser = parse_duration)]
    pub relay_interval: Duration,
    /// For how long relayed changes are kept, to be relayed again when Redis lost its last writes.
    ///
    /// Too high: a failover repeats more work. Too low: what a failover lost stays old until its soft TTL.
    #[arg(long, env, default_value = "1m", value_name = "DURATION", value_parser = parse_duration)]
    pub replay_window: Duration,
    /// How often the fleet's ranking of hot products is updated, and the hottest refreshed ahead of time.
    #[arg(long, env, default_value = "1s", value_name = "DURATION", value_parser = parse_duration)]
    pub refresh_interval: Duration,
    /// How many of the fleet's hottest products are kept warm; 0 for none.
    #[arg(long, env, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub refresh_keys: u16,
    /// How long an instance that starts may take to load the fleet's hottest products before it reports
    /// that it is ready.
    #[arg(long, env, default_value = "5s", value_name = "DURATION", value_parser = parse_duration)]
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
    /// It and its key are read at the start: a renewed one is taken by a restart.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_cert: String,
    /// A PEM file with the certificate's private key.
    #[arg(long, env, default_value = "", value_name = "FILE")]
    pub grpc_tls_key: String,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env, default_value = "0.0.0.0:9464", value_name = "ADDRESS")]
    pub admin_addr: SocketAddr,
    /// Connections at once; more are closed as they come. Leave file descriptors for Redis and PostgreSQL.
    #[arg(long, env, default_value_t = 10_000, value_name = "N", value_parser = at_least_one)]
    pub max_connections: usize,
    /// Calls at once on one connection (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS).
    #[arg(long, env, default_value_t = 1_024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams_per_connection: u32,
    /// Unary calls at once; more are refused with RESOURCE_EXHAUSTED.
    ///
    /// Too high: overload becomes latency and memory. Too low: bursts are refused needlessly.
    #[arg(long, env, default_value_t = 10_000, value_name = "N", value_parser = at_least_one)]
    pub max_calls: usize,
    /// Bytes of batches that wait for their callers to read them; past it more are refused with RESOURCE_EXHAUSTED.
    ///
    /// A connection that holds more than an eighth of what is free gets no more. Too high: callers that do not read cost
    /// that memory. Too low: large batches are refused; the largest that can be asked for is about 70 MB.
    #[arg(long, env, default_value_t = 268_435_456, value_name = "BYTES", value_parser = at_least_one)]
    pub max_unsent_bytes: usize,
    /// The longest that a unary call may take, whatever the caller allows.
    #[arg(long, env, default_value = "10s", value_name = "DURATION", value_parser = parse_duration)]
    pub max_call_time: Duration,
    /// Largest request in bytes; larger ones are refused. A product is at most about 70 kB.
    #[arg(long, env, default_value_t = 262_144, value_name = "BYTES", value_parser = at_least_one)]
    pub max_request_bytes: usize,
    /// Streams of hot keys at once; more are refused.
    #[arg(long, env, default_value_t = 100, value_name = "N")]
    pub max_watchers: usize,
    /// After this long without a sign of life a peer is pinged.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub keepalive_interval: Duration,
    /// A peer that does not answer a ping, or does not begin to speak HTTP/2, for this long is gone.
    #[arg(long, env, default_value = "20s", value_name = "DURATION", value_parser = parse_duration)]
    pub keepalive_timeout: Duration,
    /// On SIGTERM, how long to report NOT_SERVING and serve on, so that load balancers notice.
    #[arg(long, env, default_value = "0s", value_name = "DURATION", value_parser = parse_duration)]
    pub drain_delay: Duration,
    /// After that, how long calls in flight may take to finish.
    #[arg(long, env, default_value = "20s", value_name = "DURATION", value_parser = parse_duration)]
    pub drain_grace: Duration,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be 1 or more".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// Braces would move the hash tag of a cluster's keys.
fn namespace(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if text.is_empty() || !text.bytes().all(plain) {
        return Err("use letters, digits, '-', '_', '.' and ':'".to_owned());
    }
    Ok(text.to_owned())
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
