//! The states of one product in the order of their commits, and from when on each is certainly committed.

use std::collections::HashMap;

use crate::history::{Ack, Committed, Kind, Micros, State, WriteId};

#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub state: State,
    /// The write that gave the content.
    pub write: Option<WriteId>,
    /// `None` if the write was not confirmed, for instance because the call failed after the commit.
    pub kind: Option<Kind>,
    /// The state was not committed before this; 0 if that is unknown.
    pub sent: Micros,
    /// When the row was written, before the commit.
    pub written: Micros,
    /// This state or a newer one was committed before this. Never decreases along the timeline.
    pub committed: Micros,
}

#[derive(Clone, Debug)]
pub struct Timeline {
    pub product: i64,
    /// The oldest first.
    pub steps: Vec<Step>,
    /// Confirmed writes that are not in Postgres.
    pub lost: Vec<Ack>,
}

impl Timeline {
    /// Merges commits and confirmations, both of this product.
    #[must_use]
    pub fn new(product: i64, committed: &[Committed], acks: &[Ack]) -> Self {
        let mut confirmed: HashMap<State, Ack> = acks.iter().map(|ack| (ack.state, *ack)).collect();
        let mut steps: Vec<Step> = committed
            .iter()
            .map(|row| {
                let ack = confirmed.remove(&row.state);
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
        // The confirmation of a state also proves that everything before it is committed.
        let mut confirmed_by = Micros::MAX;
        for step in steps.iter_mut().rev() {
            confirmed_by = confirmed_by.min(step.committed);
            step.committed = confirmed_by;
        }
        Self { product, steps, lost: confirmed.into_values().collect() }
    }

    /// The index of this state in `steps`.
    #[must_use]
    pub fn index_of(&self, state: State) -> Option<usize> {
        self.steps.binary_search_by_key(&state, |step| step.state).ok()
    }

    /// The index of the first state that has this version or a newer one.
    #[must_use]
    pub fn reaches(&self, version: i64) -> usize {
        self.steps.partition_point(|step| step.state < State { version, deleted: false })
    }

    /// The index of the newest state that was certainly committed before `moment`.
    #[must_use]
    pub fn certainly_at(&self, moment: Micros) -> usize {
        self.steps.partition_point(|step| step.committed < moment).saturating_sub(1)
    }

    /// The index of the newest state that may have been committed before `moment`.
    #[must_use]
    pub fn possibly_at(&self, moment: Micros) -> usize {
        // Not sorted by `sent`: a statement that waits for a row lock may have been sent before the one that holds it.
        let possible = |step: &Step| step.sent < moment;
        self.steps.iter().rposition(possible).unwrap_or(0)
    }
}
