//! Redis: its scripts, and whether an entry in it is current.

use super::{Action, Expansion, name};
use crate::protections::Protections;
use crate::state::{Entry, Instance, Lock, NodeKey, Redis, State};

impl Expansion<'_> {
    /// Reads the key of the node on a new connection. If it has another replication id, Redis may have lost writes.
    pub(super) fn probe(&mut self, at: usize) {
        if self.instance(at).node.is_some() {
            return;
        }
        let Protections { key_has_since, .. } = self.protocol.protections;
        self.will(Action::Probe(name(at)), |state| {
            let key = state.redis.key;
            if key.replication == state.redis.replication {
                let key = if key_has_since { key } else { NodeKey::default() };
                state.instances[at].node = Some(key);
                return;
            }
            state.clock += 1;
            let (replication, since) = (state.redis.replication, state.clock);
            let key = NodeKey { replication, since, pruned: state.postgres.pruned_commit() };
            state.redis.key = key;
            state.instances[at].node = Some(key);
        });
    }
}

impl State {
    /// Whether a load may accept an entry of Redis as current, if it is not below the floor.
    pub(super) fn is_current(
        &self,
        instance: &Instance,
        entry: &Entry,
        protections: &Protections,
    ) -> bool {
        // Known for less than `change_retention`: every later change is still in the outbox. The program may also take the
        // entry for older, which costs one more load.
        let recent = entry.commit >= self.postgres.pruned_commit();
        let early = |key: NodeKey| match protections.suspects_age {
            true => entry.known_at < key.since,
            false => entry.commit < key.pruned,
        };
        let suspect = protections.suspects && instance.node.is_none_or(early);
        let proven = instance.feed.previous.is_some() && !suspect;
        entry.known_at >= instance.changes.complete_since && (proven || recent)
    }
}

impl Redis {
    pub(super) fn entry_of(&self, scope: u8) -> Option<Entry> {
        self.entry.filter(|_| self.scope == scope)
    }

    pub(super) fn lock_of(&self, scope: u8) -> Lock {
        if self.scope == scope { self.lock } else { Lock::Free }
    }

    /// Enters a newer scope, which has no keys yet. Returns whether writes with keys of `scope` have an effect.
    fn enter(&mut self, scope: u8) -> bool {
        if scope > self.scope {
            (self.scope, self.entry, self.lock) = (scope, None, Lock::Free);
        }
        scope == self.scope
    }

    pub(super) fn lock(&mut self, scope: u8, lock: Lock) {
        if self.enter(scope) {
            self.lock = lock;
        }
    }

    pub(super) fn store(&mut self, scope: u8, entry: Entry) {
        if self.enter(scope) {
            self.entry = Some(entry);
        }
    }

    /// `publish.lua`: replaces the entry, if there is one that is not newer.
    pub(super) fn replace(&mut self, scope: u8, entry: Entry, compares: bool) {
        let held = self.entry_of(scope);
        if held.is_some_and(|held| held.revision <= entry.revision || !compares) {
            self.entry = Some(entry);
        }
    }
}
