//! The servers that tests share. Each is started when the first test needs it, and stopped at the end of the run;
//! devstack stops them also when the run is killed.

use std::sync::{Arc, Mutex};

use devstack::{ClusterOptions, Postgres, PostgresOptions, Redis, RedisCluster, RedisOptions};
use hotshelf::metrics::Metrics;
use hotshelf::postgres::{AttachOptions, Migrate};

use super::HANG;

/// The database that every test's database is a copy of.
pub const TEMPLATE: &str = "template_hotshelf";

#[derive(Clone, Default)]
pub struct Servers {
    postgres: Arc<Mutex<Option<Arc<Postgres>>>>,
    redis: Arc<Mutex<Option<Arc<Redis>>>>,
    cluster: Arc<Mutex<Option<Arc<RedisCluster>>>>,
}

impl Servers {
    /// Postgres, with a migrated template database.
    pub fn postgres(&self) -> Arc<Postgres> {
        started(&self.postgres, || {
            let settings = vec![("max_prepared_transactions".to_owned(), "16".to_owned())];
            let options =
                PostgresOptions { max_connections: 400, settings, ..PostgresOptions::default() };
            let postgres = Postgres::start(options).unwrap();
            make_template(&postgres);
            postgres
        })
    }

    pub fn redis(&self) -> Arc<Redis> {
        started(&self.redis, || Redis::start(RedisOptions::default()).unwrap())
    }

    pub fn cluster(&self) -> Arc<RedisCluster> {
        started(&self.cluster, || RedisCluster::start(&ClusterOptions::default()).unwrap())
    }

    /// Stops what was started.
    pub fn stop(&self) {
        self.postgres.lock().unwrap().take();
        self.redis.lock().unwrap().take();
        self.cluster.lock().unwrap().take();
    }
}

fn started<T>(server: &Mutex<Option<Arc<T>>>, start: impl FnOnce() -> T) -> Arc<T> {
    // A start that panics leaves `None`: the next test starts the server again.
    let mut server = server.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Arc::clone(server.get_or_insert_with(|| Arc::new(start())))
}

/// Attaches a table as `hotshelf attach TABLE` does without flags.
pub async fn attach(url: &str, table: &str) -> Result<(), String> {
    let options = AttachOptions { table: table.to_owned(), ..AttachOptions::default() };
    attach_with(url, &options).await
}

pub async fn attach_with(url: &str, options: &AttachOptions) -> Result<(), String> {
    let database = hotshelf::config::DatabaseArgs::of(url.to_owned()).one_connection();
    let postgres = hotshelf::postgres::Postgres::new(&database, Metrics::new()).unwrap();
    let attached = async {
        let plan = postgres.plan_attach(options).await?;
        postgres.migrate(Migrate::Auto).await?;
        postgres.execute(&plan, HANG).await
    };
    let attached = attached.await.map_err(|error| error.to_string());
    postgres.close().await;
    attached
}

fn make_template(server: &Postgres) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let admin = super::stack::connect(&server.url(), 1);
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {TEMPLATE}")))
            .execute(&admin)
            .await
            .unwrap();
        let url = server.url_of(TEMPLATE);
        let template = super::stack::connect(&url, 1);
        sqlx::query("CREATE EXTENSION pg_stat_statements").execute(&template).await.unwrap();
        sqlx::query(devstack::sample::TABLE).execute(&template).await.unwrap();
        // PostgreSQL copies a template only while it has no other connections.
        template.close().await;
        attach(&url, "products").await.unwrap();
        admin.close().await;
    });
}
