//! The rules of gRPC for the head of a request
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>), checked before anything is done.

use std::time::Duration;

use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use super::reply::Reply;

const GRPC: &[u8] = b"application/grpc";

/// What the head of a request says. It is read in one pass: each lookup of a name costs more than that.
#[derive(Debug)]
pub(super) struct RequestHead {
    /// Whether it is a POST of a gRPC message. A web page can send other content types to any address without asking (a CORS
    /// preflight), so a server that accepted them would take writes from every page that its users open.
    pub(super) is_grpc: bool,
    pub(super) encoding: Encoding,
    pub(super) timeout: Result<Option<Duration>, Malformed>,
}

impl RequestHead {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let (mut content_type, mut encoding, mut timeout) = (None, None, None);
        for (name, value) in request.headers() {
            let said = match name {
                name if *name == CONTENT_TYPE => &mut content_type,
                name if *name == GRPC_ENCODING => &mut encoding,
                name if *name == GRPC_TIMEOUT => &mut timeout,
                _ => continue,
            };
            said.get_or_insert(value);
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

/// How a request says that its message may be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// It may not.
    Identity,
    Gzip,
    /// In a way that is not supported.
    Other,
}

// Names that are no strings are not parsed for each call.
pub(super) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

fn encoding_of(value: Option<&HeaderValue>) -> Encoding {
    match value.map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Encoding::Identity,
        Some(b"gzip") => Encoding::Gzip,
        Some(_) => Encoding::Other,
    }
}

/// A `grpc-timeout` that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What `grpc-timeout` says, if there is one. To ignore a malformed one would be to wait for longer than the caller does.
fn timeout_of(value: Option<&HeaderValue>) -> Result<Option<Duration>, Malformed> {
    match value {
        None => Ok(None),
        Some(value) => value.to_str().ok().and_then(parse).map(Some).ok_or(Malformed),
    }
}

/// At most eight digits and a unit.
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
    fn grpc_timeouts_are_read_as_the_protocol_writes_them() {
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
