//! The usual server, with products in memory.

use mini_moka::sync::Cache;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::Failure;
use crate::proto::product_service_server::{ProductService, ProductServiceServer};
use crate::proto::{BatchGetProductsRequest, BatchGetProductsResponse, GetProductRequest, Product};

struct CachedProducts {
    products: Cache<i64, Product>,
}

#[tonic::async_trait]
impl ProductService for CachedProducts {
    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let product = self.products.get(&request.into_inner().id);
        product.map(Response::new).ok_or_else(|| Status::not_found("no such product"))
    }

    async fn batch_get_products(
        &self,
        request: Request<BatchGetProductsRequest>,
    ) -> Result<Response<BatchGetProductsResponse>, Status> {
        let mut response = BatchGetProductsResponse::default();
        for id in request.into_inner().ids {
            match self.products.get(&id) {
                Some(product) => response.products.push(product),
                None => response.not_found_ids.push(id),
            }
        }
        Ok(Response::new(response))
    }
}

/// Serves `products` from memory.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, products: Vec<Product>) -> Result<(), Failure> {
    let cache = Cache::new(products.len() as u64);
    for product in products {
        cache.insert(product.id, product);
    }
    serve_on(listener, ProductServiceServer::new(CachedProducts { products: cache })).await
}

/// tonic's own server with its defaults. TCP_NODELAY, which tonic sets on connections that it accepts itself, must be set
/// explicitly with a listener.
pub(crate) async fn serve_on<S: ProductService>(
    listener: TcpListener,
    service: ProductServiceServer<S>,
) -> Result<(), Failure> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(Server::builder().add_service(service).serve_with_incoming(incoming).await?)
}
