//! Snapshots of PostgreSQL (`pg_snapshot`): which transactions a statement saw.

use std::fmt;
use std::str::FromStr;

/// The transactions that had ended when a statement began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The oldest transaction in progress.
    xmin: u64,
    /// One past the newest transaction that had ended.
    xmax: u64,
    /// The transactions in progress, from `xmin` to below `xmax`.
    in_progress: Vec<u64>,
}

impl Snapshot {
    /// Sees no transaction.
    pub(crate) fn empty() -> Self {
        Self { xmin: 0, xmax: 0, in_progress: Vec::new() }
    }

    /// The next poll must read the rows of transactions from this one on, and of those [`in_progress`](Self::in_progress).
    pub(crate) fn xmax(&self) -> u64 {
        self.xmax
    }

    pub(crate) fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Whether a transaction had ended. It may have been rolled back, but then it has no rows.
    pub(crate) fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || xid < self.xmax && !self.in_progress.contains(&xid)
    }

    /// Whether `later` sees every transaction that this snapshot sees. Between snapshots of one server that is true when this one
    /// was not taken later. A rolled-back transaction may cause a false negative.
    pub(crate) fn is_subset_of(&self, later: &Self) -> bool {
        let seen_here_only = |xid: &&u64| self.sees(**xid);
        self.xmax <= later.xmax && !later.in_progress.iter().any(|xid| seen_here_only(&xid))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (place, xid) in self.in_progress.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{xid}")?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = String;

    /// Reads `xmin:xmax:xip,xip,...`.
    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = || format!("\"{text}\" is not a snapshot");
        let number = |text: &str| text.parse().map_err(|_| unreadable());
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or_else(unreadable);
        let (xmin, xmax, list) = (number(part()?)?, number(part()?)?, part()?);
        let list = list.split(',').filter(|xid| !xid.is_empty());
        Ok(Self { xmin, xmax, in_progress: list.map(number).collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn a_snapshot_is_read_and_written_as_postgres_writes_it() {
        for text in ["10:20:10,14,15", "3:3:"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for bad in ["", "1:2", "a:b:", "1:2:x"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn it_sees_what_had_ended() {
        let seen = snapshot("10:20:10,14");
        let visible: Vec<u64> = (8..22).filter(|xid| seen.sees(*xid)).collect();
        assert_eq!(visible, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        assert!(!Snapshot::empty().sees(0));
    }

    #[test]
    fn a_later_snapshot_contains_an_earlier_one_and_not_the_other_way_round() {
        let (earlier, later) = (snapshot("10:20:10,14"), snapshot("14:25:14,22"));
        assert!(earlier.is_subset_of(&later) && !later.is_subset_of(&earlier));
        assert!(earlier.is_subset_of(&earlier) && Snapshot::empty().is_subset_of(&earlier));
        // The same xmax, but one transaction has ended in between.
        let ended = snapshot("14:20:14");
        assert!(earlier.is_subset_of(&ended) && !ended.is_subset_of(&earlier));
    }
}
