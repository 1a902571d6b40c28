//! The documented cases of the Connect protocol (<https://connectrpc.com/docs/protocol>).

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hotshelf::proto::{GetProductRequest, Product, StreamHotKeysRequest, StreamHotKeysResponse};
use http::StatusCode;
use http_body_util::BodyExt;
use prost::Message;
use serde_json::{Value, json};

use super::{GET, VERSIONS};
use crate::harness::{Http, Stack, Suite, framed, get};

const UPDATE: &str = "/hotshelf.v1.ProductService/UpdateProduct";
const BATCH: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const DELETE: &str = "/hotshelf.v1.ProductService/DeleteProduct";
const HOT_KEYS: &str = "/hotshelf.v1.ProductService/StreamHotKeys";
const PROTO: (&str, &str) = ("content-type", "application/proto");
const JSON: (&str, &str) = ("content-type", "application/json");

pub fn register(suite: &mut Suite<'_>) {
    suite.single("web::connect_unary_calls_are_answered_in_both_codecs", unary);
    suite.single("web::connect_reads_are_answered_by_get", by_get);
    suite.single("web::connect_errors_have_their_code_and_details", errors);
    suite.single("web::connect_streams_end_with_their_status", streams);
    suite.single("web::connect_timeouts_are_deadlines", timeouts);
}

async fn unary(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let post = |path| format!("POST {path}");
        let read = http.send(&post(GET), &[PROTO], &get(id).encode_to_vec()).await;
        assert_eq!(read.header("content-type"), "application/proto");
        assert_eq!(read.header("content-length"), read.body.len().to_string());
        assert_eq!(Product::decode(&*read.body).unwrap(), node.product(id).await);
        assert!(read.header("cache-status").starts_with("hotshelf; "));
        let versioned = [JSON, ("connect-protocol-version", "1"), ("connect-timeout-ms", "5000")];
        for body in [format!("{{\"id\":{id}}}"), format!("{{\"id\":\"{id}\"}}")] {
            let read = http.send(&post(GET), &versioned, body.as_bytes()).await;
            assert_eq!(read.json()["id"], id.to_string(), "{body}: {read:?}");
        }
        let utf8 = [("content-type", "application/json; charset=utf-8")];
        let read = http.send(&post(GET), &utf8, format!("{{\"id\":{id}}}").as_bytes()).await;
        assert_eq!(read.status, StatusCode::OK);
        let body = json!({"product": {"id": id, "name": "lamp"}, "updateMask": "name"});
        let updated = http.json(&post(UPDATE), &body.to_string()).await;
        assert_eq!(updated.json()["name"], "lamp", "{updated:?}");
        let batch = http.json(&post(BATCH), &format!("{{\"ids\":[{id},9999999]}}")).await.json();
        assert_eq!(
            (&batch["products"][0]["id"], &batch["notFoundIds"]),
            (&json!(id.to_string()), &json!(["9999999"]))
        );
        let health = http.json("POST /grpc.health.v1.Health/Check", "{}").await;
        assert_eq!(health.json(), json!({"status": "SERVING"}));
        let explained = "POST /hotshelf.v1.AdminService/ExplainProduct";
        let explained = http.json(explained, &format!("{{\"id\":{id}}}")).await;
        assert_eq!(explained.status, StatusCode::OK, "{explained:?}");
        let body = gzip(format!("{{\"id\":{id}}}").as_bytes());
        let zipped = [JSON, ("content-encoding", "gzip")];
        let read = http.send(&post(GET), &zipped, &body).await;
        assert_eq!(read.json()["id"], id.to_string(), "{read:?}");
    }
    let mut http = Http::connect(VERSIONS[1], node.grpc_addr.port()).await;
    let deleted = http.json(&format!("POST {DELETE}"), &format!("{{\"id\":{id}}}")).await;
    assert_eq!(deleted.json(), json!({}));
}

fn gzip(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap()
}

async fn by_get(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let json = format!("%7B%22id%22%3A{id}%7D");
        let read = http.get(&format!("{GET}?connect=v1&encoding=json&message={json}")).await;
        assert_eq!(read.json()["id"], id.to_string(), "{read:?}");
        use base64::Engine;
        let encoded = get(id).encode_to_vec();
        for engine in [
            base64::engine::general_purpose::URL_SAFE,
            base64::engine::general_purpose::URL_SAFE_NO_PAD,
        ] {
            let message = engine.encode(&encoded).replace('=', "%3D");
            let path = format!("{GET}?message={message}&base64=1&encoding=proto&connect=v1");
            let read = http.get(&path).await;
            assert_eq!(Product::decode(&*read.body).unwrap().id, id);
        }
        let message = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(gzip(&encoded));
        let query = format!("message={message}&base64=1&encoding=proto&compression=gzip");
        let read = http.get(&format!("{GET}?{query}")).await;
        assert_eq!(Product::decode(&*read.body).unwrap().id, id, "{read:?}");
        let batch = format!("{BATCH}?encoding=json&message=%7B%22ids%22%3A%5B{id}%5D%7D");
        let read = http.get(&batch).await;
        let got = (read.status, read.header("cache-control"));
        assert_eq!(got, (StatusCode::OK, "private, no-cache"));
        let health = "/grpc.health.v1.Health/Check?encoding=json&message=%7B%7D";
        assert_eq!(http.get(health).await.header("cache-control"), "no-store");
        for (query, status) in [
            ("encoding=json", 400),
            ("message=%7B%7D", 400),
            ("encoding=xml&message=x", 415),
            ("connect=v2&encoding=json&message=%7B%7D", 400),
            ("encoding=proto&base64=1&message=%25", 400),
            ("encoding=json&message=%7B", 400),
            ("encoding=json&compression=br&message=%7B%7D", 501),
        ] {
            let refused = http.get(&format!("{GET}?{query}")).await;
            assert_eq!(refused.status.as_u16(), status, "{query}: {refused:?}");
        }
        // A write must not be made by a link.
        for path in [UPDATE, DELETE] {
            let line = format!("{path}?encoding=json&message={json}");
            let refused = http.get(&line).await;
            assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, "POST"));
        }
    }
    assert_eq!(node.product(id).await.id, id);
}

async fn errors(stack: Stack) {
    let node = stack.node().await;
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let line = format!("POST {GET}");
        let missing = http.json(&line, r#"{"id":9999999}"#).await;
        let error = missing.json();
        assert_eq!((missing.status.as_u16(), &error["code"]), (404, &json!("not_found")));
        assert_eq!(error["details"][0]["type"], "google.rpc.ErrorInfo");
        assert_eq!(error["details"][0]["debug"]["reason"], "PRODUCT_NOT_FOUND");
        assert!(!error["details"][0]["value"].as_str().unwrap().contains('='), "unpadded");
        assert!(missing.header("cache-status").starts_with("hotshelf; "));
        for (headers, body, status, code) in [
            (vec![JSON], r#"{"id":0}"#, 400, "invalid_argument"),
            (vec![JSON], r#"{"idd":1}"#, 400, "invalid_argument"),
            (vec![JSON], "", 400, "invalid_argument"),
            (vec![JSON, ("connect-protocol-version", "2")], "{}", 400, "invalid_argument"),
            (vec![JSON, ("connect-timeout-ms", "soon")], "{}", 400, "invalid_argument"),
            (vec![JSON, ("connect-timeout-ms", "12345678901")], "{}", 400, "invalid_argument"),
            (vec![JSON, ("content-encoding", "zstd")], "{}", 501, "unimplemented"),
            (vec![PROTO], "\u{1}\u{2}", 400, "invalid_argument"),
        ] {
            let refused = http.send(&line, &headers, body.as_bytes()).await;
            let got = (refused.status.as_u16(), refused.json()["code"].clone());
            assert_eq!(got, (status, json!(code)), "{headers:?} {body:?}: {refused:?}");
            assert_eq!(refused.header("content-type"), "application/json");
        }
        for content_type in ["application/connect+json", "application/xml", "text/plain"] {
            let refused = http.send(&line, &[("content-type", content_type)], b"{}").await;
            assert_eq!(refused.status.as_u16(), 415, "{content_type}");
        }
        let unknown = http.json("POST /hotshelf.v1.ProductService/ListProducts", "{}").await;
        assert_eq!(unknown.status.as_u16(), 404);
    }
}

/// The envelopes of a stream: their flags and contents.
fn envelopes(mut body: &[u8]) -> Vec<(u8, Bytes)> {
    let mut envelopes = Vec::new();
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
        let Some(content) = rest.get(..length) else { break };
        envelopes.push((prefix[0], Bytes::copy_from_slice(content)));
        body = &rest[length..];
    }
    envelopes
}

async fn streams(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    for _ in 0..20 {
        node.product(id).await;
    }
    let line = format!("POST {HOT_KEYS}");
    for version in VERSIONS {
        for codec in ["application/connect+json", "application/connect+proto"] {
            let mut http = Http::connect(version, node.grpc_addr.port()).await;
            let is_json = codec.ends_with("json");
            let body = match is_json {
                true => framed(br#"{"limit":1,"interval":"0.1s"}"#),
                false => framed(
                    &StreamHotKeysRequest {
                        limit: 1,
                        interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
                        ..Default::default()
                    }
                    .encode_to_vec(),
                ),
            };
            let response = http.begin(&line, &[("content-type", codec)], &body).await;
            assert_eq!(response.headers()["content-type"], codec);
            let (mut body, mut received) = (response.into_body(), Vec::new());
            while envelopes(&received).len() < 3 {
                let frame = body.frame().await.unwrap().unwrap();
                received.extend_from_slice(frame.data_ref().unwrap());
            }
            let (flags, message) = &envelopes(&received)[0];
            assert_eq!(*flags, 0);
            let hottest = match is_json {
                true => {
                    serde_json::from_slice::<Value>(message).unwrap()["hotKeys"][0]["productId"]
                        .clone()
                }
                false => {
                    let snapshot = StreamHotKeysResponse::decode(&**message).unwrap();
                    snapshot.hot_keys[0].product_id.to_string().into()
                }
            };
            assert_eq!(hottest, id.to_string());
            // An error, also before the first message, is in the last envelope.
            let mut http = Http::connect(version, node.grpc_addr.port()).await;
            let wrong = match is_json {
                true => framed(br#"{"limit":5000}"#),
                false => framed(
                    &StreamHotKeysRequest { limit: 5_000, ..Default::default() }.encode_to_vec(),
                ),
            };
            let refused = http.send(&line, &[("content-type", codec)], &wrong).await;
            assert_eq!(refused.status, StatusCode::OK);
            let ends = envelopes(&refused.body);
            assert_eq!((ends.len(), ends[0].0), (1, 2));
            let end: Value = serde_json::from_slice(&ends[0].1).unwrap();
            assert_eq!(end["error"]["code"], "invalid_argument", "{end}");
            for unary in ["application/json", "application/proto"] {
                let refused = http.send(&line, &[("content-type", unary)], b"{}").await;
                assert_eq!(refused.status.as_u16(), 415);
            }
        }
    }
}

async fn timeouts(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let lock = stack.lock_products().await;
    let request = GetProductRequest { id, ..Default::default() }.encode_to_vec();
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        let headers = [PROTO, ("connect-timeout-ms", "100")];
        let late = http.send(&format!("POST {GET}"), &headers, &request).await;
        assert_eq!(late.status.as_u16(), 504, "{late:?}");
        assert_eq!(late.json()["code"], "deadline_exceeded");
        let path = format!("GET /v1/products/{id}");
        let late = http.send(&path, &[("grpc-timeout", "100m")], b"").await;
        assert_eq!((late.status.as_u16(), late.reason()), (504, "DEADLINE_EXCEEDED".into()));
        let malformed = http.send(&path, &[("grpc-timeout", "soon")], b"").await;
        assert_eq!(malformed.reason(), "MALFORMED_REQUEST");
    }
    lock.rollback().await.unwrap();
}
