//! Stops a server and removes its directory when the owner is gone, however it went.
//!
//! A destructor does not run after SIGKILL, after `exit`, or for a static. So the last word has a
//! small shell that waits for the end of a pipe: the kernel closes the other end when the owner
//! dies, whatever killed it.

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
    /// Watches nothing yet. At the end it removes `scratch`.
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
            // Ctrl-C in a terminal goes to the whole foreground group, and must not take the
            // watchdog first.
            .process_group(0)
            .stdin(Stdio::piped())
            // Nothing inherited: whoever reads our output to its end would wait for the watchdog.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("start /bin/sh as a watchdog"))?;
        Ok(Self { shell: Mutex::new(shell) })
    }

    /// From now on, stop this process at the end.
    pub(crate) fn watch(&self, pid: u32) -> Result<(), Error> {
        self.tell(&format!("{pid}\n")).map_err(Error::io("tell the watchdog what to watch"))
    }

    /// The process was reaped: its number may belong to somebody else soon.
    pub(crate) fn forget(&self) {
        // A watchdog that cannot be told is dead, and will stop nobody.
        let _ = self.tell("\n");
    }

    fn tell(&self, line: &str) -> std::io::Result<()> {
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
        // Waits until the directory is gone, so that a process which ends next leaves nothing
        // behind.
        let _ = shell.wait();
    }
}
