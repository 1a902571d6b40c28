//! `instructions`: counts with callgrind the instructions of each operation of the hot path, and compares them with the
//! committed baseline. Unlike time, the count hardly depends on what else the machine does, so it can be a gate.
//!
//! Read it in this order:
//!
//! - [`operation`]: the operations; [`counted`]: the part of them that is counted.
//! - [`fixture`]: hotshelf with a hot catalogue; [`reference`]: the servers that it is compared with; [`wire`]: their client.
//! - [`callgrind`]: runs this program again under valgrind, and reads its output.
//! - [`baseline`]: counts; [`environment`]: where they were taken; [`report`]: the comparison.

mod baseline;
mod callgrind;
mod counted;
mod environment;
mod fixture;
mod operation;
mod reference;
mod report;
mod wire;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use baseline::Baseline;
use environment::Environment;
use operation::Operation;
use report::Report;

/// Counts the instructions of the hot path under callgrind, and compares them with the baseline.
///
/// Exits with 1 if an operation takes more of them than the baseline allows.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Writes the counts of this run as the new baseline.
    #[arg(long)]
    bless: bool,
    /// The file of the baseline.
    #[arg(long, default_value = "loadtest/instructions/baseline.json", value_name = "FILE")]
    baseline: PathBuf,
    /// Only performs this operation, to be counted by callgrind.
    #[arg(long, value_name = "OPERATION", hide = true)]
    perform: Option<Operation>,
}

/// Why nothing could be counted: one line for the operator.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("{0} is no baseline: {1}")]
    Baseline(String, serde_json::Error),
    #[error("{0}")]
    Failed(String),
}

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.perform {
        Some(operation) => operation.perform().map(|()| ExitCode::SUCCESS),
        None => check(&cli),
    };
    outcome.unwrap_or_else(|error| {
        // A closed standard error cannot be reported.
        let _ = writeln!(std::io::stderr(), "instructions: {error}");
        ExitCode::FAILURE
    })
}

fn check(cli: &Cli) -> Result<ExitCode, Error> {
    let Some(environment) = Environment::here() else {
        print("instructions: SKIPPED, because valgrind is missing");
        return Ok(ExitCode::SUCCESS);
    };
    let mut now = Baseline::new(environment);
    for operation in Operation::value_variants() {
        now.insert(*operation, &callgrind::profile(*operation)?);
    }
    if cli.bless {
        now.write(&cli.baseline)?;
        print(&format!(
            "{}instructions: these counts are the new baseline",
            Report::new(&now, &now)
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let before = Baseline::read(&cli.baseline)?;
    let report = Report::new(&before, &now);
    print(&report.to_string());
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(text: &str) {
    // A closed standard output cannot be reported.
    let _ = writeln!(std::io::stdout(), "{text}");
}
