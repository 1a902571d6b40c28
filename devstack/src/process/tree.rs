//! Signals for a server and its children.
//!
//! A process group would be simpler, but PostgreSQL's backends each leave the postmaster's. Servers
//! here have no grandchildren.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::wait_until;

/// Stops the parent first, and then its children until no new one turns up: it may have been
/// forking when the signal was sent.
pub(super) fn freeze(parent: Pid) {
    signal(parent, Signal::SIGSTOP);
    let mut frozen = BTreeSet::new();
    loop {
        let fresh: Vec<Pid> =
            children(parent).into_iter().filter(|child| frozen.insert(*child)).collect();
        if fresh.is_empty() {
            return;
        }
        fresh.into_iter().for_each(|child| signal(child, Signal::SIGSTOP));
    }
}

/// Children first, so that the parent finds them awake.
pub(super) fn thaw(parent: Pid) {
    children(parent).into_iter().for_each(|child| signal(child, Signal::SIGCONT));
    signal(parent, Signal::SIGCONT);
}

/// Frozen first: a postmaster that sees a backend die would otherwise restart the others.
/// Afterwards all of them are dead, and what they shared can be had again.
pub(super) fn kill(parent: Pid) {
    freeze(parent);
    let children = children(parent);
    children.iter().for_each(|child| signal(*child, Signal::SIGKILL));
    signal(parent, Signal::SIGKILL);
    // Only the parent is ours to wait for. A child that the kernel holds on to for longer will show
    // as an error at the next start.
    let _ = wait_until("the end of killed processes", || !children.iter().copied().any(is_alive));
}

/// A zombie is not: it waits for somebody to take its exit code, and nobody may in a container
/// without an init.
fn is_alive(pid: Pid) -> bool {
    let is_zombie =
        || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    nix::sys::signal::kill(pid, None).is_ok() && !is_zombie()
}

/// A process that is gone needs no signal, and that is the only failure for processes of our own.
fn signal(pid: Pid, signal: Signal) {
    let _ = nix::sys::signal::kill(pid, signal);
}

fn children(parent: Pid) -> Vec<Pid> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap_or_else(|_| pgrep(parent));
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// Where there is no /proc, as on macOS.
fn pgrep(parent: Pid) -> String {
    let output = Command::new("pgrep").arg("-P").arg(parent.to_string()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
