//! The cost of the change feed for a hot read: not measurable.

use std::time::Duration;

use hotshelf::entry::Freshness;
use hotshelf::product::ProductId;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::harness::{Node, Stack, Suite};

const ROUNDS: usize = 15;
const READS: u32 = 200_000;

pub fn register(suite: &mut Suite<'_>) {
    suite.long_single("hot_path::soak_hot_reads_cost_the_same_with_the_change_feed", stream);
}

/// Measures two instances in turn: one serves memory under the lease of the change feed, the other for an hour without
/// it. Prints hot reads per second of CPU.
async fn stream(stack: Stack) {
    let id = stack.insert("lamp").await;
    let hour = Duration::from_secs(3_600);
    let with = stack.node().await;
    let without = stack
        .node_with(|args| {
            args.caching.hot_lease = Duration::ZERO;
            args.caching.max_staleness = hour;
            args.caching.soft_ttl = hour;
        })
        .await;
    let (mut rates_with, mut rates_without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        rates_with.push(reads_per_cpu_second(&with, id).await);
        rates_without.push(reads_per_cpu_second(&without, id).await);
    }
    let (with, without) = (median(&mut rates_with), median(&mut rates_without));
    println!(
        "hot reads per CPU second: {with:.0} with the stream, {without:.0} without, ratio {:.3}",
        with / without
    );
    assert!(with / without > 0.5, "only a fault costs half");
}

async fn reads_per_cpu_second(node: &Node, id: i64) -> f64 {
    let id = ProductId::new(id).unwrap();
    node.product(id.get()).await;
    let before = cpu();
    for _ in 0..READS {
        node.catalog.get_hot(id, &Freshness::Cached).unwrap();
    }
    f64::from(READS) / (cpu() - before).as_secs_f64()
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap())
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}
