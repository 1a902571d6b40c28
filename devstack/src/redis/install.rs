//! Finds the Redis of this machine.

use std::env;
use std::path::PathBuf;

use crate::Error;

const PROGRAM: &str = "redis-server";
const HINT: &str = "`apt-get install redis-server` or `brew install redis`";
/// Searched after PATH, which may be minimal, as under cron or an IDE.
const USUAL: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin"];

pub(super) fn find() -> Result<PathBuf, Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(USUAL.iter().map(PathBuf::from));
    let program = dirs.map(|dir| dir.join(PROGRAM)).find(|program| program.is_file());
    program.ok_or(Error::NotInstalled { program: PROGRAM, hint: HINT })
}
