//! Products of the drill's own, which the load does not know: changed beside it, read through every instance, and looked for in
//! Redis.

use std::time::{Duration, Instant};

use devstack::Redis;
use hotshelf::proto::{
    BatchGetProductsRequest, GetProductRequest, Money, Product, ProductServiceClient,
    UpdateProductRequest,
};
use prost_types::FieldMask;
use sqlx::PgPool;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::Error;
use crate::instance::Instance;

/// Longer than any change takes to be served.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
const CALL_TIME: Duration = Duration::from_secs(15);
/// Products of a BatchGetProducts.
const BATCH: usize = 1_000;

/// The version in an entry's head, which a double of Lua holds exactly as far as tests count.
const VERSION_OF: &str = "local held = redis.call('GET', KEYS[1]) if not held then return '' end
    local high, low = struct.unpack('>I4I4', held, 3) return string.format('%.0f', high * 2 ^ 32 + low)";

/// Inserts products of this name. Returns their ids.
///
/// # Errors
/// When Postgres refuses.
pub async fn insert(sql: &PgPool, name: &str, count: usize) -> Result<Vec<i64>, Error> {
    let insert =
        "INSERT INTO products (name, price) SELECT $1, 1 FROM generate_series(1, $2) RETURNING id";
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Ok(sqlx::query_scalar(insert).bind(name).bind(count).fetch_all(sql).await?)
}

/// Changes a product by SQL. Returns the new version.
///
/// # Errors
/// When Postgres refuses.
pub async fn change(sql: &PgPool, product: i64) -> Result<i64, Error> {
    let update = "UPDATE products SET price = price + 0.01 WHERE id = $1 RETURNING version";
    Ok(sqlx::query_scalar(update).bind(product).fetch_one(sql).await?)
}

/// The key of a product's entry on this server, where there is one catalogue.
pub(crate) fn entry_key(redis: &Redis, product: i64) -> Option<String> {
    let keys = redis.command(&["KEYS", &format!("hotshelf:*:{{{product}}}:p")]).ok()?;
    keys.lines().find(|key| key.starts_with("hotshelf:")).map(str::to_owned)
}

/// The version of the entry that Redis holds.
pub(crate) fn held_version(redis: &Redis, product: i64) -> Option<i64> {
    let key = entry_key(redis, product)?;
    redis.command(&["EVAL", VERSION_OF, "1", &key]).ok()?.parse().ok()
}

/// A connection to each of some instances.
pub struct Fleet {
    clients: Vec<ProductServiceClient<Channel>>,
}

impl Fleet {
    /// Of these; connected when they are asked first.
    ///
    /// # Errors
    /// When an address cannot be one.
    pub fn of<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Result<Self, Error> {
        let client = |instance: &Instance| {
            let address = format!("http://127.0.0.1:{}", instance.port);
            let failed = |error| Error::Instance(format!("{address}: {error}"));
            let endpoint = Endpoint::from_shared(address.clone()).map_err(failed)?;
            Ok(ProductServiceClient::new(endpoint.timeout(CALL_TIME).connect_lazy()))
        };
        let clients = instances.into_iter().map(client).collect::<Result<_, Error>>()?;
        Ok(Self { clients })
    }

    /// What each instance answers to a plain read.
    pub async fn read(&self, product: i64) -> Vec<Result<Product, Status>> {
        let mut answers = Vec::new();
        for instance in 0..self.clients.len() {
            answers.push(self.read_through(instance, product).await.map(Response::into_inner));
        }
        answers
    }

    /// What this one answers.
    ///
    /// # Errors
    /// What it refuses with.
    pub async fn read_through(
        &self,
        instance: usize,
        product: i64,
    ) -> Result<Response<Product>, Status> {
        let request = GetProductRequest { id: product, freshness: None };
        self.clients[instance].clone().get_product(request).await
    }

    /// Reads each product through every instance, so that it is cached.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn warm(&self, products: &[i64]) -> Result<(), Error> {
        for product in products {
            for answer in self.read(*product).await {
                answer.map_err(|status| Error::Instance(format!("{product}: {status}")))?;
            }
        }
        Ok(())
    }

    /// The same for many.
    ///
    /// # Errors
    /// When a batch cannot be read.
    pub async fn warm_together(&self, products: &[i64]) -> Result<(), Error> {
        for batch in products.chunks(BATCH) {
            let (max_staleness, latest) = Default::default();
            let request = BatchGetProductsRequest {
                ids: batch.to_vec(),
                max_staleness,
                latest,
                ..Default::default()
            };
            for client in &self.clients {
                let read = client.clone().batch_get_products(request.clone()).await;
                read.map_err(|status| Error::Instance(format!("a batch: {status}")))?;
            }
        }
        Ok(())
    }

    /// UpdateProduct, through this instance. Returns the new version.
    ///
    /// # Errors
    /// What it refuses with.
    pub async fn update(&self, instance: usize, product: i64, units: i64) -> Result<i64, Status> {
        let price = Some(Money { currency_code: "USD".to_owned(), units, nanos: 0 });
        let request = UpdateProductRequest {
            product: Some(Product { id: product, price, ..Product::default() }),
            update_mask: Some(FieldMask { paths: vec!["price".to_owned()] }),
            expected_version: None,
        };
        let updated = self.clients[instance].clone().update_product(request).await?;
        Ok(updated.into_inner().version)
    }

    /// Changes a product by SQL. Returns how long after the commit the last instance served that.
    ///
    /// # Errors
    /// When one of them never does.
    pub async fn time_to_serve_change(
        &self,
        sql: &PgPool,
        product: i64,
    ) -> Result<Duration, Error> {
        let version = change(sql, product).await?;
        self.time_to_serve(product, version, Instant::now()).await
    }

    /// How long after `committed` the last instance serves this version or a newer one.
    ///
    /// # Errors
    /// When one of them never does.
    pub async fn time_to_serve(
        &self,
        product: i64,
        version: i64,
        committed: Instant,
    ) -> Result<Duration, Error> {
        let (mut behind, mut took) = ((0..self.clients.len()).collect::<Vec<_>>(), Duration::ZERO);
        while !behind.is_empty() {
            let mut still = Vec::new();
            for instance in behind {
                // Until here it has not served it.
                took = committed.elapsed();
                match self.read_through(instance, product).await {
                    Ok(served) if served.get_ref().version >= version => {}
                    _ => still.push(instance),
                }
            }
            behind = still;
            if took > TIMEOUT {
                let what = format!("version {version} of {product} is not served by {behind:?}");
                return Err(Error::NotProven(what));
            }
            if !behind.is_empty() {
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(took)
    }
}
