//! Reads and checks the head of a request before the call starts
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::time::Duration;

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use super::reply::Reply;

const GRPC: &[u8] = b"application/grpc";

/// The fields of a request's head. Read in one pass, because each lookup by name costs more than the pass.
#[derive(Debug)]
pub(super) struct RequestHead {
    /// Whether the request is a POST with a gRPC content type. The others are judged in `web/forms.rs`.
    pub(super) is_grpc: bool,
    pub(super) encoding: Encoding,
    pub(super) timeout: Result<Option<Duration>, Malformed>,
}

impl RequestHead {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let (mut content_type, mut encoding, mut timeout) = (None, None, None);
        for (name, value) in request.headers() {
            let field = match name {
                name if *name == CONTENT_TYPE => &mut content_type,
                name if *name == GRPC_ENCODING => &mut encoding,
                name if *name == GRPC_TIMEOUT => &mut timeout,
                _ => continue,
            };
            field.get_or_insert(value);
        }
        let is_grpc = content_type.is_some_and(is_grpc) && request.method() == Method::POST;
        Self { is_grpc, encoding: encoding_of(encoding), timeout: timeout_of(timeout) }
    }
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    match content_type.as_bytes().strip_prefix(GRPC) {
        // application/grpc-web is another protocol.
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// The `grpc-encoding` of a request: how its message may be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    /// Not supported.
    Other,
}

// Constants, because a &str would be parsed at each lookup.
pub(super) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

pub(super) fn encoding_of(value: Option<&HeaderValue>) -> Encoding {
    match value.map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Encoding::Identity,
        Some(b"gzip") => Encoding::Gzip,
        Some(_) => Encoding::Other,
    }
}

/// A `grpc-timeout` that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The value of `grpc-timeout`, if any. A malformed one is an error, because without it the call could outlast its caller.
fn timeout_of(value: Option<&HeaderValue>) -> Result<Option<Duration>, Malformed> {
    match value {
        None => Ok(None),
        Some(value) => value.to_str().ok().and_then(parse).map(Some).ok_or(Malformed),
    }
}

/// Parses at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// The response to a request that is not gRPC, where gRPC is the only protocol: an HTTP status, because its client does not read `grpc-status`.
pub(super) fn refusal<B>(request: &Request<B>) -> Response<Reply> {
    let (status, name, value) = match *request.method() {
        Method::POST => (StatusCode::UNSUPPORTED_MEDIA_TYPE, ACCEPT, "application/grpc"),
        _ => (StatusCode::METHOD_NOT_ALLOWED, ALLOW, "POST"),
    };
    let mut refusal = Response::new(Reply::default());
    *refusal.status_mut() = status;
    refusal.headers_mut().insert(name, HeaderValue::from_static(value));
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_content_types_are_accepted() {
        let request = |content_type: &str| {
            let request = Request::post("/").header(CONTENT_TYPE, content_type);
            RequestHead::of(&request.body(()).expect("a request")).is_grpc
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

    #[test]
    fn grpc_timeouts_follow_the_protocol() {
        let read = |text: &str| {
            let request = Request::post("/").header("grpc-timeout", text);
            RequestHead::of(&request.body(()).expect("a request")).timeout
        };
        assert_eq!(RequestHead::of(&Request::new(())).timeout, Ok(None));
        assert_eq!(read("20m"), Ok(Some(Duration::from_millis(20))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3_600))));
        assert_eq!(read("7u"), Ok(Some(Duration::from_micros(7))));
        for bad in ["", "S", "20", "-1S", "123456789S", "1.5S", "1s", "+1S"] {
            assert_eq!(read(bad), Err(Malformed), "{bad:?}");
        }
    }
}
