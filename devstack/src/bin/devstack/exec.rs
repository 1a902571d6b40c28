//! Runs a command and exits with its exit code.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::signals::{Signals, runtime};

/// The exit code with which a shell reports a command that it could not start.
const NOT_STARTED: u8 = 127;
/// A shell reports a command that a signal ended with this plus the signal's number.
const BY_SIGNAL: u8 = 128;

/// Runs `command` with these variables, forwards signals to it, and returns its exit code.
pub(crate) fn run(
    command: &[OsString],
    environment: [(&'static str, String); 2],
) -> io::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        match spawn(command, environment) {
            Ok(mut child) => Ok(exit_code(wait_forwarding(&mut child, &mut signals).await?)),
            Err(error) => {
                eprintln!("devstack: {}: {error}", command[0].display());
                Ok(ExitCode::from(NOT_STARTED))
            }
        }
    })
}

/// A process group of its own: Ctrl-C reaches the command only through devstack, and so exactly once.
fn spawn(command: &[OsString], environment: [(&'static str, String); 2]) -> io::Result<Child> {
    // The kernel stops a background group that reads from its terminal: an end of file is clearer.
    let input = if io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
    Command::new(&command[0])
        .args(&command[1..])
        .envs(environment)
        .process_group(0)
        .stdin(input)
        .kill_on_drop(true)
        .spawn()
}

/// Waits for the command. The first signal is forwarded as it is; each later one becomes SIGKILL.
async fn wait_forwarding(child: &mut Child, signals: &mut Signals) -> io::Result<ExitStatus> {
    let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    let mut forwarded = false;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            signal = signals.next() => if let Some(group) = group {
                // An error means that the group has ended.
                let _ = killpg(group, if forwarded { Signal::SIGKILL } else { signal });
                forwarded = true;
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
