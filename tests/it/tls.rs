//! gRPC over TLS takes the same path as without.

use std::sync::Arc;
use std::time::Duration;

use hotshelf::app::App;
use http::HeaderMap;
use prost::Message;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::Code;

use crate::harness::{Raw, Stack, Suite, admin, eventually, framed, get};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
/// Of localhost and 127.0.0.1, signed by itself, valid until 2126; the key is no secret.
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/key.pem");

pub fn register(suite: &mut Suite<'_>) {
    suite.single("tls::calls_over_tls_are_answered_and_plain_ones_are_not", answered);
    suite.single("tls::a_handshake_that_stalls_keeps_nobody_out", stalled);
}

async fn serving(stack: &Stack) -> App {
    let mut args = stack.args();
    CERTIFICATE.clone_into(&mut args.serving.grpc_tls_cert);
    KEY.clone_into(&mut args.serving.grpc_tls_key);
    args.serving.max_connections = 2;
    args.serving.keepalive_timeout = Duration::from_millis(500);
    App::start(&args).await.unwrap()
}

async fn handshake(port: u16) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(CERTIFICATE).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    connector.connect(name, socket).await.unwrap()
}

async fn answered(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let app = serving(&stack).await;
    let port = app.grpc_addr.port();
    let raw = Raw::over(handshake(port).await).await.unwrap();
    for _ in 0..2 {
        assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok);
    }
    let plain = Raw::connect(port).await;
    let answer = plain.call_with(GET, HeaderMap::new(), framed(&get(id).encode_to_vec())).await;
    assert!(answer.is_err(), "plain HTTP/2 is no handshake: {answer:?}");
}

/// Of those who say nothing, some have not begun with TLS, and some have ended with it.
async fn stalled(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let app = serving(&stack).await;
    let port = app.grpc_addr.port();
    let before = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let after = handshake(port).await;
    let connections = async || {
        let (_, text) = admin(app.admin_addr.port(), "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix("hotshelf_connections "));
        line.unwrap().parse::<u64>().unwrap()
    };
    eventually("nobody keeps a place without a word", async || connections().await == 0).await;
    let raw = Raw::over(handshake(port).await).await.unwrap();
    assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok);
    drop((before, after));
}
