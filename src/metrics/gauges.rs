//! Gauges, which read the parts of an instance at each scrape.
//!
//! They hold weak references: parts own the metrics, and a cycle of strong ones would never be freed.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;

use super::Metrics;
use super::counters::key_values;
use super::labels::LabelSet;

impl Metrics {
    /// A gauge that reads `part`.
    pub fn gauge<T: Send + Sync + 'static>(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        part: &Arc<T>,
        read: impl Fn(&T) -> u64 + Send + Sync + 'static,
    ) {
        self.gauges(name, help, part, move |part, ()| read(part));
    }

    /// A gauge with one series for each member of a closed set of labels.
    #[expect(private_bounds, reason = "the label sets are closed on purpose")]
    pub fn gauges<T: Send + Sync + 'static, L: LabelSet + Send + Sync>(
        &self,
        name: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        part: &Arc<T>,
        read: impl Fn(&T, L) -> u64 + Send + Sync + 'static,
    ) {
        let part = Arc::downgrade(part);
        self.meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| {
                let Some(part) = part.upgrade() else { return };
                for member in L::ALL {
                    observer.observe(read(&part, *member), &key_values(*member));
                }
            })
            .build();
    }

    /// A gauge of what is in use, and beside it, with `_limit` behind its name, the most that may be.
    pub fn bounded<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        part: &Arc<T>,
        read: impl Fn(&T) -> u64 + Send + Sync + 'static,
        limit: impl Fn(&T) -> u64 + Send + Sync + 'static,
    ) {
        self.all_bounded(name, help, part, move |part, ()| read(part), move |part, ()| limit(part));
    }

    /// [`bounded`](Self::bounded) with one series for each member of a closed set of labels.
    #[expect(private_bounds, reason = "the label sets are closed on purpose")]
    pub fn all_bounded<T: Send + Sync + 'static, L: LabelSet + Send + Sync>(
        &self,
        name: &'static str,
        help: &'static str,
        part: &Arc<T>,
        read: impl Fn(&T, L) -> u64 + Send + Sync + 'static,
        limit: impl Fn(&T, L) -> u64 + Send + Sync + 'static,
    ) {
        self.gauges(name, help, part, read);
        let of_limit = format!("The limit of {}.", name.replace('.', "_"));
        self.gauges(format!("{name}.limit"), of_limit, part, limit);
    }

    /// A gauge in seconds.
    pub fn seconds<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        part: &Arc<T>,
        read: impl Fn(&T) -> Duration + Send + Sync + 'static,
    ) {
        let part = Arc::downgrade(part);
        self.meter
            .f64_observable_gauge(name)
            .with_unit("s")
            .with_description(help)
            .with_callback(move |observer| {
                if let Some(part) = part.upgrade() {
                    observer.observe(read(&part).as_secs_f64(), &[]);
                }
            })
            .build();
    }

    /// Registers `hotshelf_build_info`, a gauge of 1 with the version as its label.
    pub fn build_info(&self) {
        let labels = [KeyValue::new("version", env!("CARGO_PKG_VERSION"))];
        self.meter
            .u64_observable_gauge("hotshelf.build.info")
            .with_description("The version of this instance as a label; always 1.")
            .with_callback(move |observer| observer.observe(1, &labels))
            .build();
    }
}
