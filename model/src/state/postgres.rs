//! Postgres: transactions, what they left in the outbox, and what the instances share there.

use super::{MOST_TRANSACTIONS, Revision};
use crate::snapshot::Snapshot;

/// How far a transaction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// It has not begun.
    #[default]
    None,
    /// It has an xid, from a change of another product.
    Open,
    /// It has changed the product too, and holds the lock of its row.
    Changed,
    /// It is visible.
    Committed,
    /// It was rolled back.
    Aborted,
}

/// A transaction, and its rows in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transaction {
    /// How far it is.
    pub progress: Progress,
    /// What it made of the product; none if it changed another one only.
    pub revision: Revision,
    /// Which state of Postgres that is, once committed.
    pub commit: u8,
    /// The highest `seq` of its rows.
    pub seq: u8,
}

/// Everything that a restore sets back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Postgres {
    /// By xid.
    pub transactions: [Transaction; MOST_TRANSACTIONS],
    /// Which commit the product shows.
    pub commit: u8,
    /// The last version that the sequence gave out.
    pub version: u8,
    /// The last `seq` that was given out.
    pub seq: u8,
    /// Outbox rows visible in it may be gone.
    pub pruned: Snapshot,
    /// Those visible in this are.
    pub gone: Snapshot,
    /// Redis reflects everything visible in it.
    pub relayed: Snapshot,
    /// The newest mark.
    pub mark: Snapshot,
    /// The instance with the relay lease.
    pub holder: u8,
    /// The epoch, which is also the scope of every key in Redis.
    pub epoch: u8,
    /// The timeline for which that epoch was made.
    pub epoch_timeline: u8,
    /// The timeline of the server.
    pub timeline: u8,
}

impl Postgres {
    /// Everything that is over.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let over = |xid: usize| {
            matches!(self.transactions[xid].progress, Progress::Committed | Progress::Aborted)
        };
        Snapshot::of(MOST_TRANSACTIONS, over)
    }

    /// The newest commit whose row may be gone: what was known later is known for less than `change_retention`.
    #[must_use]
    pub fn pruned_commit(&self) -> u8 {
        let pruned = self.transactions.iter().enumerate().filter(|(xid, _)| self.gone.sees(*xid));
        pruned.map(|(_, transaction)| transaction.commit).max().unwrap_or(0)
    }
}
