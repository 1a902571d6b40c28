//! A load, `src/catalog/load.rs`.

use super::{Action, Expansion, name};
use crate::state::{Changes, Entry, From, Generation, Instance, Load, Lock, Stage, State};

impl Expansion<'_> {
    /// The next step of the instance's load, or the begin of one.
    pub(super) fn load(&mut self, at: usize) {
        let Some(load) = self.instance(at).load else { return self.begin_load(at) };
        let truth = self.state.truth();
        match load.stage {
            Stage::ReadRedis => self.read_redis(at, load),
            Stage::TryLease => self.try_lease(at, load),
            Stage::Select => {
                self.will(Action::Select(name(at)), |state| state.go_on(at, Stage::Fill(truth)));
            }
            Stage::Fill(entry) => self.fill(at, load, entry),
            Stage::SelectWithoutLease => {
                let action = Action::SelectWithoutLease(name(at));
                self.will(action, |state| state.go_on(at, Stage::Replace(truth)));
            }
            Stage::Replace(entry) => self.replace(at, load, entry),
            Stage::Finish(entry, from) => self.finish(at, load, entry, from),
        }
    }

    /// A read that memory may not answer, or a refresh.
    fn begin_load(&mut self, at: usize) {
        let loads = self.state.instances.iter().filter(|instance| instance.load.is_some());
        if loads.count() < self.protocol.scenario.loads {
            self.may(Action::BeginLoad(name(at)), |state| state.instances[at].begin_load());
        }
    }

    fn read_redis(&mut self, at: usize, load: Load) {
        let scope = self.scope(at, load.ticket.scope);
        let action = Action::ReadRedis(name(at));
        if let Some(entry) = self.state.redis.entry_of(scope) {
            self.will(action, |state| state.go_on(at, Stage::Finish(entry, From::Redis)));
        }
        // A miss, or an entry that is too old for the freshness that the caller asks for.
        self.will(action, |state| state.go_on(at, Stage::TryLease));
        self.without_redis(at);
    }

    fn try_lease(&mut self, at: usize, load: Load) {
        let scope = self.scope(at, load.ticket.scope);
        let action = Action::TryLease(name(at));
        let free = self.state.redis.lock_of(scope) == Lock::Free;
        if let Some(entry) = self.state.redis.entry_of(scope) {
            let from = if free { From::RedisUnderLease } else { From::Redis };
            self.will(action, |state| {
                state.take_lease(at, scope);
                state.go_on(at, Stage::Finish(entry, from));
            });
        }
        // With the lease the load reads Postgres. Without it the load waits, which changes no state, and then reads Postgres
        // as well.
        let next = if free { Stage::Select } else { Stage::SelectWithoutLease };
        self.will(action, |state| {
            state.take_lease(at, scope);
            state.go_on(at, next);
        });
        self.without_redis(at);
    }

    /// `fill.lua`.
    fn fill(&mut self, at: usize, load: Load, entry: Entry) {
        let protections = self.protocol.protections;
        let scope = self.scope(at, load.ticket.scope);
        let redis = self.state.redis;
        let newer = redis.entry_of(scope).filter(|held| held.revision > entry.revision);
        // A fill for an epoch that is over has no effect.
        let holds = redis.lock_of(scope) == Lock::Load(name(at)) || redis.scope > scope;
        let refused = (protections.fill_checks_lease && !holds)
            || (protections.redis_compares && newer.is_some());
        let next = match newer {
            // Newer than the row that Postgres held after the load began.
            Some(newer) if refused => Stage::Finish(newer, From::Fill),
            None if refused => Stage::TryLease,
            _ => Stage::Finish(entry, From::Fill),
        };
        self.will(Action::Fill(name(at)), |state| {
            state.release(at);
            if !refused {
                state.redis.store(scope, entry);
            }
            state.go_on(at, next);
        });
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| {
                state.abandon_lease(at);
                state.go_on(at, Stage::Finish(entry, From::Fill));
            });
        }
    }

    /// `publish.lua`.
    fn replace(&mut self, at: usize, load: Load, entry: Entry) {
        let compares = self.protocol.protections.redis_compares;
        let scope = self.scope(at, load.ticket.scope);
        let finish = Stage::Finish(entry, From::Postgres);
        self.will(Action::Replace(name(at)), |state| {
            state.redis.replace(scope, entry, compares);
            state.go_on(at, finish);
        });
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| state.go_on(at, finish));
        }
    }

    /// A result that is not current, or below the floor, is loaded again. A load that may have missed changes begins anew.
    /// The result of the last try is returned without being kept.
    fn finish(&mut self, at: usize, load: Load, entry: Entry, from: From) {
        let protections = self.protocol.protections;
        let redis = matches!(from, From::Redis | From::RedisUnderLease);
        let instance = self.instance(at);
        let current = !redis || self.state.is_current(&instance, &entry, &protections);
        let again = if from == From::RedisUnderLease { Stage::Select } else { Stage::TryLease };
        self.will(Action::Finish(name(at)), |state| {
            let ticket = load.ticket;
            let kept = current && state.instances[at].finish(entry, &ticket, &protections);
            let anew = !ticket.trusted || (ticket.outlived_changes && protections.load_ordinal);
            if kept || from == From::Postgres {
                state.end_load(at);
            } else if anew {
                state.end_load(at);
                state.instances[at].begin_load();
            } else {
                state.go_on(at, again);
            }
        });
    }

    fn without_redis(&mut self, at: usize) {
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| {
                state.go_on(at, Stage::SelectWithoutLease);
            });
        }
    }
}

impl Instance {
    fn begin_load(&mut self) {
        self.load = Some(Load { stage: Stage::ReadRedis, ticket: self.ticket() });
    }
}

impl Changes {
    fn load_ended(&mut self) {
        if let Some(Generation { during_load, .. }) = &mut self.generation {
            *during_load = false;
        }
    }
}

impl State {
    fn go_on(&mut self, at: usize, stage: Stage) {
        if let Some(load) = &mut self.instances[at].load {
            load.stage = stage;
        }
    }

    /// `try_lease.lua`, with a unique token.
    fn take_lease(&mut self, at: usize, scope: u8) {
        if self.redis.lock_of(scope) == Lock::Free {
            self.abandon_lease(at);
            self.redis.lock(scope, Lock::Load(name(at)));
        }
    }

    /// `release.lua`.
    fn release(&mut self, at: usize) {
        if self.redis.lock == Lock::Load(name(at)) {
            self.redis.lock = Lock::Free;
        }
    }

    fn end_load(&mut self, at: usize) {
        let load = self.instances[at].load.take();
        if let Some(Load { stage: Stage::Finish(_, From::RedisUnderLease), .. }) = load {
            self.release(at);
        }
        self.instances[at].changes.load_ended();
        self.abandon_lease(at);
    }

    /// The load that holds the lease ends without releasing it.
    pub(super) fn abandon_lease(&mut self, at: usize) {
        let mine = Lock::Load(name(at));
        for redis in [Some(&mut self.redis), self.replica.as_mut()].into_iter().flatten() {
            if redis.lock == mine {
                redis.lock = Lock::Abandoned;
            }
        }
    }
}
