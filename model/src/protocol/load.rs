//! One load, `src/catalog/load.rs`.

use super::{Action, Moment, name};
use crate::state::{Entry, From, Load, Lock, Revision, Stage, State};

impl Moment<'_> {
    /// Whatever the instance's load may do next, or begins one.
    pub(super) fn load(&mut self, at: usize) {
        let Some(load) = self.instance(at).load else { return self.begin_load(at) };
        match load.stage {
            Stage::AskRedis => self.ask_redis(at, load),
            Stage::AskLease => self.ask_lease(at, load),
            Stage::Select => {
                let entry = self.selected(&load);
                self.will(Action::Select(name(at)), |state| state.go_on(at, Stage::Fill(entry)));
            }
            Stage::Fill(entry) => self.fill(at, entry),
            Stage::SelectWithoutLease => {
                let next = Stage::Replace(self.selected(&load));
                let action = Action::SelectWithoutLease(name(at));
                self.will(action, |state| state.go_on(at, next));
            }
            Stage::Replace(entry) => self.replace(at, entry),
            Stage::Land(entry, from) => self.land(at, load, entry, from),
        }
    }

    /// Somebody reads what memory may not serve, or the refresher comes by.
    fn begin_load(&mut self, at: usize) {
        let loads = self.state.instances.iter().filter(|instance| instance.load.is_some());
        if loads.count() < self.protocol.scenario.loads {
            let protections = self.protocol.protections;
            self.may(Action::BeginLoad(name(at)), |state| {
                state.instances[at].begin_load(&protections);
            });
        }
    }

    fn ask_redis(&mut self, at: usize, load: Load) {
        let held = self.state.redis.entry;
        let seen = held.filter(|_| !self.protocol.protections.exact_tombstones);
        let action = Action::ReadRedis(name(at));
        if let Some(entry) = held.filter(|entry| entry.revision >= load.floor) {
            self.will(action, |state| {
                state.see(at, seen);
                state.go_on(at, Stage::Land(entry, From::Redis));
            });
        }
        // Nothing, or too old: for the floor, or for what this caller asks.
        self.will(action, |state| {
            state.see(at, seen);
            state.go_on(at, Stage::AskLease);
        });
        self.without_redis(at);
    }

    fn ask_lease(&mut self, at: usize, load: Load) {
        let held = self.state.redis.entry;
        let seen = held.filter(|_| !self.protocol.protections.exact_tombstones);
        let action = Action::TryLease(name(at));
        let free = self.state.redis.lock == Lock::Free;
        if let Some(entry) = held.filter(|entry| entry.revision >= load.floor) {
            let from = if free { From::RedisUnderLease } else { From::Redis };
            self.will(action, |state| {
                state.see(at, seen);
                state.take_lease(at);
                state.go_on(at, Stage::Land(entry, from));
            });
        }
        // With the lease, reads Postgres. Without it waits, which changes nothing, and in the end reads
        // Postgres all the same.
        let next = if free { Stage::Select } else { Stage::SelectWithoutLease };
        self.will(action, |state| {
            state.see(at, seen);
            state.take_lease(at);
            state.go_on(at, next);
        });
        self.without_redis(at);
    }

    /// `fill.lua`, and `Catalog::land_filled`.
    fn fill(&mut self, at: usize, entry: Entry) {
        let protections = self.protocol.protections;
        let held = self.state.redis.entry;
        let newer = held.filter(|held| held.revision > entry.revision);
        let lost = protections.fill_checks_lease && self.state.redis.lock != Lock::Load(name(at));
        let refused = lost || (newer.is_some() && protections.redis_compares);
        let next = match newer {
            Some(newer) if refused => Stage::Land(newer, From::Redis),
            None if refused => Stage::AskLease,
            _ => Stage::Land(entry, From::Fill),
        };
        self.will(Action::Fill(name(at)), |state| {
            state.release(at);
            if !refused {
                state.redis.entry = Some(entry);
            }
            state.go_on(at, next);
        });
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| {
                state.abandon_lease(at);
                state.go_on(at, Stage::Land(entry, From::Fill));
            });
        }
    }

    /// `publish.lua` with `Publish::Replace`.
    fn replace(&mut self, at: usize, entry: Entry) {
        let compares = self.protocol.protections.redis_compares;
        let landing = Stage::Land(entry, From::Postgres);
        self.will(Action::Replace(name(at)), |state| {
            state.replace(entry, compares);
            state.go_on(at, landing);
        });
        if self.protocol.scenario.redis_fails {
            self.may(Action::RedisFails(name(at)), |state| state.go_on(at, landing));
        }
    }

    /// `Catalog::land`. What is below the floor is loaded again, but for the last try, which is answered
    /// and not kept.
    fn land(&mut self, at: usize, load: Load, entry: Entry, from: From) {
        let protections = self.protocol.protections;
        let again = if from == From::RedisUnderLease { Stage::Select } else { Stage::AskLease };
        self.will(Action::Land(name(at)), |state| {
            let kept = state.instances[at].finish(entry, &load, &protections);
            if kept || from == From::Postgres {
                state.end_load(at, from);
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

    /// `Catalog::read_postgres`.
    fn selected(&self, load: &Load) -> Entry {
        let truth = self.state.truth();
        if !truth.revision.deleted || self.protocol.protections.exact_tombstones {
            return truth;
        }
        let version = load.floor.version.max(load.seen);
        Entry { revision: Revision { version, deleted: true }, ..truth }
    }
}

impl State {
    fn go_on(&mut self, at: usize, stage: Stage) {
        if let Some(load) = &mut self.instances[at].load {
            load.stage = stage;
        }
    }

    fn see(&mut self, at: usize, held: Option<Entry>) {
        if let (Some(load), Some(entry)) = (&mut self.instances[at].load, held) {
            load.seen = load.seen.max(entry.revision.version);
        }
    }

    /// `try_lease.lua`, with a token that was never used before.
    fn take_lease(&mut self, at: usize) {
        if self.redis.lock == Lock::Free {
            self.abandon_lease(at);
            self.redis.lock = Lock::Load(name(at));
        }
    }

    /// `release.lua`.
    fn release(&mut self, at: usize) {
        if self.redis.lock == Lock::Load(name(at)) {
            self.redis.lock = Lock::Free;
        }
    }

    fn end_load(&mut self, at: usize, from: From) {
        if from == From::RedisUnderLease {
            self.release(at);
        }
        self.abandon_lease(at);
        self.instances[at].load = None;
    }

    /// `publish.lua`: replaces what is held, if that is not newer.
    pub(super) fn replace(&mut self, entry: Entry, compares: bool) {
        if let Some(held) = &mut self.redis.entry
            && (held.revision <= entry.revision || !compares)
        {
            *held = entry;
        }
    }
}
