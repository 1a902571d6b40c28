//! `hotshelf doctor`: checks the servers and files of the settings of `serve`, and changes nothing.

use std::fmt::Write;
use std::iter::repeat;

use serde_json::{Value, json};

use crate::config::ServeArgs;
use crate::controls::Controls;
use crate::findings::{Finding, Section, Severity};
use crate::metrics::Metrics;
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::rpc::Identity;

/// The columns of the table.
const WIDTH: usize = 100;
/// The columns of the severity and the name of a check.
const INDENT: usize = 24;

/// What was found.
#[derive(Debug)]
pub struct Report(Vec<Section>);

/// Runs all checks. A server that is down does not keep the others from being checked.
///
/// # Errors
/// One sentence when a URL cannot be used.
pub async fn run(args: &ServeArgs) -> Result<Report, String> {
    let metrics = Metrics::new();
    let postgres = Postgres::new(&args.postgres(), metrics.clone())?;
    let mut options = args.redis();
    options.connections = 1;
    let redis = Redis::connect(options, metrics.clone(), Controls::default())?;
    let options = args.identity()?;
    let identity = match Identity::load(&options, &metrics).await {
        Ok(_) => {
            let tls = if options.tls.is_some() { "with TLS" } else { "without TLS" };
            let certificates = options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
            let callers = match certificates || options.tokens.is_some() {
                true => "callers are authenticated",
                false => "callers are not authenticated",
            };
            Finding::fine("callers", format!("gRPC {tls}, {callers}; the files can be used"))
        }
        Err(sentence) => Finding::stops("callers", &sentence),
    };
    let subject = "Settings".to_owned();
    let mut sections = vec![Section { subject, findings: vec![identity] }];
    let of_postgres = postgres.check(args.checks()).await;
    let has_error = of_postgres.findings.iter().any(|one| one.severity == Severity::Error);
    // Without it, it is not known which of the catalogues in Redis is this one.
    let catalogue = if has_error { None } else { postgres.catalogue_identity().await };
    let of_redis = redis.check(catalogue.as_deref()).await;
    sections.push(of_postgres);
    sections.extend(of_redis);
    tokio::join!(postgres.close(), redis.close());
    Ok(Report(sections))
}

impl Report {
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.findings().map(|finding| finding.severity).max().unwrap_or(Severity::Fine)
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter().flat_map(|section| &section.findings)
    }

    /// The number of findings that are not fine, for the last line.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |severity| self.findings().filter(|one| one.severity == severity).count();
        match (count(Severity::Error), count(Severity::Warning)) {
            (0, 0) => "everything is fine".to_owned(),
            (errors, warnings) => format!("errors: {errors}, warnings: {warnings}"),
        }
    }

    /// For a person.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for section in &self.0 {
            text += &format!("{}\n", section.subject);
            for finding in &section.findings {
                let severity = match finding.severity {
                    Severity::Error => "ERROR",
                    other => other.name(),
                };
                let head = format!("  {severity:<8} {:<13}", finding.check);
                paragraph(&mut text, &head, &finding.shown());
                let cost = match (finding.severity, finding.cost.as_str()) {
                    (Severity::Error, "") => "serve does not start",
                    (_, cost) => cost,
                };
                if !cost.is_empty() {
                    paragraph(&mut text, &format!("{:INDENT$} cost:", ""), cost);
                }
                // Each statement on a line of its own.
                let steps = finding.remedy.split("; ").filter(|step| !step.is_empty());
                for (step, head) in steps.zip(std::iter::once("mend:").chain(repeat("     "))) {
                    paragraph(&mut text, &format!("{:INDENT$} {head}", ""), step);
                }
            }
        }
        text
    }

    /// For a program.
    #[must_use]
    pub fn json(&self) -> Value {
        let finding = |finding: &Finding| {
            json!({
                "check": finding.check,
                "severity": finding.severity.name(),
                "what": finding.what,
                "detail": finding.detail,
                "cost": finding.cost,
                "remedy": finding.remedy,
            })
        };
        let section = |section: &Section| {
            let findings: Vec<Value> = section.findings.iter().map(finding).collect();
            json!({ "subject": section.subject, "findings": findings })
        };
        let sections: Vec<Value> = self.0.iter().map(section).collect();
        json!({ "severity": self.severity().name(), "sections": sections })
    }
}

/// Appends words behind a head, in lines of at most [`WIDTH`] columns. A word that is longer has a line of its own.
fn paragraph(text: &mut String, head: &str, words: &str) {
    let indent = head.chars().count();
    let mut line = head.to_owned();
    for word in words.split_whitespace() {
        let is_full = line.chars().count() + 1 + word.chars().count() > WIDTH;
        if is_full && !line.trim().is_empty() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
            line = " ".repeat(indent);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}
