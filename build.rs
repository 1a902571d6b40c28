//! Compiles the protos with protox, so that a build does not need protoc.

#![expect(
    clippy::disallowed_methods,
    reason = "cargo passes OUT_DIR to a build script in the environment"
)]

use std::error::Error;
use std::path::PathBuf;

use tonic_build::manual::{Builder, Method, Service};

const PROTOS: [&str; 2] = ["hotshelf/v1/product_service.proto", "hotshelf/v1/admin_service.proto"];
/// Described only: grpcurl shows the details of errors by them, and so does the JSON of errors. tonic-types has the messages.
const DESCRIBED: [&str; 2] = ["google/rpc/error_details.proto", "google/rpc/status.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // sqlx::migrate! embeds the files, but cargo would not rebuild when a file is added.
    println!("cargo:rerun-if-changed=migrations");

    println!("cargo:rustc-env=HOTSHELF_VERSION={}", version());

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(PROTOS)?;

    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_well_known_types(false)
        .compile_fds(compiler.file_descriptor_set())?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = compiler.open_files(DESCRIBED)?.encode_file_descriptor_set();
    std::fs::write(out.join("descriptors.bin"), descriptors)?;
    std::fs::write(out.join("migrations.rs"), migrations()?)?;
    Builder::new().build_client(false).compile(&[product_service(), admin_service()]);
    Ok(())
}

/// The version, with the commit where it can be found: HOTSHELF_COMMIT (the image is built without .git), else Git.
fn version() -> String {
    println!("cargo:rerun-if-env-changed=HOTSHELF_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    let commit = std::env::var("HOTSHELF_COMMIT").ok().filter(|commit| !commit.is_empty());
    let Some(commit) = commit.or_else(|| git(&["rev-parse", "--short=12", "HEAD"])) else {
        return version.to_owned();
    };
    // It grows with each commit and each switch of the branch.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    format!("{version} ({commit})")
}

fn git(args: &[&str]) -> Option<String> {
    let output = std::process::Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The source of `MIGRATIONS`. A file is named VERSION_NAME.sql.
fn migrations() -> Result<String, Box<dyn Error>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir("migrations")?
        .map(|file| Ok(file?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    files.sort();
    let mut source = "const MIGRATIONS: &[(i64, &str, &str)] = &[".to_owned();
    for file in files {
        let (stem, path) =
            (file.file_stem().unwrap_or_default().to_string_lossy(), file.canonicalize()?);
        let (version, name) =
            stem.split_once('_').ok_or("migrations are named VERSION_NAME.sql")?;
        let version: i64 = version.parse()?;
        source += &format!("({version}, {name:?}, include_str!({path:?})),");
    }
    Ok(source + "];")
}

fn admin_service() -> Service {
    let explain_product = Method::builder()
        .name("explain_product")
        .route_name("ExplainProduct")
        .input_type("crate::proto::ExplainProductRequest")
        .output_type("crate::proto::ExplainProductResponse")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    Service::builder()
        .name("AdminService")
        .package("hotshelf.v1")
        .comment("For operators: see `proto/hotshelf/v1/admin_service.proto`.")
        .method(explain_product)
        .build()
}

/// The server side is described by hand: a write answers with the bytes that were encoded when the product was written, through
/// `StoredCodec`. GetProduct and BatchGetProducts are missing, because `src/rpc/reads.rs` answers them itself.
fn product_service() -> Service {
    let unary = |name: &str, route: &str, stored: bool| {
        let message = |suffix: &str| format!("crate::proto::{route}{suffix}");
        let (output, codec) = match stored {
            true => ("crate::rpc::codec::Stored".to_owned(), "crate::rpc::codec::StoredCodec"),
            false => ("crate::proto::Empty".to_owned(), "tonic_prost::ProstCodec"),
        };
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(message("Request"))
            .output_type(output)
            .codec_path(codec)
            .build()
    };
    let stream_hot_keys = Method::builder()
        .name("stream_hot_keys")
        .route_name("StreamHotKeys")
        .input_type("crate::proto::StreamHotKeysRequest")
        .output_type("crate::proto::StreamHotKeysResponse")
        .codec_path("tonic_prost::ProstCodec")
        .server_streaming()
        .build();
    Service::builder()
        .name("ProductService")
        .package("hotshelf.v1")
        .comment("Serves products: see `proto/hotshelf/v1/product_service.proto`.")
        .method(unary("update_product", "UpdateProduct", true))
        .method(unary("create_product", "CreateProduct", true))
        .method(unary("delete_product", "DeleteProduct", false))
        .method(stream_hot_keys)
        .build()
}
