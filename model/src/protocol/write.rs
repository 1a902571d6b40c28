//! A write through the API, `src/catalog/write.rs`.

use super::{Action, Expansion, Writer, name};
use crate::state::{Generation, Instance, Lock, State, Write};

impl Expansion<'_> {
    /// The next step of the instance's write, or the begin of one.
    pub(super) fn write(&mut self, at: usize) {
        let Some(write) = self.instance(at).write else { return self.commit(at) };
        let protections = self.protocol.protections;
        if !write.offered {
            self.will(Action::Offer(name(at)), |state| {
                state.instances[at].offer(write.entry, &write.ticket, &protections);
                if protections.own_write_floor {
                    state.observe(at, write.entry.revision, write.entry.commit);
                } else if !state.is_lost(write.entry.commit) {
                    let feed = &mut state.instances[at].feed;
                    feed.proof = feed.proof.max(write.entry.commit);
                }
                state.instances[at].write = Some(Write { offered: true, ..write });
            });
            return;
        }
        let scope = self.scope(at, write.ticket.scope);
        self.will(Action::Publish(name(at)), |state| {
            if protections.writes_break_lease {
                state.redis.lock(scope, Lock::Free);
            }
            if state.redis.entry_of(scope).is_none() && !protections.writes_only_replace {
                state.redis.store(scope, write.entry);
            }
            state.redis.replace(scope, write.entry, protections.redis_compares);
            state.instances[at].end_write();
        });
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| state.instances[at].end_write());
        }
    }

    fn commit(&mut self, at: usize) {
        let writes = self.state.instances.iter().filter(|instance| instance.write.is_some());
        if writes.count() < self.protocol.scenario.api {
            self.change(Writer::Api(name(at)), |state, deleted| state.begin_write(at, deleted));
        }
    }
}

impl State {
    fn begin_write(&mut self, at: usize, deleted: bool) {
        let instance = &mut self.instances[at];
        instance.end_write();
        let ticket = instance.ticket();
        self.autocommit(deleted);
        let entry = self.truth();
        self.instances[at].write = Some(Write { offered: false, entry, ticket });
    }
}

impl Instance {
    fn end_write(&mut self) {
        self.write = None;
        if let Some(Generation { during_write, .. }) = &mut self.changes.generation {
            *during_write = false;
        }
    }
}
