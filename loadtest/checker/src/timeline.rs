//! The states of one product in the order of their commits, and since when each is surely committed.

use std::collections::HashMap;

use crate::history::{Ack, Committed, Kind, Micros, State, WriteId};

/// One state.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Which.
    pub state: State,
    /// What gave the product its content.
    pub write: Option<WriteId>,
    /// How it came to be; `None` when nobody was told, as of a write that failed after all.
    pub kind: Option<Kind>,
    /// It was not committed before this.
    pub sent: Micros,
    /// When the row was written.
    pub written: Micros,
    /// It, or something newer, was committed before this. Never decreases along the timeline.
    pub committed: Micros,
}

/// The states of one product.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The product.
    pub product: i64,
    /// Its states, the oldest first.
    pub steps: Vec<Step>,
    /// What writers were told of, and Postgres does not know.
    pub lost: Vec<Ack>,
}

impl Timeline {
    /// Brings together what was committed and what writers were told.
    #[must_use]
    pub fn new(product: i64, committed: &[Committed], acks: &[Ack]) -> Self {
        let mut told: HashMap<State, Ack> = acks.iter().map(|ack| (ack.state, *ack)).collect();
        let mut steps: Vec<Step> = committed
            .iter()
            .map(|row| {
                let ack = told.remove(&row.state);
                Step {
                    state: row.state,
                    write: row.write,
                    kind: ack.map(|ack| ack.kind),
                    sent: ack.map_or(0, |ack| ack.sent),
                    written: row.written,
                    committed: ack.map_or(Micros::MAX, |ack| ack.acked),
                }
            })
            .collect();
        steps.sort_by_key(|step| step.state);
        // Whoever was told of a state knows that everything before it is committed too.
        let mut told_by = Micros::MAX;
        for step in steps.iter_mut().rev() {
            told_by = told_by.min(step.committed);
            step.committed = told_by;
        }
        Self { product, steps, lost: told.into_values().collect() }
    }

    /// The place of a state.
    #[must_use]
    pub fn place(&self, state: State) -> Option<usize> {
        self.steps.binary_search_by_key(&state, |step| step.state).ok()
    }

    /// The first place at which the product has this version or a newer one.
    #[must_use]
    pub fn reaches(&self, version: i64) -> usize {
        self.steps.partition_point(|step| step.state < State { version, deleted: false })
    }

    /// The newest place that was surely committed before `moment`.
    #[must_use]
    pub fn surely_at(&self, moment: Micros) -> usize {
        self.steps.partition_point(|step| step.committed < moment).saturating_sub(1)
    }

    /// The newest place that may have been committed before `moment`.
    #[must_use]
    pub fn possibly_at(&self, moment: Micros) -> usize {
        // Not sorted by `sent`: whoever waits for a lock has sent before whom it waits for.
        let possible = |step: &Step| step.sent < moment;
        self.steps.iter().rposition(possible).unwrap_or(0)
    }
}
