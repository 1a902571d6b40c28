//! The version of the compiler, for the baseline.

use std::error::Error;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = Command::new(std::env::var("RUSTC")?).arg("--version").output()?.stdout;
    println!("cargo:rustc-env=RUSTC_VERSION={}", String::from_utf8(rustc)?.trim());
    Ok(())
}
