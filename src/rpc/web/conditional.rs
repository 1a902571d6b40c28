//! Preconditions, freshness and caching headers (RFC 9110, RFC 9111, RFC 9211).

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CACHE_STATUS, ETAG, IF_MATCH, IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use tonic::Status;

use super::Exchange;
use super::product_json::Style;
use crate::catalog::Answer;
use crate::entry::Entry;
use crate::metrics::ServedBy;
use crate::moment::Moment;
use crate::proto::Product;
use crate::proto::get_product_request::Freshness;
use crate::rpc::reads::cache_status;
use crate::rpc::status::invalid;

pub(super) const MIN_VERSION: HeaderName = HeaderName::from_static("min-version");
pub(super) const MAX_STALENESS: HeaderName = HeaderName::from_static("max-staleness");

/// A form in which a product is sent. Each has entity tags of its own, because the tags are strong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Representation {
    Json(Style),
    Protobuf,
}

impl Representation {
    fn letter(self) -> char {
        match self {
            Self::Json(Style::Proto) => 'j',
            Self::Json(Style::Plain) => 's',
            Self::Protobuf => 'p',
        }
    }
}

/// The entity tag of a product: its version, and a checksum of its content. Equal versions need not have equal contents: another
/// set of columns may have been attached, or the database restored.
pub(super) fn etag(entry: &Entry, representation: Representation) -> HeaderValue {
    let content = entry.product().unwrap_or_default();
    tag(entry.revision().version.0, content, representation)
}

/// The entity tag of an encoded product.
pub(super) fn etag_of(encoded: &[u8], representation: Representation) -> Option<HeaderValue> {
    let product = Product::decode(encoded).ok()?;
    Some(tag(product.version, encoded, representation))
}

fn tag(version: i64, encoded: &[u8], representation: Representation) -> HeaderValue {
    let checksum = crc32fast::hash(encoded);
    let tag = format!("\"{version}-{checksum:08x}-{}\"", representation.letter());
    HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Whether `If-None-Match` says that the client has this representation.
pub(super) fn is_unchanged(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(tags).any(|tag| {
        // The comparison is the weak one.
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes()
    })
}

/// The version that `If-Match` demands. The tag is one of [`etag`], or only a version: "42".
///
/// # Errors
/// INVALID_ARGUMENT when it names several versions.
pub(super) fn expected_version(headers: &HeaderMap) -> Result<Option<i64>, Status> {
    /// No product has it, so that the write is refused by its version as any other is.
    const NONE: i64 = i64::MAX;
    if headers.contains_key(IF_NONE_MATCH) {
        return Err(invalid("If-None-Match", "is for reads; a write has If-Match"));
    }
    if !headers.contains_key(IF_MATCH) {
        return Ok(None);
    }
    let values = headers.get_all(IF_MATCH).iter();
    let tags: Vec<&str> = values.filter_map(|value| value.to_str().ok()).flat_map(tags).collect();
    // Any version of a product that exists.
    if tags == ["*"] {
        return Ok(None);
    }
    let mut versions: Vec<i64> = tags.into_iter().filter_map(version).collect();
    versions.dedup();
    match versions[..] {
        [] => Ok(Some(NONE)),
        [version] => Ok(Some(version)),
        _ => Err(invalid("If-Match", "names several versions; a write can demand one")),
    }
}

/// The version in a strong entity tag; weak ones never match.
fn version(tag: &str) -> Option<i64> {
    let inner = tag.strip_prefix('"')?.strip_suffix('"')?;
    let version = inner.split('-').next()?;
    let number = version.bytes().all(|byte| byte.is_ascii_digit()).then(|| version.parse().ok())?;
    number.filter(|version| *version > 0)
}

/// The entity tags of a list. A comma may be part of a tag.
fn tags(list: &str) -> Vec<&str> {
    let mut quoted = false;
    let tags = list.split(move |letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    });
    tags.map(str::trim).filter(|tag| !tag.is_empty()).collect()
}

/// The freshness that the request headers ask for.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn freshness(headers: &HeaderMap) -> Result<Option<Freshness>, Status> {
    for name in [&MIN_VERSION, &MAX_STALENESS] {
        if headers.get_all(name).iter().count() > 1 {
            return Err(invalid(name.as_str(), "is given twice"));
        }
    }
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text(&MIN_VERSION), text(&MAX_STALENESS)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err(invalid("Min-Version", "and Max-Staleness exclude each other; send one"))
        }
        (Some(version), None) => {
            let version = version.trim().parse();
            let version = version.map_err(|_| invalid("Min-Version", "must be a version"))?;
            Ok(Some(Freshness::MinVersion(version)))
        }
        (None, Some(seconds)) => {
            let seconds = seconds.trim();
            let duration = seconds.strip_suffix('s').unwrap_or(seconds).parse().ok();
            let duration = duration.and_then(|seconds| {
                std::time::Duration::try_from_secs_f64(seconds).ok()?.try_into().ok()
            });
            let duration = duration.ok_or_else(|| {
                invalid("Max-Staleness", "must be a number of seconds, such as 2 or 0.5s")
            })?;
            Ok(Some(Freshness::MaxStaleness(duration)))
        }
    }
}

/// The freshness that the request message or the request headers ask for.
///
/// # Errors
/// INVALID_ARGUMENT, also when both do.
pub(super) fn either(
    message: Option<Freshness>,
    headers: &HeaderMap,
) -> Result<Option<Freshness>, Status> {
    match (message, freshness(headers)?) {
        (Some(_), Some(_)) => {
            Err(invalid("freshness", "is in the request and in a header; give one"))
        }
        (message, header) => Ok(message.or(header)),
    }
}

/// Refuses headers that the method does not know, because a caller relies on them.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn refuse(headers: &HeaderMap, names: &[HeaderName]) -> Result<(), Status> {
    match names.iter().find(|name| headers.contains_key(*name)) {
        Some(name) => Err(invalid(name.as_str(), "has no meaning for this method")),
        None => Ok(()),
    }
}

/// Adds the headers of a product that was read.
pub(super) fn describe(
    headers: &mut HeaderMap,
    exchange: &Exchange,
    request: &HeaderMap,
    answer: &Answer,
    etag: HeaderValue,
    demanding: bool,
) {
    headers.insert(ETAG, etag);
    let now = Moment::now();
    let expires = answer.entry.known_at() + answer.entry.ttl().soft;
    // Negative once it is past.
    let (sign, left) =
        if expires >= now { ("", expires.since(now)) } else { ("-", now.since(expires)) };
    let tier = cache_status(answer.from, answer.stale);
    // RFC 9211 has it for answers that were forwarded.
    let is_collapsed = answer.collapsed && answer.from == ServedBy::Postgres;
    let collapsed = if is_collapsed { "; collapsed" } else { "" };
    let status = format!("{tier}{collapsed}; ttl={sign}{}", left.as_secs());
    if let Ok(status) = HeaderValue::from_str(&status) {
        headers.insert(CACHE_STATUS, status);
    }
    let shared = exchange.web.shared_max_age.as_secs();
    // A certificate authenticates without a header.
    let is_open = exchange.reads.auth.is_none() && !request.contains_key(AUTHORIZATION);
    let may_share = shared > 0 && !demanding && !answer.stale && is_open;
    let control = match may_share {
        true => HeaderValue::from_str(&format!("public, max-age=0, s-maxage={shared}"))
            .unwrap_or(PRIVATE),
        false => PRIVATE,
    };
    headers.insert(CACHE_CONTROL, control);
    if shared > 0 {
        headers.insert(
            VARY,
            HeaderValue::from_static("authorization, min-version, max-staleness, origin"),
        );
    }
}

/// Coherent: a cache asks before each use, and is answered with 304 if nothing has changed.
const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let value = |text: &&str| HeaderValue::from_str(text).expect("a header");
        values.iter().map(|text| (name.clone(), value(text))).collect()
    }

    #[test]
    fn a_tag_in_a_list_matches_weakly() {
        let etag = HeaderValue::from_static("\"42-00c0ffee-j\"");
        let unchanged = |values: &[&str]| is_unchanged(&headers(&IF_NONE_MATCH, values), &etag);
        assert!(unchanged(&["\"42-00c0ffee-j\""]));
        assert!(unchanged(&["\"a,b\", W/\"42-00c0ffee-j\""]));
        assert!(unchanged(&["\"x\"", "\"42-00c0ffee-j\""]));
        assert!(unchanged(&["*"]));
        assert!(!unchanged(&[]));
        assert!(!unchanged(&["\"42-00c0ffee-p\"", "42-00c0ffee-j", "\"*\""]));
    }

    #[test]
    fn if_match_is_a_version() {
        let expected = |values: &[&str]| expected_version(&headers(&IF_MATCH, values)).ok();
        assert_eq!(expected(&[]), Some(None));
        assert_eq!(expected(&["*"]), Some(None));
        assert_eq!(expected(&["\"42-00c0ffee-j\""]), Some(Some(42)));
        assert_eq!(expected(&["\"42\", \"42-00c0ffee-s\""]), Some(Some(42)));
        for never in ["W/\"42\"", "\"0\"", "42", "\"abc\"", "\"\"", "\"-5\""] {
            assert_eq!(expected(&[never]), Some(Some(i64::MAX)), "{never}");
        }
        assert_eq!(expected(&["\"42\"", "\"43\""]), None);
    }

    #[test]
    fn freshness_is_read_from_headers() {
        let staleness = |text: &str| {
            let headers = headers(&MAX_STALENESS, &[text]);
            match freshness(&headers) {
                Ok(Some(Freshness::MaxStaleness(duration))) => {
                    Some((duration.seconds, duration.nanos))
                }
                _ => None,
            }
        };
        assert_eq!(staleness("2"), Some((2, 0)));
        assert_eq!(staleness("0.5s"), Some((0, 500_000_000)));
        for bad in ["", "-1", "NaN", "inf", "5m", "s"] {
            assert_eq!(staleness(bad), None, "{bad}");
        }
        assert!(freshness(&headers(&MIN_VERSION, &["abc"])).is_err());
    }
}
