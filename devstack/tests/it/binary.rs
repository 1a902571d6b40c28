use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pg::Connection;
use crate::{eventually, refuses};

/// A running devstack, killed on drop.
struct Devstack {
    child: Child,
    lines: Receiver<String>,
}

impl Devstack {
    fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Ends with the output, or when the receiver is dropped.
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    fn read_line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// From two lines like `export REDIS_URL='redis://127.0.0.1:10007'`.
    fn read_ports(&self) -> [u16; 2] {
        [(); 2].map(|()| {
            let line = self.read_line();
            let (_, after) = line.split_once("127.0.0.1:").unwrap();
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap()
        })
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("devstack ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Devstack {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devstack"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A zombie counts as ended: a container without an init may never reap orphans.
fn is_gone(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn servers_and_their_directories_are_removed_when_their_parent_is_sigkilled() {
    let scratch = tempfile::Builder::new().permissions(crate::readable()).tempdir().unwrap();
    let mut up = command(&["up"]);
    up.env("TMPDIR", scratch.path());
    let mut up = Devstack::spawn(up);
    let ports = up.read_ports();
    assert!(!ports.into_iter().any(refuses));
    // The worst case for a stop: a frozen server with a client.
    let mut client = Connection::open(ports[0], "hotshelf").unwrap();
    let backend = client.query("SELECT pg_backend_pid()").unwrap();
    let postmaster = client.query("SELECT pg_read_file('postmaster.pid')").unwrap();
    let processes = [postmaster.lines().next().unwrap(), &backend];
    for pid in processes {
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGSTOP).unwrap();
    }
    up.send(Signal::SIGKILL);
    up.wait();
    eventually("the ports refuse", || ports.into_iter().all(refuses));
    eventually("the directories are gone", || scratch.path().read_dir().unwrap().next().is_none());
    eventually("the processes are gone", || processes.into_iter().all(is_gone));
}

#[test]
fn up_ends_on_sigterm() {
    let mut up = Devstack::start(&["up"]);
    let ports = up.read_ports();
    up.send(Signal::SIGTERM);
    assert!(up.wait().success());
    assert!(ports.into_iter().all(refuses));
}

#[test]
fn exec_gives_the_command_its_servers_and_exits_with_its_code() {
    let script = r#"echo "$DATABASE_URL"; echo "$REDIS_URL"; exit 7"#;
    let mut exec = Devstack::start(&["exec", "--", "sh", "-c", script]);
    let ports = exec.read_ports();
    assert_eq!(exec.wait().code(), Some(7));
    assert!(ports.into_iter().all(refuses));
}

#[test]
fn exec_keeps_the_servers_until_an_interrupted_command_has_ended() {
    // The command receives the signal once, and its Redis still runs afterwards.
    let script = r#"
        trap 'count=$((count + 1))' INT
        echo ready
        until [ "$count" ]; do sleep 0.05; done
        sleep 0.2
        exec 3<>"/dev/tcp/127.0.0.1/${REDIS_URL##*:}" && echo "$count signals, Redis is there"
        exit 42"#;
    let mut exec = Devstack::start(&["exec", "--", "bash", "-c", script]);
    assert_eq!(exec.read_line(), "ready");
    exec.send(Signal::SIGINT);
    assert_eq!(exec.read_line(), "1 signals, Redis is there");
    assert_eq!(exec.wait().code(), Some(42));
}

#[test]
fn a_second_signal_kills_a_command_that_ignores_the_first() {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut exec = Devstack::start(&["exec", "--", "sh", "-c", script]);
    assert_eq!(exec.read_line(), "ready");
    let killed = 128 + Signal::SIGKILL as i32;
    eventually("the command was killed", || {
        // Repeated, because two pending signals can become one.
        exec.send(Signal::SIGTERM);
        exec.child.try_wait().unwrap().is_some_and(|status| status.code() == Some(killed))
    });
}

#[test]
fn a_command_that_is_not_there_is_127() {
    let output = command(&["exec", "--", "/no/such/command"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("devstack: /no/such/command: "));
}

#[test]
fn a_reader_that_closes_the_pipe_early_is_no_failure() {
    let mut sample = command(&["sample-products", "--count", "100000"]);
    sample.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = sample.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 100]).unwrap();
    drop(output);
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success());
    assert!(ended.stderr.is_empty());
}
