//! The log as one JSON object in each line.

use std::fmt::Debug;
use std::io::Write;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Writes events, with the ids of the traced call that they belong to.
pub(super) struct JsonLines(pub(super) NonBlocking);

#[derive(Default, Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'a str,
    target: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<Value>,
}

/// A line that is no event.
pub(super) fn plain(level: Level, message: &str) -> String {
    let (level, message) = (level.as_str(), message.to_owned());
    line(Line { level, target: "hotshelf", message, ..Line::default() })
}

fn line(line: Line<'_>) -> String {
    let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let line = Line { timestamp, ..line };
    // The keys are texts, so that it never fails.
    serde_json::to_string(&line).unwrap_or_default() + "\n"
}

/// The fields of an event or of a span.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn take_text(&mut self, key: &str) -> Option<String> {
        match self.0.remove(key)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Records of the `log` crate carry their target as a field.
        let logged = fields.take_text("log.target");
        fields.0.retain(|key, _| !key.starts_with("log."));
        let message = fields.take_text("message").unwrap_or_default();
        let (mut trace_id, mut span_id) = (None, None);
        for span in context.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            let ids = extensions.get::<Fields>().map(|ids| &ids.0);
            if let Some(ids) = ids.filter(|ids| ids.contains_key("trace_id")) {
                (trace_id, span_id) = (ids.get("trace_id").cloned(), ids.get("span_id").cloned());
                break;
            }
        }
        let metadata = event.metadata();
        let line = line(Line {
            level: metadata.level().as_str(),
            target: logged.as_deref().unwrap_or(metadata.target()),
            message,
            fields: fields.0,
            trace_id,
            span_id,
            ..Line::default()
        });
        // Never fails: the queue takes the line or drops it.
        let _ = self.0.clone().write_all(line.as_bytes());
    }
}
