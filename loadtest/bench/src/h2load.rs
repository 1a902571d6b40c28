//! h2load: calls with one body, and the figures that it prints.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tempfile::NamedTempFile;

use crate::cores::Cores;
use crate::load::Outcome;
use crate::stats::{percentile_of_truncated, sorted};

/// Connections, and concurrent calls on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) connections: u32,
    pub(crate) streams: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "-c{} -m{}", self.connections, self.streams)
    }
}

/// What each request looks like.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// A call of this method, with the body.
    Grpc(&'static str),
    /// The same in another content type.
    Post { path: &'static str, content_type: &'static str },
    /// Without the body.
    Get { path: String, headers: Vec<String> },
    /// The same, answered with 304.
    NotModified { path: String, headers: Vec<String> },
}

impl Form {
    fn path(&self) -> &str {
        match self {
            Self::Grpc(path) | Self::Post { path, .. } => path,
            Self::Get { path, .. } | Self::NotModified { path, .. } => path,
        }
    }

    fn headers(&self) -> Vec<String> {
        match self {
            Self::Grpc(_) => {
                vec!["content-type: application/grpc".to_owned(), "te: trailers".to_owned()]
            }
            Self::Post { content_type, .. } => vec![format!("content-type: {content_type}")],
            Self::Get { headers, .. } | Self::NotModified { headers, .. } => headers.clone(),
        }
    }

    fn has_body(&self) -> bool {
        matches!(self, Self::Grpc(_) | Self::Post { .. })
    }
}

/// Requests of one form.
#[derive(Clone, Debug)]
pub(crate) struct H2load {
    pub(crate) port: u16,
    pub(crate) form: Form,
    /// Whether in HTTP/1.1.
    pub(crate) http1: bool,
    /// The request's message, of gRPC in its frame.
    pub(crate) body: PathBuf,
    /// Bytes of each reply. gRPC reports failures with HTTP status 200, so only the length shows them.
    pub(crate) reply: usize,
    pub(crate) shape: Shape,
    /// Of the load generator.
    pub(crate) cores: Cores,
}

impl H2load {
    pub(crate) async fn run(&self, requests: u64) -> Result<Outcome> {
        let log = NamedTempFile::new()?;
        let mut command = self.cores.command(Path::new("h2load"));
        for header in self.form.headers() {
            command.args(["-H", &header]);
        }
        if self.form.has_body() {
            command.arg("-d").arg(&self.body);
        }
        if self.http1 {
            command.arg("--h1");
        }
        let output = command
            .arg("-t1")
            .args([format!("-c{}", self.shape.connections), format!("-m{}", self.shape.streams)])
            .args(["-n", &requests.to_string()])
            .arg(format!("--log-file={}", log.path().display()))
            .arg(format!("http://127.0.0.1:{}{}", self.port, self.form.path()))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("h2load cannot be started; `make bench-deps` installs it")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let summary =
            Summary::parse(&printed).with_context(|| format!("h2load printed: {printed}"))?;
        let is_304 = matches!(self.form, Form::NotModified { .. });
        summary.check(requests, self.reply, is_304)?;
        let times = durations(&std::fs::read_to_string(log.path())?);
        ensure!(times.len() as u64 == requests, "h2load logged {} calls", times.len());
        Ok(Outcome {
            seconds: summary.seconds,
            p50_us: percentile_of_truncated(&times, 0.5),
            p99_us: percentile_of_truncated(&times, 0.99),
        })
    }
}

/// What h2load prints at the end.
#[derive(Debug, PartialEq)]
struct Summary {
    seconds: f64,
    succeeded: u64,
    status_2xx: u64,
    status_3xx: u64,
    data_bytes: u64,
}

impl Summary {
    fn parse(text: &str) -> Option<Self> {
        let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        Some(Self {
            seconds: seconds(line("finished in ")?.split_once(',')?.0)?,
            succeeded: number_before(line("requests: ")?, " succeeded")?,
            status_2xx: number_before(line("status codes: ")?, " 2xx")?,
            status_3xx: number_before(line("status codes: ")?, " 3xx")?,
            data_bytes: number_before(line("traffic: ")?, ") data")?,
        })
    }

    /// Checks that every call had the expected reply.
    fn check(&self, requests: u64, reply: usize, is_304: bool) -> Result<()> {
        let Self { succeeded, status_2xx, status_3xx, data_bytes, .. } = self;
        let expected = if is_304 { status_3xx } else { status_2xx };
        if *succeeded != requests || *expected != requests {
            bail!(
                "of {requests} calls {succeeded} were answered, {status_2xx} with status 2xx, {status_3xx} with 3xx"
            );
        }
        let expected = requests * reply as u64;
        ensure!(*data_bytes == expected, "replies had {data_bytes} bytes, not {expected}");
        Ok(())
    }
}

/// The number that ends where `end` begins.
fn number_before(text: &str, end: &str) -> Option<u64> {
    let (before, _) = text.split_once(end)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `1.50s`, `250.31ms`, `12us`.
fn seconds(text: &str) -> Option<f64> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    Some(number.parse::<f64>().ok()? * unit)
}

/// The third column: whole microseconds from request to reply. Sorted.
fn durations(log: &str) -> Vec<f64> {
    let times = log.lines().filter_map(|line| line.split('\t').nth(2)?.trim().parse().ok());
    sorted(&times.collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
finished in 500ms, 72817.30 req/s, 23.55MB/s
requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 331.25KB (339201) total, 14.11KB (14449) headers (space savings 90.11%), 297.85KB (305000) data
                     min         max         mean         sd        +/- sd
time for request:       93us      5.25ms      1.20ms       745us    67.40%
";

    #[test]
    fn the_summary_of_h2load_is_parsed() {
        let summary = Summary::parse(OUTPUT).unwrap();
        assert_eq!(
            summary,
            Summary {
                seconds: 0.5,
                succeeded: 1000,
                status_2xx: 1000,
                status_3xx: 0,
                data_bytes: 305_000
            }
        );
        assert!(summary.check(1000, 305, false).is_ok());
    }

    #[test]
    fn a_reply_of_another_length_is_an_error() {
        let summary = Summary::parse(OUTPUT).unwrap();
        assert!(summary.check(1000, 304, false).unwrap_err().to_string().contains("304000"));
    }

    #[test]
    fn a_call_that_was_not_answered_is_an_error() {
        let summary = Summary::parse(&OUTPUT.replace("1000 succeeded", "999 succeeded")).unwrap();
        assert!(summary.check(1000, 305, false).unwrap_err().to_string().contains("999"));
    }

    #[test]
    fn times_are_sorted() {
        let log = "1700000000000001\t200\t310\n1700000000000002\t200\t95\n";
        assert_eq!(durations(log), [95.0, 310.0]);
    }

    #[test]
    fn every_unit_of_time_is_parsed() {
        assert_eq!(seconds("1.50s"), Some(1.5));
        assert_eq!(seconds("250ms"), Some(0.25));
        assert_eq!(seconds("12us"), Some(12e-6));
        assert_eq!(seconds("soon"), None);
    }
}
