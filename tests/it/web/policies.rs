//! What holds for gRPC holds for the other protocols. Shares of calls and streams: see `callers_limits.rs`.

use hotshelf::config::ServeArgs;
use hotshelf::proto::{BatchGetProductsRequest, StreamHotKeysRequest};
use http::{HeaderMap, Version};
use prost::Message;
use tonic::Code;
use tonic_types::StatusExt;

use super::{GET, VERSIONS};
use crate::auth::tokens::{Signer, claims};
use crate::auth::{Jwks, bearer};
use crate::harness::{Http, PROTOCOLS, Raw, Stack, Suite, eventually, framed, get};

const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const HOT_KEYS: &str = "/hotshelf.v1.ProductService/StreamHotKeys";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("web::tokens_and_scopes_hold_in_every_protocol", authenticated);
    suite.single("web::a_read_only_instance_refuses_writes_in_every_protocol", read_only);
    suite.single("web::limits_of_bytes_hold_in_every_protocol", bytes);
    suite.single("web::a_database_that_is_down_is_named_in_every_protocol", unavailable);
    suite.single("web::without_the_http_api_only_grpc_is_served", switched_off);
}

async fn authenticated(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let signer = Signer::es256("ours");
    let jwks = Jwks::of(&[&signer]);
    let node = stack.node_with(|args| jwks.configure(args)).await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let request = get(id).encode_to_vec();
    let stream = StreamHotKeysRequest { limit: 5_000, ..Default::default() }.encode_to_vec();
    for protocol in PROTOCOLS {
        let call = async |path, headers, request: &[u8]| {
            let status = protocol.call(&raw, path, headers, request).await.unwrap();
            let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
            (status.code(), reason.unwrap_or_default())
        };
        for (path, request) in [(GET, &request), (HOT_KEYS, &stream)] {
            let missing = call(path, HeaderMap::new(), request).await;
            assert_eq!(missing, (Code::Unauthenticated, "TOKEN_MISSING".into()), "{protocol:?}");
            let forged = call(path, bearer("abc.def.ghi"), request).await;
            assert_eq!(forged, (Code::Unauthenticated, "TOKEN_INVALID".into()), "{protocol:?}");
            let writer = bearer(&signer.token(&claims("products.write")));
            let lacking = call(path, writer, request).await;
            assert_eq!(lacking, (Code::PermissionDenied, "SCOPE_MISSING".into()), "{protocol:?}");
        }
        let reader = bearer(&signer.token(&claims("products.read")));
        assert_eq!(call(GET, reader, &request).await.0, Code::Ok, "{protocol:?}");
    }
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let refused = http.get(&format!("/products/{id}")).await;
        assert_eq!((refused.status.as_u16(), refused.header("www-authenticate")), (401, "Bearer"));
        let reader = format!("Bearer {}", signer.token(&claims("products.read")));
        let headers = [("authorization", &*reader), ("content-type", "application/json")];
        let line = format!("PUT /products/{id}");
        let refused = http.send(&line, &headers, br#"{"price":1}"#).await;
        assert_eq!((refused.status.as_u16(), refused.reason()), (403, "SCOPE_MISSING".into()));
        let deleted = http.send(&format!("DELETE /v1/products/{id}"), &headers[..1], b"").await;
        assert_eq!(deleted.status.as_u16(), 403);
    }
}

async fn read_only(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.switches.read_only = true).await;
    let service = "POST /hotshelf.v1.ProductService";
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        for (line, body) in [
            (format!("PUT /products/{id}"), r#"{"price":1}"#.to_owned()),
            (format!("PATCH /v1/products/{id}"), r#"{"price":1}"#.to_owned()),
            ("POST /products".to_owned(), r#"{"name":"x","price":1,"currency":"USD"}"#.to_owned()),
            (format!("DELETE /v1/products/{id}"), String::new()),
            (format!("DELETE /products/{id}"), String::new()),
            (format!("{service}/DeleteProduct"), format!("{{\"id\":{id}}}")),
        ] {
            let refused = http.json(&line, &body).await;
            assert_eq!(
                (refused.status.as_u16(), refused.reason()),
                (400, "READ_ONLY".into()),
                "{line}"
            );
        }
    }
    assert_eq!(node.product(id).await.id, id);
}

async fn bytes(stack: Stack) {
    const LIMIT: usize = 131_072;
    let insert = "INSERT INTO products (name, price, description)
        SELECT 'lamp', 9.99, repeat('x', 2000) FROM generate_series(1, 100) RETURNING id";
    let ids: Vec<i64> = sqlx::query_scalar(insert).fetch_all(&stack.sql).await.unwrap();
    let change = |args: &mut ServeArgs| args.serving.max_unsent_bytes = LIMIT;
    let node = stack.node_with(change).await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    let all = BatchGetProductsRequest { ids: ids.clone(), ..Default::default() }.encode_to_vec();
    let few = BatchGetProductsRequest { ids: ids[..5].to_vec(), ..Default::default() };
    for protocol in PROTOCOLS {
        let refused = protocol.call(&raw, BATCH, HeaderMap::new(), &all).await.unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{protocol:?}: {refused}");
        let info = refused.get_details_error_info().unwrap();
        assert_eq!(info.reason, "RESPONSE_TOO_LARGE", "{protocol:?}");
        let few = few.encode_to_vec();
        let answered = protocol.call(&raw, BATCH, HeaderMap::new(), &few).await.unwrap();
        assert_eq!(answered.code(), Code::Ok, "{protocol:?}: {answered}");
    }
    // As text it is a copy, which is counted too.
    let mut http = Http::connect(Version::HTTP_2, node.grpc_addr.port()).await;
    let text = [("content-type", "application/grpc-web-text")];
    let request = framed(&few.encode_to_vec());
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(&request);
    let answer = http.begin(&format!("POST {BATCH}"), &text, body.as_bytes()).await;
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert!(body.len() > 5 * 2_000 * 4 / 3, "{}", body.len());
    eventually("nothing is held", async || node.metric("hotshelf_unsent_bytes").await == 0.0).await;
}

async fn unavailable(stack: Stack) {
    let node = stack
        .node_with(|args| args.serving.max_call_time = std::time::Duration::from_millis(300))
        .await;
    let lock = stack.lock_products().await;
    let raw = Raw::connect(node.grpc_addr.port()).await;
    for protocol in PROTOCOLS {
        let late = protocol.call(&raw, GET, HeaderMap::new(), &get(77).encode_to_vec()).await;
        let late = late.unwrap();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{protocol:?}: {late}");
    }
    lock.rollback().await.unwrap();
}

async fn switched_off(stack: Stack) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node_with(|args| args.http.http_api = false).await;
    assert_eq!(node.product(id).await.id, id);
    let mut http = Http::connect(Version::HTTP_2, node.grpc_addr.port()).await;
    assert_eq!(http.get(&format!("/products/{id}")).await.status.as_u16(), 405);
    let refused = http.json(&format!("POST {GET}"), "{}").await.status;
    assert_eq!(refused.as_u16(), 415);
    let mut socket =
        tokio::net::TcpStream::connect(("127.0.0.1", node.grpc_addr.port())).await.unwrap();
    socket.write_all(b"GET /products/1 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    assert_eq!(answer, b"", "it is closed");
}
