//! Products that the load does not use. A fault changes them, reads them through every instance, and inspects their
//! entries in Redis.

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

/// Until every instance serves a change.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Products of a BatchGetProducts.
const BATCH: usize = 1_000;

/// The version in the header of an entry. A Lua number holds it exactly up to 2^53.
const READ_VERSION: &str = "local held = redis.call('GET', KEYS[1]) if not held then return '' end
    local high, low = struct.unpack('>I4I4', held, 3) return string.format('%.0f', high * 2 ^ 32 + low)";

/// Inserts products with this name. Returns their ids.
pub async fn insert(sql: &PgPool, name: &str, count: usize) -> Result<Vec<i64>, Error> {
    let insert =
        "INSERT INTO products (name, price) SELECT $1, 1 FROM generate_series(1, $2) RETURNING id";
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    Ok(sqlx::query_scalar(insert).bind(name).bind(count).fetch_all(sql).await?)
}

/// Changes a product by SQL. Returns the new version.
pub async fn change(sql: &PgPool, product: i64) -> Result<i64, Error> {
    let update =
        "UPDATE products SET price = price + 0.01 WHERE id = $1 RETURNING hotshelf_version";
    Ok(sqlx::query_scalar(update).bind(product).fetch_one(sql).await?)
}

/// The key of a product's entry on this server, if only one catalogue uses it.
pub(crate) fn entry_key(redis: &Redis, product: i64) -> Option<String> {
    let keys = redis.command(&["KEYS", &format!("hotshelf:*:{{{product}}}:p")]).ok()?;
    keys.lines().find(|key| key.starts_with("hotshelf:")).map(str::to_owned)
}

/// The version of the entry that Redis holds.
pub(crate) fn held_version(redis: &Redis, product: i64) -> Option<i64> {
    let key = entry_key(redis, product)?;
    redis.command(&["EVAL", READ_VERSION, "1", &key]).ok()?.parse().ok()
}

/// A gRPC client for each of some instances.
pub struct Clients {
    clients: Vec<ProductServiceClient<Channel>>,
}

impl Clients {
    /// Each client connects at its first call.
    ///
    /// # Errors
    /// If an address is malformed.
    pub fn of<'a>(instances: impl IntoIterator<Item = &'a Instance>) -> Result<Self, Error> {
        let client = |instance: &Instance| {
            let address = format!("http://127.0.0.1:{}", instance.port);
            let failed = |error| Error::Instance(format!("{address}: {error}"));
            let endpoint = Endpoint::from_shared(address.clone()).map_err(failed)?;
            Ok(ProductServiceClient::new(endpoint.timeout(CALL_TIMEOUT).connect_lazy()))
        };
        let clients = instances.into_iter().map(client).collect::<Result<_, Error>>()?;
        Ok(Self { clients })
    }

    /// A plain read through each instance, in their order.
    pub async fn read(&self, product: i64) -> Vec<Result<Product, Status>> {
        let mut answers = Vec::new();
        for instance in 0..self.clients.len() {
            answers.push(self.read_through(instance, product).await.map(Response::into_inner));
        }
        answers
    }

    /// A plain read through one instance, with the metadata of the response.
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
    /// If one read fails.
    pub async fn warm(&self, products: &[i64]) -> Result<(), Error> {
        for product in products {
            for answer in self.read(*product).await {
                answer.map_err(|status| Error::Instance(format!("{product}: {status}")))?;
            }
        }
        Ok(())
    }

    /// The same in batches, for many products.
    ///
    /// # Errors
    /// If one batch fails.
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

    /// Changes a product by SQL. Returns the time from the commit until every instance serves the change.
    ///
    /// # Errors
    /// If an instance does not serve it within `TIMEOUT`.
    pub async fn time_to_serve_change(
        &self,
        sql: &PgPool,
        product: i64,
    ) -> Result<Duration, Error> {
        let version = change(sql, product).await?;
        self.time_to_serve(product, version, Instant::now()).await
    }

    /// The time from `committed` until every instance serves this version or a newer one.
    ///
    /// # Errors
    /// If an instance does not serve it within `TIMEOUT`.
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
                // At this moment the instance has not served it yet.
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
