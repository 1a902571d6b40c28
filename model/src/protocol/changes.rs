//! RecentChanges, the memory of an instance (`src/hot_cache.rs`), and how a poll changes them.

use crate::protections::Protections;
use crate::snapshot::Snapshot;
use crate::state::{
    Answer, Changes, Entry, Feed, Generation, Instance, Poll, Revision, Slot, Ticket,
};

impl Changes {
    /// Observed, and not confirmed by a poll yet.
    pub(super) fn observed(&self) -> Revision {
        self.pending.max(self.polled)
    }

    /// Returned by polls.
    fn confirmed(&self) -> Revision {
        self.generation.map_or(Revision::NONE, |generation| generation.revision)
    }

    /// The floor after the poll in progress.
    pub(super) fn floor_after_poll(&self) -> Revision {
        self.confirmed().max(self.pending)
    }

    /// An entry below this is not current.
    pub(super) fn floor(&self) -> Revision {
        self.confirmed().max(self.observed())
    }
}

impl Instance {
    /// For a load or a write that begins now.
    pub(super) fn ticket(&self) -> Ticket {
        let Feed { proof, epoch, .. } = self.feed;
        // Without unconfirmed changes: a bogus hint would be a floor for as long as the load runs.
        let floor = self.changes.confirmed();
        Ticket { floor, trusted: true, outlived_changes: false, proof, scope: epoch }
    }

    pub(super) fn complete_poll(&mut self, proof: u8, answer: Answer, protections: &Protections) {
        if answer.epoch != self.feed.epoch {
            self.slot = None;
            self.changes = Changes::default();
        }
        let first = self.feed.previous.is_none();
        if answer.gap && (!first || protections.first_poll_invalidates) {
            self.record_gap(protections);
        }
        self.drop_observed(protections);
        self.add_changes(answer);
        self.drop_generation(answer);
        self.end_overflow(answer, protections);
        let proof = self.feed.proof.max(proof);
        let Answer { snapshot, seq, epoch, .. } = answer;
        self.feed = Feed { previous: Some(snapshot), seq, poll: Poll::Idle, proof, epoch };
    }

    fn drop_observed(&mut self, protections: &Protections) {
        let changes = &mut self.changes;
        if protections.pending_ends {
            changes.polled = Revision::NONE;
        }
        if !protections.pending_waits {
            changes.pending = Revision::NONE;
        }
    }

    fn add_changes(&mut self, answer: Answer) {
        let Answer { newest: revision, snapshot, .. } = answer;
        if revision == Revision::NONE {
            return;
        }
        let (during_load, during_write) = (self.load.is_some(), self.write.is_some());
        self.changes.generation =
            Some(Generation { revision, snapshot, during_load, during_write });
        if let Some(slot) = &mut self.slot {
            slot.invalidated |= slot.entry.revision < revision;
        }
    }

    fn drop_generation(&mut self, answer: Answer) {
        let dropped = self.changes.generation.filter(|old| answer.pruned.contains(old.snapshot));
        let Some(Generation { during_load, during_write, .. }) = dropped else { return };
        self.changes.generation = None;
        if let Some(load) = &mut self.load {
            load.ticket.outlived_changes |= during_load;
        }
        if let Some(write) = &mut self.write {
            write.ticket.outlived_changes |= during_write;
        }
    }

    /// Ends the overflow, if Redis reflects the changes that did not fit.
    fn end_overflow(&mut self, answer: Answer, protections: &Protections) {
        let Changes { complete_since, overflowed, .. } = &mut self.changes;
        if *complete_since == 0 || !answer.relayed.contains(*overflowed) {
            return;
        }
        (*complete_since, *overflowed) = (0, Snapshot::default());
        if let Some(load) = self.load.as_mut().filter(|_| protections.overflow_ends_with_ordinal) {
            load.ticket.outlived_changes = true;
        }
    }

    /// The instance may have missed changes, so copies that were checked before are not trusted.
    fn record_gap(&mut self, protections: &Protections) {
        // The rows that still exist are in the same response.
        self.changes.generation = None;
        if let Some(slot) = &mut self.slot {
            slot.trusted = false;
        }
        if !protections.gap_invalidates_loads {
            return;
        }
        if let Some(load) = &mut self.load {
            load.ticket.trusted = false;
        }
        if let Some(write) = &mut self.write {
            write.ticket.trusted = false;
        }
    }

    /// A load offers its result to memory. Returns whether memory kept it.
    pub(super) fn finish(
        &mut self,
        entry: Entry,
        ticket: &Ticket,
        protections: &Protections,
    ) -> bool {
        let Protections { floor, floor_of_begin, load_ordinal, .. } = *protections;
        let below = (floor && entry.revision < self.changes.floor())
            || (floor_of_begin && entry.revision < ticket.floor);
        let missed = !ticket.trusted || (ticket.outlived_changes && load_ordinal);
        if !below && !missed {
            self.keep(entry, protections);
        }
        !below && !missed
    }

    /// A write through this instance replaces the entry in memory, if there is one.
    pub(super) fn offer(&mut self, entry: Entry, ticket: &Ticket, protections: &Protections) {
        let missed = !ticket.trusted || (ticket.outlived_changes && protections.write_ordinal);
        if self.slot.is_some() && !missed && entry.revision >= self.changes.floor() {
            self.keep(entry, protections);
        }
    }

    /// Newest wins. An entry that may not be served is replaced by any.
    fn keep(&mut self, entry: Entry, protections: &Protections) {
        let newer = self.slot.is_some_and(|held| {
            held.trusted && !held.invalidated && held.entry.revision > entry.revision
        });
        if !(newer && protections.slot_compares) {
            self.slot = Some(Slot { entry, trusted: true, invalidated: false });
        }
    }
}
