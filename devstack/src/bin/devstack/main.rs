//! `devstack`: private servers around a command, or until Ctrl-C; and sample data.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod exec;
mod signals;
mod stack;

use signals::Signals;
use stack::{Stack, StackArgs};

/// Private PostgreSQL and Redis on free loopback ports, and sample data.
///
/// The servers are started from the programs installed on this machine, for this devstack alone. They
/// end with devstack, however it ends.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command with DATABASE_URL and REDIS_URL set, and stop the servers when it ends.
    ///
    /// The command runs in a process group of its own. The first SIGINT (Ctrl-C) or SIGTERM is
    /// forwarded to that group, and the servers stay up until the command has ended; a second signal
    /// kills it. It cannot read from the terminal. The exit code is the command's: 128 + N when
    /// signal N ended it, 127 when it could not be started.
    Exec(ExecArgs),
    /// Start the servers, print `export DATABASE_URL=...` and `export REDIS_URL=...`, and wait for
    /// Ctrl-C or SIGTERM.
    Up(StackArgs),
    /// Write plausible products as CSV: id, name, price, currency, description.
    SampleProducts(SampleArgs),
}

#[derive(Args)]
struct ExecArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args)]
struct SampleArgs {
    /// How many products. Their ids are 1 to this.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// The same seed gives the same products.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Errors are only printed here, so their type does not matter.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Exec(args) => exec(&args),
        Task::Up(args) => up(&args).map(|()| ExitCode::SUCCESS),
        Task::SampleProducts(args) => sample_products(&args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("devstack: {failure}");
        ExitCode::FAILURE
    })
}

fn exec(args: &ExecArgs) -> Result<ExitCode, Failure> {
    let stack = Stack::start(&args.stack)?;
    Ok(exec::run(&args.command, stack.environment())?)
}

fn up(args: &StackArgs) -> Result<(), Failure> {
    let stack = Stack::start(args)?;
    signals::runtime()?.block_on(async {
        // Before the addresses are printed: their reader may send a signal at once.
        let mut signals = Signals::listen()?;
        ignore_broken_pipe(print_exports(&stack))?;
        signals.next().await;
        Ok(())
    })
}

fn print_exports(stack: &Stack) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (name, url) in stack.environment() {
        // Quoted, because a cluster's address has a `?` and an `&`.
        writeln!(out, "export {name}='{url}'")?;
    }
    out.flush()
}

fn sample_products(args: &SampleArgs) -> Result<(), Failure> {
    let written = devstack::sample::write_csv(io::stdout().lock(), args.count, args.seed);
    Ok(ignore_broken_pipe(written)?)
}

/// A reader that closes the pipe early, such as `head`, is no failure.
fn ignore_broken_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
