//! The private servers and the instances of one drill.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use checker::Target;
use devstack::{
    ChaosProxy, ClusterOptions, Postgres, PostgresOptions, Redis, RedisCluster, RedisOptions,
};
use sqlx::Executor;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::fault::Topology;
use crate::instance::Instance;
use crate::{Error, Fault, Plan};

/// Above `--max-call-time`, so that the server ends each call. A call that takes longer is one that the server does not end.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Enough for the instances and for the drill itself, and few enough for a fault to use them up.
const POSTGRES_CONNECTIONS: u32 = 80;
/// Loads that one instance may run in Postgres at a time: the default of `--database-loads`.
const DATABASE_LOADS: usize = 8;
/// The relay of an instance adds one load at a time.
const RELAY_LOADS: usize = 1;

pub enum RedisEndpoint {
    /// The instances connect to the proxy.
    Single(Box<Redis>, ChaosProxy),
    /// The instances connect directly, because the nodes give clients their addresses.
    Cluster(RedisCluster),
}

/// The servers and the instances. The checker, and the SQL of the drill itself, go around the proxies.
pub struct Servers {
    /// First, because fields are dropped in order: the instances end before the servers that they use.
    pub instances: Vec<Instance>,
    /// For the drill itself.
    pub sql: PgPool,
    /// Between the instances and Postgres.
    pub to_postgres: ChaosProxy,
    pub redis: RedisEndpoint,
    pub postgres: Postgres,
    /// Loads that all instances together may run in Postgres at a time.
    pub budget: usize,
    program: PathBuf,
    arguments: Vec<String>,
    dir: TempDir,
}

impl Servers {
    /// Starts the servers and the instances, and waits until every instance is ready.
    ///
    /// # Errors
    /// If one of them does not start.
    pub async fn start(fault: &Fault, plan: &Plan) -> Result<Self, Error> {
        let (postgres, redis) = tokio::task::block_in_place(|| start_databases(fault, plan))?;
        let mut database_url = postgres.url();
        let sql = connect(&database_url, 4).await?;
        // For the drill, which counts loads with it; the instances do not need it.
        sql.execute("CREATE EXTENSION pg_stat_statements").await?;
        postgres.make_sample_table()?;
        attach(&plan.program, &database_url)?;
        let to_postgres = through_proxy(&mut database_url, postgres.port())?;
        let (redis, redis_url) = match redis {
            StartedRedis::Cluster(cluster) => {
                let url = cluster.url();
                (RedisEndpoint::Cluster(cluster), url)
            }
            StartedRedis::Single(redis) => {
                let mut url = redis.url();
                let proxy = through_proxy(&mut url, redis.port())?;
                (RedisEndpoint::Single(redis, proxy), url)
            }
        };
        let dir = tempfile::tempdir()
            .map_err(|error| Error::Io("a temporary directory".to_owned(), error))?;
        let logs = plan.logs.as_ref().map(|logs| logs.join(fault.name));
        if let Some(logs) = &logs {
            std::fs::create_dir_all(logs)
                .map_err(|error| Error::Io(logs.display().to_string(), error))?;
        }
        let mut arguments = vec!["serve", "--database-url", &database_url];
        arguments.extend(["--redis-url", &redis_url]);
        arguments.extend(plan.options);
        arguments.extend(fault.options);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let program = (&*plan.program, &*arguments);
        let instances: Vec<Instance> = (0..plan.instances)
            .map(|number| {
                Instance::new(program, dir.path(), logs.as_deref(), number, fault.sets_clocks)
            })
            .collect();
        for instance in &instances {
            instance.start()?;
        }
        for instance in &instances {
            instance.serving().await?;
        }
        let budget = plan.instances * (database_loads(fault.options) + RELAY_LOADS);
        let program = plan.program.clone();
        Ok(Self { instances, sql, to_postgres, redis, postgres, budget, program, arguments, dir })
    }

    /// One more instance on the same servers, not started.
    #[must_use]
    pub fn another_instance(&self) -> Instance {
        let (program, number) = ((&*self.program, &*self.arguments), self.instances.len());
        Instance::new(program, self.dir.path(), None, number, false)
    }

    /// Makes the sample table in another database of the same server, and attaches it.
    ///
    /// # Errors
    /// If the table cannot be made or attached.
    pub fn attach_in(&self, database: &str) -> Result<(), Error> {
        self.postgres.run_sql(database, devstack::sample::TABLE)?;
        attach(&self.program, &self.postgres.url_of(database))
    }

    /// One more instance with the same options but another database, not started.
    #[must_use]
    pub fn instance_on(&self, database_url: &str) -> Instance {
        let own = self.arguments.iter().skip_while(|argument| *argument != "--database-url").nth(1);
        let replaced = |argument: &String| match own {
            Some(own) if argument == own => database_url.to_owned(),
            _ => argument.clone(),
        };
        let arguments: Vec<String> = self.arguments.iter().map(replaced).collect();
        let number = self.instances.len();
        Instance::new((&self.program, &arguments), self.dir.path(), None, number, false)
    }

    /// Connections for the checker.
    ///
    /// # Errors
    /// If an instance or Postgres cannot be reached.
    pub async fn target(&self) -> Result<Target, Error> {
        let mut instances = Vec::new();
        for instance in &self.instances {
            let address = format!("http://127.0.0.1:{}", instance.port);
            let unreachable = |error| Error::Instance(format!("{address}: {error}"));
            let endpoint = Endpoint::from_shared(address.clone()).map_err(unreachable)?;
            let endpoint = endpoint.timeout(CALL_TIMEOUT).tcp_nodelay(true);
            instances.push(endpoint.connect().await.map_err(unreachable)?);
        }
        Ok(Target { instances, sql: connect(&self.postgres.url(), 15).await? })
    }
}

/// A pool that goes around the proxy, and differs from those of the instances by its `application_name`.
pub(crate) async fn connect(url: &str, connections: u32) -> Result<PgPool, Error> {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(CALL_TIMEOUT);
    Ok(pool.connect(&format!("{url}?application_name=drill")).await?)
}

enum StartedRedis {
    Single(Box<Redis>),
    Cluster(RedisCluster),
}

fn start_databases(fault: &Fault, plan: &Plan) -> Result<(Postgres, StartedRedis), Error> {
    // A confirmed commit survives the drills that kill Postgres, not the machine: without fsync the kernel keeps what was written.
    // Where time counts, commits wait for the disk as in production.
    let settings = [("synchronous_commit".to_owned(), "on".to_owned())];
    let options = PostgresOptions {
        durable: plan.timed,
        max_connections: POSTGRES_CONNECTIONS,
        settings: settings.into(),
        ..PostgresOptions::default()
    };
    let settings = fault.redis.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let settings = settings.collect();
    let redis = match fault.topology {
        Topology::Single => {
            let options = RedisOptions { settings, ..RedisOptions::default() };
            StartedRedis::Single(Box::new(Redis::start(options)?))
        }
        Topology::Cluster => {
            let options = ClusterOptions { settings, ..ClusterOptions::default() };
            StartedRedis::Cluster(RedisCluster::start(&options)?)
        }
    };
    Ok((Postgres::start(options)?, redis))
}

/// Attaches the sample table.
fn attach(program: &Path, database_url: &str) -> Result<(), Error> {
    let mut attach = std::process::Command::new(program);
    attach.args(["attach", "products", "--yes", "--database-url", database_url]).env_clear();
    let attached = attach.output();
    let attached = attached.map_err(|error| Error::Io(program.display().to_string(), error))?;
    match attached.status.success() {
        true => Ok(()),
        false => Err(Error::Instance(String::from_utf8_lossy(&attached.stderr).into_owned())),
    }
}

/// Puts a proxy in front of the server at `port`, and into the URL.
fn through_proxy(url: &mut String, port: u16) -> Result<ChaosProxy, Error> {
    let proxy = ChaosProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    *url = url.replace(&format!(":{port}"), &format!(":{}", proxy.addr().port()));
    Ok(proxy)
}

/// The value of `--database-loads` in the options, or the default.
fn database_loads(options: &[&str]) -> usize {
    let mut options = options.iter().skip_while(|option| **option != "--database-loads");
    options.nth(1).and_then(|loads| loads.parse().ok()).unwrap_or(DATABASE_LOADS)
}
