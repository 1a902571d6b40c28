//! Postgres and Redis behind the compared servers, the products in them, and requests for those.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baselines::proto::product_service_client::ProductServiceClient;
use baselines::proto::{BatchGetProductsRequest, GetProductRequest, Product};
use bytes::{BufMut, Bytes, BytesMut};
use devstack::{Postgres, PostgresOptions, Redis, RedisOptions};
use prost::Message;
use rand::seq::SliceRandom;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};

use crate::cores::Cores;
use crate::server::{Server, beside};

pub(crate) const GET_PRODUCT: &str = "/hotshelf.v1.ProductService/GetProduct";
pub(crate) const BATCH_GET_PRODUCTS: &str = "/hotshelf.v1.ProductService/BatchGetProducts";

/// Products of the sample.
pub(crate) const SAMPLE: i64 = 10_000;
/// The most products of a batch.
pub(crate) const MAX_BATCH: usize = 1_000;
/// The encoded size of the typical product.
const TYPICAL: usize = 300;
/// Two large products: the id, and the bytes of the description, which is nearly all of it.
pub(crate) const LARGE: [(i64, i32); 2] = [(1_000_004, 4_050), (1_000_064, 65_490)];

/// A private Postgres and a private Redis.
pub(crate) struct Backends {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    /// For request files, products of the baselines, and nginx.
    dir: TempDir,
}

impl Backends {
    /// Starts Postgres and Redis, attaches the sample table, and imports the sample.
    pub(crate) async fn start() -> Result<Self> {
        let backends = Self {
            postgres: Postgres::start(PostgresOptions::default())?,
            redis: Redis::start(RedisOptions::default())?,
            dir: TempDir::new()?,
        };
        let csv = backends.dir.path().join("products.csv");
        devstack::sample::write_csv(File::create(&csv)?, SAMPLE.cast_unsigned(), 1)?;
        let url = backends.postgres.url();
        backends.postgres.make_sample_table()?;
        run(&["attach", "products", "--yes"], &url).await?;
        run(&["import", path(&csv)?], &url).await?;
        backends.insert_large().await?;
        Ok(backends)
    }

    /// Makes the sample table in another database, and attaches it.
    pub(crate) async fn attach_in(&self, database: &str) -> Result<()> {
        self.postgres.run_sql(database, devstack::sample::TABLE)?;
        run(&["attach", "products", "--yes"], &self.postgres.url_of(database)).await
    }

    async fn insert_large(&self) -> Result<()> {
        let sql = self.sql(&self.postgres.url()).await?;
        for (id, bytes) in LARGE {
            sqlx::query(
                "INSERT INTO products (id, name, price, description) VALUES ($1, 'Large', 9.99, repeat('x', $2))",
            )
            .bind(id)
            .bind(bytes)
            .execute(&sql)
            .await?;
        }
        Ok(())
    }

    /// The options of an instance on these servers; `more` may replace them.
    pub(crate) fn options(&self, more: &[&str]) -> Vec<String> {
        let defaults = [
            ["--database-url", &self.postgres.url()],
            ["--redis-url", &self.redis.url()],
            ["--grpc-addr", "127.0.0.1:0"],
            ["--admin-addr", "127.0.0.1:0"],
        ];
        let kept = defaults.iter().filter(|pair| !more.contains(&pair[0])).flatten();
        let arguments = ["serve"].iter().chain(kept).chain(more);
        arguments.map(|&argument| argument.to_owned()).collect()
    }

    /// An instance of hotshelf: the program itself, with everything on.
    pub(crate) async fn hotshelf(&self, more: &[&str]) -> Result<Server> {
        self.hotshelf_on(&Cores::default(), more).await
    }

    /// The same on these cores.
    pub(crate) async fn hotshelf_on(&self, cores: &Cores, more: &[&str]) -> Result<Server> {
        let options = self.options(more);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Server::start(&beside("hotshelf")?, &options, cores).await
    }

    /// Waits until the relay has applied every change in this database, so that it is idle while reads are measured.
    pub(crate) async fn wait_until_relayed(&self, url: &str) -> Result<()> {
        let sql = self.sql(url).await?;
        loop {
            let pending: i64 = sqlx::query_scalar(UNRELAYED).fetch_one(&sql).await?;
            if pending == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn sql(&self, url: &str) -> Result<PgPool> {
        Ok(PgPoolOptions::new().max_connections(1).connect(url).await?)
    }

    /// A server of `loadtest/baselines` with these products.
    pub(crate) async fn baseline(&self, name: &str, products: &[Product]) -> Result<Server> {
        self.baseline_on(&Cores::default(), name, products).await
    }

    /// The same on these cores.
    pub(crate) async fn baseline_on(
        &self,
        cores: &Cores,
        name: &str,
        products: &[Product],
    ) -> Result<Server> {
        let file = self.write_products(products)?;
        let mut arguments = vec![name, path(&file)?];
        let redis_url = self.redis.url();
        if name == "ordinary-redis" {
            arguments.push(&redis_url);
        }
        Server::start(&beside("baseline")?, &arguments, cores).await
    }

    /// In the format that the baselines read: each message after its length.
    pub(crate) fn write_products(&self, products: &[Product]) -> Result<PathBuf> {
        let bytes: Vec<u8> =
            products.iter().flat_map(Message::encode_length_delimited_to_vec).collect();
        self.file(&bytes)
    }

    /// A request in a file, for h2load.
    pub(crate) fn request(&self, message: &impl Message) -> Result<PathBuf> {
        self.file(&framed(message))
    }

    pub(crate) fn file(&self, bytes: &[u8]) -> Result<PathBuf> {
        let (_, path) = tempfile::NamedTempFile::new_in(self.dir.path())?.keep()?;
        std::fs::write(&path, bytes)?;
        Ok(path)
    }

    /// A new directory.
    pub(crate) fn dir(&self) -> Result<PathBuf> {
        Ok(tempfile::Builder::new()
            .disable_cleanup(true)
            .tempdir_in(self.dir.path())?
            .path()
            .to_owned())
    }
}

/// A gRPC message on the wire: a flag, the length, the bytes.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

pub(crate) fn get(id: i64) -> GetProductRequest {
    GetProductRequest { id, freshness: None }
}

pub(crate) fn get_many(ids: &[i64]) -> BatchGetProductsRequest {
    BatchGetProductsRequest { ids: ids.to_vec(), ..Default::default() }
}

pub(crate) fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// A generated client, as other services have it.
pub(crate) async fn client(port: u16) -> Result<ProductServiceClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?
        .timeout(Duration::from_secs(10))
        .connect()
        .await?;
    Ok(ProductServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

const UNRELAYED: &str = "SELECT count(*) FROM hotshelf.outbox, hotshelf.feed \
    WHERE NOT pg_visible_in_snapshot(xid, relayed)";

/// Runs a command of hotshelf on a database to its end.
async fn run(arguments: &[&str], database_url: &str) -> Result<()> {
    let output = Command::new(beside("hotshelf")?)
        .args(arguments)
        .args(["--database-url", database_url])
        .kill_on_drop(true)
        .output()
        .await?;
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "hotshelf {arguments:?}: {printed}");
    Ok(())
}

/// Adds `count` products of the typical size, from the id `first` on. Without triggers, so that there is nothing to relay.
pub(crate) async fn add_products(sql: &PgPool, first: i64, count: i64) -> Result<()> {
    let mut transaction = sql.begin().await?;
    sqlx::query("ALTER TABLE products DISABLE TRIGGER USER").execute(&mut *transaction).await?;
    sqlx::query(
        "INSERT INTO products (id, name, price, description, hotshelf_version)
            SELECT id, 'Product ' || id, id % 10000 / 100.0, repeat('A plain description. ', 12),
                nextval('hotshelf.product_version')
            FROM generate_series($1, $2) AS id",
    )
    .bind(first)
    .bind(first + count - 1)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("SELECT hotshelf.install_triggers()").execute(&mut *transaction).await?;
    transaction.commit().await?;
    sqlx::query("ANALYZE products").execute(sql).await?;
    Ok(())
}

/// In random order.
pub(crate) fn shuffled(ids: impl Iterator<Item = i64>) -> Arc<[i64]> {
    let mut ids: Vec<i64> = ids.collect();
    ids.shuffle(&mut rand::rng());
    ids.into()
}

/// Products that an instance has answered from memory, Redis and Postgres since its start.
pub(crate) async fn served_by(server: &Server) -> Result<[f64; 3]> {
    let metrics = server.metrics().await?;
    Ok(["hot", "redis", "postgres"].map(|tier| {
        let series = format!("hotshelf_reads_total{{served_by=\"{tier}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
        line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }))
}

/// Reads these products in batches. Afterwards they are hot.
pub(crate) async fn read(port: u16, ids: &[i64]) -> Result<Vec<Product>> {
    let mut client = client(port).await?;
    let mut products = Vec::new();
    for ids in ids.chunks(MAX_BATCH) {
        let response = client.batch_get_products(get_many(ids)).await?.into_inner();
        ensure!(response.not_found_ids.is_empty(), "not found: {:?}", response.not_found_ids);
        products.extend(response.products);
    }
    Ok(products)
}

/// The product whose encoded size is nearest to the typical one.
pub(crate) fn typical(products: &[Product]) -> Result<&Product> {
    let distance = |product: &&Product| product.encoded_len().abs_diff(TYPICAL);
    products.iter().min_by_key(distance).context("no products")
}

/// Fails unless a generated client gets this product from the server, and hotshelf from memory.
pub(crate) async fn check(label: &str, port: u16, expected: &Product) -> Result<()> {
    let response = client(port).await?.get_product(get(expected.id)).await?;
    if let Some(from) = response.metadata().get("cache-status") {
        ensure!(from == "hotshelf; hit; detail=hot", "{label} is not hot: {from:?}");
    }
    ensure!(response.get_ref() == expected, "{label} answers something else: {response:?}");
    Ok(())
}
