//! What `build.rs` makes of the proto.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code"
)]

pub mod google {
    pub mod r#type {
        tonic::include_proto!("google.r#type");
    }
    pub mod api {
        tonic::include_proto!("google.api");
    }
}

pub mod hotshelf {
    pub mod v1 {
        tonic::include_proto!("hotshelf.v1");
    }
}

pub use hotshelf::v1::*;
