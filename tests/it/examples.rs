//! Third-party clients against a real instance: the examples in Python and Node, whose clients are generated from the
//! proto, and `buf curl`, which uses reflection.
//!
//! Their dependencies are installed once, under target/. Where the installation fails, these tests are reported as
//! ignored.

mod buf;
pub mod install;

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::harness::{HANG, Stack, Suite, finish};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub fn register(suite: &mut Suite<'_>) {
    suite.single_if(
        "examples::the_python_client_finds_everything_as_promised",
        install::python,
        python,
    );
    suite.single_if("examples::the_node_client_finds_everything_as_promised", install::node, node);
    buf::register(suite);
}

async fn python(stack: Stack, python: PathBuf) {
    all_as_promised(&stack, Command::new(python).arg(example("python/get_product.py"))).await;
}

async fn node(stack: Stack, node_modules: PathBuf) {
    let mut node = Command::new("node");
    node.env("NODE_PATH", node_modules).arg(example("node/get_product.js"));
    all_as_promised(&stack, &mut node).await;
}

fn example(path: &str) -> PathBuf {
    Path::new(ROOT).join("examples").join(path)
}

/// Runs an example, which checks each response itself.
async fn all_as_promised(stack: &Stack, client: &mut Command) {
    let node = stack.node().await;
    let address = format!("127.0.0.1:{}", node.grpc_addr.port());
    let printed = finish(client.arg(address), HANG * 3).await.unwrap_or_else(|why| panic!("{why}"));
    assert!(printed.ends_with("All as promised.\n"), "{printed}");
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM products").fetch_one(&stack.sql).await.unwrap();
    assert_eq!(left, 0, "it deletes what it has created");
}
