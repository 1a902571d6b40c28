//! What of Postgres is visible at a moment: `pg_snapshot`.

/// The transactions that were over. `xmax` and `xip` follow from it: the next of the highest, and what is missing below.
/// Of two snapshots of one history one contains the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot(u8);

impl Snapshot {
    /// Of the transactions that `over` says are over.
    pub fn of(transactions: usize, over: impl Fn(usize) -> bool) -> Self {
        let bits = (0..transactions).filter(|xid| over(*xid)).map(|xid| 1 << xid);
        Self(bits.fold(0, |bits, bit: u8| bits | bit))
    }

    /// Whether what `xid` wrote is visible in it, if it was committed.
    #[must_use]
    pub fn sees(self, xid: usize) -> bool {
        self.0 >> xid & 1 == 1
    }

    /// Whether everything visible in `other` is visible in it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 | other.0 == self.0
    }

    /// The larger of two.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The same without `xip`: everything below `xmax` counts as visible.
    #[must_use]
    pub fn without_xip(self) -> Self {
        Self(u8::MAX.checked_shr(self.0.leading_zeros()).unwrap_or(0))
    }
}
