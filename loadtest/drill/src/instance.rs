//! An instance of hotshelf: a process that can be killed, frozen, and started again on the same ports.

use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::Error;

/// Until an instance that was started is ready.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// Of a request to the admin port.
const ADMIN_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Instance {
    program: PathBuf,
    arguments: Vec<String>,
    /// Of gRPC.
    pub port: u16,
    admin_port: u16,
    log: PathBuf,
    in_detail: bool,
    /// The file from which libfaketime reads the offset of the wall clock.
    clock: Option<PathBuf>,
    child: Mutex<Option<Child>>,
}

impl Instance {
    /// Does not start it. The instance logs at debug level to `logs`, if given, or else at the default level to `dir`.
    pub(crate) fn new(
        (program, arguments): (&Path, &[String]),
        dir: &Path,
        logs: Option<&Path>,
        number: usize,
        sets_clock: bool,
    ) -> Self {
        Self {
            program: program.to_owned(),
            arguments: arguments.to_owned(),
            port: free_port(),
            admin_port: free_port(),
            log: logs.unwrap_or(dir).join(format!("instance-{number}.log")),
            in_detail: logs.is_some(),
            clock: sets_clock.then(|| dir.join(format!("clock-{number}"))),
            child: Mutex::default(),
        }
    }

    /// Starts the process. [`serving`](Self::serving) waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<(), Error> {
        let failed = |error| Error::Io(self.program.display().to_string(), error);
        let log = File::options().create(true).append(true).open(&self.log).map_err(failed)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(["--grpc-addr", &format!("127.0.0.1:{}", self.port)])
            .args(["--admin-addr", &format!("127.0.0.1:{}", self.admin_port)])
            .env_clear()
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        if self.in_detail {
            command.env("RUST_LOG", "info,hotshelf=debug");
        }
        if let Some(clock) = &self.clock {
            self.set_clock("+0")?;
            command.env("LD_PRELOAD", faketime().unwrap_or_default());
            command.env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_CACHE_DURATION", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command.spawn().map_err(failed)?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Waits until the instance is ready.
    ///
    /// # Errors
    /// The last line of its log, if it is not ready within `START_TIMEOUT`.
    pub async fn serving(&self) -> Result<(), Error> {
        let began = Instant::now();
        while self.admin("/readyz").await.is_none_or(|(status, _)| status != 200) {
            if began.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("nothing logged").to_owned();
                return Err(Error::Instance(format!(
                    "an instance is not ready after {START_TIMEOUT:?}: {last}"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// `None` if the process does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Reaps the process if it has ended.
        let child = child.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())?
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // Fails only if the process has just ended.
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// Sends SIGKILL, and waits until the process has ended.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&self) -> Result<(), Error> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        match child {
            Some(mut child) => {
                child.kill().await.map_err(|error| Error::Io("kill an instance".to_owned(), error))
            }
            None => Ok(()),
        }
    }

    /// Sets the offset of the wall clock, for instance `+1h`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clock(&self, offset: &str) -> Result<(), Error> {
        let Some(clock) = &self.clock else { return Ok(()) };
        // Renamed into place, so that libfaketime never reads half of it.
        let fresh = clock.with_extension("fresh");
        fs::write(&fresh, offset)
            .and_then(|()| fs::rename(&fresh, clock))
            .map_err(|error| Error::Io(clock.display().to_string(), error))
    }

    /// Everything that the instance has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Status and body of the admin port's response, or `None` without one within `ADMIN_TIMEOUT`.
    pub async fn admin(&self, path: &str) -> Option<(u16, String)> {
        let request = async {
            let mut socket = TcpStream::connect(("127.0.0.1", self.admin_port)).await.ok()?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        };
        tokio::time::timeout(ADMIN_TIMEOUT, request).await.ok()?
    }

    /// The value of a series in `/metrics`.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line?.trim().parse().ok()
    }
}

/// A port that is free now, from a range that neither devstack nor the kernel hands out. Never the same twice, because the
/// instance binds it later.
fn free_port() -> u16 {
    const PORTS: Range<u16> = 27_000..32_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| rand::random_range(PORTS).into());
    let next = || PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len() as u16;
    let mut ports = std::iter::repeat_with(next);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap_or_default()
}

/// libfaketime, which sets the clock of a process, where Debian installs it.
pub(crate) fn faketime() -> Option<PathBuf> {
    let tail = "faketime/libfaketime.so.1";
    let of_machine = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    of_machine.map(|dir| dir.path().join(tail)).find(|library| library.exists())
}

/// Whether a signal has stopped the process.
#[must_use]
pub fn is_frozen(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}
