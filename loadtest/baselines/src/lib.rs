//! The servers that hotshelf is compared with, each as small as possible.
//!
//! - [`ordinary`]: the usual server: the generated service, products in mini-moka, tonic's own server. It clones and encodes
//!   a product for each call.
//! - [`ordinary_redis`]: the same for products in Redis: fred, prost, tonic.
//! - [`bare`]: the least that a gRPC server on hyper can do: one constant reply, with the connection I/O of hotshelf.
//! - [`redis`]: a Redis client with the options of hotshelf's.

pub mod bare;
pub mod ordinary;
pub mod ordinary_redis;
pub mod proto;
pub mod redis;

use std::path::PathBuf;

use clap::Subcommand;
use prost::Message;
use tokio::net::TcpListener;

/// Errors are only printed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Each serves on a free port of 127.0.0.1, and logs the port to standard error.
#[derive(Debug, Subcommand)]
pub enum Baseline {
    /// Products in mini-moka, cloned and encoded for each call, on tonic's own server.
    Ordinary {
        /// The products: messages, each after its length.
        products: PathBuf,
    },
    /// Products in Redis, decoded and encoded for each call, on tonic's own server.
    OrdinaryRedis {
        /// The products: messages, each after its length. They are stored in Redis first.
        products: PathBuf,
        /// redis://HOST:PORT
        redis_url: String,
    },
    /// The first product to every call, whatever it asks for.
    Bare {
        /// The products: messages, each after its length.
        products: PathBuf,
    },
}

impl Baseline {
    /// Serves until the process is killed.
    pub async fn serve(self) -> Result<(), Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = || eprintln!("serving grpc_addr={address}");
        match self {
            Self::Ordinary { products } => {
                let products = read_products(&products)?;
                serving();
                ordinary::serve(listener, products).await
            }
            Self::OrdinaryRedis { products, redis_url } => {
                let products = read_products(&products)?;
                let service = ordinary_redis::RedisProducts::store(&redis_url, products).await?;
                serving();
                ordinary_redis::serve(listener, service).await
            }
            Self::Bare { products } => {
                let first = read_products(&products)?.into_iter().next().ok_or("no product")?;
                serving();
                bare::serve(listener, &first.encode_to_vec()).await
            }
        }
    }
}

fn read_products(path: &std::path::Path) -> Result<Vec<proto::Product>, Failure> {
    let file = std::fs::read(path)?;
    let mut rest = file.as_slice();
    let mut products = Vec::new();
    while !rest.is_empty() {
        products.push(proto::Product::decode_length_delimited(&mut rest)?);
    }
    Ok(products)
}
