//! gRPC-Web.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hotshelf::proto::Product;
use http::StatusCode;
use prost::Message;

use super::{GET, VERSIONS};
use crate::harness::{Http, Reply, Stack, Suite, eventually, framed, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("web::grpc_web_is_answered_in_binary_and_text", answered);
}

/// The message of an answer, and the trailers in its last frame.
fn parts(mut body: &[u8]) -> (Vec<u8>, String) {
    let (mut message, mut trailers) = (Vec::new(), String::new());
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
        match prefix[0] {
            0 => message.extend_from_slice(&rest[..length]),
            0x80 => trailers += std::str::from_utf8(&rest[..length]).unwrap(),
            other => panic!("{other}"),
        }
        body = &rest[length..];
    }
    (message, trailers)
}

async fn answered(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    let frame = framed(&get(id).encode_to_vec());
    let line = format!("POST {GET}");
    for version in VERSIONS {
        let mut http = Http::connect(version, node.grpc_addr.port()).await;
        for content_type in
            ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web; v=1"]
        {
            let headers = [("content-type", content_type), ("x-grpc-web", "1")];
            let answer = http.send(&line, &headers, &frame).await;
            let (message, trailers) = parts(&answer.body);
            assert_eq!(Product::decode(&*message).unwrap(), node.product(id).await);
            assert_eq!(trailers, "grpc-status:0\r\n");
            assert_eq!(answer.header("content-type"), "application/grpc-web+proto");
            assert!(answer.header("cache-status").starts_with("hotshelf; "));
        }
        let text = STANDARD.encode(&frame);
        for content_type in ["application/grpc-web-text", "application/grpc-web-text+proto"] {
            let answer = http.send(&line, &[("content-type", content_type)], text.as_bytes()).await;
            assert!(answer.header("content-type").starts_with("application/grpc-web-text"));
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            let body: Vec<u8> = text
                .split_inclusive('=')
                .fold((Vec::new(), String::new()), |(mut body, part), next| {
                    let part = part + next;
                    match part.len() % 4 == 0 {
                        true => {
                            body.extend(STANDARD.decode(&part).unwrap());
                            (body, String::new())
                        }
                        false => (body, part),
                    }
                })
                .0;
            let (message, trailers) = parts(&body);
            assert_eq!(Product::decode(&*message).unwrap().id, id);
            assert_eq!(trailers, "grpc-status:0\r\n");
        }
        let headers = [("content-type", "application/grpc-web")];
        let status = |answer: &Reply| {
            let (_, trailers) = parts(&answer.body);
            let header = answer.header("grpc-status").to_owned();
            assert_eq!(answer.status, StatusCode::OK);
            let line = trailers.lines().find_map(|line| line.strip_prefix("grpc-status:"));
            line.map_or(header, |code| code.trim().to_owned())
        };
        let missing = framed(&get(9_999_999).encode_to_vec());
        assert_eq!(status(&http.send(&line, &headers, &missing).await), "5");
        assert_eq!(status(&http.send(&line, &headers, b"").await), "3", "malformed");
        assert_eq!(status(&http.send(&line, &headers, &[0; 3]).await), "3", "malformed");
        let late = [headers[0], ("grpc-timeout", "soon")];
        assert_eq!(status(&http.send(&line, &late, &frame).await), "3", "malformed");
        let json = http.send(&line, &[("content-type", "application/grpc-web+json")], b"{}").await;
        assert_eq!(json.status.as_u16(), 415);
    }
    let series = |code| {
        format!(
            "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"GetProduct\",\
             grpc_service=\"hotshelf.v1.ProductService\",grpc_type=\"unary\"}}"
        )
    };
    eventually("they are counted", async || {
        node.metric(&series("NotFound")).await == 2.0
            && node.metric(&series("InvalidArgument")).await == 6.0
            && node.metric(&series("Unknown")).await == 0.0
            && node.metric(&series("Canceled")).await == 0.0
    })
    .await;
}
