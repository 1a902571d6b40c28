//! `drill`: see the library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use drill::table::{Line, Table};
use drill::{DrillResult, Error, Fault, Plan, faults, run};

/// With `--write`, the table replaces the lines between these two.
const BEGIN: &str = "<!-- make drill: begin -->";
const END: &str = "<!-- make drill: end -->";

/// Breaks Redis, Postgres, the network and instances under load, and prints how callers were affected.
///
/// Each drill has private servers and three instances of its own. Exits with 1 if a promise was broken, or if a
/// fault could not be proven to have taken place.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Runs only these faults.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Holds each fault for a few seconds, and demands nothing about speed.
    #[arg(long)]
    short: bool,
    /// Lists the faults.
    #[arg(long)]
    list: bool,
    /// The program to start [default: hotshelf beside this program]
    #[arg(long, value_name = "FILE")]
    hotshelf: Option<PathBuf>,
    /// Reads a second.
    #[arg(long, value_name = "N")]
    read_rate: Option<f64>,
    /// Keeps the logs of the instances there, at debug level, in a directory for each fault.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Also writes the table into this file, between its two marker lines.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::select! {
        outcome = drill(&cli) => outcome,
        // Returning drops the servers and the instances, which ends them.
        () = interrupted() => Err(Error::Instance("interrupted".to_owned())),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("drill: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every promise was kept.
async fn drill(cli: &Cli) -> Result<bool, Error> {
    let faults = chosen(cli)?;
    if cli.list {
        faults.iter().for_each(|fault| print(&format!("{:24} {}", fault.name, fault.what)));
        return Ok(true);
    }
    let plan = plan(cli)?;
    let (began, mut drilled, mut not_done) = (Instant::now(), Vec::new(), 0);
    for fault in &faults {
        if let Some(why) = fault.missing() {
            eprintln!("{}: SKIPPED, because {why}", fault.name);
            continue;
        }
        match run(fault, &plan).await {
            Ok(one) => drilled.push(print_result(one)),
            Err(error) => {
                not_done += 1;
                eprintln!("{}: NOT DONE: {error}", fault.name);
            }
        }
    }
    let kept = drilled.iter().filter(|one| one.breaches.is_empty()).count();
    let table = format!(
        "{}\n{kept} of {} drills kept every promise; {} instances, {} reads and {} writes a second; {} s.\n",
        Table(&drilled),
        faults.len(),
        plan.instances,
        plan.load.read_rate,
        plan.load.write_rate,
        began.elapsed().as_secs(),
    );
    print(&table);
    if let Some(path) = &cli.write {
        write(path, &table)?;
    }
    Ok(not_done == 0 && kept == drilled.len())
}

fn chosen(cli: &Cli) -> Result<Vec<Fault>, Error> {
    if cli.only.is_empty() {
        return Ok(faults::all());
    }
    let named = |name: &String| {
        let unknown = || Error::Instance(format!("there is no fault {name}: see --list"));
        faults::named(name).ok_or_else(unknown)
    };
    cli.only.iter().map(named).collect()
}

fn plan(cli: &Cli) -> Result<Plan, Error> {
    let own = std::env::current_exe().map_err(|error| Error::Io("drill".to_owned(), error))?;
    let program = cli.hotshelf.clone().unwrap_or_else(|| own.with_file_name("hotshelf"));
    let program = std::path::absolute(&program)
        .map_err(|error| Error::Io(program.display().to_string(), error))?;
    let mut plan = if cli.short { Plan::short(program) } else { Plan::full(program) };
    plan.logs = cli.logs.clone();
    plan.load.read_rate = cli.read_rate.unwrap_or(plan.load.read_rate);
    Ok(plan)
}

/// Prints the result as soon as the drill is over.
fn print_result(drilled: DrillResult) -> DrillResult {
    eprintln!("{}", Line(&drilled));
    eprintln!("  proven: {}", drilled.proofs.join("; "));
    let [p50, p95, p99] = drilled.figures.refused.map(|us| us / 1_000);
    if p99 > 0 {
        eprintln!("  refused within {p50} ms (p50), {p95} ms (p95), {p99} ms (p99)");
    }
    if !drilled.figures.reasons.is_empty() {
        eprintln!("  failures: {:?}", drilled.figures.reasons);
    }
    for breach in &drilled.breaches {
        eprintln!("  BROKEN: {breach}");
    }
    if !drilled.breaches.is_empty() {
        drilled.figures.examples.iter().for_each(|failure| eprintln!("  for instance: {failure}"));
        drilled.figures.slow.iter().for_each(|read| eprintln!("  slow: {read}"));
        drilled.warnings.iter().for_each(|line| eprintln!("  log: {line}"));
    }
    drilled
}

fn write(path: &Path, table: &str) -> Result<(), Error> {
    let failed = |error| Error::Io(path.display().to_string(), error);
    let text = fs::read_to_string(path).map_err(failed)?;
    let around =
        text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = around.ok_or_else(|| {
        let path = path.display();
        Error::Instance(format!("{path} lacks the lines for the table: {BEGIN}, {END}"))
    })?;
    fs::write(path, format!("{before}{BEGIN}\n\n{table}\n{END}{after}")).map_err(failed)
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn print(text: &str) {
    println!("{text}");
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
