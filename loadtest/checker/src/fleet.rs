//! The instances that are checked: processes started on private servers, or existing ones.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use checker::{Error, Target};
use clap::Args;
use devstack::{ClusterOptions, Postgres, PostgresOptions, Redis, RedisCluster, RedisOptions};
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

/// Until an instance that was started is ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A call that takes longer fails.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub(crate) struct FleetArgs {
    /// How many instances to start.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    instances: u8,
    /// Starts a Redis Cluster instead of one Redis.
    #[arg(long)]
    cluster: bool,
    /// The program to start [default: hotshelf beside this program]
    #[arg(long, value_name = "FILE")]
    hotshelf: Option<PathBuf>,
    /// Checks an existing instance, HOST:PORT, instead of starting some. Give all instances that share the database.
    #[arg(long, value_name = "ADDRESS", requires = "database_url")]
    instance: Vec<String>,
    /// The database of the existing instances. The checker adds products and a schema named checker, and removes
    /// both at the end.
    #[arg(long, value_name = "URL", requires = "instance")]
    database_url: Option<String>,
    /// Options for the instances that are started, after --.
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// The addresses of the instances, and the processes that must outlive the check.
pub(crate) struct Fleet {
    addresses: Vec<String>,
    database_url: String,
    // Dropped, and so ended, in this order.
    _instances: Vec<Child>,
    _redis: Option<Redis>,
    _cluster: Option<RedisCluster>,
    _postgres: Option<Postgres>,
}

impl Fleet {
    pub(crate) async fn start(args: &FleetArgs) -> Result<Self, Error> {
        if let Some(database_url) = args.database_url.clone() {
            return Ok(Self {
                addresses: args.instance.clone(),
                database_url,
                _instances: Vec::new(),
                _redis: None,
                _cluster: None,
                _postgres: None,
            });
        }
        // Blocks the thread, on which nothing else runs yet.
        let postgres = Postgres::start(PostgresOptions::default())?;
        postgres.make_sample_table()?;
        attach(args, &postgres.url()).await?;
        let (redis, cluster) = match args.cluster {
            true => (None, Some(RedisCluster::start(&ClusterOptions::default())?)),
            false => (Some(Redis::start(RedisOptions::default())?), None),
        };
        let redis_url = redis.as_ref().map(Redis::url);
        let redis_url = redis_url.or(cluster.as_ref().map(RedisCluster::url)).unwrap_or_default();
        let (mut addresses, mut instances) = (Vec::new(), Vec::new());
        for _ in 0..args.instances {
            let (child, address) = spawn(args, &postgres.url(), &redis_url).await?;
            addresses.push(address);
            instances.push(child);
        }
        Ok(Self {
            addresses,
            database_url: postgres.url(),
            _instances: instances,
            _redis: redis,
            _cluster: cluster,
            _postgres: Some(postgres),
        })
    }

    pub(crate) async fn target(&self) -> Result<Target, Error> {
        let mut instances = Vec::new();
        for address in &self.addresses {
            instances.push(connect(address).await?);
        }
        let sql = PgPoolOptions::new()
            .max_connections(20)
            .acquire_timeout(CALL_TIMEOUT)
            .connect(&self.database_url)
            .await?;
        Ok(Target { instances, sql })
    }
}

async fn connect(address: &str) -> Result<Channel, Error> {
    let unreachable = |error| Error::Instance(format!("{address} cannot be reached: {error}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
    endpoint.timeout(CALL_TIMEOUT).tcp_nodelay(true).connect().await.map_err(unreachable)
}

/// Attaches the sample table.
async fn attach(args: &FleetArgs, database_url: &str) -> Result<(), Error> {
    let program = program(args)?;
    let mut attach = Command::new(&program);
    attach.args(["attach", "products", "--yes", "--database-url", database_url]);
    let attached = attach.env_clear().current_dir(std::env::temp_dir()).output().await;
    let attached = attached.map_err(|error| Error::Io(program.display().to_string(), error))?;
    match attached.status.success() {
        true => Ok(()),
        false => Err(Error::Instance(String::from_utf8_lossy(&attached.stderr).into_owned())),
    }
}

/// Starts an instance, and waits until it logs its address.
async fn spawn(
    args: &FleetArgs,
    database_url: &str,
    redis_url: &str,
) -> Result<(Child, String), Error> {
    let program = program(args)?;
    let failed = |error| Error::Io(program.display().to_string(), error);
    let mut child = Command::new(&program)
        .args(["serve", "--database-url", database_url, "--redis-url", redis_url])
        .args(["--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"])
        .args(&args.options)
        .env_clear()
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stderr = child.stderr.take().ok_or_else(|| Error::Instance("no stderr".to_owned()))?;
    let mut lines = BufReader::new(stderr).lines();
    let mut last = String::new();
    let reported = async {
        while let Some(line) = lines.next_line().await.map_err(failed)? {
            if let Some(address) = address_in(&line) {
                return Ok(address);
            }
            last = line;
        }
        Err(Error::Instance(format!("an instance did not start: {last}")))
    };
    let address = tokio::time::timeout(START_TIMEOUT, reported).await.map_err(|_| {
        Error::Instance(format!("an instance does not serve after {START_TIMEOUT:?}"))
    })??;
    // Reads the log to the end: with a full pipe the process would block at its next line.
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains("WARN") || line.contains("ERROR") {
                eprintln!("{line}");
            }
        }
    });
    Ok((child, address))
}

/// The address in the line `... serving grpc_addr=127.0.0.1:PORT ...`.
fn address_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("grpc_addr=")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn program(args: &FleetArgs) -> Result<PathBuf, Error> {
    if let Some(program) = &args.hotshelf {
        return std::path::absolute(program)
            .map_err(|error| Error::Io(program.display().to_string(), error));
    }
    let own = std::env::current_exe().map_err(|error| Error::Io("checker".to_owned(), error))?;
    Ok(own.with_file_name("hotshelf"))
}
