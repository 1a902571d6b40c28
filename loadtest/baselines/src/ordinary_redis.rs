//! The usual server, with products in Redis.

use bytes::Bytes;
use fred::clients::Pool;
use fred::interfaces::KeysInterface;
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::proto::product_service_server::{ProductService, ProductServiceServer};
use crate::proto::{GetProductRequest, Product};
use crate::{Failure, ordinary, redis};

#[derive(Debug)]
pub struct RedisProducts {
    redis: Pool,
}

impl RedisProducts {
    /// Stores `products` in Redis.
    pub async fn store(redis_url: &str, products: Vec<Product>) -> Result<Self, Failure> {
        let redis = redis::connect(redis_url).await?;
        for product in products {
            let bytes = Bytes::from(product.encode_to_vec());
            let () = redis.set(key(product.id), bytes, None, None, false).await?;
        }
        Ok(Self { redis })
    }
}

#[tonic::async_trait]
impl ProductService for RedisProducts {
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

/// The key of a product.
#[must_use]
pub fn key(id: i64) -> String {
    format!("ordinary:{id}")
}

pub async fn serve(listener: TcpListener, service: RedisProducts) -> Result<(), Failure> {
    ordinary::serve_on(listener, ProductServiceServer::new(service)).await
}
