//! The private servers and the instances of one drill.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
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

/// Above `--max-call-time`, so that the server has the last word: a call that takes longer has no end.
const CALL_TIME: Duration = Duration::from_secs(15);
/// Enough for the instances and for what the drill does itself, and few enough to be used up.
const POSTGRES_CONNECTIONS: u32 = 80;
/// Loads at once that an instance may have in Postgres: the default of `--database-loads`.
const LOADS: usize = 8;
/// The relay of an instance reads, too, one batch at a time.
const RELAY: usize = 1;

/// The Redis of a world.
pub enum RedisSide {
    /// One, and the proxy that instances reach it through.
    Single(Box<Redis>, ChaosProxy),
    /// A cluster, reached directly: its nodes tell clients their addresses.
    Cluster(RedisCluster),
}

/// The servers and the instances. The checker, and the drill's own SQL, go around the proxies.
pub struct World {
    /// The instances; they end first.
    pub instances: Vec<Instance>,
    /// A connection pool of the drill's own.
    pub sql: PgPool,
    /// Between the instances and Postgres.
    pub to_postgres: ChaosProxy,
    /// Redis.
    pub redis: RedisSide,
    /// Postgres.
    pub postgres: Postgres,
    /// Loads at once that all instances together may have in Postgres.
    pub budget: usize,
    program: PathBuf,
    arguments: Vec<String>,
    dir: TempDir,
}

impl World {
    /// Starts everything, and waits until every instance serves.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(fault: &Fault, plan: &Plan) -> Result<Self, Error> {
        let (postgres, redis) = tokio::task::block_in_place(|| servers(fault))?;
        let mut database_url = postgres.url();
        let sql = connect(&database_url, 4).await?;
        // Not the instances': without it the loads could not be counted.
        sql.execute("CREATE EXTENSION pg_stat_statements").await?;
        let to_postgres = through_proxy(&mut database_url, postgres.port())?;
        let (redis, redis_url) = match redis {
            RedisServers::Cluster(cluster) => {
                let url = cluster.url();
                (RedisSide::Cluster(cluster), url)
            }
            RedisServers::Single(redis) => {
                let mut url = redis.url();
                let proxy = through_proxy(&mut url, redis.port())?;
                (RedisSide::Single(redis, proxy), url)
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
        let budget = plan.instances * (loads(fault.options) + RELAY);
        let program = plan.program.clone();
        Ok(Self { instances, sql, to_postgres, redis, postgres, budget, program, arguments, dir })
    }

    /// Another instance of the fleet, which does not run yet.
    #[must_use]
    pub fn another_instance(&self) -> Instance {
        let (program, number) = ((&*self.program, &*self.arguments), self.instances.len());
        Instance::new(program, self.dir.path(), None, number, false)
    }

    /// Another instance, which does not run yet: with the same options, but for the database.
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

    /// What the checker drives.
    ///
    /// # Errors
    /// When an instance or Postgres cannot be reached.
    pub async fn target(&self) -> Result<Target, Error> {
        let mut instances = Vec::new();
        for instance in &self.instances {
            let address = format!("http://127.0.0.1:{}", instance.port);
            let unreachable = |error| Error::Instance(format!("{address}: {error}"));
            let endpoint = Endpoint::from_shared(address.clone()).map_err(unreachable)?;
            let endpoint = endpoint.timeout(CALL_TIME).tcp_nodelay(true);
            instances.push(endpoint.connect().await.map_err(unreachable)?);
        }
        Ok(Target { instances, sql: connect(&self.postgres.url(), 15).await? })
    }
}

/// A pool that goes around the proxy, and can be told from the instances by its name.
pub(crate) async fn connect(url: &str, connections: u32) -> Result<PgPool, Error> {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(CALL_TIME);
    Ok(pool.connect(&format!("{url}?application_name=drill")).await?)
}

enum RedisServers {
    Single(Box<Redis>),
    Cluster(RedisCluster),
}

fn servers(fault: &Fault) -> Result<(Postgres, RedisServers), Error> {
    // Durable: a drill that kills it looks for lost updates.
    let options = PostgresOptions {
        durable: true,
        max_connections: POSTGRES_CONNECTIONS,
        ..PostgresOptions::default()
    };
    let settings = fault.redis.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let settings = settings.collect();
    let redis = match fault.topology {
        Topology::Single => {
            let options = RedisOptions { settings, ..RedisOptions::default() };
            RedisServers::Single(Box::new(Redis::start(options)?))
        }
        Topology::Cluster => {
            let options = ClusterOptions { settings, ..ClusterOptions::default() };
            RedisServers::Cluster(RedisCluster::start(&options)?)
        }
    };
    Ok((Postgres::start(options)?, redis))
}

/// Puts a proxy in front of the server at `port`, and into the URL.
fn through_proxy(url: &mut String, port: u16) -> Result<ChaosProxy, Error> {
    let proxy = ChaosProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    *url = url.replace(&format!(":{port}"), &format!(":{}", proxy.addr().port()));
    Ok(proxy)
}

/// What the options say, or the default.
fn loads(options: &[&str]) -> usize {
    let mut options = options.iter().skip_while(|option| **option != "--database-loads");
    options.nth(1).and_then(|loads| loads.parse().ok()).unwrap_or(LOADS)
}
