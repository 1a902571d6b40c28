//! CPU time, memory, file descriptors and threads of the process, under the names that all Prometheus clients use. The collector
//! of the `prometheus` crate would bring a second rustix.

use std::collections::HashMap;

use procfs::process::{LimitValue, Process, Stat};
use procfs::{ProcResult, WithCurrentSystemInfo};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, MetricType};

/// The names, in the order of [`read`].
const METRICS: [(&str, MetricType, &str); 7] = [
    (
        "process_cpu_seconds_total",
        MetricType::COUNTER,
        "CPU time of the process, user and system, in seconds.",
    ),
    ("process_resident_memory_bytes", MetricType::GAUGE, "Memory of the process that is resident."),
    ("process_virtual_memory_bytes", MetricType::GAUGE, "Address space of the process."),
    (
        "process_start_time_seconds",
        MetricType::GAUGE,
        "When the process started, in seconds since 1970.",
    ),
    ("process_threads", MetricType::GAUGE, "Threads of the process."),
    ("process_open_fds", MetricType::GAUGE, "Open file descriptors."),
    ("process_max_fds", MetricType::GAUGE, "The most file descriptors that may be open."),
];

/// Reads `/proc/self` at each scrape.
pub(super) struct ProcessMetrics(Vec<Desc>);

impl ProcessMetrics {
    pub(super) fn new() -> Self {
        let desc = |(name, _, help): (&str, MetricType, &str)| {
            let desc = Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new());
            desc.expect("the names are valid for Prometheus")
        };
        Self(METRICS.map(desc).into())
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.0.iter().collect()
    }

    /// Nothing where `/proc` is not mounted.
    fn collect(&self) -> Vec<proto::MetricFamily> {
        let Ok(values) = read() else { return Vec::new() };
        let families = METRICS.iter().zip(values).map(|((name, kind, help), value)| {
            let mut metric = proto::Metric::default();
            match kind {
                MetricType::COUNTER => {
                    let mut counter = proto::Counter::default();
                    counter.set_value(value);
                    metric.set_counter(counter);
                }
                _ => {
                    let mut gauge = proto::Gauge::default();
                    gauge.set_value(value);
                    metric.set_gauge(gauge);
                }
            }
            let mut family = proto::MetricFamily::default();
            family.set_name((*name).to_owned());
            family.set_help((*help).to_owned());
            family.set_field_type(*kind);
            family.set_metric(vec![metric]);
            family
        });
        families.collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn read() -> ProcResult<[f64; 7]> {
    let process = Process::myself()?;
    let stat: Stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let started = procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks;
    let most = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(most) => most as f64,
        LimitValue::Unlimited => f64::INFINITY,
    };
    Ok([
        (stat.utime + stat.stime) as f64 / ticks,
        stat.rss_bytes().get() as f64,
        stat.vsize as f64,
        started,
        stat.num_threads as f64,
        process.fd_count()? as f64,
        most,
    ])
}
