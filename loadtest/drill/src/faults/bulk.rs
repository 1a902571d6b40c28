//! A bulk job: one statement changes very many products, a part of them cached.

use std::time::{Duration, Instant};

use super::isolation::demand_changes;
use crate::Error;
use crate::products::{Clients, insert};
use crate::scenario::Scenario;

/// Rows of the job: in the full plan, and in the short ones.
const ROWS: (usize, usize) = (1_000_000, 20_000);
/// How many of them every instance has in memory: in the full plan, and in the short ones.
const CACHED: (usize, usize) = (100_000, 2_000);
/// Cached rows whose new version the drill waits for, one by one.
const AWAITED: usize = 20;
/// `--max-staleness`: P3 for the rows of a bulk job.
const MAX_STALENESS: Duration = Duration::from_secs(5);
/// An instance that starts after the job takes at most twice the time of one before it, and this.
const START_ALLOWANCE: Duration = Duration::from_secs(1);
/// Room for the changes of two jobs: the inserts of the products, and their update.
pub(super) const OPTIONS: &[&str] = &["--max-recent-changes", "4000000"];

pub(super) async fn change_all(scenario: &Scenario<'_>) -> Result<(), Error> {
    let (sql, instances) = (&scenario.servers.sql, &scenario.servers.instances);
    let clients = Clients::of(instances)?;
    let (rows, cached) = if scenario.timed { (ROWS.0, CACHED.0) } else { (ROWS.1, CACHED.1) };
    let (ids, other) = (insert(sql, "bulk", rows).await?, insert(sql, "own", 1).await?);
    let cached: Vec<i64> = ids.iter().step_by(rows / cached).copied().collect();
    clients.warm_together(&cached).await?;
    clients.warm(&other).await?;
    let before = time_to_start(scenario).await?;
    let change = async {
        let began = Instant::now();
        let update = sqlx::query("UPDATE products SET price = 2 WHERE id = ANY($1)").bind(&ids);
        let changed = update.execute(sql).await?.rows_affected();
        let (committed, mut slowest) = (Instant::now(), Duration::ZERO);
        let awaited: Vec<i64> = cached.iter().step_by(cached.len() / AWAITED).copied().collect();
        let versions = "SELECT id, hotshelf_version FROM products WHERE id = ANY($1)";
        let versions: Vec<(i64, i64)> =
            sqlx::query_as(versions).bind(&awaited).fetch_all(sql).await?;
        for (product, version) in versions {
            slowest = slowest.max(clients.time_to_serve(product, version, committed).await?);
        }
        let what = format!(
            "{changed} rows, {} of them cached, were changed in {:?}, and served within {slowest:?}",
            cached.len(),
            committed - began
        );
        scenario.demand(
            what.clone(),
            slowest <= scenario.bound.min(MAX_STALENESS).max(scenario.soon()),
        );
        scenario.prove(what, changed == rows as u64)?;
        let after = time_to_start(scenario).await?;
        let what =
            format!("an instance started in {before:?} before, and in {after:?} right after");
        scenario.demand(what.clone(), after <= before * 2 + START_ALLOWANCE);
        scenario.prove(what, true)
    };
    let (changed, beside) = tokio::join!(change, demand_changes(scenario, &clients, other[0]));
    changed.and(beside)
}

/// From the start of one more instance until it is ready.
async fn time_to_start(scenario: &Scenario<'_>) -> Result<Duration, Error> {
    let instance = scenario.servers.another_instance();
    let began = Instant::now();
    instance.start()?;
    instance.serving().await?;
    let took = began.elapsed();
    instance.kill().await?;
    Ok(took)
}
