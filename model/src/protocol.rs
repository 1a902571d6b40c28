//! What can happen: the protocol, and what is done to it from outside.

mod frontier;
mod load;
mod memory;
pub mod promises;
mod relay;
mod write;

use crate::checker::{Model, Step};
use crate::protections::Protections;
use crate::scenarios::Scenario;
use crate::state::{INSTANCES, Instance, Lock, MOST_WRITES, Relay, Revision, Row, State};
use crate::stream::Place;

/// The protocol, to be checked.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// What protects it.
    pub protections: Protections,
    /// What happens to it.
    pub scenario: Scenario,
}

/// Where a write comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Anybody's SQL.
    Sql,
    /// `UpdateProduct` or `DeleteProduct`, through this instance.
    Api(u8),
}

/// What happens. A number is the instance that does it; the checker may exchange the instances' names between
/// two actions of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "lib.rs has the table of them")]
pub enum Action {
    Update(Writer),
    Delete(Writer),
    Insert,
    Offer(u8),
    Publish(u8),
    Append(u8),
    BeginLoad(u8),
    ReadRedis(u8),
    TryLease(u8),
    Select(u8),
    Fill(u8),
    SelectWithoutLease(u8),
    Replace(u8),
    Land(u8),
    RelayClaim(u8),
    RelaySupersede(u8),
    RelayLoad(u8),
    RelayReplace(u8),
    RelayAppend(u8),
    RelayDone(u8),
    Hear(u8),
    FindGap(u8),
    Restart(u8),
    Replay(u8),
    Look(u8),
    Poll(u8),
    Prove(u8),
    RedisFails(u8),
    EvictEntry,
    EvictSlot(u8),
    ExpireLease,
    Crash(u8),
    ReplicaStalls,
    Failover,
    Trim,
}

/// What can happen in one state.
pub(crate) struct Moment<'a> {
    protocol: &'a Protocol,
    state: State,
    steps: &'a mut Vec<Step<Protocol>>,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn initial(&self) -> State {
        let mut state = State { faults: self.scenario.faults, ..State::default() };
        state.history[0] = Revision { version: 1, deleted: false };
        for instance in &mut state.instances {
            instance.cursor = Some(Place::default());
        }
        state
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step<Self>>) {
        let mut moment = Moment { protocol: self, state: *state, steps };
        for at in 0..INSTANCES {
            moment.load(at);
            moment.write(at);
            moment.relay(at);
            moment.follow(at);
            moment.frontier(at);
            moment.environment_of(at);
        }
        moment.environment();
        moment.sql();
    }

    fn broken(&self, before: &State, step: &Step<Self>) -> Option<&'static str> {
        promises::broken(before, step)
    }

    fn broken_at_rest(&self, state: &State) -> Option<&'static str> {
        promises::broken_at_rest(state)
    }

    fn canonical(&self, mut state: State) -> State {
        state.rebase_stream();
        // The instances are alike: which is which does not matter.
        state.min(state.mirrored())
    }
}

impl Moment<'_> {
    /// This happens sooner or later.
    fn will(&mut self, action: Action, change: impl FnOnce(&mut State)) {
        self.step(action, true, change);
    }

    /// This may happen.
    fn may(&mut self, action: Action, change: impl FnOnce(&mut State)) {
        self.step(action, false, change);
    }

    fn step(&mut self, action: Action, certain: bool, change: impl FnOnce(&mut State)) {
        let mut after = self.state;
        change(&mut after);
        self.steps.push(Step { action, after, certain });
    }

    fn instance(&self, at: usize) -> Instance {
        self.state.instances[at]
    }

    /// Evictions and faults of one instance.
    fn environment_of(&mut self, at: usize) {
        let name = name(at);
        let instance = self.instance(at);
        if self.protocol.scenario.evictions && instance.slot.is_some() {
            self.may(Action::EvictSlot(name), |state| state.instances[at].slot = None);
        }
        if self.state.faults.crashes > 0 {
            let Protections { replay, replay_at_start, .. } = self.protocol.protections;
            let replays = replay && replay_at_start;
            self.may(Action::Crash(name), |state| {
                state.faults.crashes -= 1;
                state.instances[at] = Instance { replay: replays, ..Instance::default() };
                state.give_back_rows(at);
                state.abandon_lease(at);
            });
        }
    }

    /// What happens to Redis.
    fn environment(&mut self) {
        let state = self.state;
        if self.protocol.scenario.evictions && state.redis.entry.is_some() {
            self.may(Action::EvictEntry, |state| state.redis.entry = None);
        }
        if state.redis.lock != Lock::Free {
            self.may(Action::ExpireLease, |state| state.redis.lock = Lock::Free);
        }
        if state.faults.failovers > 0 && state.replica.is_none() {
            self.may(Action::ReplicaStalls, |state| state.replica = Some(state.redis));
        }
        if let Some(replica) = state.replica {
            let replays = self.protocol.protections.replay;
            self.may(Action::Failover, |state| {
                state.faults.failovers -= 1;
                state.redis = replica;
                state.replica = None;
                // Every connection breaks, which is what `Catalog::replay_after_reconnects` waits for.
                state.instances.iter_mut().for_each(|instance| instance.replay = replays);
            });
        }
        if state.faults.trims > 0 {
            self.may(Action::Trim, |state| {
                state.faults.trims -= 1;
                let newest = state.newest_id();
                state.redis.stream.flood(newest);
            });
        }
    }

    /// Anybody's SQL.
    fn sql(&mut self) {
        if self.state.commit == self.protocol.scenario.writes {
            return;
        }
        let deletions = self.protocol.scenario.deletions;
        if self.state.truth().revision.deleted {
            self.may(Action::Insert, |state| state.commit_write(false));
        } else {
            self.may(Action::Update(Writer::Sql), |state| state.commit_write(false));
            if deletions {
                self.may(Action::Delete(Writer::Sql), |state| state.commit_write(true));
            }
        }
    }
}

impl State {
    /// The statement and its triggers, `migrations/0001_products.sql`: a deletion keeps the version.
    fn commit_write(&mut self, deleted: bool) {
        let version = self.truth().revision.version + u8::from(!deleted);
        self.commit += 1;
        assert!(usize::from(self.commit) <= MOST_WRITES, "the scenario has too many writes");
        self.history[usize::from(self.commit)] = Revision { version, deleted };
        self.rows[usize::from(self.commit)] = Row::Outbox;
    }

    /// A relay's transaction is rolled back.
    fn give_back_rows(&mut self, at: usize) {
        self.instances[at].relay = Relay::Claim;
        self.move_rows(Row::Claimed(name(at)), Row::Outbox);
    }

    fn move_rows(&mut self, from: Row, to: Row) {
        self.rows.iter_mut().filter(|row| **row == from).for_each(|row| *row = to);
    }

    /// The load that holds the lease ends without giving it back.
    fn abandon_lease(&mut self, at: usize) {
        let mine = Lock::Load(name(at));
        for redis in [Some(&mut self.redis), self.replica.as_mut()].into_iter().flatten() {
            if redis.lock == mine {
                redis.lock = Lock::Nobody;
            }
        }
    }
}

fn name(at: usize) -> u8 {
    u8::try_from(at).expect("there are few instances")
}
