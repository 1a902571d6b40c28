//! Generates the service with tonic-prost-build, as usual, but with protox, which needs no protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../../proto");
    let protos = protox::compile(["hotshelf/v1/product_service.proto"], ["../../proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .compile_fds(protos)?;
    Ok(())
}
