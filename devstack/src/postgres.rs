//! A private PostgreSQL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Error;
use crate::home::Home;
use crate::ports;
use crate::process::{Process, gated};

mod install;
mod template;

use install::Install;

/// How to start a [`Postgres`].
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The directory of the data and the log. `None`: a temporary one, removed with the server.
    /// `Some`: kept, and its data used again.
    pub dir: Option<PathBuf>,
    /// Whether a confirmed commit survives a crash. Without it, commits do not wait for the disk:
    /// much faster, but a killed server loses the last commits, and a power cut may corrupt the data.
    pub durable: bool,
    /// Too low: a test with many nodes cannot connect. Too high: each one costs memory.
    pub max_connections: u32,
    /// Sets `wal_level` to `logical`, which logical replication needs.
    pub logical: bool,
    /// More of postgresql.conf, for instance `("max_prepared_transactions", "16")`.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            dir: None,
            durable: false,
            max_connections: 200,
            logical: false,
            settings: Vec::new(),
        }
    }
}

/// A PostgreSQL server with a superuser `hotshelf`, no password, and a database `hotshelf`.
///
/// `pg_stat_statements` is preloaded where it is installed; `CREATE EXTENSION pg_stat_statements`
/// makes its view.
pub struct Postgres {
    process: Process,
    install: Install,
    options: PostgresOptions,
    port: u16,
}

impl Postgres {
    /// Starts a server on a free port and waits until it takes connections.
    pub fn start(options: PostgresOptions) -> Result<Self, Error> {
        let install = Install::find()?;
        // SIGINT writes a checkpoint, which only a kept directory needs; SIGQUIT is faster.
        let home = match &options.dir {
            Some(dir) => Home::kept(dir, Signal::SIGINT)?,
            None => Home::temporary(&install.temporary_parent()?, Signal::SIGQUIT)?,
        };
        install.check_reach(&home.dir)?;
        let mut server =
            Self { process: Process::new("postgres", home), install, options, port: 0 };
        server.prepare_data()?;
        server.launch_on_a_free_port()?;
        Ok(server)
    }

    /// The address of the database `hotshelf`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(template::DATABASE)
    }

    /// The address of another database on this server.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://{}@127.0.0.1:{}/{database}", template::SUPERUSER, self.port)
    }

    /// The port on 127.0.0.1; a restart does not change it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL in a database of this server, by psql.
    ///
    /// # Errors
    /// When it fails, with what psql printed.
    pub fn run_sql(&self, database: &str, sql: &str) -> Result<(), Error> {
        let options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command"];
        let url = self.url_of(database);
        let mut arguments = options.to_vec();
        // Notices are no errors, and would be printed.
        let sql = format!("SET client_min_messages = warning; {sql}");
        arguments.extend([&sql, &*url]);
        self.run_client("psql", &arguments)
    }

    /// Makes the table of the sample products in the database of [`url`](Self::url), unless it exists.
    ///
    /// # Errors
    /// The same as [`run_sql`](Self::run_sql).
    pub fn make_sample_table(&self) -> Result<(), Error> {
        self.run_sql(template::DATABASE, crate::sample::TABLE)
    }

    /// Runs one of the client programs of this server's version, such as `pg_dump`, to its end.
    ///
    /// # Errors
    /// When it cannot be started or fails, with what it printed.
    pub fn run_client(&self, program: &str, arguments: &[&str]) -> Result<(), Error> {
        let run = self.install.run(program, |client| {
            client.args(arguments);
        });
        run.map(drop)
    }

    /// The postmaster's pid, or `None` when the server does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The directory with the data and `postgres.log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// Freezes the postmaster and every backend: connections stay open without a response.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.process.resume();
    }

    /// A fast shutdown: connections are closed, then a checkpoint is written.
    pub fn stop(&self) {
        self.process.end(Signal::SIGINT);
    }

    /// SIGKILL for the postmaster and every backend, as if the machine had stopped.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts a stopped or killed server on the same port and data. Does nothing when the server runs.
    pub fn start_again(&self) -> Result<(), Error> {
        if self.pid().is_some() { Ok(()) } else { self.launch() }
    }

    /// Makes a physical backup of the running server: a data directory for [`restore`](Self::restore).
    pub fn back_up(&self) -> Result<PathBuf, Error> {
        let backup = self.dir().join("backup");
        base_backup(&self.install, self.port, &backup, &[])?;
        Ok(backup)
    }

    /// Replaces the data of the stopped server with a backup, which is moved, not copied.
    pub fn restore(&self, backup: &Path) -> Result<(), Error> {
        let data = self.data();
        fs::remove_dir_all(&data).map_err(Error::io(format!("remove {}", data.display())))?;
        fs::rename(backup, &data).map_err(Error::io(format!("create {}", data.display())))
    }

    /// Starts a physical replica of this server, which serves reads; `pg_promote()` makes it a primary.
    pub fn start_replica(&self) -> Result<Self, Error> {
        let install = Install::find()?;
        let home = Home::temporary(&install.temporary_parent()?, Signal::SIGQUIT)?;
        let options = PostgresOptions { dir: None, ..self.options.clone() };
        let mut replica =
            Self { process: Process::new("postgres", home), install, options, port: 0 };
        base_backup(&self.install, self.port, &replica.data(), &["--write-recovery-conf"])?;
        replica.launch_on_a_free_port()?;
        Ok(replica)
    }

    fn launch_on_a_free_port(&mut self) -> Result<(), Error> {
        for _ in 1..ports::START_ATTEMPTS {
            self.port = ports::free()?;
            match self.launch() {
                Err(error) if error.is_port_taken() => {}
                outcome => return outcome,
            }
        }
        self.port = ports::free()?;
        self.launch()
    }

    fn launch(&self) -> Result<(), Error> {
        let data = self.data();
        self.process.launch(self.command(), |pid| is_ready(&data, pid))
    }

    fn command(&self) -> Command {
        let mut command = gated(&self.install.program("postgres"));
        self.install.run_as_owner(&mut command);
        command.arg("-D").arg(self.data());
        for setting in self.settings() {
            command.arg("-c").arg(setting);
        }
        command
    }

    fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            // A socket's path is 107 bytes at most, and temporary directories can be deep.
            "unix_socket_directories=".to_owned(),
            format!("max_connections={}", self.options.max_connections),
            // Hundreds of databases have statements of their own. Past this bound PostgreSQL drops the counts of the
            // statements that ran least.
            "pg_stat_statements.max=50000".to_owned(),
        ];
        if self.options.logical {
            settings.push("wal_level=logical".to_owned());
        }
        if !self.options.durable {
            settings.extend(
                ["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned),
            );
        }
        // Last, because the last setting of a name counts.
        settings
            .extend(self.options.settings.iter().map(|(name, value)| format!("{name}={value}")));
        settings
    }

    fn prepare_data(&self) -> Result<(), Error> {
        if self.data().join("PG_VERSION").exists() {
            return Ok(());
        }
        template::copy_to(&self.data(), &self.install)?;
        if self.options.durable { template::sync(&self.data(), &self.install) } else { Ok(()) }
    }

    fn data(&self) -> PathBuf {
        self.process.dir().join("data")
    }
}

/// Copies the data of the server at `port`, with the WAL that the copy needs.
fn base_backup(install: &Install, port: u16, to: &Path, more: &[&str]) -> Result<(), Error> {
    template::create_dir(to, install)?;
    install.run("pg_basebackup", |command| {
        command.args(["--host=127.0.0.1", "--checkpoint=fast", "--no-sync", "--wal-method=stream"]);
        command.arg(format!("--port={port}")).arg(format!("--username={}", template::SUPERUSER));
        command.arg("--pgdata").arg(to).args(more);
    })?;
    Ok(())
}

/// The postmaster writes its state into its pid file, where `pg_ctl` reads it too. A connection would
/// prove less: another server may have taken the port.
fn is_ready(data: &Path, pid: u32) -> bool {
    let Ok(pid_file) = fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let mut lines = pid_file.lines();
    let is_this_server = lines.next().is_some_and(|line| line.trim() == pid.to_string());
    const STATUS_AFTER_PID: usize = 6;
    is_this_server
        && lines
            .nth(STATUS_AFTER_PID)
            .is_some_and(|line| ["ready", "standby"].contains(&line.trim()))
}
