//! The durations of calls: a histogram for each method, on sharded counters. OpenTelemetry has no observable histogram, so this
//! one is a collector in the exporter's registry.

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::labels::{LabelSet, Method};
use super::sharded::Cells;

/// Upper bounds of the buckets in microseconds: a hot read takes about 10, a load from a slow database seconds.
const BOUNDS_MICROS: [u64; 16] = [
    10, 30, 50, 100, 300, 600, 1_000, 3_000, 6_000, 10_000, 30_000, 100_000, 300_000, 1_000_000,
    3_000_000, 10_000_000,
];
/// The cells of one method: a bucket for each bound, the bucket above all bounds, and the sum of the durations in nanoseconds.
const CELLS: usize = BOUNDS_MICROS.len() + 2;
const SUM: usize = BOUNDS_MICROS.len() + 1;

#[derive(Debug)]
pub(super) struct CallDurations {
    cells: Cells,
    desc: Desc,
}

impl CallDurations {
    pub(super) fn new() -> Arc<Self> {
        let desc = Desc::new(
            "grpc_server_handling_seconds".to_owned(),
            "Time from the start of a call until its last byte was handed to the connection, in seconds."
                .to_owned(),
            Method::LABELS.iter().map(|label| (*label).to_owned()).collect(),
            std::collections::HashMap::new(),
        );
        let desc = desc.expect("the name and the labels are valid for Prometheus");
        Arc::new(Self { cells: Cells::new(Method::ALL.len() * CELLS), desc })
    }

    pub(super) fn record(&self, method: Method, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        let first = method.index() * CELLS;
        self.cells.add(first + bucket, 1);
        self.cells.add(first + SUM, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    fn series(&self, method: Method) -> proto::Metric {
        let first = method.index() * CELLS;
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_MICROS.len());
        for (index, bound) in BOUNDS_MICROS.iter().enumerate() {
            count += self.cells.sum(first + index);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound * 1_000));
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + self.cells.sum(first + BOUNDS_MICROS.len()));
        histogram.set_sample_sum(seconds(self.cells.sum(first + SUM)));
        let pairs = Method::LABELS.iter().zip(method.values());
        let mut metric =
            proto::Metric::from_label(pairs.map(|(name, value)| pair(name, value)).collect());
        metric.set_histogram(histogram);
        metric
    }
}

/// The histogram as a collector, which the registry owns.
pub(super) struct Collected(pub(super) Arc<CallDurations>);

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(proto::MetricType::HISTOGRAM);
        family.set_metric(Method::ALL.iter().map(|method| self.0.series(*method)).collect());
        vec![family]
    }
}

fn pair(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[expect(clippy::cast_precision_loss, reason = "a sum of nanoseconds stays exact for 104 days")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
