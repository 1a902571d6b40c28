//! Finds the PostgreSQL of this machine, and the user it runs as.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, geteuid};

use crate::Error;
use crate::error::last_lines;

const HINT: &str = "`apt-get install postgresql` or `brew install postgresql@17`";
/// Parents of `<version>/bin` or `<name><version>/bin`, where packages install programs that are not
/// on PATH.
const PACKAGES: [(&str, &str); 4] = [
    ("/usr/lib/postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/usr", "pgsql-"),
];
/// Users that may own a server's data when devstack runs as root.
const OWNERS: [&str; 2] = ["postgres", "nobody"];

pub(super) struct Install {
    bin: PathBuf,
    /// For instance `postgres (PostgreSQL) 17.5`.
    pub(super) version: String,
    owner: Option<User>,
}

impl Install {
    pub(super) fn find() -> Result<Self, Error> {
        let bin = on_path()
            .or_else(newest_package)
            .ok_or(Error::NotInstalled { program: "PostgreSQL", hint: HINT })?;
        // PATH may have links to only some of the programs.
        let real = fs::canonicalize(bin.join("postgres")).ok();
        let real = real.and_then(|postgres| Some(postgres.parent()?.to_owned()));
        let bin = real.filter(|bin| is_bin(bin)).unwrap_or(bin);
        let version =
            output_of(Command::new(bin.join("postgres")).arg("--version"), "postgres --version")?;
        let owner = if geteuid().is_root() { owner_for_root() } else { None };
        Ok(Self { bin, version: version.trim().to_owned(), owner })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The user that owns the data when devstack runs as root, because postgres refuses to.
    pub(super) fn owner(&self) -> Option<&User> {
        self.owner.as_ref()
    }

    pub(super) fn run_as_owner(&self, command: &mut Command) {
        // Messages in English, because devstack matches some of them; and macOS refuses to start a
        // postmaster without a locale.
        command.env("LC_ALL", "C").current_dir("/");
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
    }

    /// Runs one of the programs to its end.
    pub(super) fn run(
        &self,
        name: &str,
        command: impl FnOnce(&mut Command),
    ) -> Result<String, Error> {
        let mut program = Command::new(self.program(name));
        self.run_as_owner(&mut program);
        command(&mut program);
        output_of(&mut program, name)
    }

    /// The system's temporary directory, or `/tmp` when only root has access to that.
    pub(super) fn temporary_parent(&self) -> Result<PathBuf, Error> {
        let usual = env::temp_dir();
        let parent = if self.check_reach(&usual).is_ok() { usual } else { PathBuf::from("/tmp") };
        self.check_reach(&parent).map(|()| parent)
    }

    /// Fails when the owner of the data has no access to `dir`.
    pub(super) fn check_reach(&self, dir: &Path) -> Result<(), Error> {
        let Some(owner) = &self.owner else { return Ok(()) };
        if dir.ancestors().all(|ancestor| can_enter(ancestor, owner)) {
            return Ok(());
        }
        Err(Error::Unreachable { user: owner.name.clone(), dir: dir.display().to_string() })
    }
}

fn can_enter(dir: &Path, user: &User) -> bool {
    let Ok(metadata) = fs::metadata(dir) else { return false };
    let mode = metadata.mode();
    mode & 0o001 != 0 || (mode & 0o100 != 0 && metadata.uid() == user.uid.as_raw())
}

fn owner_for_root() -> Option<User> {
    OWNERS.iter().find_map(|name| User::from_name(name).ok().flatten())
}

fn on_path() -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).find(|dir| is_bin(dir))
}

fn newest_package() -> Option<PathBuf> {
    let newest =
        PACKAGES.iter().flat_map(|(parent, prefix)| versions(Path::new(parent), prefix)).max();
    newest.map(|(_, bin)| bin)
}

fn versions(parent: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| {
            Some((name.strip_prefix(prefix)?.parse().ok()?, parent.join(&name).join("bin")))
        })
        .filter(|(_, bin)| is_bin(bin))
        .collect()
}

fn is_bin(dir: &Path) -> bool {
    dir.join("postgres").is_file() && dir.join("initdb").is_file()
}

/// Runs a command to its end and returns its standard output; an error has its last lines.
pub(super) fn output_of(command: &mut Command, what: &str) -> Result<String, Error> {
    let output = command.output().map_err(Error::io(format!("run {what}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let lines = [output.stdout, output.stderr].concat();
    Err(Error::Failed { what: what.to_owned(), output: last_lines(&lines) })
}
