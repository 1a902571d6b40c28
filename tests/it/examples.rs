//! Third-party clients against a real instance: the examples in Python, Go, Node and a browser, whose clients are generated
//! from the proto, and `buf curl`, which uses reflection.
//!
//! Their dependencies are installed once, under target/. Where the installation fails, these tests are reported as
//! ignored.

mod buf;
pub mod install;

use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::harness::{HANG, Stack, Suite, finish};
use crate::page::browser::Page;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub fn register(suite: &mut Suite<'_>) {
    suite.single_if(
        "examples::the_python_client_finds_everything_as_promised",
        install::python,
        python,
    );
    suite.single_if("examples::the_node_client_finds_everything_as_promised", install::node, node);
    suite.single_if("examples::the_go_client_finds_everything_as_promised", install::go, go);
    suite.single_if(
        "examples::connect_finds_everything_as_promised_by_each_of_its_protocols",
        install::connect,
        connect,
    );
    suite.single_if(
        "examples::a_page_of_another_origin_finds_everything_as_promised",
        install::page,
        page,
    );
    buf::register(suite);
}

async fn python(stack: Stack, python: PathBuf) {
    let mut python = Command::new(python);
    all_as_promised(&stack, python.arg(example("python/get_product.py")), "").await;
}

async fn node(stack: Stack, node_modules: PathBuf) {
    let mut node = Command::new("node");
    node.env("NODE_PATH", node_modules).arg(example("node/get_product.js"));
    all_as_promised(&stack, &mut node, "").await;
}

async fn go(stack: Stack, program: PathBuf) {
    all_as_promised(&stack, &mut Command::new(program), "").await;
}

async fn connect(stack: Stack, place: PathBuf) {
    let mut node = Command::new("node");
    all_as_promised(&stack, node.arg(place.join("get_product.js")), "http://").await;
}

/// Connect-Web in Chromium: it reads by GET, writes after a preflight, and watches hot keys.
async fn page(stack: Stack, (place, chromium): (PathBuf, PathBuf)) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let files = tokio::spawn(serve_files(listener, place));
    let node = stack.node_with(|args| args.http.cors_origins.clone_from(&origin)).await;
    let url = format!("{origin}/?server=http://{}", node.grpc_addr);
    let mut page = Page::open(&chromium, &url).await;
    let ended = "/UNEXPECTED|All as promised/.test(document.body.innerText)";
    page.until("every call has ended", ended).await;
    let log = page.run("document.getElementById('log').textContent").await;
    let log = log.as_str().unwrap();
    assert!(log.ends_with("All as promised.\n"), "{log}");
    assert_eq!(page.complaints(), [""; 0]);
    assert_nothing_is_left(&stack).await;
    files.abort();
}

async fn serve_files(listener: TcpListener, place: PathBuf) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A browser also opens connections that it does not use.
        tokio::spawn(serve_file(stream, place.clone()));
    }
}

/// The page or its script.
async fn serve_file(mut stream: TcpStream, place: PathBuf) -> std::io::Result<()> {
    let mut lines = BufReader::new(&mut stream).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let (file, content_type) = match request.starts_with("GET /page.bundle.js ") {
        true => ("page.bundle.js", "text/javascript"),
        false => ("index.html", "text/html"),
    };
    let content = std::fs::read(place.join(file))?;
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\nconnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &content].concat()).await
}

fn example(path: &str) -> PathBuf {
    Path::new(ROOT).join("examples").join(path)
}

/// Runs an example, which checks each response itself, with the address of an instance as its last argument.
async fn all_as_promised(stack: &Stack, client: &mut Command, scheme: &str) {
    let node = stack.node().await;
    let address = format!("{scheme}127.0.0.1:{}", node.grpc_addr.port());
    let printed = finish(client.arg(address), HANG * 3).await.unwrap_or_else(|why| panic!("{why}"));
    assert!(printed.ends_with("All as promised.\n"), "{printed}");
    assert_nothing_is_left(stack).await;
}

/// Each example deletes what it has created.
async fn assert_nothing_is_left(stack: &Stack) {
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM products").fetch_one(&stack.sql).await.unwrap();
    assert_eq!(left, 0);
}
