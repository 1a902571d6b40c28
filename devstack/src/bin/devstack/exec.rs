//! Runs a command and ends as it ends.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::signals::{Signals, runtime};

/// As a shell reports a command that it could not start.
const NOT_STARTED: u8 = 127;
/// As a shell reports a command that a signal ended: this plus the signal's number.
const BY_SIGNAL: u8 = 128;

/// Runs `command` with these variables, passing signals on, and gives its exit code.
pub(crate) fn run(
    command: &[OsString],
    environment: [(&'static str, String); 2],
) -> io::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        match spawn(command, environment) {
            Ok(mut child) => Ok(exit_code(see_through(&mut child, &mut signals).await?)),
            Err(error) => {
                eprintln!("devstack: {}: {error}", command[0].display());
                Ok(ExitCode::from(NOT_STARTED))
            }
        }
    })
}

/// In a group of its own, so that Ctrl-C reaches the command only through us, and so exactly once.
fn spawn(command: &[OsString], environment: [(&'static str, String); 2]) -> io::Result<Child> {
    // A background group that reads from its terminal is stopped: an end of file is clearer.
    let input = if io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
    Command::new(&command[0])
        .args(&command[1..])
        .envs(environment)
        .process_group(0)
        .stdin(input)
        .kill_on_drop(true)
        .spawn()
}

/// Waits for the command. The first signal is passed on as it is; whoever sends a second one is
/// done waiting.
async fn see_through(child: &mut Child, signals: &mut Signals) -> io::Result<ExitStatus> {
    let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    let mut passed_on = false;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            signal = signals.next() => if let Some(group) = group {
                // A group that is gone has nothing left to be told.
                let _ = killpg(group, if passed_on { Signal::SIGKILL } else { signal });
                passed_on = true;
            },
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let signal = || status.signal().and_then(|signal| u8::try_from(signal).ok());
    match code.or_else(|| Some(BY_SIGNAL.saturating_add(signal()?))) {
        Some(code) => ExitCode::from(code),
        None => ExitCode::FAILURE,
    }
}
