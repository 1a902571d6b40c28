//! Programs of other people.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Runs a command to its end and returns what it printed, on both streams.
///
/// # Errors
/// What it printed, when it failed; or why it did not get that far.
pub async fn finish(command: &mut Command, patience: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(patience, command.output()).await;
    let output = output.map_err(|_| format!("still running after {patience:?}"))?;
    let output = output.map_err(|error| error.to_string())?;
    let printed = [output.stderr, output.stdout].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    if output.status.success() { Ok(printed) } else { Err(printed) }
}
