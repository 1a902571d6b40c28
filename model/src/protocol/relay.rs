//! The relay of an instance, `src/relay.rs` and `src/postgres/outbox.rs`.

use super::{Action, Moment, name};
use crate::protections::Protections;
use crate::state::{Entry, Lock, Relay, Revision, Row, State};

impl Moment<'_> {
    /// Whatever the relay does next.
    pub(super) fn relay(&mut self, at: usize) {
        let protections = self.protocol.protections;
        let claimed = self.state.claimed(at);
        match self.instance(at).relay {
            Relay::Claim => self.claim(at),
            Relay::Supersede => self.will(Action::RelaySupersede(name(at)), |state| {
                if protections.writes_break_lease {
                    state.redis.lock = Lock::Free;
                }
                let older = state.redis.entry.is_some_and(|held| held.revision < claimed);
                state.instances[at].relay = if older { Relay::Load } else { Relay::Append };
            }),
            Relay::Load => self.will(Action::RelayLoad(name(at)), |state| {
                let entry = state.found(claimed, &protections);
                state.instances[at].relay = Relay::Replace(entry);
            }),
            Relay::Replace(entry) => self.will(Action::RelayReplace(name(at)), |state| {
                state.replace(entry, protections.redis_compares);
                state.instances[at].relay = Relay::Append;
            }),
            Relay::Append => {
                self.will(Action::RelayAppend(name(at)), |state| {
                    state.append(claimed, &protections);
                    state.instances[at].relay = Relay::Done;
                });
                self.relay_fails(at);
            }
            Relay::Done => self.will(Action::RelayDone(name(at)), |state| {
                state.instances[at].relay = Relay::Claim;
                state.move_rows(Row::Claimed(name(at)), Row::Relayed);
            }),
        }
    }

    /// `CLAIM`: every row that no other relay has.
    fn claim(&mut self, at: usize) {
        let relays = self.state.instances.iter().filter(|instance| instance.relay != Relay::Claim);
        let relays =
            self.protocol.protections.relay && relays.count() < self.protocol.scenario.relays;
        if relays && self.state.rows.contains(&Row::Outbox) {
            self.will(Action::RelayClaim(name(at)), |state| {
                state.instances[at].relay = Relay::Supersede;
                state.move_rows(Row::Outbox, Row::Claimed(name(at)));
            });
        }
    }

    /// With everything done that can be done twice without a trace in the stream.
    fn relay_fails(&mut self, at: usize) {
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| state.give_back_rows(at));
        }
    }
}

impl State {
    /// `newest_of_each`.
    fn claimed(&self, at: usize) -> Revision {
        let rows = self.rows.iter().zip(&self.history);
        let claimed = rows.filter(|(row, _)| **row == Row::Claimed(name(at)));
        claimed.map(|(_, revision)| *revision).max().unwrap_or(Revision::NONE)
    }

    /// `Relay::replace`: what the product is now, or that it was gone after the change that is relayed.
    fn found(&self, claimed: Revision, protections: &Protections) -> Entry {
        let truth = self.truth();
        if !truth.revision.deleted || protections.exact_tombstones {
            return truth;
        }
        Entry { revision: Revision { version: claimed.version, deleted: true }, ..truth }
    }

    /// `append.lua`.
    pub(super) fn append(&mut self, revision: Revision, protections: &Protections) {
        let end = self.redis.stream.end.id;
        let newest = if protections.clock_goes_on { self.newest_id() } else { end };
        self.redis.stream.append(revision, newest);
    }
}
