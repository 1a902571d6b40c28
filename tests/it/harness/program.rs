//! The program in a process of its own, for tests of signals, crashes and the command line.

use std::fs::{self, DirEntry};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use hotshelf::proto::ProductServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use super::node::{admin, channel};
use super::{HANG, Stack, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hotshelf");

/// A serving process, killed on drop.
pub struct Program {
    child: Child,
    port: u16,
    admin_port: u16,
    log: Arc<Mutex<String>>,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// A command without the environment of the test run.
    pub fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).env_clear().current_dir(std::env::temp_dir());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(arguments: &[&str]) -> Ended {
        Self::finish(Self::command(arguments)).await
    }

    /// Runs a prepared command to its end.
    pub async fn finish(mut command: Command) -> Ended {
        let output = tokio::time::timeout(HANG, command.output()).await.expect("ends").unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Ended { code: output.status.code(), stdout, stderr }
    }

    /// A command that serves with this test's options. `more` may also replace them.
    pub fn serving(stack: &Stack, more: &[&str]) -> Command {
        let mut command = Self::command(&["serve"]);
        for pair in stack.options().iter().filter(|pair| !more.contains(&pair[0])) {
            command.args(pair);
        }
        command.args(more);
        command
    }

    /// Starts [`Self::serving`], and waits until it reports its addresses.
    pub async fn serve(stack: &Stack, more: &[&str]) -> Self {
        Self::start(Self::serving(stack, more)).await
    }

    /// Starts a prepared command, and waits until it reports its addresses.
    pub async fn start(mut command: Command) -> Self {
        // Standard output is not read, and must not fill a pipe.
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut first_lines = String::new();
        let reported = async {
            loop {
                let next = lines.next_line().await.unwrap();
                let line = next.unwrap_or_else(|| panic!("no address was reported: {first_lines}"));
                first_lines += &format!("{line}\n");
                if let Some(port) = port_in(&line, "grpc_addr") {
                    break (port, port_in(&line, "admin_addr").unwrap());
                }
            }
        };
        let (port, admin_port) = tokio::time::timeout(HANG, reported).await.expect("serves");
        let log = Arc::new(Mutex::new(first_lines));
        let written = Arc::clone(&log);
        // Reads on, so that the process never blocks on a full pipe.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                *written.lock().unwrap() += &format!("{line}\n");
            }
        });
        Self { child, port, admin_port, log }
    }

    pub async fn client(&self) -> ProductServiceClient<Channel> {
        ProductServiceClient::new(channel(self.port).await)
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process was not reaped")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn admin_port(&self) -> u16 {
        self.admin_port
    }

    /// Status and body of an admin request.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        admin(self.admin_port, path).await
    }

    /// The process's standard error until now.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Sends SIGSTOP, and waits until no thread runs: the others run until one of them has handled the signal.
    pub async fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let threads = format!("/proc/{}/task", self.pid());
        let is_stopped = |thread: std::io::Result<DirEntry>| {
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        eventually("every thread is stopped", async || {
            fs::read_dir(&threads).unwrap().all(is_stopped)
        })
        .await;
    }

    /// Sends SIGKILL, and waits for the end.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits for the end and returns the exit code.
    pub async fn ended(mut self) -> Option<i32> {
        tokio::time::timeout(HANG, self.child.wait()).await.expect("ends").unwrap().code()
    }
}

/// The port in `... NAME=127.0.0.1:PORT ...`.
fn port_in(line: &str, name: &str) -> Option<u16> {
    // In text, or in JSON.
    let (_, rest) = line.split_once(name)?;
    let (_, rest) = rest.split_once("127.0.0.1:").filter(|(between, _)| between.len() <= 3)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
