//! `baseline`: one of the servers that hotshelf is compared with.

use baselines::{Baseline, Failure};
use clap::Parser;

/// A server that hotshelf is compared with.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    baseline: Baseline,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    Cli::parse().baseline.serve().await
}
