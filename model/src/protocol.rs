//! The steps of the protocol, and the faults that it is exposed to.

mod changes;
mod environment;
mod feed;
mod load;
mod node;
mod postgres;
pub mod promises;
mod relay;
mod write;

use crate::checker::{Model, Step};
use crate::protections::Protections;
use crate::scenarios::Scenario;
use crate::snapshot::Snapshot;
use crate::state::{INSTANCES, Instance, NodeKey, Relay, Revision, Slot, State};

#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    pub protections: Protections,
    pub scenario: Scenario,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A statement that is its own transaction.
    Sql,
    /// A transaction that has its xid already.
    Transaction(u8),
    /// `UpdateProduct` or `DeleteProduct`, through this instance.
    Api(u8),
}

/// The table in `lib.rs` describes them. A number is the instance that acts, or an xid. Between two actions of a trace the
/// checker may exchange the two instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Begin(u8),
    Update(Writer),
    Delete(Writer),
    Insert(Writer),
    Commit(u8),
    Rollback(u8),
    Poll(u8),
    Snapshot(u8),
    RaiseEpoch(u8),
    Answer(u8),
    Overflow(u8),
    Hint(u8),
    BogusHint(u8),
    Offer(u8),
    Publish(u8),
    BeginLoad(u8),
    ReadRedis(u8),
    TryLease(u8),
    Select(u8),
    Fill(u8),
    SelectWithoutLease(u8),
    Replace(u8),
    Finish(u8),
    TakeRelayLease(u8),
    StopRelay(u8),
    RelayPoll(u8),
    RelaySupersede(u8),
    RelayDelete(u8),
    RelayLoad(u8),
    RelayReplace(u8),
    RelayAdvance(u8),
    Prune(u8),
    Probe(u8),
    RedisFails(u8),
    EvictEntry,
    EvictSlot(u8),
    ExpireLease,
    Crash(u8),
    ReplicaStalls,
    Failover,
    Backup,
    Restore,
}

/// Collects the steps that are possible in one state.
pub(crate) struct Expansion<'a> {
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
        state.postgres.version = 1;
        let entry = self.scenario.warm.then_some(state.truth());
        state.redis.entry = entry;
        for (at, instance) in state.instances.iter_mut().enumerate() {
            let follows = at < self.scenario.feeds;
            instance.feed.previous = follows.then_some(Snapshot::default());
            instance.node = Some(NodeKey::default());
            let slot = entry.map(|entry| Slot { entry, trusted: true, invalidated: false });
            instance.slot = slot.filter(|_| follows);
        }
        state.instances[0].relay = Some(Relay::default());
        state
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step<Self>>) {
        let mut expansion = Expansion { protocol: self, state: *state, steps };
        for at in 0..INSTANCES {
            expansion.load(at);
            expansion.write(at);
            expansion.feed(at);
            expansion.hints(at);
            expansion.relay(at);
            expansion.probe(at);
            expansion.environment_of(at);
        }
        expansion.environment();
        expansion.transactions();
    }

    fn broken(&self, before: &State, step: &Step<Self>) -> Option<&'static str> {
        promises::broken(before, step)
    }

    fn broken_when_quiescent(&self, state: &State) -> Option<&'static str> {
        promises::broken_when_quiescent(state, &self.protections)
    }

    fn canonical(&self, state: State) -> State {
        // The instances are symmetric.
        state.min(state.mirrored())
    }
}

impl Expansion<'_> {
    /// Adds a fair step.
    fn will(&mut self, action: Action, change: impl FnOnce(&mut State)) {
        self.step(action, true, change);
    }

    /// Adds a step that need not happen.
    fn may(&mut self, action: Action, change: impl FnOnce(&mut State)) {
        self.step(action, false, change);
    }

    fn step(&mut self, action: Action, fair: bool, change: impl FnOnce(&mut State)) {
        let mut after = self.state;
        change(&mut after);
        self.steps.push(Step { action, after, fair });
    }

    fn instance(&self, at: usize) -> Instance {
        self.state.instances[at]
    }

    /// The scope of the Redis keys of a load, a write or a relay that began in `scope`.
    fn scope(&self, at: usize, scope: u8) -> u8 {
        let Protections { scope: in_keys, scope_of_begin, .. } = self.protocol.protections;
        let scope = if scope_of_begin { scope } else { self.instance(at).feed.epoch };
        if in_keys { scope } else { 0 }
    }
}

fn name(at: usize) -> u8 {
    u8::try_from(at).expect("instances and xids are few")
}
