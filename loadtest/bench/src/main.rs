//! `bench`: measures hotshelf and other servers side by side, interleaved in one run.
//!
//! Read it in this order:
//!
//! - `setup`: servers, products, and how long to measure. `backends`: Postgres, Redis, and the products in them; `server`: a
//!   server process; `cores`: the cores that it may use; `nginx`.
//! - `load`: the loads: `h2load`, `keys` (a generator with many keys), `redis_load`.
//! - `measure`: the rounds, and what is measured in each; `cpu`, `stats`.
//! - The parts: `reads` (GetProduct, all servers), `protocols` (GetProduct in each protocol), `sweeps` (batches, sizes, watchers, instances), `tiers` (Redis, Postgres,
//!   many keys, large catalogues), `counts` (system calls, allocations).
//! - `claims`: the claims about performance. `report`, `document`, `plot`: the output.

mod backends;
mod claims;
mod cores;
mod counts;
mod cpu;
mod document;
mod h2load;
mod keys;
mod load;
mod measure;
mod nginx;
mod plot;
mod protocols;
mod reads;
mod redis_load;
mod report;
mod server;
mod setup;
mod stats;
mod sweeps;
mod tiers;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use document::Document;
use measure::Effort;
use report::Section;
use setup::Setup;

/// Measures hotshelf side by side with other servers.
///
/// Prints tables in Markdown. Servers and load are on this machine: nothing else should run on it.
#[derive(Parser)]
struct Cli {
    /// Measures everything: as many rounds for the sweeps too, and a catalogue of ten million.
    #[arg(long)]
    full: bool,
    /// Measures only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Rounds for sections with a claim. Many short rounds are better than few long ones, because other work of the machine
    /// comes in bursts. Medians of fewer than 7 prove little.
    #[arg(long, default_value_t = 31, value_name = "N")]
    rounds: usize,
    /// About how long each server is loaded in each round.
    #[arg(long, default_value_t = 0.25, value_name = "SECONDS")]
    seconds: f64,
    /// Writes the page to this file, and a plot beside it.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Exits with 1 if a claim that was measured is not met.
    #[arg(long)]
    assert: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    /// GetProduct, hot, by all servers.
    Reads,
    /// GetProduct, hot, in each protocol.
    Protocols,
    /// System calls and allocations for each request.
    Counts,
    /// Lookups in the hot tier.
    Lookups,
    /// BatchGetProducts of 1 to 1000.
    Batches,
    /// Products of 4 and of 64 KiB.
    Sizes,
    /// One hot key against uniform keys.
    Keys,
    /// Hits in Redis, against tonic, fred and prost.
    Redis,
    /// By the tier that answers.
    Tiers,
    /// Watchers of StreamHotKeys.
    Watchers,
    /// 1 to 3 instances.
    Instances,
    /// Larger and larger catalogues.
    Catalogues,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    tokio::select! {
        ran = run(&cli) => ran,
        // Returning drops the servers, which ends them.
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| ExitCode::FAILURE).map_err(Into::into),
    }
}

async fn run(cli: &Cli) -> Result<ExitCode> {
    let effort = Effort { rounds: cli.rounds, seconds: cli.seconds };
    let setup = Setup::prepare(effort, cli.full).await?;
    let (mut sections, mut counts) = (Vec::new(), String::new());
    for part in Part::value_variants() {
        if !cli.only.is_empty() && !cli.only.contains(part) {
            continue;
        }
        if *part == Part::Counts {
            counts = counts::table(&setup).await?;
            print(&counts)?;
            continue;
        }
        for section in measure(*part, &setup).await? {
            print(&section.to_string())?;
            sections.push(section);
        }
    }
    conclude(cli, &sections, &counts)
}

async fn measure(part: Part, setup: &Setup) -> Result<Vec<Section>> {
    match part {
        Part::Reads => reads::compare(setup).await,
        Part::Protocols => protocols::compare(setup).await,
        Part::Counts => Ok(Vec::new()),
        Part::Lookups => counts::lookups(setup).await,
        Part::Batches => sweeps::batches(setup).await,
        Part::Sizes => sweeps::sizes(setup).await,
        Part::Keys => tiers::one_key(setup).await,
        Part::Redis => tiers::redis(setup).await,
        Part::Tiers => tiers::hit_ratios(setup).await,
        Part::Watchers => sweeps::watchers(setup).await,
        Part::Instances => sweeps::instances(setup).await,
        Part::Catalogues => tiers::catalogues(setup).await,
    }
}

fn conclude(cli: &Cli, sections: &[Section], counts: &str) -> Result<ExitCode> {
    let verdicts = claims::judge(sections);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments = match arguments.as_slice() {
        [] => String::new(),
        some => format!(" BENCH_ARGS='{}'", some.join(" ")),
    };
    let document = Document { sections, counts, verdicts: &verdicts, arguments: &arguments };
    print(&document.claims())?;
    if let Some(path) = &cli.write {
        document.write(path)?;
    }
    let broken = verdicts.iter().any(|verdict| verdict.is_met() == Some(false));
    Ok(if cli.assert && broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
