//! `counted`: hotshelf or a baseline, with an allocator that counts. For each line on standard input it says
//! on standard output how many allocations there have been.

use std::alloc::System;
use std::io::{self, BufRead, Write};

use baselines::{Baseline, Failure};
use clap::{Parser, Subcommand};
use hotshelf::app::App;
use hotshelf::config::ServeArgs;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A server whose allocations are counted.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    server: Server,
}

#[derive(Subcommand)]
enum Server {
    #[command(flatten)]
    Baseline(Baseline),
    /// hotshelf, with the options of `hotshelf serve`.
    Serve(Box<ServeArgs>),
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let server = Cli::parse().server;
    std::thread::spawn(tell);
    serve(server).await
}

async fn serve(server: Server) -> Result<(), Failure> {
    match server {
        Server::Baseline(baseline) => baseline.serve().await,
        Server::Serve(args) => {
            let app = App::start(&args).await?;
            eprintln!("serving grpc_addr={}", app.grpc_addr);
            std::future::pending().await
        }
    }
}

fn tell() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        line?;
        let stats = COUNTED.stats();
        writeln!(io::stdout(), "{}", stats.allocations + stats.reallocations)?;
    }
    Ok(())
}
