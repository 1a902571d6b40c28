//! Some metrics as JSON, for the live page.

use prometheus::proto::{Metric, MetricType};
use serde_json::{Map, Value, json};

use super::Metrics;

impl Metrics {
    /// The series of the metrics with these names, as an object by name. Counters at 0 are left out.
    #[must_use]
    pub fn values(&self, names: &[&str]) -> Value {
        let mut values = Map::new();
        for family in self.registry.gather() {
            if names.contains(&family.name()) {
                let kind = family.get_field_type();
                let series = family.get_metric().iter().filter_map(|metric| series(kind, metric));
                values.insert(family.name().to_owned(), series.collect());
            }
        }
        Value::Object(values)
    }
}

/// Labels, and a value, or the count and the cumulative buckets of a histogram, each with its bound in seconds.
fn series(kind: MetricType, metric: &Metric) -> Option<Value> {
    let labels =
        metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().into()));
    let labels: Map<String, Value> = labels.collect();
    if kind == MetricType::HISTOGRAM {
        let histogram = metric.get_histogram();
        let count = histogram.get_sample_count();
        let buckets = histogram.get_bucket().iter();
        let buckets: Vec<_> =
            buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect();
        return (count > 0)
            .then(|| json!({ "labels": labels, "count": count, "buckets": buckets }));
    }
    let value = match kind {
        MetricType::COUNTER => metric.get_counter().get_value(),
        _ => metric.get_gauge().get_value(),
    };
    (kind != MetricType::COUNTER || value > 0.0)
        .then(|| json!({ "labels": labels, "value": value }))
}
