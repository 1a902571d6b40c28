//! The protocols beside gRPC on the same port: JSON over HTTP, Connect and gRPC-Web, in HTTP/1.1 and HTTP/2.

mod conditional;
mod connect;
mod cross_site;
mod grpc_web;
mod http1;
mod policies;
mod rest;

use http::Version;

use crate::harness::Suite;

/// The versions of HTTP.
const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];
const GET: &str = "/hotshelf.v1.ProductService/GetProduct";

pub fn register(suite: &mut Suite<'_>) {
    rest::register(suite);
    conditional::register(suite);
    connect::register(suite);
    grpc_web::register(suite);
    cross_site::register(suite);
    policies::register(suite);
    http1::register(suite);
}
