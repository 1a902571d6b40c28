//! System calls and allocations of a request, and the time of a lookup in the hot tier.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::cores::Cores;
use crate::h2load::Shape;
use crate::measure::{Row, Sample};
use crate::reads::SHAPES;
use crate::report::{Section, number};
use crate::server::{Server, beside};
use crate::setup::Setup;

/// Enough for the cost of connecting to vanish.
const REQUESTS: u64 = 50_000;
const WARM_UP: u64 = 5_000;
/// How long a tracer takes to attach.
const ATTACH: Duration = Duration::from_millis(500);

/// System calls and allocations, as a table in Markdown.
pub(crate) async fn table(setup: &Setup) -> Result<String> {
    let shape = SHAPES[0];
    let mut text = format!(
        "### System calls and allocations, {shape}\n\nFor each request. {}\n\n| | system calls | allocations |\n|---|--:|--:|\n",
        Tracer::find().await.note(),
    );
    for (label, server) in setup.servers.grpc() {
        let calls = system_calls(setup, server, shape).await?;
        let allocations = allocations(setup, label, shape).await?;
        let calls = calls.map_or_else(|| "-".to_owned(), number);
        text += &format!("| {label} | {calls} | {} |\n", number(allocations));
    }
    Ok(text)
}

/// Counted by `inside`: the same server with a counting allocator.
async fn allocations(setup: &Setup, label: &str, shape: Shape) -> Result<f64> {
    let arguments = match label {
        "hotshelf" => setup.backends.options(&[]),
        _ => {
            let products = [setup.typical()?.clone()];
            let file = setup.backends.write_products(&products)?;
            vec![label.to_owned(), crate::backends::path(&file)?.to_owned()]
        }
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut inside = Server::start(&beside("inside")?, &arguments, &Cores::default()).await?;
    let load = setup.typical_read(&inside, shape)?;
    load.run(WARM_UP).await?;
    let before = inside.allocations().await?;
    load.run(REQUESTS).await?;
    let after = inside.allocations().await?;
    Ok((after - before) as f64 / REQUESTS as f64)
}

/// Lookups in the hot tier, on one thread and on two.
pub(crate) async fn lookups(setup: &Setup) -> Result<Vec<Section>> {
    let options = setup.backends.options(&[]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut inside = Server::start(&beside("inside")?, &options, &Cores::default()).await?;
    let ids: Vec<i64> = setup.products.iter().map(|product| product.id).collect();
    crate::backends::read(inside.port, &ids).await?;
    let mut rows = [("1 thread", 1), ("2 threads", 2)]
        .map(|(label, threads)| (threads, Row { label: label.to_owned(), samples: Vec::new() }));
    for _ in 0..setup.effort.rounds {
        for (threads, row) in &mut rows {
            row.samples.push(Sample::of_nanos(inside.lookup_nanos(*threads).await?));
        }
    }
    Ok(vec![Section {
        key: "lookups".to_owned(),
        title: "A lookup in the hot tier".to_owned(),
        text: format!("Of {} products, in an order that jumps, with the bytes in hand.", ids.len()),
        rows: rows.map(|(_, row)| row).into(),
        against: Vec::new(),
        columns: &[("ns", Sample::nanos)],
    }])
}

async fn system_calls(setup: &Setup, server: &Server, shape: Shape) -> Result<Option<f64>> {
    let tracer = Tracer::find().await;
    let Some(mut command) = tracer.command(server.pid) else { return Ok(None) };
    let tracing = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    tokio::time::sleep(ATTACH).await;
    let load = setup.typical_read(server, shape)?;
    load.run(REQUESTS).await?;
    let report = interrupt(tracing).await?;
    Ok(tracer.count(&report).map(|calls| calls / REQUESTS as f64))
}

async fn interrupt(tracing: Child) -> Result<String> {
    let pid = tracing.id().context("the tracer ended by itself")?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT)?;
    Ok(String::from_utf8_lossy(&tracing.wait_with_output().await?.stderr).into_owned())
}

/// The program that counts system calls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tracer {
    /// Hardly slows the server.
    Perf,
    /// Slows the server so much that more responses share a write.
    Strace,
    Missing,
}

impl Tracer {
    async fn find() -> Self {
        let own = std::process::id();
        for tracer in [Self::Perf, Self::Strace] {
            let Some(mut command) = tracer.command(own) else { continue };
            // Tried on this process, because perf may be installed but not permitted.
            if tracer == Self::Perf {
                let tried = command.args(["sleep", "0"]).output().await;
                if tried.is_ok_and(|output| output.status.success()) {
                    return tracer;
                }
            } else if Command::new("strace").arg("--version").output().await.is_ok() {
                return tracer;
            }
        }
        Self::Missing
    }

    fn command(self, pid: u32) -> Option<Command> {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Perf => ("perf", &["stat", "-x,", "-e", "raw_syscalls:sys_enter"]),
            Self::Strace => ("strace", &["-c", "-f"]),
            Self::Missing => return None,
        };
        let mut command = Command::new(program);
        command.args(arguments).args(["-p", &pid.to_string()]);
        Some(command)
    }

    /// The count in the tracer's report.
    fn count(self, report: &str) -> Option<f64> {
        match self {
            Self::Perf => {
                let line = report.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
                line.split(',').next()?.parse().ok()
            }
            Self::Strace => {
                let line = report.lines().find(|line| line.trim_end().ends_with(" total"))?;
                line.split_whitespace().nth(3)?.parse().ok()
            }
            Self::Missing => None,
        }
    }

    fn note(self) -> &'static str {
        match self {
            Self::Perf => "System calls were counted by perf.",
            Self::Strace => {
                "System calls were counted by strace, under which the servers are slower and answer more calls \
                 with each write."
            }
            Self::Missing => {
                "System calls were not counted: neither perf nor strace can be used here."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_perf_is_parsed() {
        let report = "1234,,raw_syscalls:sys_enter,231806,100.00,,\n";
        assert_eq!(Tracer::Perf.count(report), Some(1234.0));
        assert_eq!(Tracer::Perf.count("<not supported>,,raw_syscalls:sys_enter,0\n"), None);
    }

    #[test]
    fn the_report_of_strace_is_parsed() {
        let report = "strace: Process 1 attached\n100.00    0.000000           0      2503         7 total\n";
        assert_eq!(Tracer::Strace.count(report), Some(2503.0));
    }
}
