//! Whether a copy may answer a read. Every condition of the read path is in [`judge`]; the rest of the catalogue
//! asks for a verdict and acts on it.

use crate::entry::{Entry, Freshness};
use crate::hot_cache::Trust;
use crate::moment::Moment;
use crate::product::Revision;

/// What one copy of a product, in memory or in Redis, may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answers the read.
    Fresh,
    /// Answers the read, marked stale, and is refreshed in the background.
    PastSoftTtl,
    /// Answers, marked stale, only while the outbox is unreachable. Else a load confirms or replaces it.
    Unconfirmed,
    /// Answers, marked stale, only when a load has failed.
    Suspect,
    /// Never answers this read, which asks for more than the caches promise.
    NotFreshEnough,
    /// Never answers: it is older than `stale_if_error` allows.
    PastHardTtl,
    /// Never answers: a newer revision is committed, or the copy is of a lost epoch.
    Invalidated,
}

/// Judges `entry` for one read.
///
/// `floor` is the newest revision known to be committed, `trust` how surely the tier that holds the entry has applied
/// every committed change.
#[inline]
#[must_use]
pub(super) fn judge(
    entry: &Entry,
    freshness: &Freshness,
    floor: Revision,
    trust: Trust,
    now: Moment,
) -> Verdict {
    if entry.revision() < floor || trust == Trust::OtherEpoch {
        return Verdict::Invalidated;
    }
    if entry.past_hard(now) {
        return Verdict::PastHardTtl;
    }
    // Only a read of whatever the caches serve has a fallback.
    let has_fallback = *freshness == Freshness::Cached;
    match trust {
        _ if !freshness.accepts(entry) => Verdict::NotFreshEnough,
        Trust::Confirmed if entry.past_soft(now) => Verdict::PastSoftTtl,
        Trust::Confirmed => Verdict::Fresh,
        Trust::Unconfirmed if has_fallback => Verdict::Unconfirmed,
        Trust::Suspect if has_fallback => Verdict::Suspect,
        Trust::Unconfirmed | Trust::Suspect | Trust::OtherEpoch => Verdict::NotFreshEnough,
    }
}

impl Verdict {
    /// Whether the copy answers without any load.
    #[inline]
    #[must_use]
    pub fn answers(self) -> bool {
        matches!(self, Self::Fresh | Self::PastSoftTtl)
    }

    /// Whether the copy answers a read whose load has failed.
    #[must_use]
    pub fn answers_failed_load(self) -> bool {
        self.answers() || matches!(self, Self::Unconfirmed | Self::Suspect)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::entry::{Ttl, prefix};
    use crate::product::Version;
    use Freshness::Cached;
    use Trust::{Confirmed, OtherEpoch, Suspect, Unconfirmed};

    const SOFT: Duration = Duration::from_secs(10);
    const HARD: Duration = Duration::from_secs(60);

    fn product(version: i64, known_at: Moment) -> Entry {
        let frame = [&prefix(1)[..], &[0]].concat();
        let ttl = Ttl { soft: SOFT, hard: HARD };
        Entry::from_frame(Revision::live(Version(version)), known_at, ttl, &frame).expect("a frame")
    }

    /// The table of ARCHITECTURE.md. Of each copy: its version, its age, the trust of its tier; and what a read of
    /// that freshness may do with it. The newest committed version is 5.
    #[test]
    fn each_case_of_the_table_has_its_verdict() {
        let now = Moment::now();
        let arrived = now + Duration::from_secs(3_600);
        let (new, past_soft, past_hard) = [1, 11, 61].map(Duration::from_secs).into();
        let at_least = |version| Freshness::MinVersion { version: Version(version), arrived };
        let (latest, due) = (Freshness::KnownSince(arrived), Freshness::NotDue { percent: 100 });
        let cases = [
            (4, new, Confirmed, Cached, Verdict::Invalidated),
            (4, past_hard, Suspect, latest, Verdict::Invalidated),
            (9, new, OtherEpoch, Cached, Verdict::Invalidated),
            (5, past_hard, Confirmed, Cached, Verdict::PastHardTtl),
            (5, past_hard, Unconfirmed, at_least(5), Verdict::PastHardTtl),
            (5, new, Confirmed, Cached, Verdict::Fresh),
            (6, new, Confirmed, Cached, Verdict::Fresh),
            (5, past_soft, Confirmed, Cached, Verdict::PastSoftTtl),
            (5, new, Unconfirmed, Cached, Verdict::Unconfirmed),
            (5, past_soft, Unconfirmed, Cached, Verdict::Unconfirmed),
            (5, new, Suspect, Cached, Verdict::Suspect),
            (5, new, Confirmed, at_least(5), Verdict::Fresh),
            (5, new, Confirmed, at_least(6), Verdict::NotFreshEnough),
            (6, new, Unconfirmed, at_least(6), Verdict::NotFreshEnough),
            (6, new, Suspect, at_least(6), Verdict::NotFreshEnough),
            (6, new, Confirmed, latest, Verdict::NotFreshEnough),
            (5, new, Confirmed, due, Verdict::Fresh),
            (5, past_soft, Confirmed, due, Verdict::NotFreshEnough),
            (5, new, Unconfirmed, due, Verdict::NotFreshEnough),
        ];
        for (version, age, trust, freshness, verdict) in cases {
            let entry = product(version, now.before(age));
            let floor = Revision::live(Version(5));
            let case = format!("version {version}, {age:?} old, {trust:?}, {freshness:?}");
            assert_eq!(judge(&entry, &freshness, floor, trust, now), verdict, "{case}");
        }
    }

    #[test]
    fn a_deletion_after_a_version_invalidates_that_version() {
        let (now, floor) = (Moment::now(), Revision::gone_after(Version(5)));
        let verdict = judge(&product(5, now), &Cached, floor, Confirmed, now);
        assert_eq!(verdict, Verdict::Invalidated);
    }
}
