//! The rules of gRPC for the head of a request
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>), checked before anything is done.

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use super::reply::Reply;

const GRPC: &[u8] = b"application/grpc";

/// Whether a request is a POST of a gRPC message. A web page can send other content types to any address without asking
/// (a CORS preflight), so a server that accepted them would take writes from every page that its users open.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && has_grpc_message(request.headers())
}

fn has_grpc_message(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| match value.as_bytes().strip_prefix(GRPC) {
        // application/grpc-web is another protocol.
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    })
}

/// What a request gets that is none of gRPC: an HTTP status, because its sender does not read gRPC's.
pub(super) fn refusal<B>(request: &Request<B>) -> Response<Reply> {
    let (status, name, works) = match *request.method() {
        Method::POST => (StatusCode::UNSUPPORTED_MEDIA_TYPE, ACCEPT, "application/grpc"),
        _ => (StatusCode::METHOD_NOT_ALLOWED, ALLOW, "POST"),
    };
    let mut refusal = Response::new(Reply::default());
    *refusal.status_mut() = status;
    refusal.headers_mut().insert(name, HeaderValue::from_static(works));
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_is_grpc() {
        let request = |content_type: &str| {
            let request = Request::post("/").header(CONTENT_TYPE, content_type);
            is_grpc(&request.body(()).expect("a request"))
        };
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;v=1"] {
            assert!(request(grpc), "{grpc}");
        }
        for other in
            ["", "text/plain", "application/json", "application/grpc-web", "application/grpcx"]
        {
            assert!(!request(other), "{other}");
        }
    }
}
