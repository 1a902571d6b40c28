//! The code that `build.rs` generates from `proto/`. It describes the server half of the services by hand, so that an answer can
//! be bytes that are already encoded.
#![allow(unreachable_pub, unused_qualifications, clippy::all, reason = "generated code")]

pub mod google {
    pub mod r#type {
        tonic::include_proto!("google.r#type");
    }
}

pub mod hotshelf {
    pub mod v1 {
        tonic::include_proto!("hotshelf.v1");
    }
}

/// The server half of `ProductService`.
pub mod server {
    tonic::include_proto!("hotshelf.v1.ProductService");
    pub use product_service_server::{ProductService, ProductServiceServer};
}

/// The server half of `AdminService`.
pub mod admin {
    tonic::include_proto!("hotshelf.v1.AdminService");
    pub use admin_service_server::{AdminService, AdminServiceServer};
}

pub use google::r#type::Money;
pub use hotshelf::v1::admin_service_client::AdminServiceClient;
pub use hotshelf::v1::product_service_client::ProductServiceClient;
pub use hotshelf::v1::*;

/// The descriptors of every proto with its imports and comments, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The Rust type that prost maps `google.protobuf.Empty` to.
pub type Empty = ();
