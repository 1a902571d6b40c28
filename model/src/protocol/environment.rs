//! Evictions and faults.

use super::{Action, Expansion, name};
use crate::snapshot::Snapshot;
use crate::state::{Feed, Instance, Lock, Poll, Postgres, Redis, State};

impl Expansion<'_> {
    /// Of one instance.
    pub(super) fn environment_of(&mut self, at: usize) {
        if self.protocol.scenario.evictions && self.instance(at).slot.is_some() {
            self.may(Action::EvictSlot(name(at)), |state| state.instances[at].slot = None);
        }
        if self.state.faults.crashes > 0 {
            self.may(Action::Crash(name(at)), |state| {
                state.faults.crashes -= 1;
                let feed = Feed { epoch: state.postgres.epoch, ..Feed::default() };
                state.instances[at] = Instance { feed, ..Instance::default() };
                state.abandon_lease(at);
            });
        }
    }

    /// Of Redis and Postgres.
    pub(super) fn environment(&mut self) {
        let state = self.state;
        if self.protocol.scenario.evictions && state.redis.entry.is_some() {
            self.may(Action::EvictEntry, |state| state.redis.entry = None);
        }
        if state.redis.lock != Lock::Free {
            self.may(Action::ExpireLease, |state| state.redis.lock = Lock::Free);
        }
        self.failover();
        self.restore();
    }

    fn failover(&mut self) {
        let state = self.state;
        if state.faults.failovers > 0 && state.replica.is_none() {
            self.may(Action::ReplicaStalls, |state| state.replica = Some(state.redis));
        }
        if let Some(replica) = state.replica {
            self.may(Action::Failover, |state| {
                state.faults.failovers -= 1;
                state.redis = Redis { replication: state.redis.replication + 1, ..replica };
                state.replica = None;
                // Every connection breaks.
                state.instances.iter_mut().for_each(|instance| instance.node = None);
            });
        }
    }

    fn restore(&mut self) {
        let state = self.state;
        if state.faults.restores > 0 && state.backup.is_none() {
            self.may(Action::Backup, |state| state.backup = Some(state.postgres));
        }
        if let Some(backup) = state.backup {
            self.may(Action::Restore, |state| state.restore(backup));
        }
    }
}

impl State {
    /// Every connection to Postgres breaks. Open transactions, and those that were committed since the backup, are lost.
    fn restore(&mut self, backup: Postgres) {
        self.faults.restores -= 1;
        self.backup = None;
        for commit in backup.commit + 1..=self.newest {
            self.lost |= 1 << commit;
        }
        self.postgres = Postgres { timeline: self.postgres.timeline + 1, ..backup };
        self.postgres.roll_back_open();
        for Instance { feed, .. } in &mut self.instances {
            feed.poll = Poll::Idle;
            feed.proof = feed.proof.min(backup.commit);
        }
        for load in self.instances.iter_mut().filter_map(|instance| instance.load.as_mut()) {
            load.ticket.proof = load.ticket.proof.min(backup.commit);
        }
    }
}

impl Postgres {
    fn roll_back_open(&mut self) {
        let over: Snapshot = self.snapshot();
        for (xid, transaction) in self.transactions.iter_mut().enumerate() {
            if !over.sees(xid) {
                *transaction = crate::state::Transaction::default();
            }
        }
    }
}
