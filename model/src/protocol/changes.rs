//! RecentChanges, the memory of an instance (`src/hot_cache.rs`), and what a poll does to them.

use crate::protections::Protections;
use crate::snapshot::Snapshot;
use crate::state::{
    Answer, Changes, Entry, Feed, Generation, Instance, Poll, Revision, Slot, Ticket,
};

impl Changes {
    /// What was heard of, and not yet brought by a poll.
    pub(super) fn heard(&self) -> Revision {
        self.pending.max(self.polled)
    }

    /// What polls brought.
    fn brought(&self) -> Revision {
        self.generation.map_or(Revision::NONE, |generation| generation.revision)
    }

    /// What outlives the poll under way.
    pub(super) fn fresh(&self) -> Revision {
        self.brought().max(self.pending)
    }

    /// What is older than this is not current.
    pub(super) fn floor(&self) -> Revision {
        self.brought().max(self.heard())
    }
}

impl Instance {
    /// What a load or a write that begins now may miss.
    pub(super) fn ticket(&self) -> Ticket {
        let Feed { proof, epoch, .. } = self.feed;
        // Not what was only heard of: a bogus hint would be a floor for as long as the load runs.
        Ticket { floor: self.changes.brought(), trusted: true, slept: false, proof, scope: epoch }
    }

    /// A poll completes.
    pub(super) fn learn(&mut self, proof: u8, answer: Answer, protections: &Protections) {
        if answer.epoch != self.feed.epoch {
            self.slot = None;
            self.changes = Changes::default();
        }
        let first = self.feed.previous.is_none();
        if answer.gap && (!first || protections.first_poll_voids) {
            self.miss(protections);
        }
        self.forget_heard(protections);
        self.bring(answer);
        self.drop_generation(answer);
        self.end_overflow(answer, protections);
        let proof = self.feed.proof.max(proof);
        let Answer { snapshot, seq, epoch, .. } = answer;
        self.feed = Feed { previous: Some(snapshot), seq, poll: Poll::Idle, proof, epoch };
    }

    fn forget_heard(&mut self, protections: &Protections) {
        let changes = &mut self.changes;
        if protections.pending_ends {
            changes.polled = Revision::NONE;
        }
        if !protections.pending_waits {
            changes.pending = Revision::NONE;
        }
    }

    fn bring(&mut self, answer: Answer) {
        let Answer { newest: revision, snapshot, .. } = answer;
        if revision == Revision::NONE {
            return;
        }
        let (during_load, during_write) = (self.load.is_some(), self.write.is_some());
        self.changes.generation =
            Some(Generation { revision, snapshot, during_load, during_write });
        if let Some(slot) = &mut self.slot {
            slot.void |= slot.entry.revision < revision;
        }
    }

    fn drop_generation(&mut self, answer: Answer) {
        let dropped = self.changes.generation.filter(|old| answer.pruned.contains(old.snapshot));
        let Some(Generation { during_load, during_write, .. }) = dropped else { return };
        self.changes.generation = None;
        if let Some(load) = &mut self.load {
            load.ticket.slept |= during_load;
        }
        if let Some(write) = &mut self.write {
            write.ticket.slept |= during_write;
        }
    }

    /// Redis reflects what did not fit.
    fn end_overflow(&mut self, answer: Answer, protections: &Protections) {
        let Changes { complete_since, overflowed, .. } = &mut self.changes;
        if *complete_since == 0 || !answer.relayed.contains(*overflowed) {
            return;
        }
        (*complete_since, *overflowed) = (0, Snapshot::default());
        if let Some(load) = self.load.as_mut().filter(|_| protections.overflow_ends_with_ordinal) {
            load.ticket.slept = true;
        }
    }

    /// Changes may have been missed: what was checked before now is not trusted.
    fn miss(&mut self, protections: &Protections) {
        // The rows that are still there come with this answer.
        self.changes.generation = None;
        if let Some(slot) = &mut self.slot {
            slot.trusted = false;
        }
        if !protections.gap_voids_loads {
            return;
        }
        if let Some(load) = &mut self.load {
            load.ticket.trusted = false;
        }
        if let Some(write) = &mut self.write {
            write.ticket.trusted = false;
        }
    }

    /// A load brings its result. Returns whether it may be kept.
    pub(super) fn finish(
        &mut self,
        entry: Entry,
        ticket: &Ticket,
        protections: &Protections,
    ) -> bool {
        let Protections { floor, floor_of_begin, load_ordinal, .. } = *protections;
        let below = (floor && entry.revision < self.changes.floor())
            || (floor_of_begin && entry.revision < ticket.floor);
        let missed = !ticket.trusted || (ticket.slept && load_ordinal);
        if !below && !missed {
            self.keep(entry, protections);
        }
        !below && !missed
    }

    /// An own write replaces what memory holds.
    pub(super) fn offer(&mut self, entry: Entry, ticket: &Ticket, protections: &Protections) {
        let missed = !ticket.trusted || (ticket.slept && protections.write_ordinal);
        if self.slot.is_some() && !missed && entry.revision >= self.changes.floor() {
            self.keep(entry, protections);
        }
    }

    /// Newest wins, among what may be served.
    fn keep(&mut self, entry: Entry, protections: &Protections) {
        let newer = self
            .slot
            .is_some_and(|held| held.trusted && !held.void && held.entry.revision > entry.revision);
        if !(newer && protections.slot_compares) {
            self.slot = Some(Slot { entry, trusted: true, void: false });
        }
    }
}
