//! The one place where an error becomes a gRPC status: its code, safe words, and `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use http::Response;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::catalog::{Error, Refusal, Refused};
use crate::metrics::{AuthRefusal, PostgresShare};
use crate::product::Version;

/// `ErrorInfo.domain` of every error.
const DOMAIN: &str = "hotshelf";
/// When a caller may try again what was refused or could not be done.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The status of a failed read or write. `expected` is what the caller asked for.
pub(super) fn of_error(error: &Error, expected: Option<Version>) -> Status {
    match error {
        Error::NotFound => not_found(),
        Error::VersionMismatch { current } => {
            let versions = versions(*current, "expected_version", expected);
            let words = format!(
                "the product is at version {current}, not the expected one; read it again and repeat the change"
            );
            status(Code::Aborted, words, "VERSION_MISMATCH", versions)
        }
        Error::VersionNotReached { current } => {
            let versions = versions(*current, "min_version", expected);
            let words = format!(
                "the product is only at version {current}; min_version was never committed"
            );
            status(Code::FailedPrecondition, words, "VERSION_NOT_REACHED", versions)
        }
        Error::Unavailable(why) => {
            tracing::warn!(%why, "the database is not available");
            let words = "the database cannot be reached, and nothing cached may be served";
            retry(Code::Unavailable, words, "DATABASE_UNAVAILABLE")
        }
        Error::OverBudget(share) => over_budget(*share),
        Error::ProductBusy => {
            let words = "too many writes of the product wait for each other; nothing was changed";
            retry(Code::Aborted, words, "PRODUCT_BUSY")
        }
        Error::OutcomeUnknown(why) => {
            tracing::warn!(%why, "the outcome of a write is unknown");
            let words = "the connection to the database broke during the write, which may have been committed; read before writing again";
            retry(Code::Unavailable, words, "WRITE_OUTCOME_UNKNOWN")
        }
        Error::Locked => {
            let words = "another transaction held the row of the product until the deadline; nothing was changed";
            retry(Code::Aborted, words, "PRODUCT_LOCKED")
        }
        Error::Refused(refused) => refused_by_database(refused),
        Error::Unreadable(why) => {
            let column = why.split(':').next().unwrap_or_default().to_owned();
            let words = format!(
                "the row of the product cannot be expressed by the API; {why}; write a value that can"
            );
            let metadata = HashMap::from([("column".to_owned(), column)]);
            status(Code::FailedPrecondition, words, "PRODUCT_UNREADABLE", metadata)
        }
        Error::Internal(why) => internal(why),
    }
}

fn over_budget(share: PostgresShare) -> Status {
    let (words, reason) = match share {
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
    retry(Code::ResourceExhausted, words, reason)
}

/// What constraints and triggers of others refuse, by the constraint's name.
fn refused_by_database(refused: &Refused) -> Status {
    let code = match refused.what {
        Refusal::Duplicate => Code::AlreadyExists,
        Refusal::Value => Code::InvalidArgument,
        Refusal::State => Code::FailedPrecondition,
    };
    let constraint = refused.constraint.iter();
    let metadata = constraint.map(|name| ("constraint".to_owned(), name.clone())).collect();
    let words = format!("the database refused the write: {refused}");
    status(code, words, "CONSTRAINT_VIOLATED", metadata)
}

pub(super) fn not_found() -> Status {
    status(Code::NotFound, "no such product", "PRODUCT_NOT_FOUND", HashMap::new())
}

/// A field that breaks its rules. `field` is its path in the request, such as `product.price.nanos`.
pub(super) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Status {
    let (field, why) = (field.into(), why.into());
    let words = format!("{field}: {why}");
    let mut details = info("INVALID_FIELD", HashMap::from([("field".to_owned(), field.clone())]));
    details.add_bad_request_violation(field, why);
    Status::with_error_details(Code::InvalidArgument, words, details)
}

/// What tonic itself refuses, in the words of our contract: a request over the limit is OUT_OF_RANGE to it, and one that
/// it cannot decode INTERNAL, without the details that ours have.
pub(super) fn in_our_words(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(refused) if refused.code() == Code::OutOfRange => request_too_large().into_http(),
        Some(refused) if refused.code() == Code::Internal && refused.details().is_empty() => {
            malformed(refused.message()).into_http()
        }
        _ => response,
    }
}

/// A request that is no message, or whose head breaks the rules of gRPC.
pub(super) fn malformed(why: &str) -> Status {
    let words = format!("the request cannot be read: {why}");
    status(Code::InvalidArgument, words, "MALFORMED_REQUEST", HashMap::new())
}

/// What must not be; `why` is for the log.
pub(super) fn internal(why: &str) -> Status {
    tracing::error!(%why, "internal error");
    status(Code::Internal, "internal error", "INTERNAL", HashMap::new())
}

/// A request that is compressed in a way that is not supported.
pub(super) fn unknown_encoding() -> Status {
    let words = "requests may be compressed with gzip only";
    let mut status = status(Code::Unimplemented, words, "UNKNOWN_ENCODING", HashMap::new());
    let accepted = MetadataValue::from_static("identity,gzip");
    status.metadata_mut().insert("grpc-accept-encoding", accepted);
    status
}

/// Without a hint when to try again: the same call always fails.
pub(super) fn request_too_large() -> Status {
    let words = "the request is larger than this server accepts";
    status(Code::ResourceExhausted, words, "REQUEST_TOO_LARGE", HashMap::new())
}

/// Without a hint when to try again, too.
pub(super) fn response_too_large() -> Status {
    let words = "the products are more bytes than this server answers with; ask for fewer";
    status(Code::ResourceExhausted, words, "RESPONSE_TOO_LARGE", HashMap::new())
}

/// The same of an answer that the caller's client would refuse.
pub(super) fn response_above(most: usize) -> Status {
    let words = "the products are more bytes than max_response_bytes, which is 4 MiB unless it is given; ask for fewer, or raise it and the limit of your client";
    let metadata = HashMap::from([("max_response_bytes".to_owned(), most.to_string())]);
    status(Code::ResourceExhausted, words, "RESPONSE_TOO_LARGE", metadata)
}

pub(super) fn deadline_exceeded() -> Status {
    let words = "the call took longer than its deadline";
    status(Code::DeadlineExceeded, words, "DEADLINE_EXCEEDED", HashMap::new())
}

pub(super) fn too_many_requests() -> Status {
    retry(Code::ResourceExhausted, "too many calls are in flight", "TOO_MANY_REQUESTS")
}

pub(super) fn too_many_unsent_bytes() -> Status {
    let words = "too many bytes of answers wait to be read, on this connection or in all";
    retry(Code::ResourceExhausted, words, "TOO_MANY_UNSENT_BYTES")
}

pub(super) fn too_many_request_bytes() -> Status {
    let words = "too many requests are not complete, on this connection or on all";
    retry(Code::ResourceExhausted, words, "TOO_MANY_REQUEST_BYTES")
}

pub(super) fn too_many_streams() -> Status {
    let words = "too many streams are open, on this connection or on all";
    retry(Code::ResourceExhausted, words, "TOO_MANY_STREAMS")
}

/// Without a hint when to try again: it is a setting.
pub(super) fn read_only() -> Status {
    let words = "this instance does not write products (READ_ONLY)";
    status(Code::FailedPrecondition, words, "READ_ONLY", HashMap::new())
}

pub(super) fn draining() -> Status {
    retry(Code::Unavailable, "this instance is shutting down", "DRAINING")
}

/// A call that is refused because of who the caller is, or is not known to be. `scope` is what it lacks.
pub(super) fn unauthorized(refusal: AuthRefusal, scope: Option<&'static str>) -> Status {
    let (reason, words) = match refusal {
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
        AuthRefusal::TokenExpired => ("TOKEN_EXPIRED", "the token has expired; get a new one"),
        AuthRefusal::NotYetValid => ("TOKEN_INVALID", "the token is not valid yet"),
        AuthRefusal::Audience => ("TOKEN_INVALID", "the token is for another audience"),
        AuthRefusal::Issuer => ("TOKEN_INVALID", "the token is from another issuer"),
        AuthRefusal::ScopeMissing => {
            let scope = scope.unwrap_or_default();
            let words = format!("the caller lacks the scope {scope}");
            let metadata = HashMap::from([("scope".to_owned(), scope.to_owned())]);
            return status(Code::PermissionDenied, words, "SCOPE_MISSING", metadata);
        }
    };
    status(Code::Unauthenticated, words, reason, HashMap::new())
}

fn versions(current: Version, name: &str, asked: Option<Version>) -> HashMap<String, String> {
    let mut metadata = HashMap::from([("current_version".to_owned(), current.to_string())]);
    if let Some(asked) = asked {
        metadata.insert(name.to_owned(), asked.to_string());
    }
    metadata
}

fn info(reason: &str, metadata: HashMap<String, String>) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

fn status(
    code: Code,
    words: impl Into<String>,
    reason: &str,
    metadata: HashMap<String, String>,
) -> Status {
    Status::with_error_details(code, words, info(reason, metadata))
}

fn retry(code: Code, words: &str, reason: &str) -> Status {
    let mut details = info(reason, HashMap::new());
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(code, words, details)
}
