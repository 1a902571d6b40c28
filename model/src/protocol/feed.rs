//! The change feed of an instance: it sends a poll, Postgres takes a snapshot, the response arrives.

use super::{Action, Expansion, name};
use crate::protections::{Cursor, Protections};
use crate::state::{Answer, Feed, Instance, Poll, Postgres, Progress, Revision, State};

impl Expansion<'_> {
    /// The next step of a poll.
    pub(super) fn feed(&mut self, at: usize) {
        let protections = self.protocol.protections;
        match self.instance(at).feed.poll {
            Poll::Idle => self.send(at),
            Poll::Sent(_) if self.state.postgres.went_back() && protections.epoch => {
                self.will(Action::RaiseEpoch(name(at)), |state| {
                    state.postgres.raise_epoch(&protections);
                    state.instances[at].feed.poll = Poll::Idle;
                });
            }
            Poll::Sent(proof) => self.will(Action::Snapshot(name(at)), |state| {
                let answer = state.postgres.answer(&state.instances[at].feed, &protections);
                state.instances[at].feed.poll = Poll::Answered(proof, answer);
            }),
            Poll::Answered(proof, answer) => self.arrive(at, proof, answer),
        }
    }

    /// Sends a poll. The step is fair if the poll can change the state.
    fn send(&mut self, at: usize) {
        let postgres = self.state.postgres;
        let Instance { feed, changes, .. } = self.instance(at);
        let others = self.state.instances.iter().enumerate().filter(|(other, _)| *other != at);
        let others = others.filter(|(_, other)| other.feed.has_begun()).count();
        if others >= self.protocol.scenario.feeds {
            return;
        }
        let changes_state = feed.previous != Some(postgres.snapshot())
            || feed.proof < postgres.commit
            || feed.epoch != postgres.epoch
            || postgres.went_back()
            || changes.pending != Revision::NONE
            || (changes.polled != Revision::NONE && self.protocol.protections.pending_ends)
            || (changes.complete_since > 0 && postgres.relayed.contains(changes.overflowed))
            || changes.generation.is_some_and(|old| postgres.pruned.contains(old.snapshot));
        // The program also polls without a change. That matters only for steps during such a poll.
        if changes_state || self.protocol.scenario.idle_polls {
            self.step(Action::Poll(name(at)), changes_state, |state| {
                let commit = state.postgres.commit;
                let Instance { feed, changes, .. } = &mut state.instances[at];
                feed.poll = Poll::Sent(commit);
                changes.polled = changes.observed();
                changes.pending = Revision::NONE;
            });
        }
    }

    fn arrive(&mut self, at: usize, sent: u8, answer: Answer) {
        let protections = self.protocol.protections;
        let proof = if protections.proof_when_sent { sent } else { self.state.postgres.commit };
        self.will(Action::Answer(name(at)), |state| {
            state.instances[at].complete_poll(proof, answer, &protections);
        });
        if self.state.faults.overflows > 0 && answer.newest != Revision::NONE {
            self.may(Action::Overflow(name(at)), |state| {
                state.faults.overflows -= 1;
                state.clock += 1;
                let complete_since = if protections.overflow_suspects { state.clock } else { 0 };
                let answer = Answer { newest: Revision::NONE, gap: true, ..answer };
                state.instances[at].complete_poll(proof, answer, &protections);
                let changes = &mut state.instances[at].changes;
                (changes.complete_since, changes.overflowed) = (complete_since, answer.snapshot);
            });
        }
    }

    /// Hints may arrive for any committed change: early, late, twice, or never.
    pub(super) fn hints(&mut self, at: usize) {
        let state = self.state;
        if !state.instances[at].feed.has_begun() {
            return;
        }
        let floor = state.instances[at].changes.floor_after_poll();
        for commit in (1..=state.newest).filter(|_| self.protocol.scenario.hints) {
            let revision = state.history[usize::from(commit)];
            if revision > floor {
                self.may(Action::Hint(name(at)), |state| state.observe(at, revision, commit));
            }
        }
        if state.faults.bogus_hints > 0 {
            self.may(Action::BogusHint(name(at)), |state| {
                state.faults.bogus_hints -= 1;
                state.observe(at, Revision { version: u8::MAX, deleted: false }, 0);
            });
        }
    }
}

impl State {
    /// The instance observes a change by a hint, or by its own write.
    pub(super) fn observe(&mut self, at: usize, revision: Revision, commit: u8) {
        let known = if self.is_lost(commit) { 0 } else { commit };
        let Instance { feed, changes, slot, .. } = &mut self.instances[at];
        feed.proof = feed.proof.max(known);
        changes.pending = changes.pending.max(revision);
        if let Some(slot) = slot {
            slot.invalidated |= slot.entry.revision < revision;
        }
    }
}

impl Feed {
    fn has_begun(&self) -> bool {
        self.previous.is_some() || self.poll != Poll::Idle
    }
}

impl Postgres {
    /// Whether the server is on another timeline than the epoch.
    pub(super) fn went_back(&self) -> bool {
        self.timeline != self.epoch_timeline
    }

    /// No cache of the new epoch holds anything older, so everything committed before counts as relayed and pruned.
    fn raise_epoch(&mut self, protections: &Protections) {
        self.epoch += 1;
        self.epoch_timeline = self.timeline;
        if protections.markers_of_epoch {
            let snapshot = self.snapshot();
            [self.pruned, self.gone, self.relayed, self.mark] = [snapshot; 4];
        }
    }

    /// The result of the poll's statement.
    fn answer(&self, feed: &Feed, protections: &Protections) -> Answer {
        let anew = feed.previous.is_none() || feed.epoch != self.epoch;
        let missed = feed.previous.is_some_and(|previous| !previous.contains(self.pruned));
        let gap = anew || (missed && protections.gap_check);
        let previous = feed.previous.filter(|_| !gap).unwrap_or_default();
        let seen = |xid: usize| match protections.cursor {
            Cursor::Snapshot => previous.sees(xid),
            Cursor::WithoutXip => previous.without_xip().sees(xid),
            Cursor::Sequence => !gap && self.transactions[xid].seq <= feed.seq,
        };
        let rows = self.transactions.iter().enumerate().filter(|(xid, transaction)| {
            let there = transaction.progress == Progress::Committed && !self.gone.sees(*xid);
            there && !seen(*xid)
        });
        let newest = |(newest, last): (Revision, u8),
                      (_, row): (usize, &crate::state::Transaction)| {
            (newest.max(row.revision), last.max(row.seq))
        };
        let (newest, last) = rows.fold((Revision::NONE, feed.seq), newest);
        let seq = if protections.cursor == Cursor::Sequence { last } else { 0 };
        let Self { pruned, relayed, epoch, .. } = *self;
        Answer { snapshot: self.snapshot(), pruned, relayed, epoch, newest, seq, gap }
    }
}
