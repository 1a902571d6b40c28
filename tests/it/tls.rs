//! gRPC over TLS: calls are served as without it, certificates are replaced while the instance serves, and client
//! certificates can be required.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hotshelf::app::App;
use hotshelf::config::ServeArgs;
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

use crate::auth::tokens::{Signer, claims, trust};
use crate::harness::{
    Authority, Identity, Program, Raw, Stack, Suite, admin, eventually, framed, get,
};

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const EXPLAIN: &str = "/hotshelf.v1.AdminService/ExplainProduct";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
/// Of localhost and 127.0.0.1, self-signed, valid until 2126. The key is public.
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/key.pem");

pub fn register(suite: &mut Suite<'_>) {
    suite.single("tls::calls_over_tls_are_answered_and_plain_ones_are_not", answered);
    suite.single("tls::a_stalled_handshake_does_not_block_others", stalled);
    suite.single("tls::a_certificate_is_replaced_while_serving_and_no_call_fails", replaced);
    suite.single("tls::a_broken_certificate_is_one_error_and_the_old_one_stays", broken);
    suite.single("tls::sighup_does_not_end_the_process", hangup);
    suite.single("tls::a_certificate_that_expires_soon_is_a_warning_and_a_gauge", expires_soon);
    suite.single("tls::clients_show_certificates_of_the_authority", client_certificates);
    suite.single("callers::a_caller_with_a_certificate_has_one_share_of_streams", one_share);
    suite.single("tls::a_token_will_do_where_certificates_are_optional", either);
}

pub async fn serving(stack: &Stack) -> App {
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

/// One silent connection before the TLS handshake, and one after it.
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
    eventually("silent connections are closed", async || connections().await == 0).await;
    let raw = Raw::over(handshake(port).await).await.unwrap();
    assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok);
    drop((before, after));
}

struct Files {
    _directory: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    jwks: PathBuf,
}

impl Files {
    fn of(identity: &Identity) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let (certificate, key) = (file("cert.pem"), file("key.pem"));
        let (client_ca, jwks) = (file("clients.pem"), file("jwks.json"));
        identity.write(&certificate, &key);
        Self { _directory: directory, certificate, key, client_ca, jwks }
    }

    fn arguments(&self) -> [&str; 4] {
        let (certificate, key) = (self.certificate.to_str(), self.key.to_str());
        ["--grpc-tls-cert", certificate.unwrap(), "--grpc-tls-key", key.unwrap()]
    }
}

fn shown(socket: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    socket.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn replaced(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let authority = Arc::new(Authority::new("servers"));
    let (first, second) = (authority.server(YEAR), authority.server(YEAR));
    let files = Files::of(&first);
    let program = Program::serve(&stack, &files.arguments()).await;
    let port = program.port();
    let old = authority.connect(port, None).await.unwrap();
    assert_eq!(shown(&old), first.der());
    let old = Raw::over(old).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let calls = tokio::spawn({
        let (authority, stop) = (Arc::clone(&authority), Arc::clone(&stop));
        async move {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                let new = authority.connect(port, None).await.unwrap();
                let new = Raw::over(new).await.unwrap();
                for raw in [&old, &new] {
                    assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok);
                    calls += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            calls
        }
    });
    let serves = async |identity: &Identity| {
        shown(&authority.connect(port, None).await.unwrap()) == identity.der()
    };
    second.write(&files.certificate, &files.key);
    eventually("the second is served", async || serves(&second).await).await;
    // A signal makes the program read the files at once.
    first.write(&files.certificate, &files.key);
    program.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("the first is served again", async || serves(&first).await).await;
    stop.store(true, Ordering::Relaxed);
    assert!(calls.await.unwrap() > 0);
}

async fn broken(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let authority = Authority::new("servers");
    let (first, second) = (authority.server(YEAR), authority.server(YEAR));
    let files = Files::of(&first);
    let program = Program::serve(&stack, &files.arguments()).await;
    let errors = || program.log().lines().filter(|line| line.contains(" ERROR ")).count();
    std::fs::write(&files.certificate, "no certificate").unwrap();
    eventually("it is logged", async || errors() > 0).await;
    let socket = authority.connect(program.port(), None).await.unwrap();
    assert_eq!(shown(&socket), first.der(), "the old one stays");
    let raw = Raw::over(socket).await.unwrap();
    assert_eq!(raw.call(GET, &get(id)).await.code(), Code::Ok);
    second.write(&files.certificate, &files.key);
    eventually("the new certificate is served", async || {
        let socket = authority.connect(program.port(), None).await.unwrap();
        shown(&socket) == second.der()
    })
    .await;
    assert_eq!(errors(), 1, "{}", program.log());
}

async fn hangup(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &[]).await;
    let mut client = program.client().await;
    for signals in 1..=2 {
        program.signal(nix::sys::signal::Signal::SIGHUP);
        let line = "SIGHUP: there are no files";
        eventually("the signal is logged", async || program.log().matches(line).count() >= signals)
            .await;
        client.get_product(get(id)).await.unwrap();
    }
}

async fn expires_soon(stack: Stack) {
    let authority = Authority::new("servers");
    let day = Duration::from_secs(24 * 3_600);
    let (soon, late) = (authority.server(5 * day + day / 2), authority.server(YEAR));
    let files = Files::of(&soon);
    let program = Program::serve(&stack, &files.arguments()).await;
    let warnings = || program.log().matches("expires soon").count();
    assert_eq!(warnings(), 1, "{}", program.log());
    assert!(program.log().contains("days=5"), "{}", program.log());
    let left = async || {
        let (_, text) = program.admin("/metrics").await;
        let name = "hotshelf_tls_certificate_expiry_timestamp_seconds ";
        let at: f64 =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        at / day.as_secs_f64() - now.as_secs_f64() / day.as_secs_f64()
    };
    assert!((5.0..6.0).contains(&left().await));
    late.write(&files.certificate, &files.key);
    eventually("the gauge follows", async || left().await > 300.0).await;
    assert_eq!(warnings(), 1, "{}", program.log());
}

async fn node(stack: &Stack, files: &Files, tokens: bool) -> App {
    node_with(stack, files, tokens, |_| {}).await
}

async fn node_with(
    stack: &Stack,
    files: &Files,
    tokens: bool,
    change: impl FnOnce(&mut ServeArgs),
) -> App {
    let mut args = stack.args();
    change(&mut args);
    let text = |file: &PathBuf| file.to_str().unwrap().to_owned();
    args.serving.grpc_tls_cert = text(&files.certificate);
    args.serving.grpc_tls_key = text(&files.key);
    args.identity.grpc_tls_client_ca = text(&files.client_ca);
    if tokens {
        args.identity.auth_jwks_file = text(&files.jwks);
        args.identity.auth_audience = crate::auth::tokens::AUDIENCE.to_owned();
        args.identity.auth_issuer = crate::auth::tokens::ISSUER.to_owned();
    }
    App::start(&args).await.unwrap()
}

/// The code of a call on a connection with this certificate; `None` when there is no connection.
async fn code(
    servers: &Authority,
    app: &App,
    client: Option<&Identity>,
    path: &str,
    headers: HeaderMap,
) -> Option<Code> {
    let socket = servers.connect(app.grpc_addr.port(), client).await.ok()?;
    // With TLS 1.3 the client's handshake ends before the server has verified its certificate.
    let raw = Raw::over(socket).await.ok()?;
    let status = raw.call_with(path, headers, framed(&get(1).encode_to_vec())).await.ok()?;
    Some(status.code())
}

async fn client_certificates(stack: Stack) {
    stack.insert("walnut desk lamp").await;
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let files = Files::of(&servers.server(YEAR));
    clients.write(&files.client_ca);
    let app = node(&stack, &files, false).await;
    let call = async |client: Option<&Identity>, path: &str| {
        code(&servers, &app, client, path, HeaderMap::new()).await
    };
    let known = clients.client("checkout", Some("spiffe://shop/checkout"));
    assert_eq!(call(Some(&known), GET).await, Some(Code::Ok));
    assert_eq!(call(Some(&clients.client("by name", None)), GET).await, Some(Code::Ok));
    assert_eq!(call(Some(&known), EXPLAIN).await, Some(Code::PermissionDenied), "by default");
    let other =
        HeaderMap::from_iter([(http::header::AUTHORIZATION, "Basic eDp5".parse().unwrap())]);
    let with_other = code(&servers, &app, Some(&known), GET, other).await;
    assert_eq!(with_other, Some(Code::Ok), "without keys tokens are not looked at");
    assert_eq!(call(None, GET).await, None);
    let stranger = Authority::new("clients").client("checkout", Some("spiffe://shop/checkout"));
    assert_eq!(call(Some(&stranger), GET).await, None);
    let (_, text) = admin(app.admin_addr.port(), "/metrics").await;
    let counted = "hotshelf_auth_refused_total{reason=\"certificate\"} 2";
    assert!(text.lines().any(|line| line == counted), "{text}");
}

/// Health.Watch needs no authentication, and its streams count for the certificate nevertheless.
async fn one_share(stack: Stack) {
    const CONNECTIONS: usize = 4;
    const EACH: usize = 10;
    // With eight, there are seven for each one that would be free.
    const ADMITTED: usize = 8;
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let files = Files::of(&servers.server(YEAR));
    clients.write(&files.client_ca);
    let few = |args: &mut ServeArgs| args.serving.edge.max_streams = 64;
    let app = node_with(&stack, &files, false, few).await;
    let connect = async |client: &Identity| {
        let socket = servers.connect(app.grpc_addr.port(), Some(client)).await.unwrap();
        Raw::over(socket).await.unwrap()
    };
    let watch = |raw: &Raw| {
        let raw = raw.clone();
        tokio::spawn(async move { raw.call_with(WATCH, HeaderMap::new(), framed(&[])).await })
    };
    let greedy = clients.client("greedy", None);
    let mut calls = Vec::new();
    for _ in 0..CONNECTIONS {
        let raw = connect(&greedy).await;
        calls.extend((0..EACH).map(|_| watch(&raw)));
    }
    let ended = || calls.iter().filter(|call| call.is_finished()).count();
    let rest = CONNECTIONS * EACH - ADMITTED;
    eventually("all but one share is refused", async || ended() == rest).await;
    let refused = format!("{rest} greedy\n");
    assert_eq!(admin(app.admin_addr.port(), "/callers").await.1, refused);
    let polite = watch(&connect(&clients.client("polite", None)).await);
    let open = format!("hotshelf_streams {}", ADMITTED + 1);
    eventually("another caller's stream is open", async || {
        let (_, text) = admin(app.admin_addr.port(), "/metrics").await;
        text.lines().any(|line| line == open)
    })
    .await;
    polite.abort();
}

async fn either(stack: Stack) {
    stack.insert("walnut desk lamp").await;
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let files = Files::of(&servers.server(YEAR));
    clients.write(&files.client_ca);
    let signer = Signer::es256("ours");
    trust(&files.jwks, &[&signer]);
    let app = node(&stack, &files, true).await;
    let known = clients.client("checkout", None);
    let token = |scope: &str| {
        let value = format!("Bearer {}", signer.token(&claims(scope)));
        HeaderMap::from_iter([(http::header::AUTHORIZATION, value.parse().unwrap())])
    };
    let call = async |client: Option<&Identity>, headers: HeaderMap| {
        code(&servers, &app, client, GET, headers).await
    };
    assert_eq!(call(None, token("products.read")).await, Some(Code::Ok));
    assert_eq!(call(Some(&known), HeaderMap::new()).await, Some(Code::Ok));
    assert_eq!(call(None, HeaderMap::new()).await, Some(Code::Unauthenticated));
    let poor = call(Some(&known), token("openid")).await;
    assert_eq!(poor, Some(Code::PermissionDenied), "where there is a token it counts");
}
