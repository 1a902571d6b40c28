//! Stops a server and removes its directory when the owning process has ended, in whatever way.
//!
//! A destructor does not run after SIGKILL, after `exit`, or for a static. So a small shell waits for
//! the end of a pipe, whose other end the kernel closes when the owning process ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::Signal;

use crate::Error;
use crate::process::lock;

const SCRIPT: &str = include_str!("watchdog.sh");

pub(crate) struct Watchdog {
    shell: Mutex<Child>,
}

impl Watchdog {
    /// Watches no process yet. At the end the watchdog removes `scratch`.
    pub(crate) fn start(stop_signal: Signal, scratch: Option<&Path>) -> Result<Self, Error> {
        let shell = Command::new("/bin/sh")
            .args([
                "-c",
                SCRIPT,
                "devstack-watchdog",
                stop_signal.as_str().trim_start_matches("SIG"),
            ])
            .arg(scratch.unwrap_or(Path::new("")))
            .current_dir("/")
            // Ctrl-C in a terminal signals the whole foreground group, and must not end the
            // watchdog.
            .process_group(0)
            .stdin(Stdio::piped())
            // Not inherited: a reader of devstack's output would wait until the watchdog ends.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("start /bin/sh as a watchdog"))?;
        Ok(Self { shell: Mutex::new(shell) })
    }

    /// The watchdog will stop this process at the end.
    pub(crate) fn watch(&self, pid: u32) -> Result<(), Error> {
        self.send(&format!("{pid}\n")).map_err(Error::io("send the pid to the watchdog"))
    }

    /// The process was reaped: its pid may be given to another process.
    pub(crate) fn forget(&self) {
        // An error means that the watchdog has ended, and it will not signal the pid.
        let _ = self.send("\n");
    }

    fn send(&self, line: &str) -> std::io::Result<()> {
        match &mut lock(&self.shell).stdin {
            Some(pipe) => pipe.write_all(line.as_bytes()),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let mut shell = lock(&self.shell);
        shell.stdin = None;
        // Waits until the directory is removed: the process may end next.
        let _ = shell.wait();
    }
}
