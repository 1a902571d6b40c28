//! `bench`: hotshelf and what it is compared with, side by side and interleaved in one run.
//!
//! Read it in this order:
//!
//! - `ground`: what every comparison stands on. `shop`: the products, and the servers below them; `server`: a
//!   process that serves; `cores`: where it may; `nginx`.
//! - `load`: what drives them: `h2load`, `keys` (a generator of our own), `redis_load`.
//! - `measure`: the rounds, and what is measured in each; `cpu`, `stats`.
//! - The parts: `reads` (GetProduct, by everybody), `sweeps` (batches, sizes, watchers, instances), `tiers` (Redis,
//!   Postgres, many keys, large catalogues), `counts` (system calls, allocations).
//! - `claims`: what must be shown. `report`, `document`, `plot`: how it is shown.

mod claims;
mod cores;
mod counts;
mod cpu;
mod document;
mod ground;
mod h2load;
mod keys;
mod load;
mod measure;
mod nginx;
mod plot;
mod reads;
mod redis_load;
mod report;
mod server;
mod shop;
mod stats;
mod sweeps;
mod tiers;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use document::Document;
use ground::Ground;
use measure::Effort;
use report::Section;

/// Measures hotshelf, side by side with what it is compared with.
///
/// Prints tables in Markdown. Servers and load are on this machine: nothing else should run on it.
#[derive(Parser)]
struct Cli {
    /// Everything: as many rounds for the sweeps, too, and a catalogue of ten million.
    #[arg(long)]
    full: bool,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Rounds where something is claimed: many short ones say more than few long ones, for what disturbs a machine comes
    /// in bursts. Medians of fewer than 7 prove little.
    #[arg(long, default_value_t = 31, value_name = "N")]
    rounds: usize,
    /// For about how long each server is loaded in each round.
    #[arg(long, default_value_t = 0.25, value_name = "SECONDS")]
    seconds: f64,
    /// Writes the page there, and a plot beside it.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Fails when a claim that was measured is not met.
    #[arg(long)]
    assert: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    /// GetProduct, hot, by everybody.
    Reads,
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
        // Returns, so that every server ends.
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| ExitCode::FAILURE).map_err(Into::into),
    }
}

async fn run(cli: &Cli) -> Result<ExitCode> {
    let effort = Effort { rounds: cli.rounds, seconds: cli.seconds };
    let ground = Ground::prepare(effort, cli.full).await?;
    let (mut sections, mut counts) = (Vec::new(), String::new());
    for part in Part::value_variants() {
        if !cli.only.is_empty() && !cli.only.contains(part) {
            continue;
        }
        if *part == Part::Counts {
            counts = counts::table(&ground).await?;
            say(&counts)?;
            continue;
        }
        for section in measure(*part, &ground).await? {
            say(&section.to_string())?;
            sections.push(section);
        }
    }
    conclude(cli, &sections, &counts)
}

async fn measure(part: Part, ground: &Ground) -> Result<Vec<Section>> {
    match part {
        Part::Reads => reads::compare(ground).await,
        Part::Counts => Ok(Vec::new()),
        Part::Lookups => counts::lookups(ground).await,
        Part::Batches => sweeps::batches(ground).await,
        Part::Sizes => sweeps::sizes(ground).await,
        Part::Keys => tiers::one_key(ground).await,
        Part::Redis => tiers::redis(ground).await,
        Part::Tiers => tiers::hit_ratios(ground).await,
        Part::Watchers => sweeps::watchers(ground).await,
        Part::Instances => sweeps::instances(ground).await,
        Part::Catalogues => tiers::catalogues(ground).await,
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
    say(&document.claims())?;
    if let Some(path) = &cli.write {
        document.write(path)?;
    }
    let broken = verdicts.iter().any(|verdict| verdict.is_met() == Some(false));
    Ok(if cli.assert && broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
