//! What `build.rs` makes of the protos. The server half of the service is made by hand there, so that
//! its answers may be bytes that are already encoded.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code"
)]

/// Google's common types.
pub mod google {
    /// `google.type`
    pub mod r#type {
        tonic::include_proto!("google.r#type");
    }
    /// `google.api`
    pub mod api {
        tonic::include_proto!("google.api");
    }
}

/// The package of the service.
pub mod hotshelf {
    /// Version 1.
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

/// Every proto with its imports and comments, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// `google.protobuf.Empty`, as prost has it.
pub type Empty = ();
