//! What hotshelf is compared with, serving products like its own: the server that everyone writes, and the least that any
//! server on hyper does.

use baselines::proto::Product;
use baselines::{bare, ordinary};
use prost::Message;
use tokio::net::TcpListener;

use crate::shelf::{PRODUCT_BYTES, PRODUCTS, entry};

/// Serves on the runtime that calls this.
pub(crate) fn serve_ordinary(listener: TcpListener) {
    let product = |n| Product::decode(entry(n).product().expect("not a tombstone"));
    let products = (0..PRODUCTS).map(product).collect::<Result<_, _>>();
    let products = products.expect("hotshelf encoded them");
    tokio::spawn(ordinary::serve(listener, products));
}

/// The same.
pub(crate) fn serve_bare(listener: TcpListener) {
    tokio::spawn(async { bare::serve(listener, &[b'x'; PRODUCT_BYTES]).await });
}
