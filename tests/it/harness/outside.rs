//! Third-party programs.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Runs a command to its end and returns its output of both streams.
///
/// # Errors
/// The output of a command that failed; or why it could not run or end within `timeout`.
pub async fn finish(command: &mut Command, timeout: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(timeout, command.output()).await;
    let output = output.map_err(|_| format!("still running after {timeout:?}"))?;
    let output = output.map_err(|error| error.to_string())?;
    let printed = [output.stderr, output.stdout].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    if output.status.success() { Ok(printed) } else { Err(printed) }
}
