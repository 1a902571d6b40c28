//! Pages of other origins: CORS for those that are configured, and no changes by any other.
//!
//! A browser sends some requests to any address without asking it first, so a request that changes something is refused when a
//! browser says that it comes from a page of another origin.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{
    AUTHORIZATION, CACHE_STATUS, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HOST, IF_MATCH,
    IF_NONE_MATCH, LOCATION, ORIGIN, RETRY_AFTER,
};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request};
use tower_http::cors::CorsLayer;

/// How long a browser may keep the answer to a preflight. Browsers have limits of their own, two hours in Chromium.
const MAX_AGE: Duration = Duration::from_secs(2 * 3_600);
/// Whether the page and the server have one origin (<https://www.w3.org/TR/fetch-metadata>).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// The headers that a page may send, besides those that any may.
const REQUEST_HEADERS: [HeaderName; 16] = [
    AUTHORIZATION,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    IF_MATCH,
    IF_NONE_MATCH,
    HeaderName::from_static("min-version"),
    HeaderName::from_static("max-staleness"),
    HeaderName::from_static("connect-protocol-version"),
    HeaderName::from_static("connect-timeout-ms"),
    HeaderName::from_static("connect-accept-encoding"),
    HeaderName::from_static("connect-content-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// The headers that a page may read.
const RESPONSE_HEADERS: [HeaderName; 7] = [
    CACHE_STATUS,
    ETAG,
    LOCATION,
    RETRY_AFTER,
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

pub(super) fn cors(origins: Vec<HeaderValue>) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods(METHODS)
        .allow_headers(REQUEST_HEADERS)
        .expose_headers(RESPONSE_HEADERS)
        .max_age(MAX_AGE)
}

/// Whether a request has to be refused because a page of another origin may be its author.
pub(super) fn is_refused<B>(request: &Request<B>, allowed: &[HeaderValue]) -> bool {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    let headers = request.headers();
    if headers.get_all(ORIGIN).iter().count() > 1 {
        return true;
    }
    let origin = headers.get(ORIGIN);
    if origin.is_some_and(|origin| allowed.contains(origin)) {
        return false;
    }
    let own = request.uri().authority().map(Authority::as_str);
    let own = own.or_else(|| headers.get(HOST)?.to_str().ok());
    match (headers.get(SEC_FETCH_SITE), origin) {
        (None, None) => false,
        (Some(site), _) if !matches!(site.as_bytes(), b"same-origin" | b"none") => true,
        (Some(_), None) => !is_local(own),
        (_, Some(origin)) => {
            let host = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            let is_same =
                |(_, host): (&str, &str)| own.is_some_and(|own| own.eq_ignore_ascii_case(host));
            !host.is_some_and(is_same) || !is_local(own)
        }
    }
}

/// Whether a host is an address or this machine. Any other name may be one that a page of somebody else has made lead here (DNS
/// rebinding), so that the browser takes both for one origin.
fn is_local(host: Option<&str>) -> bool {
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: http::request::Builder) -> bool {
        let allowed = [HeaderValue::from_static("https://shop.example")];
        is_refused(&request.body(()).expect("a request"), &allowed)
    }

    #[test]
    fn only_pages_of_other_origins_are_refused() {
        let put = || Request::put("/products/1").header("host", "127.0.0.1:50051");
        let renamed = || Request::put("/products/1").header("host", "evil.example:50051");
        assert!(!refused(put()), "no browser");
        assert!(!refused(put().header("origin", "https://shop.example")), "configured");
        assert!(!refused(put().header("origin", "http://127.0.0.1:50051")), "its own page");
        assert!(!refused(put().header("sec-fetch-site", "same-origin")));
        assert!(!refused(put().header("sec-fetch-site", "none")), "typed by the user");
        assert!(refused(put().header("origin", "https://evil.example")));
        assert!(refused(put().header("origin", "http://127.0.0.1:8080")), "another port");
        assert!(refused(renamed().header("origin", "http://evil.example:50051")), "rebound");
        assert!(refused(renamed().header("sec-fetch-site", "same-origin")), "rebound");
        assert!(!refused(Request::put("/").header("host", "api.example")), "no browser");
        assert!(refused(put().header("origin", "null")), "a sandboxed page or a local file");
        assert!(refused(put().header("sec-fetch-site", "cross-site")));
        assert!(refused(put().header("sec-fetch-site", "same-site")));
        assert!(!refused(Request::get("/products/1").header("origin", "https://evil.example")));
    }
}
