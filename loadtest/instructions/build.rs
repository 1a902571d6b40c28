//! The server half of GetProduct as tonic generates it for everyone, and the compiler's name for the baseline.

use std::error::Error;
use std::process::Command;

use tonic_build::manual::{Builder, Method, Service};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = Command::new(std::env::var("RUSTC")?).arg("--version").output()?.stdout;
    println!("cargo:rustc-env=RUSTC_VERSION={}", String::from_utf8(rustc)?.trim());

    let get_product = Method::builder()
        .name("get_product")
        .route_name("GetProduct")
        .input_type("hotshelf::proto::GetProductRequest")
        .output_type("hotshelf::proto::Product")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let service =
        Service::builder().name("ProductService").package("hotshelf.v1").method(get_product);
    Builder::new().build_client(false).compile(&[service.build()]);
    Ok(())
}
