//! The relay, `src/relay.rs`. One instance holds its lease in Postgres. An instance that lost it while frozen may still act.

use super::{Action, Expansion, name};
use crate::protections::Protections;
use crate::snapshot::Snapshot;
use crate::state::{Lock, Postgres, Relay, RelayStage, Revision, State};

impl Expansion<'_> {
    /// The next steps of the relay.
    pub(super) fn relay(&mut self, at: usize) {
        let Some(relay) = self.instance(at).relay else { return self.take_relay_lease(at) };
        let postgres = self.state.postgres;
        if usize::from(postgres.holder) != at || postgres.epoch != relay.scope {
            self.will(Action::StopRelay(name(at)), |state| state.instances[at].relay = None);
        }
        if !self.protocol.protections.relay {
            return;
        }
        match relay.stage {
            RelayStage::Idle => {
                self.relay_poll(at, relay);
                self.apply(at, relay);
                self.advance(at, relay);
                self.prune(at, relay);
            }
            RelayStage::Load => self.will(Action::RelayLoad(name(at)), |state| {
                let stage = RelayStage::Replace(state.truth());
                state.instances[at].relay = Some(Relay { stage, ..relay });
            }),
            RelayStage::Replace(entry) => {
                let scope = self.scope(at, relay.scope);
                let compares = self.protocol.protections.redis_compares;
                self.will(Action::RelayReplace(name(at)), |state| {
                    state.redis.replace(scope, entry, compares);
                    state.applied(at, relay);
                });
                self.replace_fails(at, relay);
            }
        }
    }

    /// The lease has expired: its holder has crashed, or is frozen.
    fn take_relay_lease(&mut self, at: usize) {
        let holder = usize::from(self.state.postgres.holder);
        let gone = self.instance(holder).relay.is_none();
        if self.state.postgres.went_back() || !(gone || self.protocol.scenario.takeovers) {
            return;
        }
        let take = |state: &mut State| {
            state.postgres.holder = name(at);
            let Postgres { relayed: cursor, epoch: scope, .. } = state.postgres;
            state.instances[at].relay = Some(Relay { cursor, scope, ..Relay::default() });
        };
        self.step(Action::TakeRelayLease(name(at)), gone, take);
    }

    /// Reads the rows after the cursor, and stores a mark.
    fn relay_poll(&mut self, at: usize, relay: Relay) {
        let postgres = self.state.postgres;
        let snapshot = postgres.snapshot();
        if snapshot == relay.cursor || postgres.epoch != relay.scope || postgres.went_back() {
            return;
        }
        let pending = postgres.unseen(relay.cursor).max(relay.pending);
        self.will(Action::RelayPoll(name(at)), |state| {
            state.postgres.mark = state.postgres.mark.or(snapshot);
            state.instances[at].relay = Some(Relay { cursor: snapshot, pending, ..relay });
        });
    }

    /// Sends the change to the node of the product. While that node does not answer, this does not happen.
    fn apply(&mut self, at: usize, relay: Relay) {
        if relay.pending == Revision::NONE {
            return;
        }
        let scope = self.scope(at, relay.scope);
        let breaks = self.protocol.protections.writes_break_lease;
        self.will(Action::RelaySupersede(name(at)), |state| {
            if breaks {
                state.redis.lock(scope, Lock::Free);
            }
            let held = state.redis.entry_of(scope);
            if held.is_some_and(|held| held.revision < relay.pending) {
                state.instances[at].relay = Some(Relay { stage: RelayStage::Load, ..relay });
            } else {
                state.applied(at, relay);
            }
        });
        if self.protocol.scenario.bulk {
            self.may(Action::RelayDelete(name(at)), |state| {
                state.redis.lock(scope, Lock::Free);
                state.redis.entry = state.redis.entry.filter(|_| state.redis.scope != scope);
                state.applied(at, relay);
            });
        }
    }

    /// Stores how far Redis reflects the commits.
    fn advance(&mut self, at: usize, relay: Relay) {
        let Protections { relayed_waits, markers_grow, .. } = self.protocol.protections;
        let waits = relayed_waits && relay.pending != Revision::NONE;
        let grows = !self.state.postgres.relayed.contains(relay.cursor);
        if waits || !grows || !self.is_of_epoch(relay) {
            return;
        }
        self.will(Action::RelayAdvance(name(at)), |state| {
            state.postgres.relayed.advance(relay.cursor, markers_grow);
        });
    }

    /// Deletes the rows that are visible in an old mark. The age of marks is not modelled.
    fn prune(&mut self, at: usize, relay: Relay) {
        let Protections { prune_waits, markers_grow, markers_of_epoch, .. } =
            self.protocol.protections;
        let Postgres { mark, relayed, pruned, .. } = self.state.postgres;
        // A frozen holder may have read its mark long ago.
        let mark = if markers_grow && markers_of_epoch { mark } else { relay.cursor };
        let waits = prune_waits && !relayed.contains(mark);
        if !self.protocol.scenario.prunes || waits || pruned == mark || !self.is_of_epoch(relay) {
            return;
        }
        self.may(Action::Prune(name(at)), |state| {
            let Postgres { pruned, gone, .. } = &mut state.postgres;
            pruned.advance(mark, markers_grow);
            *gone = gone.or(mark);
        });
    }

    fn is_of_epoch(&self, relay: Relay) -> bool {
        relay.scope == self.state.postgres.epoch || !self.protocol.protections.markers_of_epoch
    }

    fn replace_fails(&mut self, at: usize, relay: Relay) {
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| {
                state.instances[at].relay = Some(Relay { stage: RelayStage::Idle, ..relay });
            });
        }
    }
}

impl Snapshot {
    fn advance(&mut self, to: Self, grows: bool) {
        *self = if grows { self.or(to) } else { to };
    }
}

impl State {
    fn applied(&mut self, at: usize, relay: Relay) {
        let (pending, stage) = (Revision::NONE, RelayStage::Idle);
        self.instances[at].relay = Some(Relay { pending, stage, ..relay });
    }
}

impl Postgres {
    /// The newest revision in the rows that are not visible in `cursor`.
    fn unseen(&self, cursor: Snapshot) -> Revision {
        let now = self.snapshot();
        let rows = self.transactions.iter().enumerate().filter(|(xid, row)| {
            let there = row.commit > 0 && !self.gone.sees(*xid);
            there && now.sees(*xid) && !cursor.sees(*xid)
        });
        rows.map(|(_, row)| row.revision).max().unwrap_or(Revision::NONE)
    }
}
