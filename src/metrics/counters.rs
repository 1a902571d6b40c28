//! Counter families over closed sets of labels.

use std::marker::PhantomData;
use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::labels::LabelSet;
use super::sharded::Cells;

/// One counter for each member of `L`.
#[derive(Debug)]
pub struct Counters<L> {
    cells: Arc<Cells>,
    labels: PhantomData<L>,
}

impl LabelSet for () {
    const LABELS: &'static [&'static str] = &[];
    const ALL: &'static [Self] = &[()];

    fn index(self) -> usize {
        0
    }

    fn values(self) -> Vec<&'static str> {
        Vec::new()
    }
}

#[expect(private_bounds, reason = "the label sets are closed on purpose")]
impl<L: LabelSet> Counters<L> {
    pub(super) fn new(meter: &Meter, name: &'static str, help: &'static str) -> Self {
        let cells = Arc::new(Cells::new(L::ALL.len()));
        let read = Arc::clone(&cells);
        meter
            .u64_observable_counter(name)
            .with_description(help)
            .with_callback(move |observer| {
                for member in L::ALL {
                    observer.observe(read.sum(member.index()), &key_values(*member));
                }
            })
            .build();
        Self { cells, labels: PhantomData }
    }

    pub fn inc(&self, member: L) {
        self.add(member, 1);
    }

    pub fn add(&self, member: L, amount: u64) {
        self.cells.add(member.index(), amount);
    }

    /// The sum over all shards. Concurrent additions may or may not be in it.
    #[must_use]
    pub fn get(&self, member: L) -> u64 {
        self.cells.sum(member.index())
    }
}

pub(super) fn key_values<L: LabelSet>(member: L) -> Vec<KeyValue> {
    let pairs = L::LABELS.iter().zip(member.values());
    pairs.map(|(name, value)| KeyValue::new(*name, value)).collect()
}
