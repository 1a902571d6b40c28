//! The servers of one `devstack exec` or `devstack up`.

use std::path::{Path, PathBuf};

use clap::Args;
use devstack::{
    ClusterOptions, Error, Postgres, PostgresOptions, Redis, RedisCluster, RedisOptions,
};

#[derive(Args)]
pub(crate) struct StackArgs {
    /// A Redis Cluster of three masters and three replicas instead of one Redis.
    #[arg(long)]
    cluster: bool,
    /// Keep data and logs in this directory, and use them again next time. A cluster keeps only its
    /// logs. Without it, everything is temporary.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Let PostgreSQL wait for the disk, so that what it confirms survives a power cut.
    #[arg(long)]
    durable: bool,
    /// Make the table of the sample products, unless it exists.
    #[arg(long)]
    sample_table: bool,
}

pub(crate) struct Stack {
    postgres: Postgres,
    cache: Cache,
}

enum Cache {
    Single(Box<Redis>),
    Cluster(RedisCluster),
}

impl Stack {
    /// PostgreSQL first: it locks its directory, so a second devstack with the same directory fails
    /// here.
    pub(crate) fn start(args: &StackArgs) -> Result<Self, Error> {
        let dir = |name| args.dir.as_deref().map(|dir: &Path| dir.join(name));
        let options = PostgresOptions {
            dir: dir("postgres"),
            durable: args.durable,
            ..PostgresOptions::default()
        };
        let postgres = Postgres::start(options)?;
        if args.sample_table {
            postgres.make_sample_table()?;
        }
        let cache = if args.cluster {
            let options = ClusterOptions { dir: dir("cluster"), ..ClusterOptions::default() };
            Cache::Cluster(RedisCluster::start(&options)?)
        } else {
            let options = RedisOptions {
                dir: dir("redis"),
                persist: args.dir.is_some(),
                ..RedisOptions::default()
            };
            Cache::Single(Box::new(Redis::start(options)?))
        };
        Ok(Self { postgres, cache })
    }

    /// The servers' addresses, as variables for a client's environment.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let redis = match &self.cache {
            Cache::Single(redis) => redis.url(),
            Cache::Cluster(cluster) => cluster.url(),
        };
        [("DATABASE_URL", self.postgres.url()), ("REDIS_URL", redis)]
    }
}
