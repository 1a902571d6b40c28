//! Signals for a server and its children.
//!
//! A signal to the process group would not reach PostgreSQL's backends, which leave the postmaster's
//! group. Servers here have no grandchildren.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::wait_until;

/// Stops the parent first, and then its children until there is no new one: the parent may have
/// been forking when the signal was sent.
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

/// Children first, so that they run when the parent continues.
pub(super) fn thaw(parent: Pid) {
    children(parent).into_iter().for_each(|child| signal(child, Signal::SIGCONT));
    signal(parent, Signal::SIGCONT);
}

/// Freezes first: a postmaster that sees a backend end abnormally would restart the others. On return
/// all of them have ended, and their port and shared memory are free.
pub(super) fn kill(parent: Pid) {
    freeze(parent);
    let children = children(parent);
    children.iter().for_each(|child| signal(*child, Signal::SIGKILL));
    signal(parent, Signal::SIGKILL);
    // Only the parent is a child of this process and can be reaped. A grandchild that has not ended by
    // the deadline causes an error at the next start.
    let _ = wait_until("the end of killed processes", || !children.iter().copied().any(is_alive));
}

/// A zombie counts as ended: in a container without an init it may never be reaped.
fn is_alive(pid: Pid) -> bool {
    let is_zombie =
        || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    nix::sys::signal::kill(pid, None).is_ok() && !is_zombie()
}

/// The only possible error is that the process has ended: all of them run as devstack's children.
fn signal(pid: Pid, signal: Signal) {
    let _ = nix::sys::signal::kill(pid, signal);
}

fn children(parent: Pid) -> Vec<Pid> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap_or_else(|_| pgrep(parent));
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// For systems without /proc, such as macOS.
fn pgrep(parent: Pid) -> String {
    let output = Command::new("pgrep").arg("-P").arg(parent.to_string()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
