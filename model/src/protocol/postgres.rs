//! Transactions, `migrations/`: a statement takes the version and writes the outbox row; the commit makes them visible.

use super::{Action, Expansion, Writer, name};
use crate::state::{MOST_COMMITS, MOST_TRANSACTIONS, Postgres, Progress, Revision, State};

impl Expansion<'_> {
    /// Transactions of other programs, by SQL.
    pub(super) fn transactions(&mut self) {
        self.begin();
        for xid in 0..MOST_TRANSACTIONS {
            match self.state.postgres.transactions[xid].progress {
                Progress::Open => {
                    self.change(Writer::Transaction(name(xid)), |state, deleted| {
                        state.postgres.change(xid, deleted);
                    });
                    self.end(xid);
                }
                Progress::Changed => self.end(xid),
                Progress::None | Progress::Committed | Progress::Aborted => {}
            }
        }
        self.change(Writer::Sql, State::autocommit);
    }

    fn begin(&mut self) {
        let Some(xid) = self.state.postgres.next_xid() else { return };
        if self.state.faults.transactions > 0 {
            self.may(Action::Begin(name(xid)), |state| {
                state.faults.transactions -= 1;
                state.postgres.open(xid);
            });
        }
    }

    /// A change of the product, unless another transaction holds the lock of its row.
    pub(super) fn change(&mut self, writer: Writer, mut change: impl FnMut(&mut State, bool)) {
        let scenario = self.protocol.scenario;
        let postgres = self.state.postgres;
        let full = matches!(writer, Writer::Sql | Writer::Api(_)) && postgres.next_xid().is_none();
        if full || postgres.is_locked() || postgres.changes() >= scenario.writes {
            return;
        }
        if self.state.truth().revision.deleted {
            if !matches!(writer, Writer::Api(_)) {
                self.may(Action::Insert(writer), |state| change(state, false));
            }
            return;
        }
        self.may(Action::Update(writer), |state| change(state, false));
        if scenario.deletions {
            self.may(Action::Delete(writer), |state| change(state, true));
        }
    }

    fn end(&mut self, xid: usize) {
        // Fair: a transaction that stays open for ever would block writers, and no state would be quiescent.
        self.will(Action::Commit(name(xid)), |state| state.commit(xid));
        if self.protocol.scenario.rollbacks {
            self.may(Action::Rollback(name(xid)), |state| {
                state.postgres.transactions[xid].progress = Progress::Aborted;
            });
        }
    }
}

impl Postgres {
    fn next_xid(&self) -> Option<usize> {
        self.transactions.iter().position(|transaction| transaction.progress == Progress::None)
    }

    fn changes(&self) -> u8 {
        let changes = self.transactions.iter().filter(|change| change.revision != Revision::NONE);
        name(changes.count())
    }

    fn is_locked(&self) -> bool {
        self.transactions.iter().any(|transaction| transaction.progress == Progress::Changed)
    }

    fn open(&mut self, xid: usize) {
        self.seq += 1;
        self.transactions[xid].progress = Progress::Open;
        self.transactions[xid].seq = self.seq;
    }

    /// The statement and its triggers; a deletion keeps the version.
    fn change(&mut self, xid: usize, deleted: bool) {
        let newest = self.transactions.iter().filter(|other| other.progress == Progress::Committed);
        let newest = newest.map(|other| other.revision).max().unwrap_or(Revision::NONE);
        self.version += u8::from(!deleted);
        self.seq += 1;
        let version = if deleted { newest.version.max(1) } else { self.version };
        let change = &mut self.transactions[xid];
        change.progress = Progress::Changed;
        change.revision = Revision { version, deleted };
        change.seq = self.seq;
    }
}

impl State {
    fn commit(&mut self, xid: usize) {
        let Self { postgres, history, newest, .. } = self;
        let transaction = &mut postgres.transactions[xid];
        if transaction.progress == Progress::Changed {
            *newest += 1;
            assert!(usize::from(*newest) <= MOST_COMMITS, "the scenario has too many writes");
            history[usize::from(*newest)] = transaction.revision;
            transaction.commit = *newest;
            postgres.commit = *newest;
        }
        transaction.progress = Progress::Committed;
    }

    /// A statement that is its own transaction.
    pub(super) fn autocommit(&mut self, deleted: bool) {
        let xid = self.postgres.next_xid().expect("there is room for one more");
        self.postgres.change(xid, deleted);
        self.commit(xid);
    }
}
