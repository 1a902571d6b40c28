//! Errors, each of one line.

use std::io;

/// Why a server could not be started, reached or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{program} was not found; install it: {hint}")]
    NotInstalled {
        program: &'static str,
        /// The commands that install it.
        hint: &'static str,
    },
    /// PostgreSQL refuses to run as root, and the user it runs as instead has no access to the
    /// directory.
    #[error(
        "postgres does not run as root, and user {user} cannot reach {dir}; choose another directory"
    )]
    Unreachable {
        /// The user that postgres runs as.
        user: String,
        dir: String,
    },
    /// Every port that was tried is in use.
    #[error("found no free port on 127.0.0.1")]
    NoFreePort,
    /// A server ended, or did not respond in time, while it was being started.
    #[error("{server} did not start: {why}; its log ends: {log}")]
    NotReady {
        server: &'static str,
        why: String,
        /// The last lines of the server's log, on one line.
        log: String,
    },
    /// A helper program failed.
    #[error("{what} failed: {output}")]
    Failed {
        /// What was being done.
        what: String,
        /// The last lines that the program wrote, on one line.
        output: String,
    },
    /// Redis answered a command with an error.
    #[error("Redis on port {port} answered {command} with {reply}")]
    Refused {
        port: u16,
        command: String,
        /// The error reply, for instance `MOVED 3999 127.0.0.1:10002`.
        reply: String,
    },
    /// A condition did not come true in time.
    #[error("{what} took longer than {seconds} s")]
    TimedOut {
        /// The condition.
        what: &'static str,
        seconds: u64,
    },
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: adds what was being done to the operating system's error.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Another process took the port after it was chosen and before the server bound it.
    pub(crate) fn is_port_taken(&self) -> bool {
        matches!(self, Self::NotReady { log, .. } if log.contains("Address already in use"))
    }
}

/// The last lines of a log, on one line.
pub(crate) fn last_lines(log: &[u8]) -> String {
    const LINES: usize = 6;
    let text = String::from_utf8_lossy(log);
    let mut lines: Vec<&str> =
        text.lines().rev().map(str::trim).filter(|line| !line.is_empty()).take(LINES).collect();
    lines.reverse();
    if lines.is_empty() { "(nothing)".to_owned() } else { lines.join(" | ") }
}
