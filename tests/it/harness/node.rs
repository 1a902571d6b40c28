//! One instance, and a real client of it.

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

    /// Reads a product.
    pub async fn get(&self, id: i64) -> Result<Response<Product>, Status> {
        self.client.clone().get_product(get(id)).await
    }

    /// Reads a product that exists.
    pub async fn product(&self, id: i64) -> Product {
        self.get(id).await.unwrap().into_inner()
    }

    /// What the admin port answers.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        admin(self.app.admin_addr.port(), path).await
    }

    /// The value of a series of /metrics, written as there.
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

/// A request for a product without further wishes.
pub fn get(id: i64) -> GetProductRequest {
    GetProductRequest { id, freshness: None }
}

/// Which tier answered, as the metadata says.
pub fn cache_status<T>(response: &Response<T>) -> &str {
    response.metadata().get("cache-status").unwrap().to_str().unwrap()
}

pub async fn channel(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap()
}

/// What an admin port answers.
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
