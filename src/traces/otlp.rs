//! The messages of OTLP (<https://opentelemetry.io/docs/specs/otlp>).

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValueKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
pub(super) use opentelemetry_proto::tonic::trace::v1::span::Link;
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
pub(super) use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
pub(super) use opentelemetry_proto::tonic::trace::v1::{Span as SpanMessage, Status};

use super::context::SpanContext;

pub(super) type Span = SpanMessage;

/// Flags of a span: sampled; whether its parent is of another process is known; it is.
const SAMPLED: u32 = 0x01;
const HAS_IS_REMOTE: u32 = 0x100;
pub(super) const PARENT_IS_REMOTE: u32 = 0x200;

/// The value of an attribute.
#[derive(Debug)]
pub struct Value(AnyValueKind);

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self(AnyValueKind::IntValue(number))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self(AnyValueKind::DoubleValue(number))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(AnyValueKind::StringValue(text.to_owned()))
    }
}

/// What spans have beyond their generated fields.
pub(super) trait SpanExt {
    fn begin(context: SpanContext, parent: Option<u64>, name: &str, kind: SpanKind) -> Self;
    fn set(&mut self, key: &str, value: Value);
}

impl SpanExt for Span {
    fn begin(context: SpanContext, parent: Option<u64>, name: &str, kind: SpanKind) -> Self {
        Self {
            trace_id: context.trace.to_be_bytes().into(),
            span_id: context.span.to_be_bytes().into(),
            parent_span_id: parent.map(|parent| parent.to_be_bytes().into()).unwrap_or_default(),
            flags: SAMPLED | HAS_IS_REMOTE,
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: nanos(SystemTime::now()),
            ..Self::default()
        }
    }

    fn set(&mut self, key: &str, value: Value) {
        self.attributes.retain(|attribute| attribute.key != key);
        self.attributes.push(attribute(key.to_owned(), value.0));
    }
}

pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn attribute(key: String, value: AnyValueKind) -> KeyValue {
    KeyValue { key, value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The attributes of this process, each a key and a text.
pub(super) fn resource(attributes: Vec<(String, String)>) -> Resource {
    let attributes = attributes.into_iter();
    let attributes = attributes.map(|(key, text)| attribute(key, AnyValueKind::StringValue(text)));
    Resource { attributes: attributes.collect(), ..Resource::default() }
}

pub(super) fn of_resource(resource: Resource, spans: Vec<Span>) -> ResourceSpans {
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }
}
