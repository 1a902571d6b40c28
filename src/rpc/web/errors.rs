//! Errors in the forms of the protocols: `google.rpc.Status` as JSON, and Connect's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CACHE_STATUS, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use prost::Message;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::forms::Refusal;
use super::types::{Types, to_value};
use crate::rpc::reply::{Chunk, Reply};
use crate::rpc::status;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// An error of the JSON API.
pub(super) fn rest(types: &Types, status: &Status) -> Response<Reply> {
    rest_as(http_status(status), types, status)
}

/// The same, of a request with the precondition `If-Match`.
pub(super) fn rest_of_precondition(types: &Types, status: &Status) -> Response<Reply> {
    match reason(status).as_deref() {
        Some("VERSION_MISMATCH") => rest_as(StatusCode::PRECONDITION_FAILED, types, status),
        _ => rest(types, status),
    }
}

/// The response to a request that is in no protocol.
pub(super) fn refused(types: &Types, refusal: Refusal) -> Response<Reply> {
    let refused = match refusal {
        Refusal::NoSuchPath => status::no_such_path(),
        Refusal::WrongMethod(allowed) => status::wrong_method(allowed),
        Refusal::ContentType(accepted) => status::content_type(accepted),
    };
    let mut response = rest(types, &refused);
    let hint = match refusal {
        Refusal::NoSuchPath => None,
        Refusal::WrongMethod(allowed) => Some((ALLOW, allowed)),
        Refusal::ContentType(accepted) => Some((ACCEPT, accepted)),
    };
    if let Some((name, value)) = hint {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn rest_as(http: StatusCode, types: &Types, status: &Status) -> Response<Reply> {
    response(http, status, &rest_value(types, status))
}

/// A `google.rpc.Status`.
pub(super) fn rest_value(types: &Types, status: &Status) -> Value {
    let mut value = json!({ "code": status.code() as i32, "message": status.message() });
    if let Some(Value::Object(known)) = described(types, status)
        && let Some(details) = known.get("details")
    {
        value["details"] = details.clone();
    }
    value
}

/// The status as a `google.rpc.Status`, whose details have their types.
fn described(types: &Types, status: &Status) -> Option<Value> {
    to_value(types.message("google.rpc.Status")?, status.details())
}

/// An error of Connect (<https://connectrpc.com/docs/protocol#error-end-stream>).
pub(super) fn connect(types: &Types, status: &Status) -> Response<Reply> {
    let http = match reason(status).as_deref() {
        Some("UNSUPPORTED_MEDIA_TYPE" | "NO_SUCH_PATH") => http_status(status),
        _ => by_code(status.code()),
    };
    response(http, status, &connect_value(types, status))
}

pub(super) fn connect_value(types: &Types, status: &Status) -> Value {
    let mut error = Map::new();
    error.insert("code".to_owned(), connect_code(status.code()).into());
    if !status.message().is_empty() {
        error.insert("message".to_owned(), status.message().into());
    }
    let details = tonic_types::pb::Status::decode(status.details()).unwrap_or_default().details;
    let debug = described(types, status).and_then(|known| known.get("details").cloned());
    let detail = |(place, detail): (usize, prost_types::Any)| {
        let name = detail.type_url.rsplit('/').next().unwrap_or_default().to_owned();
        let mut shown = json!({ "type": name, "value": STANDARD_NO_PAD.encode(&detail.value) });
        if let Some(Value::Object(known)) = debug.as_ref().and_then(|debug| debug.get(place)) {
            let mut known = known.clone();
            known.remove("@type");
            shown["debug"] = Value::Object(known);
        }
        shown
    };
    let details: Vec<Value> = details.into_iter().enumerate().map(detail).collect();
    if !details.is_empty() {
        error.insert("details".to_owned(), details.into());
    }
    Value::Object(error)
}

/// An error of gRPC-Web, before tonic-web translates.
pub(super) fn grpc_web(status: &Status) -> Response<Reply> {
    let mut response: Response<Reply> = status.clone().into_http();
    let content_type = HeaderValue::from_static("application/grpc-web+proto");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn response(http: StatusCode, status: &Status, body: &Value) -> Response<Reply> {
    let chunk = Chunk::Made(body.to_string().into());
    let mut response = Response::new(Reply::whole(chunk, status.code(), None));
    *response.status_mut() = http;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, NO_STORE);
    advise(headers, status);
    response
}

/// The headers that say what to do.
fn advise(headers: &mut HeaderMap, status: &Status) {
    let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    if let Some(delay) = retry {
        // Whole seconds, rounded up.
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if status.code() == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let tier = status.metadata().get(CACHE_STATUS.as_str());
    if let Some(tier) = tier.and_then(|tier| HeaderValue::from_bytes(tier.as_bytes()).ok()) {
        headers.insert(CACHE_STATUS, tier);
    }
    let accepted = status.metadata().get("grpc-accept-encoding");
    if accepted.is_some() {
        headers.insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

fn reason(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    details.error_info().map(|info| info.reason.clone())
}

fn http_status(status: &Status) -> StatusCode {
    match reason(status).as_deref() {
        Some("REQUEST_TOO_LARGE") => StatusCode::PAYLOAD_TOO_LARGE,
        Some("UNKNOWN_ENCODING" | "UNSUPPORTED_MEDIA_TYPE") => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Some("METHOD_NOT_ALLOWED") => StatusCode::METHOD_NOT_ALLOWED,
        Some("NO_SUCH_PATH") => StatusCode::NOT_FOUND,
        _ => by_code(status.code()),
    }
}

/// The mapping of google/rpc/code.proto, which Connect has, too.
fn by_code(code: Code) -> StatusCode {
    let number = match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn connect_code(code: Code) -> &'static str {
    match code {
        // An error is never OK.
        Code::Ok | Code::Unknown => "unknown",
        Code::Cancelled => "canceled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
