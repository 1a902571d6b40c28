//! Histograms of durations on sharded counters. OpenTelemetry has no observable histogram, so these are collectors in the
//! exporter's registry.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::{Registry, proto};

use super::labels::LabelSet;
use super::sharded::Cells;

/// Labels of a histogram, with the upper bounds of its buckets.
pub(super) trait Measured: LabelSet + Send + Sync {
    /// In microseconds, in ascending order.
    const BOUNDS: &'static [u64];
}

/// One histogram for each member of `L`.
pub struct Histogram<L> {
    family: Arc<Family<L>>,
}

/// The cells of one member are a bucket for each bound, the bucket above all bounds, and the sum of the durations in nanoseconds.
struct Family<L> {
    cells: Cells,
    desc: Desc,
    labels: PhantomData<L>,
}

#[expect(private_bounds, reason = "the label sets are closed on purpose")]
impl<L: Measured> Histogram<L> {
    pub(super) fn new(registry: &Registry, name: &str, help: &str) -> Self {
        let labels = L::LABELS.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new());
        let desc = desc.expect("the name and the labels are valid for Prometheus");
        let cells = Cells::new(L::ALL.len() * Family::<L>::CELLS);
        let family = Arc::new(Family { cells, desc, labels: PhantomData });
        registry
            .register(Box::new(Collected(Arc::clone(&family))))
            .expect("no other instrument has this name");
        Self { family }
    }

    pub fn record(&self, member: L, took: Duration) {
        self.family.record(member, took, 1);
    }

    /// Records the same duration `count` times.
    pub fn record_many(&self, member: L, took: Duration, count: u64) {
        self.family.record(member, took, count);
    }
}

impl<L> fmt::Debug for Histogram<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Histogram").field(&self.family.desc.fq_name).finish()
    }
}

impl<L: Measured> Family<L> {
    const CELLS: usize = L::BOUNDS.len() + 2;
    const SUM: usize = L::BOUNDS.len() + 1;

    fn record(&self, member: L, took: Duration, count: u64) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = L::BOUNDS.partition_point(|bound| *bound < micros);
        let first = member.index() * Self::CELLS;
        self.cells.add(first + bucket, count);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.cells.add(first + Self::SUM, nanos.saturating_mul(count));
    }

    fn series(&self, member: L) -> proto::Metric {
        let first = member.index() * Self::CELLS;
        let mut count = 0;
        let mut buckets = Vec::with_capacity(L::BOUNDS.len());
        for (index, bound) in L::BOUNDS.iter().enumerate() {
            count += self.cells.sum(first + index);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound * 1_000));
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + self.cells.sum(first + L::BOUNDS.len()));
        histogram.set_sample_sum(seconds(self.cells.sum(first + Self::SUM)));
        let pairs = L::LABELS.iter().zip(member.values());
        let mut metric =
            proto::Metric::from_label(pairs.map(|(name, value)| pair(name, value)).collect());
        metric.set_histogram(histogram);
        metric
    }
}

/// The histograms as a collector, which the registry owns.
struct Collected<L>(Arc<Family<L>>);

impl<L: Measured> Collector for Collected<L> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(proto::MetricType::HISTOGRAM);
        family.set_metric(L::ALL.iter().map(|member| self.0.series(*member)).collect());
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
