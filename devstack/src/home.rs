//! The directory of a server: named by the caller and kept, or temporary and removed with the server.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf, absolute};

use nix::sys::signal::Signal;

use crate::Error;
use crate::watchdog::Watchdog;

/// A directory and the watchdog that removes it if it is temporary.
pub(crate) struct Home {
    pub(crate) dir: PathBuf,
    /// The signal with which a drop or the watchdog stops the server.
    pub(crate) stop_signal: Signal,
    pub(crate) watchdog: Watchdog,
}

impl Home {
    /// Creates `dir` when it is missing, and keeps it.
    pub(crate) fn kept(dir: &Path, stop_signal: Signal) -> Result<Self, Error> {
        let dir = absolute(dir).map_err(Error::io(format!("find {}", dir.display())))?;
        fs::create_dir_all(&dir).map_err(Error::io(format!("create {}", dir.display())))?;
        Ok(Self { watchdog: Watchdog::start(stop_signal, None)?, stop_signal, dir })
    }

    /// A new directory in `parent`, removed when the watchdog ends.
    pub(crate) fn temporary(parent: &Path, stop_signal: Signal) -> Result<Self, Error> {
        let guard = tempfile::Builder::new()
            .prefix("devstack-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(Error::io(format!("create a directory in {}", parent.display())))?;
        let watchdog = Watchdog::start(stop_signal, Some(guard.path()))?;
        Ok(Self { dir: guard.keep(), stop_signal, watchdog })
    }
}
