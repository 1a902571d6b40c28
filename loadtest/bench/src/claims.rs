//! The claims about performance, and whether they are met.

use std::fmt;

use crate::measure::Sample;
use crate::report::{Section, number};

/// The ratio of two contenders of a section, or the value of one, and its limit.
struct Claim {
    what: &'static str,
    section: &'static str,
    contender: &'static str,
    /// Empty if the claim is about the value of the contender alone.
    reference: &'static str,
    of: fn(&Sample) -> f64,
    limit: Limit,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// A claim, and its measured value.
pub(crate) struct Verdict {
    claim: &'static Claim,
    /// `None` if it was not measured.
    pub(crate) ratio: Option<f64>,
    /// The same for the bare server, if the section has it: the least possible on this machine.
    bare: Option<f64>,
}

const CPU: fn(&Sample) -> f64 = Sample::cpu_us;
const RATE: fn(&Sample) -> f64 = |sample| sample.per_second;
const P50: fn(&Sample) -> f64 = |sample| sample.p50_us;
const PER_CPU: fn(&Sample) -> f64 = |sample| 1e6 / sample.cpu_us();

const fn claim(
    what: &'static str,
    (section, contender, reference): (&'static str, &'static str, &'static str),
    of: fn(&Sample) -> f64,
    limit: Limit,
) -> Claim {
    Claim { what, section, contender, reference, of, limit }
}

use Limit::{AtLeast, AtMost};

const BUSY: &str = "reads -c8 -m32";
const BARE: &str = "bare";

static CLAIMS: [Claim; 22] = [
    claim(
        "Hot read: CPU, of the ordinary server's",
        (BUSY, "hotshelf", "ordinary"),
        CPU,
        AtMost(0.30),
    ),
    claim("Hot read: CPU, of the bare server's", (BUSY, "hotshelf", BARE), CPU, AtMost(1.8)),
    claim(
        "Hot read: requests/s, of the ordinary server's",
        (BUSY, "hotshelf", "ordinary"),
        RATE,
        AtLeast(2.5),
    ),
    claim("Hot read: CPU, of nginx' for a constant", (BUSY, "hotshelf", "nginx"), CPU, AtMost(0.5)),
    claim(
        "Hot read, -c16 -m1: CPU, of the ordinary server's",
        ("reads -c16 -m1", "hotshelf", "ordinary"),
        CPU,
        AtMost(0.85),
    ),
    claim(
        "Hot read, -c16 -m1: p50, of the ordinary server's",
        ("reads -c16 -m1", "hotshelf", "ordinary"),
        P50,
        AtMost(0.85),
    ),
    claim(
        "Hot read, -c1 -m1: p50, of the ordinary server's",
        ("reads -c1 -m1", "hotshelf", "ordinary"),
        P50,
        AtMost(1.0),
    ),
    claim(
        "Hot read by Connect: CPU, of gRPC's",
        ("protocols", "Connect", "gRPC"),
        CPU,
        AtMost(0.85),
    ),
    claim("Hot read as JSON: CPU, of gRPC's", ("protocols", "JSON", "gRPC"), CPU, AtMost(1.3)),
    claim("Hot read, 304: CPU, of gRPC's", ("protocols", "JSON, 304", "gRPC"), CPU, AtMost(0.8)),
    claim(
        "Batch of 100, hot: products per CPU second, of the ordinary server's",
        ("batch 100", "hotshelf", "ordinary"),
        PER_CPU,
        AtLeast(3.0),
    ),
    claim("Lookup on one thread, ns", ("lookups", "1 thread", ""), Sample::nanos, AtMost(100.0)),
    claim("Lookup on two threads, ns", ("lookups", "2 threads", ""), Sample::nanos, AtMost(150.0)),
    claim(
        "Hit in Redis: CPU, of the ordinary server's",
        ("redis -c8 -m32", "hotshelf", "ordinary"),
        CPU,
        AtMost(0.5),
    ),
    claim(
        "Hit in Redis, -c1 -m1: p50, of a bare GET's",
        ("redis -c1 -m1", "hotshelf", "bare GET"),
        P50,
        AtMost(2.0),
    ),
    claim(
        "One hot key: CPU, of uniform keys'",
        ("keys", "one key", "uniform keys"),
        CPU,
        AtMost(1.05),
    ),
    claim(
        "One hot key: requests/s, of uniform keys'",
        ("keys", "one key", "uniform keys"),
        RATE,
        AtLeast(0.95),
    ),
    claim(
        "Catalogue of 100,000: CPU, of 10,000's",
        ("catalogues", "100000 products", "10000 products"),
        CPU,
        AtMost(1.10),
    ),
    claim(
        "Catalogue of 1,000,000: CPU, of 100,000's",
        ("catalogues", "1000000 products", "100000 products"),
        CPU,
        AtMost(1.10),
    ),
    claim(
        "Catalogue of 10,000,000: CPU, of 1,000,000's",
        ("catalogues", "10000000 products", "1000000 products"),
        CPU,
        AtMost(1.10),
    ),
    claim(
        "3 watchers of the hot keys: CPU, of 1 watcher's",
        ("watchers", "3 watching", "1 watching"),
        CPU,
        AtMost(1.03),
    ),
    claim(
        "9 watchers of the hot keys: CPU, of 3 watchers'",
        ("watchers", "9 watching", "3 watching"),
        CPU,
        AtMost(1.03),
    ),
];

/// Every claim, compared with the figures of these sections.
pub(crate) fn judge(sections: &[Section]) -> Vec<Verdict> {
    let ratio = |claim: &Claim, contender| {
        let section = sections.iter().find(|section| section.key == claim.section)?;
        let ratio = match claim.reference {
            "" => section.row(contender)?.median(claim.of),
            reference => section.ratio(contender, reference, claim.of)?,
        };
        // The median of no rounds is NaN.
        (!ratio.is_nan()).then_some(ratio)
    };
    let verdict = |claim| {
        let bare = ratio(claim, BARE).filter(|_| claim.reference != BARE);
        Verdict { claim, ratio: ratio(claim, claim.contender), bare }
    };
    CLAIMS.iter().map(verdict).collect()
}

impl Limit {
    fn holds(self, ratio: f64) -> bool {
        match self {
            // Limits have two decimals, so the ratio is rounded to two.
            AtMost(limit) => (ratio * 100.0).round() <= limit * 100.0,
            AtLeast(limit) => (ratio * 100.0).round() >= limit * 100.0,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtMost(limit) => write!(f, "at most {}", number(*limit)),
            AtLeast(limit) => write!(f, "at least {}", number(*limit)),
        }
    }
}

impl Verdict {
    /// `None` if it was not measured.
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.ratio.map(|ratio| self.claim.limit.holds(ratio))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = match self.is_met() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "not measured",
        };
        let [ratio, bare] = [self.ratio, self.bare].map(|ratio| number(ratio.unwrap_or(f64::NAN)));
        write!(f, "| {} | {} | {ratio} | {met} | {bare} |", self.claim.what, self.claim.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Row;

    fn reads(hotshelf: f64, bare: Option<f64>) -> Section {
        let row = |label: &str, user_us| Row {
            label: label.to_owned(),
            samples: vec![Sample { user_us, ..Sample::default() }],
        };
        let mut rows = vec![row("hotshelf", hotshelf), row("ordinary", 10.0)];
        rows.extend(bare.map(|bare| row(BARE, bare)));
        Section {
            key: BUSY.to_owned(),
            title: String::new(),
            text: String::new(),
            rows,
            against: Vec::new(),
            columns: &[],
        }
    }

    #[test]
    fn a_ratio_above_its_limit_is_not_met() {
        assert_eq!(judge(&[reads(3.0, None)])[0].is_met(), Some(true));
        let verdicts = judge(&[reads(3.1, Some(2.0))]);
        assert_eq!(verdicts[0].is_met(), Some(false));
        assert!(verdicts[0].to_string().ends_with("| at most 0.30 | 0.31 | **no** | 0.20 |"));
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_broken() {
        let verdicts = judge(&[reads(3.0, None)]);
        assert_eq!(verdicts[1].is_met(), None);
        assert!(verdicts[1].to_string().ends_with("| - | not measured | - |"));
    }

    #[test]
    fn a_least_ratio_must_be_reached() {
        assert!(AtLeast(2.5).holds(2.5) && AtLeast(2.5).holds(9.0) && !AtLeast(2.5).holds(2.4));
    }
}
