//! `inside`: hotshelf or a baseline, with measurements that can only be taken in its process.
//!
//! It answers each line of standard input on standard output. An empty line: the number of allocations so far. A number of
//! threads: the nanoseconds that a lookup in hotshelf's hot tier takes on so many threads at once.

mod hit_ratio;

use std::alloc::System;
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::time::Instant;

use baselines::{Baseline, Failure};
use clap::{Parser, Subcommand};
use hotshelf::app::App;
use hotshelf::config::ServeArgs;
use hotshelf::hot_cache::HotCache;
use hotshelf::product::ProductId;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Products of the benchmark's sample, all of them hot.
const PRODUCTS: i64 = 10_000;
/// A prime: the lookups cover every product, in an order without locality.
const STRIDE: i64 = 7_919;
const LOOKUPS: i64 = 2_000_000;

/// A server whose allocations and lookups can be measured.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    server: Server,
}

#[derive(Subcommand)]
enum Server {
    #[command(flatten)]
    Baseline(Baseline),
    /// No server: prints the hit ratio of the hot cache on generated traces, against LRU and the optimum.
    HitRatio,
    /// hotshelf, with the options of `hotshelf serve`.
    Serve(Box<ServeArgs>),
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    match Cli::parse().server {
        Server::Baseline(baseline) => {
            std::thread::spawn(|| answer(None));
            baseline.serve().await
        }
        Server::HitRatio => Ok(hit_ratio::print()?),
        Server::Serve(args) => {
            let app = App::start(&args).await?;
            let hot = Arc::clone(&app.hot);
            std::thread::spawn(move || answer(Some(&hot)));
            eprintln!("serving grpc_addr={}", app.grpc_addr);
            std::future::pending().await
        }
    }
}

fn answer(hot: Option<&HotCache>) -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let answer = match (line?.parse::<usize>(), hot) {
            (Ok(threads), Some(hot)) => format!("{:.1}", nanos_of_a_lookup(hot, threads)),
            _ => (COUNTED.stats().allocations + COUNTED.stats().reallocations).to_string(),
        };
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

/// The time of the slowest thread. A lookup clones the entry, as a read does.
fn nanos_of_a_lookup(hot: &HotCache, threads: usize) -> f64 {
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(|| look_up(hot))).collect();
        let times =
            readers.into_iter().map(|reader| reader.join().expect("a lookup does not panic"));
        times.fold(0.0, f64::max)
    })
}

fn look_up(hot: &HotCache) -> f64 {
    let began = Instant::now();
    for number in 0..LOOKUPS {
        let id = ProductId::new(1 + number * STRIDE % PRODUCTS).expect("positive");
        let found = hot.read(id, |held| held.entry.clone());
        black_box(found.expect("the sample is hot"));
    }
    began.elapsed().as_nanos() as f64 / LOOKUPS as f64
}
