//! What the checks of the servers and settings find. `hotshelf doctor` prints all findings, `serve` logs those that are not fine.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clocks that differ by more than this are reported: ages of entries in Redis are measured with wall clocks.
const CLOCKS: Duration = Duration::from_secs(1);

/// What a finding means for `serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Fine,
    /// It serves, at the cost that the finding names.
    Warning,
    /// It does not start, or calls fail.
    Error,
}

impl Severity {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The result of one check. Its `Display` is the sentence that `serve` logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub check: &'static str,
    pub severity: Severity,
    /// What was found, or what is wrong.
    pub what: String,
    /// The server's own words, if it had any.
    pub detail: String,
    pub cost: String,
    pub remedy: String,
    /// `serve` reports it by itself, when it begins and when it ends.
    pub is_reported: bool,
}

impl Finding {
    pub fn fine(check: &'static str, what: impl Into<String>) -> Self {
        let (cost, remedy) = (String::new(), String::new());
        Self::new(check, Severity::Fine, [what.into(), cost, remedy])
    }

    pub fn warning(check: &'static str, what: &str, cost: &str, remedy: &str) -> Self {
        Self::new(check, Severity::Warning, [what, cost, remedy].map(str::to_owned))
    }

    pub fn error(check: &'static str, what: &str, cost: &str, remedy: &str) -> Self {
        Self::new(check, Severity::Error, [what, cost, remedy].map(str::to_owned))
    }

    /// The sentence with which `serve` ends: what is wrong, and behind a semicolon what to do.
    #[must_use]
    pub fn stops(check: &'static str, sentence: &str) -> Self {
        let (what, remedy) = sentence.split_once("; ").unwrap_or((sentence, ""));
        Self::error(check, what, "", remedy)
    }

    fn new(check: &'static str, severity: Severity, words: [String; 3]) -> Self {
        let [what, cost, remedy] = words;
        Self { check, severity, what, detail: String::new(), cost, remedy, is_reported: false }
    }

    #[must_use]
    pub fn with_detail(self, detail: &str) -> Self {
        Self { detail: detail.to_owned(), ..self }
    }

    #[must_use]
    pub fn reported(self) -> Self {
        Self { is_reported: true, ..self }
    }

    /// What is wrong, with the words of the server.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.detail.is_empty() {
            true => self.what.clone(),
            false => format!("{} ({})", self.what, self.detail),
        }
    }

    /// Compares a clock with the one of this machine, which was read before and after.
    #[must_use]
    pub fn clock(before: SystemTime, theirs: Duration, after: SystemTime) -> Self {
        let since_1970 = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (before, after) = (since_1970(before), since_1970(after));
        // Nothing is known about the time of the reading but that it was in between.
        let ahead = theirs.saturating_sub(after);
        let behind = before.saturating_sub(theirs);
        let (apart, how) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
        match apart > CLOCKS {
            false => Self::fine("clock", "less than a second from the one of this machine"),
            true => Self::warning(
                "clock",
                &format!(
                    "its clock is {} s {how} the one of this machine",
                    apart.as_millis() as f64 / 1_000.0
                ),
                "products stay in Redis for too long or too short by that much",
                "synchronise the clocks (NTP)",
            ),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())?;
        if !self.cost.is_empty() {
            write!(f, ": {}", self.cost)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The findings about one server, or about the settings.
#[derive(Clone, Debug)]
pub struct Section {
    pub subject: String,
    pub findings: Vec<Finding>,
}

impl Section {
    /// Logs what is not fine, and not reported otherwise.
    pub fn log(&self) {
        for finding in self.findings.iter().filter(|finding| !finding.is_reported) {
            let (about, check) = (&self.subject, finding.check);
            match finding.severity {
                Severity::Fine => {}
                Severity::Warning => tracing::warn!(about, check, "{finding}"),
                Severity::Error => tracing::error!(about, check, "{finding}"),
            }
        }
    }
}

/// The time of a round trip for a person.
#[must_use]
pub fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1_000.0)
}

/// The median; zero of none.
#[must_use]
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_are_reported_and_slow_answers_are_not() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let compare = |before, theirs, after| {
            Finding::clock(at(before), Duration::from_secs(theirs), at(after))
        };
        for (before, theirs, after) in [(100, 100, 100), (100, 105, 110), (100, 99, 100)] {
            assert_eq!(compare(before, theirs, after).severity, Severity::Fine);
        }
        let ahead = compare(100, 107, 102);
        assert!(ahead.to_string().starts_with("its clock is 5 s ahead of "), "{ahead}");
        let behind = compare(100, 93, 102);
        assert!(behind.to_string().starts_with("its clock is 7 s behind "), "{behind}");
    }

    #[test]
    fn a_sentence_that_ends_serve_is_kept_as_it_is() {
        for sentence in ["no table is attached; run hotshelf attach TABLE", "it failed"] {
            assert_eq!(Finding::stops("table", sentence).to_string(), sentence);
        }
    }
}
