//! A data directory made once per PostgreSQL version and user, and copied for each server: a copy
//! takes a tenth of the time of `initdb`.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::install::{Install, output_of};
use crate::Error;

pub(super) const SUPERUSER: &str = "hotshelf";
pub(super) const DATABASE: &str = "hotshelf";

/// Part of the template's name: raise it when `make` changes.
const RECIPE: u32 = 1;

/// Creates `data` as an empty database cluster.
pub(super) fn copy_to(data: &Path, install: &Install) -> Result<(), Error> {
    let template = find_or_make(install)?;
    // Copied under another name first, so that an interrupted copy is never used as data.
    let partial = data.with_extension("partial");
    remove_if_there(&partial)?;
    // `cp -Rp` keeps owner and mode, and clones blocks where the file system can.
    output_of(
        Command::new("cp").arg("-Rp").arg(&template).arg(&partial),
        "cp of the database template",
    )?;
    fs::rename(&partial, data).map_err(Error::io(format!("create {}", data.display())))
}

/// Flushes a copy to the disk.
pub(super) fn sync(data: &Path, install: &Install) -> Result<(), Error> {
    install.run("initdb", |initdb| {
        initdb.arg("--sync-only").arg("-D").arg(data);
    })?;
    Ok(())
}

fn find_or_make(install: &Install) -> Result<PathBuf, Error> {
    let cache = cache_dir(install);
    let template = cache.join(name(install));
    if template.exists() {
        return Ok(template);
    }
    fs::create_dir_all(&cache).map_err(Error::io(format!("create {}", cache.display())))?;
    install.check_reach(&cache)?;
    let building = tempfile::Builder::new()
        .prefix("building-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(&cache)
        .map_err(Error::io(format!("create a directory in {}", cache.display())))?;
    let data = building.path().join("data");
    make(&data, install)?;
    publish(&data, &template)?;
    Ok(template)
}

/// Processes that start together may each make a template. The first rename wins, and the others
/// use that one.
fn publish(data: &Path, template: &Path) -> Result<(), Error> {
    match fs::rename(data, template) {
        Err(error)
            if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) =>
        {
            Ok(())
        }
        outcome => outcome.map_err(Error::io(format!("create {}", template.display()))),
    }
}

/// Creates an empty directory for data, and makes the user that postgres runs as its owner.
pub(super) fn create_dir(data: &Path, install: &Install) -> Result<(), Error> {
    let io = |what| Error::io(format!("{what} {}", data.display()));
    fs::create_dir(data).map_err(io("create"))?;
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(io("protect"))?;
    if let Some(owner) = install.owner() {
        let (uid, gid) = (owner.uid.as_raw(), owner.gid.as_raw());
        chown(data, Some(uid), Some(gid)).map_err(io("give away"))?;
    }
    Ok(())
}

fn make(data: &Path, install: &Install) -> Result<(), Error> {
    create_dir(data, install)?;
    install.run("initdb", |initdb| {
        initdb.args([
            "--username",
            SUPERUSER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        initdb.arg("-D").arg(data);
    })?;
    create_database(data, install)
}

/// In single-user mode, which needs no port and no client. Loading `pg_stat_statements` shows whether
/// it is installed.
fn create_database(data: &Path, install: &Install) -> Result<(), Error> {
    const PRELOAD: &str = "shared_preload_libraries=pg_stat_statements";
    let sql = data.with_extension("sql");
    fs::write(&sql, format!("CREATE DATABASE {DATABASE}\n"))
        .map_err(Error::io("write the database's SQL"))?;
    if single_user(data, &sql, install, &["-c", PRELOAD]).is_ok() {
        return append(&data.join("postgresql.conf"), PRELOAD);
    }
    single_user(data, &sql, install, &[])
}

fn single_user(data: &Path, sql: &Path, install: &Install, settings: &[&str]) -> Result<(), Error> {
    let sql = fs::File::open(sql).map_err(Error::io("open the database's SQL"))?;
    install.run("postgres", |postgres| {
        // Exits at the first error; the default is to continue and exit with code 0.
        postgres.args(["--single", "-c", "exit_on_error=true", "-c", "fsync=off"]).args(settings);
        postgres.arg("-D").arg(data).arg("postgres").stdin(sql);
    })?;
    Ok(())
}

fn append(file: &Path, line: &str) -> Result<(), Error> {
    let what = || Error::io(format!("write {}", file.display()));
    let text = fs::read_to_string(file).map_err(what())?;
    fs::write(file, format!("{text}\n{line}\n")).map_err(what())
}

fn name(install: &Install) -> String {
    let version: String = install
        .version
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let owner = install.owner().map_or("self", |owner| owner.name.as_str());
    format!("{version}-{owner}-{RECIPE}")
}

/// The user's cache directory. For root it is not in root's home, to which the owner of the data has
/// no access.
fn cache_dir(install: &Install) -> PathBuf {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let cache = match install.owner() {
        Some(_) => Some(PathBuf::from("/var/cache")),
        None => env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
            .or_else(home),
    };
    cache.unwrap_or_else(env::temp_dir).join("devstack")
}

fn remove_if_there(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}
