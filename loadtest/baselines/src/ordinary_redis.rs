//! The server that everyone would write for products in Redis.

use bytes::Bytes;
use fred::clients::Pool;
use fred::interfaces::KeysInterface;
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::proto::product_service_server::{ProductService, ProductServiceServer};
use crate::proto::{GetProductRequest, Product};
use crate::{Failure, ordinary, redis};

/// Products in Redis.
#[derive(Debug)]
pub struct Shop {
    redis: Pool,
}

impl Shop {
    /// Puts `products` in Redis.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn fill(redis_url: &str, products: Vec<Product>) -> Result<Self, Failure> {
        let redis = redis::connect(redis_url).await?;
        for product in products {
            let bytes = Bytes::from(product.encode_to_vec());
            let () = redis.set(key(product.id), bytes, None, None, false).await?;
        }
        Ok(Self { redis })
    }
}

#[tonic::async_trait]
impl ProductService for Shop {
    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let found: Option<Bytes> = self
            .redis
            .get(key(request.into_inner().id))
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let bytes = found.ok_or_else(|| Status::not_found("no such product"))?;
        let product =
            Product::decode(bytes).map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Response::new(product))
    }
}

/// Where a product is in Redis.
#[must_use]
pub fn key(id: i64) -> String {
    format!("ordinary:{id}")
}

/// Serves what is in Redis.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, shop: Shop) -> Result<(), Failure> {
    ordinary::serve_on(listener, ProductServiceServer::new(shop)).await
}
