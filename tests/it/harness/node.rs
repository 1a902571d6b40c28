//! One instance, and a gRPC client of it.

use std::ops::Deref;

use hotshelf::app::App;
use hotshelf::config::ServeArgs;
use hotshelf::proto::{GetProductRequest, Product, ProductServiceClient};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// An instance in this process.
pub struct Node {
    pub app: App,
    pub client: ProductServiceClient<Channel>,
    pub channel: Channel,
}

impl Node {
    pub async fn start(args: &ServeArgs) -> Self {
        let app = App::start(args).await.unwrap();
        let channel = channel(app.grpc_addr.port()).await;
        let client = ProductServiceClient::new(channel.clone());
        Self { app, client, channel }
    }

    pub async fn get(&self, id: i64) -> Result<Response<Product>, Status> {
        self.client.clone().get_product(get(id)).await
    }

    /// Reads a product; fails the test on an error.
    pub async fn product(&self, id: i64) -> Product {
        self.get(id).await.unwrap().into_inner()
    }

    /// Status and body of an admin request.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        admin(self.app.admin_addr.port(), path).await
    }

    /// The value of a series, given as in /metrics; zero when it is absent.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.admin("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

impl Deref for Node {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

/// A request without a freshness option.
pub fn get(id: i64) -> GetProductRequest {
    GetProductRequest { id, freshness: None }
}

/// The `cache-status` metadata (RFC 9211).
pub fn cache_status<T>(response: &Response<T>) -> &str {
    response.metadata().get("cache-status").unwrap().to_str().unwrap()
}

pub async fn channel(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap()
}

/// Status and body of a request to an admin port.
pub async fn admin(port: u16, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
