//! `instructions`: how many instructions each operation of the hot path takes, counted by callgrind and compared
//! with the committed baseline. Unlike time, the count does not depend on the machine's mood, so it can be a gate.
//!
//! Read it in this order:
//!
//! - [`operation`]: what is counted, and how it is done once; [`counted`] marks the part that counts.
//! - [`shelf`] is hotshelf with a hot catalogue, [`reference`] what it is compared with, [`wire`] their client.
//! - [`callgrind`] runs this program again under valgrind and reads what it wrote.
//! - [`baseline`] is what the counts were, [`environment`] where they were taken, [`report`] the verdict.

mod baseline;
mod callgrind;
mod counted;
mod environment;
mod operation;
mod reference;
mod report;
mod shelf;
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
/// Exits with 1 when an operation takes more of them than the baseline allows.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Takes what is counted now as the new baseline.
    #[arg(long)]
    bless: bool,
    /// Where the baseline is.
    #[arg(long, default_value = "loadtest/instructions/baseline.json", value_name = "FILE")]
    baseline: PathBuf,
    /// Only does this operation, as it is done under callgrind.
    #[arg(long, value_name = "OPERATION", hide = true)]
    perform: Option<Operation>,
}

/// Why nothing could be counted: one line.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("{0} is no baseline: {1}")]
    Baseline(String, serde_json::Error),
    #[error("{0}")]
    Failed(String),
}

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.perform {
        Some(operation) => operation.perform().map(|()| ExitCode::SUCCESS),
        None => check(&cli),
    };
    outcome.unwrap_or_else(|error| {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "instructions: {error}");
        ExitCode::FAILURE
    })
}

fn check(cli: &Cli) -> Result<ExitCode, Error> {
    let Some(environment) = Environment::here() else {
        say("instructions: SKIPPED, because valgrind is missing");
        return Ok(ExitCode::SUCCESS);
    };
    let mut now = Baseline::new(environment);
    for operation in Operation::value_variants() {
        now.insert(*operation, &callgrind::profile(*operation)?);
    }
    if cli.bless {
        now.write(&cli.baseline)?;
        say(&format!("{}instructions: this is the baseline now", Report::new(&now, &now)));
        return Ok(ExitCode::SUCCESS);
    }
    let before = Baseline::read(&cli.baseline)?;
    let report = Report::new(&before, &now);
    say(&report.to_string());
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(text: &str) {
    // Nobody is left to tell when standard output is gone.
    let _ = writeln!(std::io::stdout(), "{text}");
}
