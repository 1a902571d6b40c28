//! Authentication: tokens, scopes, and their rotation and expiry while the instance serves.

mod forged;
mod settings;
pub mod tokens;

use std::path::PathBuf;

use bytes::Bytes;
use hotshelf::config::ServeArgs;
use http::HeaderMap;
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Node, Program, Raw, Stack, Suite, eventually, framed, get, too_busy};
use tokens::{AUDIENCE, ISSUER, Signer, at, claims, encoded, trust};

const GET: &str = "/hotshelf.v1.ProductService/GetProduct";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const READ: &str = "products.read";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("auth::a_token_that_is_not_good_is_refused_with_the_reason", refusals);
    suite.single("auth::every_algorithm_that_is_promised_is_accepted", algorithms);
    suite.single("auth::each_method_needs_its_own_scope", scopes);
    suite.single("auth::keys_are_replaced_while_serving_and_old_ones_are_revoked", rotation);
    suite.single("auth::a_token_expires_on_a_connection_that_stands", expiry);
    suite.single("auth::many_tokens_on_one_connection_are_distinguished", many);
    suite.single("auth::refused_calls_do_not_cost_the_connection", forged::connection);
    suite.single("auth::a_flood_of_forged_tokens_is_not_verified", forged::flood);
    suite.single("auth::tokens_are_never_logged", never_logged);
    suite.single("auth::an_open_port_is_one_warning", settings::open_port);
    suite.single("auth::secrets_are_read_from_files", settings::secrets);
}

/// The JWKS file, in a directory that is removed on drop.
pub struct Jwks {
    _directory: tempfile::TempDir,
    file: PathBuf,
}

impl Jwks {
    pub fn of(signers: &[&Signer]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("jwks.json");
        trust(&file, signers);
        Self { _directory: directory, file }
    }

    pub fn configure(&self, args: &mut ServeArgs) {
        args.identity.auth_jwks_file = self.file.to_str().unwrap().to_owned();
        args.identity.auth_audience = AUDIENCE.to_owned();
        args.identity.auth_issuer = ISSUER.to_owned();
    }

    fn arguments(&self) -> [&str; 6] {
        let file = self.file.to_str().unwrap();
        ["--auth-jwks-file", file, "--auth-audience", AUDIENCE, "--auth-issuer", ISSUER]
    }
}

async fn node(stack: &Stack, jwks: &Jwks) -> Node {
    stack.node_with(|args| jwks.configure(args)).await
}

pub fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::header::AUTHORIZATION,
        format!("Bearer {token}").parse().unwrap(),
    )])
}

async fn read(raw: &Raw, id: i64, headers: HeaderMap) -> Status {
    raw.call_with(GET, headers, framed(&get(id).encode_to_vec())).await.unwrap()
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

async fn refused(node: &Node, label: &str) -> f64 {
    node.metric(&format!("hotshelf_auth_refused_total{{reason=\"{label}\"}}")).await
}

async fn refusals(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (ours, other) = (Signer::es256("ours"), Signer::es256("theirs"));
    let jwks = Jwks::of(&[&ours]);
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let with = |name: &str, value: Value| {
        let mut claims = claims(READ);
        claims[name] = value;
        format!("Bearer {}", ours.token(&claims))
    };
    let without = |name: &str| {
        let mut claims = claims(READ);
        claims.as_object_mut().unwrap().remove(name);
        format!("Bearer {}", ours.token(&claims))
    };
    let unsigned = |algorithm: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        let header = json!({"alg": algorithm, "kid": "ours"});
        format!("Bearer {}", encoded(&header, &claims(READ), sign))
    };
    let shared = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &ours.public());
    let good = ours.token(&claims(READ));
    let payload_of_admin = ours.token(&claims("products.read hotshelf.admin"));
    let spliced = {
        let parts: Vec<&str> = good.split('.').collect();
        let payload = payload_of_admin.split('.').nth(1).unwrap();
        format!("Bearer {}.{payload}.{}", parts[0], parts[2])
    };
    let invalid = "TOKEN_INVALID";
    let rows: Vec<(&str, Option<String>, &str, &str)> = vec![
        ("missing", None, "TOKEN_MISSING", "token_missing"),
        ("garbage", Some("Bearer garbage".to_owned()), invalid, "token_malformed"),
        ("empty", Some("Bearer ".to_owned()), invalid, "token_malformed"),
        ("basic", Some("Basic aGVsbG86d29ybGQ=".to_owned()), invalid, "token_malformed"),
        ("not UTF-8", Some("Bearer \u{e9}.\u{e9}.\u{e9}".to_owned()), invalid, "token_malformed"),
        (
            "other key",
            Some(format!("Bearer {}", other.token(&claims(READ)))),
            invalid,
            "unknown_key",
        ),
        (
            "other key, our id",
            Some(format!("Bearer {}", other.token_of("ours", &claims(READ)))),
            invalid,
            "signature",
        ),
        ("other payload", Some(spliced), invalid, "signature"),
        ("alg none", Some(unsigned("none", &|_| Vec::new())), invalid, "token_malformed"),
        (
            "HS256 with the public key",
            Some(unsigned("HS256", &|message| {
                ring::hmac::sign(&shared, message).as_ref().to_vec()
            })),
            invalid,
            "algorithm",
        ),
        ("RS256 with an EC key", Some(unsigned("RS256", &|_| vec![0; 256])), invalid, "algorithm"),
        (
            "critical extension",
            Some(format!(
                "Bearer {}",
                ours.signed(
                    &json!({"alg": "ES256", "kid": "ours", "crit": ["b64"]}),
                    &claims(READ)
                )
            )),
            invalid,
            "token_malformed",
        ),
        ("expired", Some(with("exp", json!(at(-60)))), "TOKEN_EXPIRED", "token_expired"),
        ("without expiry", Some(without("exp")), invalid, "token_malformed"),
        ("expiry as text", Some(with("exp", json!("tomorrow"))), invalid, "token_malformed"),
        ("not yet valid", Some(with("nbf", json!(at(600)))), invalid, "not_yet_valid"),
        ("other audience", Some(with("aud", json!("https://other.example"))), invalid, "audience"),
        ("no audience", Some(without("aud")), invalid, "audience"),
        ("other issuer", Some(with("iss", json!("https://evil.example/"))), invalid, "issuer"),
        ("no issuer", Some(without("iss")), invalid, "issuer"),
    ];
    for (what, authorization, expected, label) in rows {
        let before = refused(&node, label).await;
        let value =
            authorization.map(|value| http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        let headers = value.map(|value| (http::header::AUTHORIZATION, value));
        let status = read(&raw, id, headers.into_iter().collect()).await;
        assert_eq!(
            (status.code(), &*reason(&status)),
            (Code::Unauthenticated, expected),
            "{what}: {status:?}"
        );
        assert_eq!(refused(&node, label).await - before, 1.0, "{what}: counted as {label}");
    }
    let mut twice = bearer(&good);
    twice.append(http::header::AUTHORIZATION, "Bearer other".parse().unwrap());
    assert_eq!(read(&raw, id, twice).await.code(), Code::Unauthenticated, "two tokens");
    let poor = bearer(&ours.token(&claims("products.write openid")));
    let status = read(&raw, id, poor).await;
    assert_eq!((status.code(), &*reason(&status)), (Code::PermissionDenied, "SCOPE_MISSING"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["scope"], READ);
    assert_eq!(refused(&node, "scope_missing").await, 1.0);
    assert_eq!(stack.loads().await, 0, "refused before any work");
    assert_eq!(read(&raw, id, bearer(&good)).await.code(), Code::Ok);
    let lower = HeaderMap::from_iter([(
        http::header::AUTHORIZATION,
        format!("bearer {good}").parse().unwrap(),
    )]);
    assert_eq!(read(&raw, id, lower).await.code(), Code::Ok, "the scheme has no case");
}

async fn algorithms(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let signers = [Signer::es256("ec"), Signer::ed25519("ed"), Signer::rs256("rsa")];
    let jwks = Jwks::of(&signers.iter().collect::<Vec<_>>());
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    for signer in &signers {
        for (name, value) in [("scope", json!("openid products.read")), ("scp", json!([READ]))] {
            let mut claims = claims("");
            claims[name] = value;
            claims["aud"] = json!(["https://other.example", AUDIENCE]);
            let status = read(&raw, id, bearer(&signer.token(&claims))).await;
            assert_eq!(status.code(), Code::Ok, "{name}: {status:?}");
        }
        let mut token = signer.token(&claims(READ)).into_bytes();
        // Within the signature; some bits of the last character are not part of it.
        let at = token.len() - 20;
        token[at] = if token[at] == b'A' { b'B' } else { b'A' };
        let status = read(&raw, id, bearer(std::str::from_utf8(&token).unwrap())).await;
        assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "TOKEN_INVALID"));
    }
}

async fn scopes(stack: Stack) {
    const SCOPES: [&str; 3] = [READ, "products.write", "hotshelf.admin"];
    let products = |method: &str| format!("/hotshelf.v1.ProductService/{method}");
    let methods = [
        (products("GetProduct"), SCOPES[0]),
        (products("BatchGetProducts"), SCOPES[0]),
        (products("StreamHotKeys"), SCOPES[0]),
        (products("UpdateProduct"), SCOPES[1]),
        (products("CreateProduct"), SCOPES[1]),
        (products("DeleteProduct"), SCOPES[1]),
        ("/hotshelf.v1.AdminService/ExplainProduct".to_owned(), SCOPES[2]),
    ];
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let call = async |path: &str, mut headers: HeaderMap| {
        // Only a deadline ends a stream.
        headers.insert("grpc-timeout", "200m".parse().unwrap());
        raw.call_with(path, headers, framed(&[])).await.unwrap().code()
    };
    for (path, needed) in &methods {
        for scope in SCOPES {
            let code = call(path, bearer(&signer.token(&claims(scope)))).await;
            let judged = [Code::Unauthenticated, Code::PermissionDenied].contains(&code);
            assert_eq!(judged, scope != *needed, "{path} with {scope}: {code:?}");
        }
        assert_eq!(call(path, HeaderMap::new()).await, Code::Unauthenticated, "{path}");
    }
    assert_eq!(call("/grpc.health.v1.Health/Check", HeaderMap::new()).await, Code::Ok);
    let unknown = products("Unknown");
    for path in [REFLECTION, &*unknown] {
        assert_eq!(call(path, HeaderMap::new()).await, Code::Unauthenticated, "{path}");
        let code = call(path, bearer(&signer.token(&claims("")))).await;
        assert!(
            ![Code::Unauthenticated, Code::PermissionDenied].contains(&code),
            "{path}: {code:?}"
        );
    }
    let page = raw.http(http::Method::GET, GET, HeaderMap::new(), Bytes::new()).await;
    assert_eq!(page, http::StatusCode::UNAUTHORIZED, "it does not read the status of gRPC");
}

async fn rotation(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let jwks = Jwks::of(&[&old]);
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let (by_old, by_new) = (old.token(&claims(READ)), new.token(&claims(READ)));
    let code = async |token: &str| read(&raw, id, bearer(token)).await.code();
    assert_eq!(code(&by_old).await, Code::Ok);
    assert_eq!(code(&by_new).await, Code::Unauthenticated);
    trust(&jwks.file, &[&old, &new]);
    eventually("the new key is trusted", async || {
        assert_eq!(code(&by_old).await, Code::Ok, "meanwhile, too");
        code(&by_new).await == Code::Ok
    })
    .await;
    trust(&jwks.file, &[&new]);
    eventually("the old key is revoked on a connection that stands", async || {
        assert_eq!(code(&by_new).await, Code::Ok, "meanwhile, too");
        code(&by_old).await == Code::Unauthenticated
    })
    .await;
}

async fn expiry(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let node = stack
        .node_with(|args| {
            jwks.configure(args);
            args.identity.auth_leeway = std::time::Duration::ZERO;
        })
        .await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let mut short = claims(READ);
    short["exp"] = json!(at(4));
    let short = signer.token(&short);
    let status = read(&raw, id, bearer(&short)).await;
    if reason(&status) == "TOKEN_EXPIRED" {
        too_busy("a token expired before its first call");
    }
    assert_eq!(status.code(), Code::Ok);
    eventually("it expires", async || {
        let status = read(&raw, id, bearer(&short)).await;
        status.code() == Code::Unauthenticated && reason(&status) == "TOKEN_EXPIRED"
    })
    .await;
}

/// More tokens than a connection caches.
async fn many(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let node = node(&stack, &jwks).await;
    let raw = Raw::connect(node.app.grpc_addr.port()).await;
    let reads = |n: usize| n.is_multiple_of(2);
    let token = |n: usize| {
        let mut claims = claims(if reads(n) { READ } else { "products.write" });
        claims["sub"] = json!(format!("caller {n}"));
        signer.token(&claims)
    };
    let tokens: Vec<String> = (0..80).map(token).collect();
    for _ in 0..2 {
        for (n, token) in tokens.iter().enumerate() {
            let code = read(&raw, id, bearer(token)).await.code();
            let expected = if reads(n) { Code::Ok } else { Code::PermissionDenied };
            assert_eq!(code, expected, "caller {n}");
        }
    }
}

async fn never_logged(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let mut command = Program::serving(&stack, &jwks.arguments());
    command.env("RUST_LOG", "trace");
    let program = Program::start(command).await;
    let raw = Raw::connect(program.port()).await;
    let good = signer.token(&claims(READ));
    let poor = signer.token(&claims("openid"));
    let bad = Signer::es256("theirs").token(&claims(READ));
    let codes = [Code::Ok, Code::PermissionDenied, Code::Unauthenticated];
    for (token, code) in [&good, &poor, &bad].into_iter().zip(codes) {
        assert_eq!(read(&raw, id, bearer(token)).await.code(), code);
    }
    eventually("the refusal is logged", async || program.log().contains("a call was refused"))
        .await;
    let log = program.log();
    for token in [&good, &poor, &bad] {
        for part in token.split('.').skip(1) {
            assert!(!log.contains(part), "a part of a token is in the log: {part}");
        }
    }
}
