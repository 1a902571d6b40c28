//! `checker`: see the library.

mod fleet;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use checker::load::Mix;
use checker::report::{Report, write_history};
use checker::{Error, Load, run, verify};
use clap::Parser;
use humantime::parse_duration;

use fleet::{Fleet, FleetArgs};

/// Reads and writes products through several real instances, and fails if a promise is broken.
///
/// Without --instance it starts instances on a private PostgreSQL and a private Redis. Exits with 1 if a promise was
/// broken, a request failed, or the load could not be sent as planned.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Reads a second. 10 probes through each instance after each change are added to them.
    #[arg(long, default_value_t = 1_500.0, value_name = "N", value_parser = rate)]
    read_rate: f64,
    /// Writes a second.
    #[arg(long, default_value_t = 30.0, value_name = "N", value_parser = rate)]
    write_rate: f64,
    /// How long the load lasts.
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = parse_duration)]
    duration: Duration,
    /// Products to which nine of ten requests go, by Zipf's law.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    hot: u16,
    /// Products to which the other requests go, evenly.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    cold: u16,
    /// The most requests in flight. A request above that is not sent, and the run fails.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    in_flight: usize,
    /// The same seed plans the same load.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// How soon every instance must serve a change.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = parse_duration)]
    bound: Duration,
    /// Shares of writes: UpdateProduct, UPDATE of one row, UPDATE of several, DELETE and INSERT again.
    #[arg(long, default_value = "50,25,15,10", value_name = "A,U,B,R", value_parser = mix)]
    mix: Mix,
    /// The directory for the history of a product in which a promise was broken.
    #[arg(long, default_value = ".", value_name = "DIR")]
    history_dir: PathBuf,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if f64::is_finite(rate) && rate > 0.0 => Ok(rate),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn mix(text: &str) -> Result<Mix, String> {
    let shares: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
    match shares.as_deref() {
        Ok(&[api, update, bulk, replace]) if shares.iter().flatten().any(|share| *share > 0) => {
            Ok(Mix { api, update, bulk, replace })
        }
        _ => Err("must be four whole numbers, not all of them 0".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::select! {
        outcome = check(&cli) => outcome,
        // Returning drops the servers and the instances, which ends them.
        () = interrupted() => Err(Error::Instance("interrupted".to_owned())),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("checker: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn check(cli: &Cli) -> Result<ExitCode, Error> {
    let fleet = Fleet::start(&cli.fleet).await?;
    let target = fleet.target().await?;
    let load = Load {
        read_rate: cli.read_rate,
        write_rate: cli.write_rate,
        share: None,
        duration: cli.duration,
        hot: cli.hot.into(),
        cold: cli.cold.into(),
        in_flight: cli.in_flight,
        seed: cli.seed,
        bound: cli.bound,
        mix: cli.mix,
        redis_goes_back: false,
    };
    eprintln!("checker: {} instances, {:?}", target.instances.len(), cli.duration);
    let outcome = run(&target, &load).await?;
    let verdict = verify(&outcome.history, cli.bound);
    let report = Report { outcome: &outcome, verdict: &verdict };
    print(&report);
    if let Some(first) = report.violations().first() {
        let path = write_history(&outcome.history, first.product, &cli.history_dir)
            .map_err(|error| Error::Io(cli.history_dir.display().to_string(), error))?;
        eprintln!("checker: the history that shows it: {}", path.display());
    }
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn print(report: &Report<'_>) {
    println!("{report}");
}

async fn interrupted() {
    let mut terminate =
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(terminate) => terminate,
            Err(_) => return std::future::pending().await,
        };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
