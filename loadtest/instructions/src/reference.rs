//! The servers that hotshelf is compared with, with the same products: the usual server, and the least that a gRPC server
//! on hyper can do.

use baselines::proto::Product;
use baselines::{bare, ordinary};
use prost::Message;
use tokio::net::TcpListener;

use crate::fixture::{PRODUCT_BYTES, PRODUCTS, entry};

/// Serves on the current runtime.
pub(crate) fn serve_ordinary(listener: TcpListener) {
    let product = |n| Product::decode(entry(n).product().expect("not a tombstone"));
    let products = (0..PRODUCTS).map(product).collect::<Result<_, _>>();
    let products = products.expect("hotshelf encoded them");
    tokio::spawn(ordinary::serve(listener, products));
}

/// Serves on the current runtime.
pub(crate) fn serve_bare(listener: TcpListener) {
    tokio::spawn(async { bare::serve(listener, &[b'x'; PRODUCT_BYTES]).await });
}
