//! How far it is known that changes have been relayed, and what memory is therefore proven to show:
//! `src/catalog/frontier.rs`, and `OutboxWatch` in `src/postgres/outbox.rs`.

use super::{Action, Moment, name};
use crate::protections::Protections;
use crate::state::{Row, State};
use crate::stream::Frontier;

impl Moment<'_> {
    /// Looks into the outbox, or asks the stream for more and gets nothing.
    pub(super) fn frontier(&mut self, at: usize) {
        let (protections, state) = (self.protocol.protections, self.state);
        let frontier = state.instances[at].frontier;
        // One of them: what it knows concerns nobody else.
        let other = state.instances[1 - at].frontier;
        if !self.protocol.scenario.looks || other != Frontier::default() {
            return;
        }
        let relayed = state.relayed_until(&protections);
        if relayed > frontier.relayed {
            self.may(Action::Look(name(at)), |state| {
                state.instances[at].frontier.relayed = relayed;
            });
        }
        if frontier.polled.is_none() && frontier.covered < state.commit && state.has_heard_all(at) {
            self.may(Action::Poll(name(at)), |state| {
                let frontier = &mut state.instances[at].frontier;
                frontier.polled = Some(frontier.relayed);
            });
        }
        if let Some(polled) = frontier.polled {
            self.will(Action::Prove(name(at)), |state| {
                let frontier = &mut state.instances[at].frontier;
                let proven = if protections.looked_before_poll { polled } else { frontier.relayed };
                frontier.covered = frontier.covered.max(proven);
                frontier.polled = None;
            });
        }
    }
}

impl State {
    /// The commit before that of the oldest row in the outbox. A relay that has claimed one removes it when it is done.
    fn relayed_until(&self, protections: &Protections) -> u8 {
        let waits = |row: &Row| match row {
            Row::Outbox => true,
            Row::Claimed(_) => protections.look_sees_claimed,
            Row::None | Row::Relayed => false,
        };
        let oldest = self.rows.iter().position(waits).map(name);
        oldest.map_or(self.commit, |commit| commit - 1)
    }

    /// The place of this instance in the stream is the stream's end.
    fn has_heard_all(&self, at: usize) -> bool {
        self.instances[at].cursor == Some(self.redis.stream.end)
    }
}
