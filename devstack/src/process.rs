//! One server process: started, waited for, frozen, killed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Error;
use crate::error::last_lines;
use crate::home::Home;

mod tree;

/// Longer than a healthy server takes to start or stop on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Waits for a line from [`Process::launch`], so that the server cannot run before the watchdog has its
/// pid; `exec` keeps the pid.
const GATE: &str = r#"read -r go && exec "$@""#;

/// A command that becomes `program` when [`Process::launch`] writes to its standard input.
pub(crate) fn gated(program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GATE, "devstack-gate"]).arg(program);
    command
}

pub(crate) struct Process {
    server: &'static str,
    log: PathBuf,
    child: Mutex<Option<Child>>,
    home: Home,
}

impl Process {
    /// Does not start the server. Its log is `<server>.log` in its directory.
    pub(crate) fn new(server: &'static str, home: Home) -> Self {
        let log = home.dir.join(format!("{server}.log"));
        Self { server, log, child: Mutex::new(None), home }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// Starts a [`gated`] command and waits until `is_ready(pid)` returns true.
    pub(crate) fn launch(
        &self,
        command: Command,
        is_ready: impl FnMut(u32) -> bool,
    ) -> Result<(), Error> {
        let pid = self.spawn(command)?;
        let outcome = self.await_ready(pid, is_ready);
        if outcome.is_err() {
            self.kill();
        }
        outcome
    }

    fn spawn(&self, mut command: Command) -> Result<u32, Error> {
        let log =
            File::create(&self.log).map_err(Error::io(format!("create {}", self.log.display())))?;
        let errors = log.try_clone().map_err(Error::io("share the log"))?;
        command.current_dir("/").stdin(Stdio::piped()).stdout(log).stderr(errors);
        // Ctrl-C in a terminal must reach only the parent, which stops its clients before the servers.
        command.process_group(0);
        let mut child = command.spawn().map_err(Error::io(format!("start {}", self.server)))?;
        let pid = child.id();
        let gate = child.stdin.take();
        *lock(&self.child) = Some(child);
        self.home.watchdog.watch(pid)?;
        if let Some(mut gate) = gate {
            gate.write_all(b"go\n").map_err(Error::io(format!("start {}", self.server)))?;
        }
        Ok(pid)
    }

    fn await_ready(&self, pid: u32, mut is_ready: impl FnMut(u32) -> bool) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return Err(self.not_ready(format!("it ended with {status}")));
            }
            if is_ready(pid) {
                return Ok(());
            }
            if started.elapsed() > DEADLINE {
                return Err(self.not_ready(format!("no answer for {} s", DEADLINE.as_secs())));
            }
            std::thread::sleep(POLL);
        }
    }

    fn not_ready(&self, why: String) -> Error {
        let log = fs::read(&self.log).unwrap_or_default();
        Error::NotReady { server: self.server, why, log: last_lines(&log) }
    }

    /// The pid, or `None` when the server was stopped, was killed, or ended by itself.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.exited();
        lock(&self.child).as_ref().map(Child::id)
    }

    /// Freezes the server and its children.
    pub(crate) fn pause(&self) {
        if let Some(pid) = self.pid() {
            tree::freeze(as_pid(pid));
        }
    }

    /// Continues a frozen server.
    pub(crate) fn resume(&self) {
        if let Some(pid) = self.pid() {
            tree::thaw(as_pid(pid));
        }
    }

    /// Sends `signal`, and kills the server if it has not ended within the deadline.
    pub(crate) fn end(&self, signal: Signal) {
        let Some(pid) = self.pid() else { return };
        // The only possible error is ESRCH: the server has ended by itself.
        let _ = kill(as_pid(pid), signal);
        self.resume();
        let started = Instant::now();
        while self.pid().is_some() {
            if started.elapsed() > DEADLINE {
                return self.kill();
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGKILL for the server and its children: nothing is flushed, and no connection is closed cleanly.
    pub(crate) fn kill(&self) {
        let Some(mut child) = lock(&self.child).take() else { return };
        tree::kill(as_pid(child.id()));
        let _ = child.wait();
        self.home.watchdog.forget();
    }

    /// Reaps the child if it has ended, and clears the watchdog's pid at once: from then on the kernel may
    /// give the pid to another process.
    fn exited(&self) -> Option<ExitStatus> {
        let mut child = lock(&self.child);
        let status = child.as_mut()?.try_wait().ok()??;
        *child = None;
        self.home.watchdog.forget();
        Some(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(self.home.stop_signal);
    }
}

/// Polls `holds` until it returns true or the deadline has passed.
pub(crate) fn wait_until(what: &'static str, mut holds: impl FnMut() -> bool) -> Result<(), Error> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > DEADLINE {
            return Err(Error::TimedOut { what, seconds: DEADLINE.as_secs() });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Ignores poisoning: a process handle is valid after a panic, and the server must still be stopped.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}
