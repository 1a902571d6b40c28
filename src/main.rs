//! The program: reads the configuration, starts, waits for a stop signal, drains.

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};
use hotshelf::admin::health;
use hotshelf::app::{App, StartError};
use hotshelf::attach;
use hotshelf::config::{
    self, Cli, Command, DatabaseArgs, DoctorArgs, FailOn, ImportArgs, ReportFormat, ServeArgs,
};
use hotshelf::doctor;
use hotshelf::findings::Severity;
use hotshelf::import;
use hotshelf::logging::{Log, LogFormat};
use hotshelf::metrics::Metrics;
use hotshelf::openapi;
use hotshelf::postgres::{self, Migrate, Postgres};
use hotshelf::proto::DESCRIPTORS;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// A hot read allocates eight times, nearly always in h2 and http. mimalloc takes 5 % fewer instructions for it than glibc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// File descriptors for everything but gRPC connections: Redis, Postgres, scrapes, and a reserve.
const OWN_FILES: u64 = 256;

/// Exit codes: the command line or a setting is wrong (EX_USAGE of sysexits.h), anything else failed, or `doctor` warns.
const USAGE: u8 = 64;
const FAILED: u8 = 1;
const WARNED: u8 = 2;

/// The exit code, and one line for the operator.
struct Failure(u8, String);

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let code = if error.is_usage() { USAGE } else { FAILED };
        Self(code, error.to_string())
    }
}

/// A failure that no setting causes.
fn failed(line: String) -> Failure {
    Failure(FAILED, line)
}

fn usage(line: String) -> Failure {
    Failure(USAGE, line)
}

fn main() -> ExitCode {
    let (command, filter, format) = match arguments() {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return ExitCode::SUCCESS,
        Err(Failure(code, line)) => {
            // When standard error is closed, the exit code is all that is left to report.
            let _ = writeln!(std::io::stderr(), "hotshelf: {line}");
            return ExitCode::from(code);
        }
    };
    let log = Log::start(filter, format, std::io::stderr().is_terminal());
    match run(command, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, line)) => {
            log.write_line(Level::ERROR, &line);
            ExitCode::from(code)
        }
    }
}

/// The command, and the filter and the format of the log. `None` when everything is done: `--help` and commands that only print.
fn arguments() -> Result<Option<(Command, Targets, LogFormat)>, Failure> {
    match dotenvy::dotenv() {
        Err(dotenvy::Error::LineParse(line, _)) => return Err(usage(malformed_setting(&line))),
        Err(error) if !error.not_found() => {
            return Err(usage(format!(".env cannot be read: {error}")));
        }
        _ => {}
    }
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((matches, cli))
    });
    let (matches, mut cli) = match parsed {
        Ok(parsed) => parsed,
        Err(help) if !help.use_stderr() => {
            // `--help` or `--version`. A closed standard output is no failure.
            let _ = help.print();
            return Ok(None);
        }
        Err(error) => return Err(usage(one_line(&error.to_string()))),
    };
    cli.read_secrets().map_err(usage)?;
    let format = cli.log.log_format;
    let logged = |command, level| {
        let filter = log_filter(level).map_err(usage)?;
        Ok(Some((command, filter, format)))
    };
    match cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.serve))) {
        Command::Config(_) => print(config::effective(&matches).map_err(usage)?.as_bytes()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hotshelf", &mut script);
            print(&script);
        }
        Command::Openapi => print(openapi::document().as_bytes()),
        Command::Descriptors => print(DESCRIPTORS),
        Command::Health(args) => {
            let path = if args.live { "/livez" } else { "/readyz" };
            let answer = health::ask(args.admin_addr, path, args.timeout).map_err(failed)?;
            print(format!("{answer}\n").as_bytes());
        }
        // It prints what it finds; the parts would log it, too.
        command @ Command::Doctor(_) => {
            return logged(command, LevelFilter::OFF);
        }
        command => return logged(command, LevelFilter::INFO),
    }
    Ok(None)
}

/// A closed standard output is no failure.
fn print(text: &[u8]) {
    let _ = std::io::stdout().write_all(text);
}

fn run(command: Command, log: &Log) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("the runtime cannot be started: {error}")))?;
    let work = async {
        match command {
            Command::Serve(args) => Box::pin(serve(&args, log)).await,
            Command::Attach(args) => {
                let postgres = Postgres::new(&args.database.one_connection(), Metrics::new());
                let postgres = postgres.map_err(usage)?;
                let done = attach::attach(&postgres, &args.options(), args.how.how()).await;
                finish(&postgres, done, log).await
            }
            Command::Detach(args) => {
                let postgres = Postgres::new(&args.database.one_connection(), Metrics::new());
                let postgres = postgres.map_err(usage)?;
                let done = attach::detach(&postgres, &args.table, args.how.how()).await;
                finish(&postgres, done, log).await
            }
            Command::Doctor(args) => check(&args, log).await,
            Command::Migrate(args) => migrate(&args, log).await,
            Command::Import(args) => import(&args, log).await,
            Command::Health(_)
            | Command::Config(_)
            | Command::Completions { .. }
            | Command::Openapi
            | Command::Descriptors => Ok(()),
        }
    };
    runtime.block_on(async {
        tokio::select! {
            ended = work => ended,
            never = log.report_loop() => match never {},
        }
    })
}

/// The log levels of libraries that RUST_LOG does not name. fred repeats for each connection what `redis` logs once; h2 and hyper
/// warn of each invalid frame, and rustls of each failed handshake, so a client could fill the log.
const QUIET: [(&str, LevelFilter); 4] = [
    ("fred", LevelFilter::OFF),
    ("h2", LevelFilter::ERROR),
    ("hyper", LevelFilter::ERROR),
    ("rustls", LevelFilter::ERROR),
];

/// RUST_LOG, or the default level, with the levels of [`QUIET`] for the libraries that it does not name.
#[expect(clippy::disallowed_methods, reason = "RUST_LOG is read by all commands, before clap")]
fn log_filter(default: LevelFilter) -> Result<Targets, String> {
    let given = std::env::var("RUST_LOG").unwrap_or_default();
    let mut filter = Targets::new().with_default(default);
    if !given.trim().is_empty() {
        filter = given.parse().map_err(|error| {
            format!(
                "RUST_LOG={given} cannot be read: {error}; use a level such as info, or levels of targets such as info,hotshelf=debug"
            )
        })?;
    }
    for (library, level) in QUIET {
        let is_named = filter.iter().any(|(target, _)| target.starts_with(library));
        if !is_named {
            filter = filter.with_target(library, level);
        }
    }
    Ok(filter)
}

/// Names the setting and leaves its value out, which may be a password.
fn malformed_setting(line: &str) -> String {
    let name =
        line.trim().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
    format!(
        ".env is malformed where it sets {name}; write NAME=value, or NAME=\"value\" in one line"
    )
}

/// clap's error of several paragraphs in one line: the error and its tip, without the usage.
fn one_line(error: &str) -> String {
    let lines = error.strip_prefix("error: ").unwrap_or(error).lines().map(str::trim);
    let lines: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    format!("{}; see hotshelf --help", lines.join(" "))
}

/// Raises the soft limit of file descriptors, which many shells and units set to 1,024, to what `connections` need.
fn raise_file_limit(connections: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OWN_FILES);
    let limit = needed.min(hard).max(soft);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, limit, hard);
    if raised.is_err() || limit < needed {
        tracing::warn!(
            limit,
            needed,
            "MAX_CONNECTIONS needs more file descriptors than the limit allows; raise the hard limit (ulimit -Hn, LimitNOFILE)"
        );
    }
}

async fn serve(args: &ServeArgs, log: &Log) -> Result<(), Failure> {
    args.check().map_err(usage)?;
    raise_file_limit(args.serving.max_connections);
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut stop = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // The default action of SIGHUP would end the process.
    let mut hangup = listen(SignalKind::hangup())?;
    let app = tokio::select! {
        app = App::start(args) => app?,
        () = stop() => return Ok(()),
    };
    let metrics = Arc::clone(&app.metrics);
    let mut counting = pin!(log.count_loop(&metrics));
    let failure = loop {
        tokio::select! {
            () = stop() => break None,
            failure = app.failed() => break Some(failure),
            never = &mut counting => match never {},
            _ = hangup.recv() => app.reload(),
        }
    };
    tracing::info!("draining");
    tokio::select! {
        in_time = app.stop() => tracing::info!(in_time, "stopped"),
        () = stop() => tracing::warn!("stopped at once by a second signal"),
    }
    failure.map_or(Ok(()), |line| Err(failed(line)))
}

async fn check(args: &DoctorArgs, log: &Log) -> Result<(), Failure> {
    args.serve.check().map_err(usage)?;
    let report = doctor::run(&args.serve).await.map_err(usage)?;
    let printed = match args.format {
        ReportFormat::Table => report.table(),
        ReportFormat::Json => format!("{:#}\n", report.json()),
    };
    print(printed.as_bytes());
    match (report.severity(), args.fail_on) {
        (Severity::Error, _) => Err(failed(report.summary())),
        (Severity::Warning, FailOn::Warning) => Err(Failure(WARNED, report.summary())),
        _ => {
            log.write_line(Level::INFO, &report.summary());
            Ok(())
        }
    }
}

/// Reports the outcome of `attach` or `detach`.
async fn finish(
    postgres: &Postgres,
    done: Result<attach::Outcome, attach::Error>,
    log: &Log,
) -> Result<(), Failure> {
    postgres.close().await;
    match done {
        Ok(attach::Outcome::Printed) => Ok(()),
        Ok(outcome) => {
            log.write_line(Level::INFO, &outcome.to_string());
            Ok(())
        }
        Err(attach::Error::Postgres(error)) => Err(database_failure(postgres, &error)),
        Err(error) => Err(failed(error.to_string())),
    }
}

async fn migrate(args: &DatabaseArgs, log: &Log) -> Result<(), Failure> {
    let postgres = connect(args, "").await?;
    postgres.close().await;
    log.write_line(Level::INFO, "the schema is up to date");
    Ok(())
}

async fn import(args: &ImportArgs, log: &Log) -> Result<(), Failure> {
    let postgres = connect(&args.database, &args.catalog).await?;
    postgres.open_catalogue().await.map_err(|error| database_failure(&postgres, &error))?;
    let triggers = postgres.check_triggers().await;
    triggers.map_err(|error| failed(format!("DATABASE_URL: {error}")))?;
    if args.if_empty && postgres.has_products().await.map_err(|error| failed(error.to_string()))? {
        log.write_line(Level::INFO, "the table already has products; nothing was imported");
        return Ok(());
    }
    let summary = import::run(&postgres, &args.options()).await;
    let summary = summary.map_err(|error| failed(error.to_string()))?;
    postgres.close().await;
    log.write_line(Level::INFO, &summary.to_string());
    Ok(())
}

/// A connection for a command that is not `serve`. Brings the schema up to date first.
async fn connect(args: &DatabaseArgs, catalogue: &str) -> Result<Postgres, Failure> {
    let mut options = args.one_connection();
    catalogue.clone_into(&mut options.catalogue);
    let postgres = Postgres::new(&options, Metrics::new()).map_err(usage)?;
    match postgres.migrate(Migrate::Auto).await {
        Ok(()) => Ok(postgres),
        Err(error) => Err(database_failure(&postgres, &error)),
    }
}

fn database_failure(postgres: &Postgres, error: &postgres::Error) -> Failure {
    failed(match error {
        postgres::Error::Unavailable(why) => postgres.unreachable_message(why),
        error => format!("DATABASE_URL: {error}"),
    })
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| failed(format!("the signal handler cannot be installed: {error}")))
}
