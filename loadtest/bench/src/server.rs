//! A server process, which is killed when its handle is dropped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cores::Cores;

/// Of a start, and of an answer of `inside`.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) port: u16,
    /// Of `/metrics`; hotshelf only.
    pub(crate) admin_port: Option<u16>,
    _child: Child,
    /// Standard input and output, for the questions that `inside` answers.
    inside: Option<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

/// The path of another program of the workspace.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    if !program.exists() {
        bail!("{} is not built; `make bench` builds it", program.display());
    }
    Ok(program)
}

impl Server {
    /// Starts a program that reports `grpc_addr=127.0.0.1:PORT` on standard error.
    pub(crate) async fn start(program: &Path, arguments: &[&str], cores: &Cores) -> Result<Self> {
        let name = program.display().to_string();
        let mut child = command(program, arguments, cores)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| name.clone())?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut last = String::new();
        let reported = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(port) = port_in(&line, "grpc_addr") {
                    return Ok((port, port_in(&line, "admin_addr")));
                }
                last = line;
            }
            Err(anyhow!("{name} did not start: {last}"))
        };
        let (port, admin_port) = tokio::time::timeout(TIMEOUT, reported)
            .await
            .with_context(|| format!("{name} does not serve after {TIMEOUT:?}"))??;
        // Reads the log to the end: with a full pipe the process would block at its next line.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("WARN") || line.contains("ERROR") || line.contains("panicked") {
                    eprintln!("{line}");
                }
            }
        });
        let inside = child.stdin.take().zip(child.stdout.take());
        let inside = inside.map(|(stdin, stdout)| (stdin, BufReader::new(stdout).lines()));
        Ok(Self {
            pid: child.id().context("the process has ended")?,
            port,
            admin_port,
            _child: child,
            inside,
        })
    }

    /// Starts a program that does not report its port, and waits until it accepts connections on `port`.
    pub(crate) async fn start_on(
        port: u16,
        program: &Path,
        arguments: &[&str],
        cores: &Cores,
    ) -> Result<Self> {
        let name = program.display();
        let mut child = command(program, arguments, cores)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let connects = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                if let Some(status) = child.try_wait()? {
                    bail!("{name} ended: {status}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        tokio::time::timeout(TIMEOUT, connects).await.with_context(|| name.to_string())??;
        let pid = child.id().context("the process has ended")?;
        Ok(Self { pid, port, admin_port: None, _child: child, inside: None })
    }

    /// The response of `/metrics`; hotshelf only.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let port = self.admin_port.context("the server has no admin port")?;
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Allocations since the start; `inside` only.
    pub(crate) async fn allocations(&mut self) -> Result<u64> {
        Ok(self.ask("").await?.parse()?)
    }

    /// Nanoseconds of a lookup in the hot tier, on this many threads at once; hotshelf in `inside` only.
    pub(crate) async fn lookup_nanos(&mut self, threads: usize) -> Result<f64> {
        Ok(self.ask(&threads.to_string()).await?.parse()?)
    }

    async fn ask(&mut self, what: &str) -> Result<String> {
        let (stdin, stdout) = self.inside.as_mut().context("the server is not `inside`")?;
        stdin.write_all(format!("{what}\n").as_bytes()).await?;
        let answer = tokio::time::timeout(TIMEOUT, stdout.next_line()).await;
        answer.context("`inside` does not answer")??.context("`inside` ended")
    }
}

/// With an empty environment, so that nothing is configured by it.
fn command(program: &Path, arguments: &[&str], cores: &Cores) -> Command {
    let mut command = cores.command(program);
    command.args(arguments).env_clear().current_dir(std::env::temp_dir()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// The port in `... NAME=127.0.0.1:PORT ...`.
fn port_in(line: &str, name: &str) -> Option<u16> {
    let (_, rest) = line.split_once(&format!("{name}=127.0.0.1:"))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_are_found_in_the_log() {
        let line = "INFO hotshelf::app: serving grpc_addr=127.0.0.1:40001 admin_addr=127.0.0.1:9";
        assert_eq!(port_in(line, "grpc_addr"), Some(40_001));
        assert_eq!(port_in(line, "admin_addr"), Some(9));
        assert_eq!(port_in("nothing", "grpc_addr"), None);
    }
}
