//! A private Redis.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Error;
use crate::home::Home;
use crate::ports;
use crate::process::{Process, gated};

mod cluster;
mod install;
mod resp;

pub use cluster::{ClusterOptions, RedisCluster};

/// How to start a [`Redis`].
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// The directory of the data and the log. `None`: a temporary one, removed with the server.
    pub dir: Option<PathBuf>,
    /// Whether Redis writes an append-only file. Without it Redis is empty at each start.
    pub persist: bool,
    /// Watches the Redis with this port as a sentinel, under the name `shop`, in place of holding data.
    pub sentinel_of: Option<u16>,
    /// More of redis.conf, for instance `("maxmemory", "64mb")`.
    pub settings: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Master,
    Replica,
}

/// A Redis server: on its own, or a node of a [`RedisCluster`].
pub struct Redis {
    process: Process,
    program: PathBuf,
    options: RedisOptions,
    port: u16,
}

impl Redis {
    /// Starts a server on a free port and waits until it answers.
    pub fn start(options: RedisOptions) -> Result<Self, Error> {
        Self::start_on(options, ports::free)
    }

    fn start_on(
        options: RedisOptions,
        choose_port: fn() -> Result<u16, Error>,
    ) -> Result<Self, Error> {
        let program = install::find()?;
        let stop_signal = if options.persist { Signal::SIGTERM } else { Signal::SIGKILL };
        let home = match &options.dir {
            Some(dir) => Home::kept(dir, stop_signal)?,
            None => Home::temporary(&std::env::temp_dir(), stop_signal)?,
        };
        let mut server = Self { process: Process::new("redis", home), program, options, port: 0 };
        server.launch_on_a_free_port(choose_port)?;
        Ok(server)
    }

    /// The address, `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1; a restart does not change it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The pid, or `None` when the server does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The directory with the data and `redis.log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// Runs one command on a connection of its own and returns the reply as text: one line for each
    /// element of an array, and `(nil)` for nil.
    ///
    /// # Errors
    /// [`Error::Refused`] for an error reply; [`Error::Io`] when there is no reply within five
    /// seconds.
    pub fn command(&self, words: &[&str]) -> Result<String, Error> {
        resp::command(self.port, words)
    }

    /// The reply of `ROLE`.
    pub fn role(&self) -> Result<Role, Error> {
        let reply = self.command(&["ROLE"])?;
        Ok(if reply.starts_with("master") { Role::Master } else { Role::Replica })
    }

    /// Freezes the server: connections stay open without a reply.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Sends SIGTERM, and waits for the server to end.
    pub fn stop(&self) {
        self.process.end(Signal::SIGTERM);
    }

    /// Sends SIGKILL, and waits for the server to end.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts a stopped or killed server on the same port: empty, unless it persists. Does nothing
    /// when the server runs.
    pub fn start_again(&self) -> Result<(), Error> {
        if self.pid().is_some() { Ok(()) } else { self.launch() }
    }

    fn launch_on_a_free_port(
        &mut self,
        choose_port: fn() -> Result<u16, Error>,
    ) -> Result<(), Error> {
        for _ in 1..ports::START_ATTEMPTS {
            self.port = choose_port()?;
            match self.launch() {
                Err(error) if error.is_port_taken() => {}
                outcome => return outcome,
            }
        }
        self.port = choose_port()?;
        self.launch()
    }

    fn sentinel_file(&self) -> PathBuf {
        self.process.dir().join("sentinel.conf")
    }

    fn launch(&self) -> Result<(), Error> {
        if let Some(port) = self.options.sentinel_of {
            // A sentinel writes what it learns to its file. One vote is enough for a failover.
            let watch = format!("sentinel monitor shop 127.0.0.1 {port} 1");
            let times =
                "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 5000";
            std::fs::write(self.sentinel_file(), format!("{watch}\n{times}\n"))
                .map_err(Error::io("write sentinel.conf"))?;
        }
        self.process.launch(self.arguments(), |pid| self.answers_as(pid))
    }

    fn arguments(&self) -> Command {
        let mut command = gated(&self.program);
        if self.options.sentinel_of.is_some() {
            command.arg(self.sentinel_file()).arg("--sentinel");
        }
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.arg("--dir").arg(self.process.dir());
        if self.options.sentinel_of.is_none() {
            let persist = if self.options.persist { "yes" } else { "no" };
            command.args(["--save", "", "--appendonly", persist]);
        }
        for (name, value) in &self.options.settings {
            command.arg(format!("--{name}")).arg(value);
        }
        command
    }

    /// Compares the pid, because another Redis may have taken the port; and checks that the data is
    /// loaded, because until then Redis answers other commands with an error.
    fn answers_as(&self, pid: u32) -> bool {
        let process = format!("\r\nprocess_id:{pid}\r\n");
        let has_data = self.options.sentinel_of.is_none();
        self.command(&["INFO"]).is_ok_and(|info| {
            info.contains(&process) && (!has_data || info.contains("\r\nloading:0\r\n"))
        })
    }
}
