//! The only place where errors become gRPC statuses: a code, a message that is safe to show, and `google.rpc` details.
//! Causes that clients must not see are logged here.

use std::collections::HashMap;
use std::time::Duration;

use http::Response;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::allowance::OverLimit;
use crate::catalog::{Error, Refusal, Refused};
use crate::metrics::{AuthRefusal, PostgresShare, Shed};
use crate::product::Version;

/// `ErrorInfo.domain` of every error.
const DOMAIN: &str = "hotshelf";
/// The `RetryInfo` of every status that may be retried.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The status of a failed read or write. `expected` is the version in the request, if any.
pub(super) fn of_error(error: &Error, expected: Option<Version>) -> Status {
    match error {
        Error::NotFound => not_found(),
        Error::VersionMismatch { current } => {
            let versions = versions(*current, "expected_version", expected);
            let message = format!(
                "the product is at version {current}, not the expected one; read it again and repeat the change"
            );
            status(Code::Aborted, message, "VERSION_MISMATCH", versions)
        }
        Error::VersionNotReached { current } => {
            let versions = versions(*current, "min_version", expected);
            let message = format!(
                "the product is only at version {current}; min_version was never committed"
            );
            status(Code::FailedPrecondition, message, "VERSION_NOT_REACHED", versions)
        }
        Error::Unavailable(why) => {
            tracing::warn!(%why, "PostgreSQL is unavailable; the call fails");
            let message = "the database cannot be reached, and nothing cached may be served";
            retry(Code::Unavailable, message, "DATABASE_UNAVAILABLE")
        }
        Error::OverBudget(share) => over_budget(*share),
        Error::ProductBusy => {
            let message = "too many writes of the product wait for each other; nothing was changed";
            retry(Code::Aborted, message, "PRODUCT_BUSY")
        }
        Error::OutcomeUnknown(why) => {
            tracing::warn!(
                %why,
                "the connection to PostgreSQL broke during a write, which may be committed"
            );
            let message = "the connection to the database broke during the write, which may have been committed; read before writing again";
            retry(Code::Unavailable, message, "WRITE_OUTCOME_UNKNOWN")
        }
        Error::Locked => {
            let message = "another transaction held the row of the product until the deadline; nothing was changed";
            retry(Code::Aborted, message, "PRODUCT_LOCKED")
        }
        Error::Refused(refused) => refused_by_database(refused),
        Error::Unreadable(why) => {
            let column = why.split(':').next().unwrap_or_default().to_owned();
            let message = format!(
                "the row of the product cannot be expressed by the API; {why}; write a value that can"
            );
            let metadata = HashMap::from([("column".to_owned(), column)]);
            status(Code::FailedPrecondition, message, "PRODUCT_UNREADABLE", metadata)
        }
        Error::Invalid(field, why) => invalid(format!("product.{field}"), why),
        Error::Internal(why) => internal(why),
    }
}

fn over_budget(share: PostgresShare) -> Status {
    let (message, reason) = match share {
        PostgresShare::Loads => {
            ("too many reads are waiting for the database", "DATABASE_BUDGET_EXHAUSTED")
        }
        PostgresShare::Latest => (
            "too many reads that no cache may answer are waiting for the database",
            "TOO_MANY_LATEST_READS",
        ),
        PostgresShare::Writes => {
            ("too many writes are waiting for the database; nothing was changed", "TOO_MANY_WRITES")
        }
        PostgresShare::Operators => {
            ("too many explanations are being made", "TOO_MANY_EXPLANATIONS")
        }
    };
    retry(Code::ResourceExhausted, message, reason)
}

/// A constraint or a trigger of the database's owner refused the write; the details name the constraint and the field.
fn refused_by_database(refused: &Refused) -> Status {
    let code = match refused.what {
        Refusal::Duplicate => Code::AlreadyExists,
        Refusal::Value => Code::InvalidArgument,
        Refusal::State => Code::FailedPrecondition,
    };
    let field = refused.field.as_ref().map(|field| format!("product.{field}"));
    let metadata = [("constraint", refused.constraint.as_ref()), ("field", field.as_ref())];
    let metadata = metadata
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name.to_owned(), value.clone())));
    let named = field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
    let message = format!("{named}the database refused the write: {refused}");
    let mut details = info("CONSTRAINT_VIOLATED", metadata.collect());
    if let (Some(field), Code::InvalidArgument) = (field, code) {
        details.add_bad_request_violation(field, refused.to_string());
    }
    Status::with_error_details(code, message, details)
}

pub(super) fn not_found() -> Status {
    status(Code::NotFound, "no such product", "PRODUCT_NOT_FOUND", HashMap::new())
}

/// A field that breaks its rules. `field` is its path in the request, such as `product.price.nanos`.
pub(super) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Status {
    let (field, why) = (field.into(), why.into());
    let message = format!("{field}: {why}");
    let mut details = info("INVALID_FIELD", HashMap::from([("field".to_owned(), field.clone())]));
    details.add_bad_request_violation(field, why);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// Replaces tonic's own errors by the documented ones: tonic answers a request above the limit with OUT_OF_RANGE and one that
/// it cannot decode with INTERNAL, both without details.
pub(super) fn with_details(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(refused) if refused.code() == Code::OutOfRange => request_too_large().into_http(),
        Some(refused) if refused.code() == Code::Internal && refused.details().is_empty() => {
            malformed(refused.message()).into_http()
        }
        _ => response,
    }
}

/// A request that cannot be decoded, or a head that violates the gRPC protocol.
pub(super) fn malformed(why: &str) -> Status {
    let message = format!("the request cannot be read: {why}");
    status(Code::InvalidArgument, message, "MALFORMED_REQUEST", HashMap::new())
}

/// A defect of this program. `why` is logged and not sent.
pub(super) fn internal(why: &str) -> Status {
    tracing::error!(%why, "internal error");
    status(Code::Internal, "internal error", "INTERNAL", HashMap::new())
}

pub(super) fn unknown_encoding() -> Status {
    let message = "requests may be compressed with gzip only";
    let mut status = status(Code::Unimplemented, message, "UNKNOWN_ENCODING", HashMap::new());
    let accepted = MetadataValue::from_static("identity,gzip");
    status.metadata_mut().insert("grpc-accept-encoding", accepted);
    status
}

/// Has no `RetryInfo`, because the same call always fails.
pub(super) fn request_too_large() -> Status {
    let message = "the request is larger than this server accepts";
    status(Code::ResourceExhausted, message, "REQUEST_TOO_LARGE", HashMap::new())
}

/// Has no `RetryInfo`, because the same call always fails.
fn response_too_large() -> Status {
    let message = "the products exceed the largest response of this server; ask for fewer";
    status(Code::ResourceExhausted, message, "RESPONSE_TOO_LARGE", HashMap::new())
}

/// The response is above the request's `max_response_bytes`; has no `RetryInfo`.
pub(super) fn response_above(max_bytes: usize) -> Status {
    let message = "the products exceed max_response_bytes, which is 4 MiB by default; ask for fewer, or raise it and the message limit of your client";
    let metadata = HashMap::from([("max_response_bytes".to_owned(), max_bytes.to_string())]);
    status(Code::ResourceExhausted, message, "RESPONSE_TOO_LARGE", metadata)
}

pub(super) fn deadline_exceeded() -> Status {
    let message = "the call took longer than its deadline";
    status(Code::DeadlineExceeded, message, "DEADLINE_EXCEEDED", HashMap::new())
}

/// A limit for all callers or for one leaves no room.
pub(super) fn over_limit(over: OverLimit) -> Status {
    match over.kind {
        Shed::Calls => too_many_requests(),
        Shed::UnsentBytes if over.always => response_too_large(),
        Shed::UnsentBytes => too_many_unsent_bytes(),
        Shed::RequestBytes => too_many_request_bytes(),
        _ => too_many_streams(),
    }
}

fn too_many_requests() -> Status {
    retry(Code::ResourceExhausted, "too many calls are in flight", "TOO_MANY_REQUESTS")
}

fn too_many_unsent_bytes() -> Status {
    let message = "too many bytes of responses wait to be read, of this caller or of all";
    retry(Code::ResourceExhausted, message, "TOO_MANY_UNSENT_BYTES")
}

fn too_many_request_bytes() -> Status {
    let message = "too many requests are not complete, of this caller or of all";
    retry(Code::ResourceExhausted, message, "TOO_MANY_REQUEST_BYTES")
}

fn too_many_streams() -> Status {
    let message = "too many streams are open, of this caller or of all";
    retry(Code::ResourceExhausted, message, "TOO_MANY_STREAMS")
}

/// Has no `RetryInfo`, because it is a setting.
pub(super) fn read_only() -> Status {
    let message = "this instance does not write products (READ_ONLY)";
    status(Code::FailedPrecondition, message, "READ_ONLY", HashMap::new())
}

/// The path is none of a method.
pub(super) fn no_such_path() -> Status {
    let message = "there is nothing at this path; the paths are listed at /openapi.json";
    status(Code::Unimplemented, message, "NO_SUCH_PATH", HashMap::new())
}

/// The path has other HTTP methods.
pub(super) fn wrong_method(allowed: &str) -> Status {
    let message = format!("this path has the HTTP methods {allowed}");
    status(Code::Unimplemented, message, "METHOD_NOT_ALLOWED", HashMap::new())
}

/// The request has another content type than those that are `accepted`.
pub(super) fn content_type(accepted: &str) -> Status {
    let message = format!("the content type has to be one of {accepted}");
    status(Code::Unimplemented, message, "UNSUPPORTED_MEDIA_TYPE", HashMap::new())
}

/// A page of another origin made the request, which may change something.
pub(super) fn cross_site() -> Status {
    let message = "a page of another origin made this request; add its origin to CORS_ORIGINS";
    status(Code::PermissionDenied, message, "ORIGIN_NOT_ALLOWED", HashMap::new())
}

pub(super) fn draining() -> Status {
    retry(Code::Unavailable, "this instance is shutting down", "DRAINING")
}

/// The caller is not authenticated, or lacks `scope`.
pub(super) fn unauthorized(refusal: AuthRefusal, scope: Option<&'static str>) -> Status {
    let (reason, message) = match refusal {
        AuthRefusal::TokenMissing | AuthRefusal::Certificate => (
            "TOKEN_MISSING",
            "the call has no token; send the metadata authorization: Bearer TOKEN",
        ),
        AuthRefusal::TokenMalformed => {
            ("TOKEN_INVALID", "the authorization metadata holds no token of the expected form")
        }
        AuthRefusal::Algorithm => ("TOKEN_INVALID", "the token's algorithm is not that of its key"),
        AuthRefusal::UnknownKey => ("TOKEN_INVALID", "the token's key is not trusted here"),
        AuthRefusal::Signature => ("TOKEN_INVALID", "the token's signature is not valid"),
        AuthRefusal::TooManyInvalid => {
            let message = "too many tokens on this connection were not valid; new ones are not verified for a moment";
            return retry(Code::ResourceExhausted, message, "TOO_MANY_INVALID_TOKENS");
        }
        AuthRefusal::TokenExpired => ("TOKEN_EXPIRED", "the token has expired; get a new one"),
        AuthRefusal::NotYetValid => ("TOKEN_INVALID", "the token is not valid yet"),
        AuthRefusal::Audience => ("TOKEN_INVALID", "the token is for another audience"),
        AuthRefusal::Issuer => ("TOKEN_INVALID", "the token is from another issuer"),
        AuthRefusal::ScopeMissing => {
            let scope = scope.unwrap_or_default();
            let message = format!("the caller lacks the scope {scope}");
            let metadata = HashMap::from([("scope".to_owned(), scope.to_owned())]);
            return status(Code::PermissionDenied, message, "SCOPE_MISSING", metadata);
        }
    };
    status(Code::Unauthenticated, message, reason, HashMap::new())
}

fn versions(current: Version, name: &str, requested: Option<Version>) -> HashMap<String, String> {
    let mut metadata = HashMap::from([("current_version".to_owned(), current.to_string())]);
    if let Some(requested) = requested {
        metadata.insert(name.to_owned(), requested.to_string());
    }
    metadata
}

fn info(reason: &str, metadata: HashMap<String, String>) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

fn status(
    code: Code,
    message: impl Into<String>,
    reason: &str,
    metadata: HashMap<String, String>,
) -> Status {
    Status::with_error_details(code, message, info(reason, metadata))
}

fn retry(code: Code, message: &str, reason: &str) -> Status {
    let mut details = info(reason, HashMap::new());
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(code, message, details)
}
