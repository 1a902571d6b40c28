//! An instance: a process that can be killed, frozen, and started again on the same ports.

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

/// Longer than a start takes.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// An instance that does not answer its admin port within this counts as silent.
const ADMIN_TIME: Duration = Duration::from_millis(500);

/// One instance.
#[derive(Debug)]
pub struct Instance {
    program: PathBuf,
    arguments: Vec<String>,
    /// Where its gRPC port is.
    pub port: u16,
    admin_port: u16,
    log: PathBuf,
    in_detail: bool,
    /// What its wall clock shows beyond the real time, for libfaketime.
    clock: Option<PathBuf>,
    child: Mutex<Option<Child>>,
}

impl Instance {
    /// An instance that does not run yet. It logs to `logs`, in detail, or else to `dir`.
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

    /// Starts the process, and does not wait until it serves.
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

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it does not, with the end of its log.
    pub async fn serving(&self) -> Result<(), Error> {
        let began = Instant::now();
        while self.admin("/readyz").await.is_none_or(|(status, _)| status != 200) {
            if began.elapsed() > PATIENCE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("nothing logged").to_owned();
                return Err(Error::Instance(format!("an instance does not serve: {last}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The pid, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Reaped, if it has ended.
        let child = child.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())?
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It runs: only a process that is gone could not be told.
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// SIGKILL, and waits until it is gone.
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

    /// Sets how far its wall clock is off, for instance `+1h`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clock(&self, offset: &str) -> Result<(), Error> {
        let Some(clock) = &self.clock else { return Ok(()) };
        // At once, so that no half of it is read.
        let fresh = clock.with_extension("fresh");
        fs::write(&fresh, offset)
            .and_then(|()| fs::rename(&fresh, clock))
            .map_err(|error| Error::Io(clock.display().to_string(), error))
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What its admin port answers, if it does in time.
    pub async fn admin(&self, path: &str) -> Option<(u16, String)> {
        let ask = async {
            let mut socket = TcpStream::connect(("127.0.0.1", self.admin_port)).await.ok()?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        };
        tokio::time::timeout(ADMIN_TIME, ask).await.ok()?
    }

    /// The value of a series of its metrics.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line?.trim().parse().ok()
    }
}

/// A port that is free now, of those that neither devstack nor the system hands out. Never the same twice: it is bound later.
fn free_port() -> u16 {
    const PORTS: Range<u16> = 27_000..32_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| rand::random_range(PORTS).into());
    let next = || PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len() as u16;
    let mut ports = std::iter::repeat_with(next);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap_or_default()
}

/// The library that sets a process' clock, where Debian puts it.
pub(crate) fn faketime() -> Option<PathBuf> {
    let tail = "faketime/libfaketime.so.1";
    let of_machine = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    of_machine.map(|dir| dir.path().join(tail)).find(|library| library.exists())
}

/// Whether the process is stopped by a signal.
#[must_use]
pub fn is_frozen(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}
