//! The program itself, in a process of its own: for what happens to processes.

use std::process::Stdio;

use hotshelf::proto::ProductServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use super::node::channel;
use super::{HANG, Stack};

/// The program that cargo built for these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_hotshelf");

/// A process that serves; killed when dropped.
pub struct Program {
    child: Child,
    port: u16,
}

/// How a process ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Program {
    /// A command that ignores the environment of whoever runs the tests.
    pub fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).env_clear().current_dir(std::env::temp_dir());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub async fn run(arguments: &[&str]) -> Ended {
        let output = Self::command(arguments).output();
        let output = tokio::time::timeout(HANG, output).await.expect("ends").unwrap();
        Ended { code: output.status.code(), stderr: String::from_utf8(output.stderr).unwrap() }
    }

    /// Serves in this test's world, and is ready.
    pub async fn serve(stack: &Stack, more: &[&str]) -> Self {
        let mut arguments = vec![
            "serve",
            "--database-url",
            &stack.database_url,
            "--redis-url",
            &stack.redis_url,
            "--redis-namespace",
            &stack.namespace,
            "--redis-timeout",
            "2s",
            "--database-statement-timeout",
            "10s",
            "--grpc-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
        ];
        arguments.extend(more);
        let mut child = Self::command(&arguments).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let reported = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it reports its address");
                if let Some(port) = port_in(&line) {
                    break port;
                }
            }
        };
        let port = tokio::time::timeout(HANG, reported).await.expect("serves");
        // Read on, so that the process never waits for its log to be read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, port }
    }

    pub async fn client(&self) -> ProductServiceClient<Channel> {
        ProductServiceClient::new(channel(self.port).await)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits for the end and returns the exit code.
    pub async fn ended(mut self) -> Option<i32> {
        tokio::time::timeout(HANG, self.child.wait()).await.expect("ends").unwrap().code()
    }
}

/// The port in the line `... serving grpc_addr=127.0.0.1:PORT ...`.
fn port_in(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("grpc_addr=127.0.0.1:")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
