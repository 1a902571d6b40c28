//! Sections of the report, each a table in Markdown.

use std::fmt::{self, Write};

use crate::measure::{Row, Sample};
use crate::stats::{median, range};

/// Contenders that were measured together.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// Referred to by the claims.
    pub(crate) key: String,
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) rows: Vec<Row>,
    /// Labels of the contenders with which the others are compared.
    pub(crate) against: Vec<&'static str>,
    pub(crate) columns: &'static [Column],
}

/// Heading and value.
pub(crate) type Column = (&'static str, fn(&Sample) -> f64);

/// Columns for contenders that answer requests.
pub(crate) const REQUESTS: &[Column] = &[
    ("CPU us", Sample::cpu_us),
    ("user us", |sample| sample.user_us),
    ("system us", |sample| sample.system_us),
    ("requests/s", |sample| sample.per_second),
    ("p50 us", |sample| sample.p50_us),
    ("p99 us", |sample| sample.p99_us),
];

impl Section {
    pub(crate) fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    /// The median of the ratios of the rounds, or `None` if one of the two was not measured.
    pub(crate) fn ratio(&self, label: &str, to: &str, of: fn(&Sample) -> f64) -> Option<f64> {
        Some(median(&self.row(label)?.ratios(self.row(to)?, of)))
    }

    fn head(&self) -> String {
        let (mut head, mut rule) = ("| |".to_owned(), "|---|".to_owned());
        for (name, _) in self.columns {
            let _ = write!(head, " {name} |");
            rule += "--:|";
        }
        for label in self.references() {
            let _ = write!(head, " CPU / {label} |");
            rule += "--:|";
        }
        format!("{head}\n{rule}")
    }

    fn references(&self) -> impl Iterator<Item = &'static str> {
        self.against.iter().copied().filter(|label| self.row(label).is_some())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n\n{}\n\n{}", self.title, self.text, self.head())?;
        for row in &self.rows {
            write!(f, "| {} ", row.label)?;
            for (_, of) in self.columns {
                write!(f, "| {} ", spread(&row.all(of)))?;
            }
            for label in self.references() {
                let ratio = self.ratio(&row.label, label, Sample::cpu_us);
                write!(f, "| {} ", number(ratio.unwrap_or(f64::NAN)))?;
            }
            writeln!(f, "|")?;
        }
        Ok(())
    }
}

/// The median, with the least and the most in parentheses.
fn spread(values: &[f64]) -> String {
    let (least, most) = range(values);
    if least.is_nan() {
        return "-".to_owned();
    }
    format!("**{}** ({} - {})", number(median(values)), number(least), number(most))
}

/// Three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        nan if nan.is_nan() => "-".to_owned(),
        large if large >= 1_000.0 => thousands(value),
        hundreds if hundreds >= 100.0 => format!("{value:.0}"),
        tens if tens >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, user: [f64; 3]) -> Row {
        let sample = |user_us| Sample { user_us, per_second: 1e6, ..Sample::default() };
        Row { label: label.to_owned(), samples: user.map(sample).to_vec() }
    }

    fn section() -> Section {
        Section {
            key: "t".to_owned(),
            title: "T".to_owned(),
            text: "What it is.".to_owned(),
            rows: vec![row("hotshelf", [3.0, 2.0, 2.5]), row("ordinary", [10.0, 8.0, 12.5])],
            against: vec!["ordinary", "nginx"],
            columns: REQUESTS,
        }
    }

    #[test]
    fn a_table_has_medians_ranges_and_ratios_of_rounds() {
        let text = section().to_string();
        let line = text.lines().find(|line| line.starts_with("| hotshelf")).unwrap();
        assert!(line.contains("| **2.50** (2.00 - 3.00) |"), "{line}");
        assert!(line.contains("| **1,000,000** ("), "{line}");
        assert!(line.ends_with("| 0.25 |"), "{line}");
    }

    #[test]
    fn what_was_not_measured_is_no_column_and_no_ratio() {
        assert!(!section().to_string().contains("nginx"));
        assert_eq!(section().ratio("hotshelf", "nginx", Sample::cpu_us), None);
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        let shown = [1.234, 12.34, 123.4, 1_234.5, 1_234_567.0].map(number);
        assert_eq!(shown, ["1.23", "12.3", "123", "1,234", "1,234,567"]);
        assert_eq!(number(f64::NAN), "-");
    }
}
