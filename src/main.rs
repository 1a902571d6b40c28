//! The program: reads the configuration, starts, waits for a signal, drains.

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use hotshelf::app::App;
use hotshelf::config::{Cli, Command, DatabaseArgs, ImportArgs, ServeArgs};
use hotshelf::import;
use hotshelf::logging::Log;
use hotshelf::metrics::Metrics;
use hotshelf::postgres::{self, Migrate, Postgres};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A hot read allocates eight times, nearly always in h2 and http: 5 % fewer instructions than with glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// File descriptors besides those of connections: Redis, Postgres, scrapes, and some to spare.
const OWN_FILES: u64 = 256;

fn main() -> ExitCode {
    let (command, filter) = match arguments() {
        Ok(Some(given)) => given,
        Ok(None) => return ExitCode::SUCCESS,
        Err(line) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(std::io::stderr(), "hotshelf: {line}");
            return ExitCode::FAILURE;
        }
    };
    let log = Log::start(filter, std::io::stderr().is_terminal());
    match run(command, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            log.say(&line);
            ExitCode::FAILURE
        }
    }
}

/// What to do, and what to log. Nothing when the arguments ask for help or the version.
fn arguments() -> Result<Option<(Command, EnvFilter)>, String> {
    match dotenvy::dotenv() {
        Err(dotenvy::Error::LineParse(line, _)) => return Err(malformed_setting(&line)),
        Err(error) if !error.not_found() => return Err(format!(".env cannot be read: {error}")),
        _ => {}
    }
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked) if !asked.use_stderr() => {
            // --help and --version. Nobody is left to tell when standard output is gone.
            let _ = asked.print();
            return Ok(None);
        }
        Err(error) => return Err(one_line(&error.to_string())),
    };
    cli.read_secrets()?;
    let Cli { command, serve } = cli;
    Ok(Some((command.unwrap_or_else(|| Command::Serve(Box::new(serve))), log_filter()?)))
}

fn run(command: Command, log: &Log) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime cannot be started: {error}"))?;
    let work = async {
        match command {
            Command::Serve(args) => serve(&args, log).await,
            Command::Migrate(args) => migrate(&args, log).await,
            Command::Import(args) => import(&args, log).await,
        }
    };
    runtime.block_on(async {
        tokio::select! {
            ended = work => ended,
            never = log.keep_reporting() => match never {},
        }
    })
}

/// What other libraries log without RUST_LOG naming them. fred says again and again of connections what `redis` says
/// once; h2 and hyper warn of each frame that a caller should not have sent, and rustls of each handshake.
const QUIET: [(&str, &str); 4] = [
    ("fred", "fred=off"),
    ("h2", "h2=error"),
    ("hyper", "hyper=error"),
    ("rustls", "rustls=error"),
];

/// RUST_LOG, or `info`, and what other libraries are allowed to say.
fn log_filter() -> Result<EnvFilter, String> {
    let builder = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into());
    let mut filter = builder.from_env().map_err(|error| {
        format!("RUST_LOG cannot be read: {error}; use a level such as info or hotshelf=debug")
    })?;
    let asked = filter.to_string();
    for (library, directive) in QUIET {
        if !asked.split(',').any(|asked| asked.starts_with(library)) {
            filter = filter.add_directive(directive.parse().expect("a directive"));
        }
    }
    Ok(filter)
}

/// By its name only: the value may be a password.
fn malformed_setting(line: &str) -> String {
    let name =
        line.trim().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
    format!(
        ".env is malformed where it sets {name}; write NAME=value, or NAME=\"value\" in one line"
    )
}

/// What clap says in paragraphs: what is wrong, a tip if it has one, and not the usage.
fn one_line(error: &str) -> String {
    let said = error.strip_prefix("error: ").unwrap_or(error).lines().map(str::trim);
    let said: Vec<&str> = said
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    format!("{}; see hotshelf --help", said.join(" "))
}

/// Connections need file descriptors, and many shells and units allow 1,024 at first.
fn raise_file_limit(connections: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OWN_FILES);
    let limit = wanted.min(hard).max(soft);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, limit, hard);
    if raised.is_err() || limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            "fewer file descriptors than MAX_CONNECTIONS needs; raise the hard limit (ulimit -Hn, LimitNOFILE)"
        );
    }
}

async fn serve(args: &ServeArgs, log: &Log) -> Result<(), String> {
    args.check()?;
    raise_file_limit(args.serving.max_connections);
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut stop = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // Its default would end the process.
    let mut hangup = listen(SignalKind::hangup())?;
    let app = tokio::select! {
        app = App::start(args) => app.map_err(|error| error.to_string())?,
        () = stop() => return Ok(()),
    };
    let metrics = Arc::clone(&app.metrics);
    let mut counting = pin!(log.keep_counting(&metrics));
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
    failure.map_or(Ok(()), Err)
}

async fn migrate(args: &DatabaseArgs, log: &Log) -> Result<(), String> {
    let postgres = connect(args).await?;
    postgres.close().await;
    log.say("the schema is up to date");
    Ok(())
}

async fn import(args: &ImportArgs, log: &Log) -> Result<(), String> {
    let postgres = connect(&args.database).await?;
    postgres.check_triggers().await.map_err(|error| format!("DATABASE_URL: {error}"))?;
    if args.if_empty && postgres.has_products().await.map_err(|error| error.to_string())? {
        log.say("there are products already; nothing was imported");
        return Ok(());
    }
    let options = import::ImportOptions { file: args.file.clone(), skip_bad: args.skip_bad };
    let summary = import::run(&postgres, &options).await.map_err(|error| error.to_string())?;
    postgres.close().await;
    log.say(&summary.to_string());
    Ok(())
}

/// A connection for one command, to a schema that is up to date.
async fn connect(args: &DatabaseArgs) -> Result<Postgres, String> {
    let postgres = Postgres::new(&args.one_connection(), Metrics::new())?;
    match postgres.migrate(Migrate::Auto).await {
        Ok(()) => Ok(postgres),
        Err(postgres::Error::Unavailable(why)) => Err(postgres.out_of_reach(&why)),
        Err(error) => Err(format!("DATABASE_URL: {error}")),
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, String> {
    signal(kind).map_err(|error| format!("signals cannot be received: {error}"))
}
