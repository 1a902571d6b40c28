//! Postgres: transactions, their rows in the outbox, and the state that instances share there.

use super::{MOST_TRANSACTIONS, Revision};
use crate::snapshot::Snapshot;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// Not begun.
    #[default]
    None,
    /// The transaction has an xid, from a change of another product.
    Open,
    /// The transaction has changed the product too, and holds the lock of its row.
    Changed,
    Committed,
    Aborted,
}

/// A transaction, and its rows in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    pub progress: Progress,
    /// The product after it; none if it changed only another product.
    pub revision: Revision,
    /// The number of its commit in `State::history`.
    pub commit: u8,
    /// The highest `seq` of its outbox rows.
    pub seq: u8,
}

/// The state that a restore resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Postgres {
    /// By xid.
    pub transactions: [Transaction; MOST_TRANSACTIONS],
    /// The commit that the row shows.
    pub commit: u8,
    /// The last version that the sequence gave out.
    pub version: u8,
    /// The last `seq` that was given out.
    pub seq: u8,
    /// The marker of pruning: outbox rows visible in it may be deleted.
    pub pruned: Snapshot,
    /// Outbox rows visible in it are deleted.
    pub gone: Snapshot,
    /// The marker of the relay: Redis reflects everything visible in it.
    pub relayed: Snapshot,
    /// The newest mark.
    pub mark: Snapshot,
    /// The instance with the relay lease.
    pub holder: u8,
    /// The epoch, which is also the scope of every key in Redis.
    pub epoch: u8,
    /// The timeline of the server when the epoch was raised.
    pub epoch_timeline: u8,
    /// The timeline of the server.
    pub timeline: u8,
}

impl Postgres {
    /// The transactions that have ended.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let over = |xid: usize| {
            matches!(self.transactions[xid].progress, Progress::Committed | Progress::Aborted)
        };
        Snapshot::of(MOST_TRANSACTIONS, over)
    }

    /// The newest commit whose row is deleted. An entry that shows a later one is known for less than `change_retention`.
    #[must_use]
    pub fn pruned_commit(&self) -> u8 {
        let pruned = self.transactions.iter().enumerate().filter(|(xid, _)| self.gone.sees(*xid));
        pruned.map(|(_, transaction)| transaction.commit).max().unwrap_or(0)
    }
}
