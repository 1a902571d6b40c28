//! The span of a call: what its request and its response say of it.

use http::header::CACHE_STATUS;
use http::{HeaderMap, Request, Response};
use tonic::Code;

use super::reply::Reply;
use crate::caller::SpanKey;
use crate::metrics::Method;
use crate::traces::{Span, Traces};

/// Begins the span of a call, if the call is sampled.
#[cold]
pub(super) fn begin<B>(traces: &Traces, method: Method, request: &Request<B>) -> SpanKey {
    let header = |name| request.headers().get(name).map(http::HeaderValue::as_bytes);
    // Not the path, which the client chooses.
    let (service, rpc) = method.service_and_name();
    let name = match method {
        Method::Other => rpc.to_owned(),
        _ => format!("{service}/{rpc}"),
    };
    let key = traces.begin_call(&name, header("traceparent"), header("tracestate"));
    if key.is_some() {
        let span = traces.call(key);
        // Of the others `web.rs` sets the protocol.
        if header("content-type").is_some_and(|value| value.starts_with(b"application/grpc")) {
            span.set("rpc.system", "grpc");
        }
        if method != Method::Other {
            span.set("rpc.service", service);
            span.set("rpc.method", rpc);
        }
    }
    key
}

/// Records which tier has answered, and what.
#[cold]
pub(super) fn record_response(span: &Span, response: &Response<Reply>) {
    record_cache_status(span, response.headers());
    if let Some(version) = response.body().version() {
        span.set("hotshelf.version", version.0);
    }
}

fn record_cache_status(span: &Span, headers: &HeaderMap) {
    let Some(status) = headers.get(CACHE_STATUS).and_then(|value| value.to_str().ok()) else {
        return;
    };
    span.set("hotshelf.cache_status", status);
    let detail = status.split("; ").find_map(|parameter| parameter.strip_prefix("detail="));
    if let Some(tier) = detail {
        span.set("hotshelf.tier", tier);
    }
}

/// Ends the span of a call.
#[cold]
pub(super) fn end(traces: &Traces, key: SpanKey, code: Code) {
    let span = traces.end_call(key);
    span.set("rpc.grpc.status_code", i64::from(code as i32));
    // The codes that are the server's fault, by the conventions of OpenTelemetry.
    if let Code::Unknown
    | Code::DeadlineExceeded
    | Code::Unimplemented
    | Code::Internal
    | Code::Unavailable
    | Code::DataLoss = code
    {
        span.fail(code.description());
    }
}
