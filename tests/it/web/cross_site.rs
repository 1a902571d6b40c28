//! Pages of other origins.

use http::StatusCode;

use super::{GET, VERSIONS};
use crate::harness::{Http, Stack, Suite, framed, get};
use hotshelf::config::ServeArgs;
use prost::Message;

const OURS: &str = "https://shop.example";
const OTHER: &str = "https://evil.example";
const DELETE: &str = "/hotshelf.v1.ProductService/DeleteProduct";

pub fn register(suite: &mut Suite<'_>) {
    suite.single("web::no_page_of_another_origin_can_change_anything", refused);
    suite.single("web::pages_of_configured_origins_may_call", allowed);
}

async fn refused(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    for ours in ["", OURS] {
        let change = |args: &mut ServeArgs| ours.clone_into(&mut args.http.cors_origins);
        let node = stack.node_with(change).await;
        let before = node.product(id).await;
        for version in VERSIONS {
            let mut http = Http::connect(version, node.grpc_addr.port()).await;
            let body = format!("{{\"id\":{id},\"name\":\"stolen\",\"price\":1}}");
            let (json, text) =
                (("content-type", "application/json"), ("content-type", "text/plain"));
            let by_page: [&[(&str, &str)]; 3] = [
                &[("origin", OTHER)],
                &[("origin", "null")],
                &[("origin", OTHER), ("sec-fetch-site", "cross-site")],
            ];
            for headers in by_page {
                for (line, content_type) in [
                    (format!("PUT /products/{id}"), json),
                    (format!("PATCH /v1/products/{id}"), json),
                    (format!("DELETE /v1/products/{id}"), json),
                    ("POST /products".to_owned(), json),
                    (format!("POST {DELETE}"), json),
                    (format!("POST {DELETE}"), ("content-type", "application/grpc-web-text")),
                ] {
                    let headers = [headers, &[content_type]].concat();
                    let answer = http.send(&line, &headers, body.as_bytes()).await;
                    let is_grpc_web = content_type.1.starts_with("application/grpc-web");
                    match is_grpc_web {
                        true => assert_eq!(answer.header("grpc-status"), "7", "{answer:?}"),
                        false => assert_eq!(answer.status, StatusCode::FORBIDDEN, "{line}"),
                    }
                    let granted = answer.header("access-control-allow-origin");
                    assert!(granted.is_empty(), "{line}: {granted}");
                }
                for line in [format!("POST {DELETE}"), "POST /products".to_owned()] {
                    let headers = [headers, &[text]].concat();
                    let answer = http.send(&line, &headers, body.as_bytes()).await;
                    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{line}");
                }
                let preflight = [headers, &[("access-control-request-method", "PUT")]].concat();
                let line = format!("OPTIONS /products/{id}");
                let answer = http.send(&line, &preflight, b"").await;
                assert!(answer.header("access-control-allow-origin").is_empty(), "{answer:?}");
            }
        }
        assert_eq!(node.product(id).await, before);
    }
}

async fn allowed(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let change = |args: &mut ServeArgs| {
        args.http.cors_origins = format!("http://localhost:3000, {OURS}");
    };
    let node = stack.node_with(change).await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let preflight = [
            ("origin", OURS),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "content-type,if-match"),
        ];
        let answer = http.send(&format!("OPTIONS /products/{id}"), &preflight, b"").await;
        assert!(answer.status.is_success(), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), OURS);
        let methods = answer.header("access-control-allow-methods");
        assert!(methods.contains("PUT") && methods.contains("DELETE"), "{methods}");
        let headers = answer.header("access-control-allow-headers");
        for name in ["content-type", "if-match", "x-grpc-web", "connect-protocol-version"] {
            assert!(headers.contains(name), "{headers}");
        }
        let json = [("origin", OURS), ("content-type", "application/json")];
        let put = http.send(&format!("PUT /products/{id}"), &json, br#"{"price":3}"#).await;
        assert_eq!((put.status, put.header("access-control-allow-origin")), (StatusCode::OK, OURS));
        let exposed = put.header("access-control-expose-headers").to_owned();
        for name in ["etag", "cache-status", "grpc-status", "retry-after"] {
            assert!(exposed.contains(name), "{exposed}");
        }
        assert!(put.header("vary").to_lowercase().contains("origin"), "{put:?}");
        let web = [("origin", OURS), ("content-type", "application/grpc-web")];
        let frame = framed(&get(id).encode_to_vec());
        let read = http.send(&format!("POST {GET}"), &web, &frame).await;
        assert_eq!(read.header("access-control-allow-origin"), OURS);
        // Errors, too, so that the page can read them.
        let missing = http.send("GET /v1/products/9999999", &[("origin", OURS)], b"").await;
        assert_eq!(missing.header("access-control-allow-origin"), OURS);
        let own = [json[1], ("origin", "http://localhost"), ("sec-fetch-site", "same-origin")];
        let put = http.send(&format!("PUT /products/{id}"), &own, br#"{"price":4}"#).await;
        assert_eq!(put.status, StatusCode::OK, "a page of its own origin");
    }
    let (_, exposition) = node.admin("/metrics").await;
    let unknown = exposition.lines().find(|line| {
        line.starts_with("grpc_server_handled_total{grpc_code=\"Unknown\"") && !line.ends_with(" 0")
    });
    assert_eq!(unknown, None, "a preflight is no error");
}
