//! A bulk job: one statement changes very many products, a part of them cached.

use std::time::{Duration, Instant};

use super::isolation::demand_changes;
use crate::Error;
use crate::products::{Fleet, insert};
use crate::stage::Stage;

/// Rows of the job: in the full plan, and elsewhere.
const ROWS: (usize, usize) = (1_000_000, 20_000);
/// How many of them every instance has in memory, likewise.
const CACHED: (usize, usize) = (100_000, 2_000);
/// How many of those are waited for one by one.
const LOOKED_AT: usize = 20;
/// `max_staleness`: P3 of what a bulk job changes.
const MAX_STALENESS: Duration = Duration::from_secs(5);
/// An instance that starts takes at most so much longer than one before the job, besides twice that time.
const START_ALLOWANCE: Duration = Duration::from_secs(1);
/// Longer than changes are kept.
const FORGOTTEN: Duration = Duration::from_secs(300);

pub(super) async fn change_all(stage: &Stage<'_>) -> Result<(), Error> {
    let (sql, instances) = (&stage.world.sql, &stage.world.instances);
    let fleet = Fleet::of(instances)?;
    let (rows, cached) = if stage.timed { (ROWS.0, CACHED.0) } else { (ROWS.1, CACHED.1) };
    let (ids, other) = (insert(sql, "bulk", rows).await?, insert(sql, "own", 1).await?);
    let cached: Vec<i64> = ids.iter().step_by(rows / cached).copied().collect();
    if stage.timed {
        // Or the job would be the second one within the time that changes are kept.
        let inserted = Instant::now();
        while remembers(stage, rows).await && inserted.elapsed() < FORGOTTEN {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    fleet.warm_together(&cached).await?;
    fleet.warm(&other).await?;
    let before = time_to_start(stage).await?;
    let change = async {
        let began = Instant::now();
        let update = sqlx::query("UPDATE products SET price = 2 WHERE id = ANY($1)").bind(&ids);
        let changed = update.execute(sql).await?.rows_affected();
        let (committed, mut slowest) = (Instant::now(), Duration::ZERO);
        let looked_at: Vec<i64> =
            cached.iter().step_by(cached.len() / LOOKED_AT).copied().collect();
        let versions = "SELECT id, version FROM products WHERE id = ANY($1)";
        let versions: Vec<(i64, i64)> =
            sqlx::query_as(versions).bind(&looked_at).fetch_all(sql).await?;
        for (product, version) in versions {
            slowest = slowest.max(fleet.time_to_serve(product, version, committed).await?);
        }
        let what = format!(
            "{changed} rows, {} of them cached, were changed in {:?}, and served within {slowest:?}",
            cached.len(),
            committed - began
        );
        stage.demand(what.clone(), slowest <= stage.bound.min(MAX_STALENESS).max(stage.soon()));
        stage.prove(what, changed == rows as u64)?;
        let after = time_to_start(stage).await?;
        let what =
            format!("an instance started in {before:?} before, and in {after:?} right after");
        stage.demand(what.clone(), after <= before * 2 + START_ALLOWANCE);
        stage.prove(what, true)
    };
    let (changed, beside) = tokio::join!(change, demand_changes(stage, &fleet, other[0]));
    changed.and(beside)
}

/// Whether an instance still keeps as many changes as the job will make.
async fn remembers(stage: &Stage<'_>, rows: usize) -> bool {
    for instance in &stage.world.instances {
        let kept = instance.metric("hotshelf_recent_changes").await.unwrap_or_default();
        if kept >= rows as f64 / 2.0 {
            return true;
        }
    }
    false
}

/// How long another instance takes to be ready.
async fn time_to_start(stage: &Stage<'_>) -> Result<Duration, Error> {
    let instance = stage.world.another_instance();
    let began = Instant::now();
    instance.start()?;
    instance.serving().await?;
    let took = began.elapsed();
    instance.kill().await?;
    Ok(took)
}
