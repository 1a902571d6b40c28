//! A snapshot of Postgres: `pg_snapshot`.

/// The transactions that had ended, as bits. `xmax` is one above the highest of them, `xip` the missing ones below.
/// Of two snapshots of one history one contains the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot(u8);

impl Snapshot {
    /// Contains the transactions for which `over` is true.
    pub fn of(transactions: usize, over: impl Fn(usize) -> bool) -> Self {
        let bits = (0..transactions).filter(|xid| over(*xid)).map(|xid| 1 << xid);
        Self(bits.fold(0, |bits, bit: u8| bits | bit))
    }

    /// Whether the writes of `xid` are visible, if it was committed.
    #[must_use]
    pub fn sees(self, xid: usize) -> bool {
        self.0 >> xid & 1 == 1
    }

    /// Whether everything visible in `other` is visible here.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 | other.0 == self.0
    }

    /// The union, which is the newer of two snapshots of one history.
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
