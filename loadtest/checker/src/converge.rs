//! After the last write: every tier of every instance must come to hold what Postgres holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hotshelf::proto::{
    CachedCopy, ExplainProductRequest, ExplainProductResponse, GetProductRequest, SlotState,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::history::Micros;
use crate::load::{Load, Run};
use crate::verify::{Rule, Violation};
use crate::{Error, truth};

/// Probes in flight: few, because the instances share the machine.
const IN_FLIGHT: usize = 8;

#[derive(Clone, Debug, Default)]
pub struct Convergence {
    /// Written products times instances.
    pub probes: usize,
    /// From the last write to the last probe in which a tier did not agree with Postgres.
    pub converged_after: Duration,
    /// Tiers that did not agree within the bound.
    pub violations: Vec<Violation>,
}

/// One product at one instance.
#[derive(Clone, Copy)]
struct Probe {
    product: i64,
    instance: usize,
    /// The version in Postgres; `None` if there is no such product.
    truth: Option<i64>,
    redis_goes_back: bool,
}

/// Probes every product that was written, through every instance, until each tier agrees with Postgres or the bound has
/// passed. All writes must have ended.
pub(crate) async fn wait(run: &Arc<Run>, load: &Load) -> Result<Convergence, Error> {
    let (stopped, written) = run.written();
    let truth: HashMap<i64, i64> =
        truth::current(&run.sql, &run.products).await?.into_iter().collect();
    let mut open: Vec<Probe> = Vec::new();
    for product in written {
        let truth = truth.get(&product).copied();
        let redis_goes_back = load.redis_goes_back;
        let probe = |instance| Probe { product, instance, truth, redis_goes_back };
        open.extend((0..run.clients.len()).map(probe));
    }
    let mut convergence = Convergence { probes: open.len(), ..Convergence::default() };
    while !open.is_empty() {
        open = round(run, open, stopped, load.bound, &mut convergence).await;
    }
    Ok(convergence)
}

/// Runs every probe once. Returns those that disagreed within the bound, to be repeated.
async fn round(
    run: &Arc<Run>,
    open: Vec<Probe>,
    stopped: Micros,
    bound: Duration,
    convergence: &mut Convergence,
) -> Vec<Probe> {
    let (mut running, mut again, mut probes) = (JoinSet::new(), Vec::new(), open.into_iter());
    loop {
        while running.len() < IN_FLIGHT
            && let Some(probe) = probes.next()
        {
            let run = Arc::clone(run);
            running.spawn(async move { (probe, run.clock.now(), run_probe(&run, probe).await) });
        }
        let Some(done) = running.join_next().await else { return again };
        let Ok((probe, began, Err(what))) = done else { continue };
        let after = Duration::from_micros(began.saturating_sub(stopped));
        convergence.converged_after = convergence.converged_after.max(after);
        if after <= bound {
            again.push(probe);
            continue;
        }
        let Probe { product, instance, .. } = probe;
        let what = format!("instance {instance}, {after:?} after the last write: {what}");
        let violation = Violation { rule: Rule::Converges, product, at: began, what };
        convergence.violations.push(violation);
    }
}

async fn run_probe(run: &Run, probe: Probe) -> Result<(), String> {
    let Probe { product, instance, truth, redis_goes_back } = probe;
    let failed = |status: Status| format!("{:?}: {}", status.code(), status.message());
    let request = ExplainProductRequest { id: product };
    let explained = run.admins[instance].clone().explain_product(request).await;
    agrees(&explained.map_err(failed)?.into_inner(), truth, redis_goes_back)?;
    let request = GetProductRequest { id: product, freshness: None };
    let served = match run.clients[instance].clone().get_product(request).await {
        Ok(response) => Some(response.into_inner().version),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(failed(status)),
    };
    if served == truth { Ok(()) } else { Err(format!("a read gave {served:?}, not {truth:?}")) }
}

/// Checks that each tier holds this version, or nothing that it would serve. `None`: there is no such product.
/// If Redis may have gone back, an entry that no instance would serve counts as absent.
///
/// # Errors
/// The tier that disagrees, and what it holds.
pub fn agrees(
    explained: &ExplainProductResponse,
    truth: Option<i64>,
    redis_goes_back: bool,
) -> Result<(), String> {
    let memory = explained.memory.as_ref();
    let served = |state| matches!(state, SlotState::Fresh | SlotState::PastSoftTtl);
    if let Some(memory) = memory.filter(|memory| served(memory.state())) {
        copy_agrees("memory", memory.copy.as_ref(), truth)?;
    }
    let redis = explained.redis.as_ref().filter(|redis| redis.reachable).ok_or("no Redis")?;
    if redis.usable || !redis_goes_back {
        copy_agrees("Redis", redis.copy.as_ref(), truth)?;
    }
    let row = explained.postgres.as_ref().filter(|row| row.reachable).ok_or("no PostgreSQL")?;
    let held = row.exists.then_some(row.version);
    if held != truth {
        return Err(format!("PostgreSQL holds {held:?}, not {truth:?}"));
    }
    if row.pending_changes > 0 {
        return Err(format!("{} changes wait to be relayed", row.pending_changes));
    }
    Ok(())
}

fn copy_agrees(tier: &str, copy: Option<&CachedCopy>, truth: Option<i64>) -> Result<(), String> {
    let Some(copy) = copy else { return Ok(()) };
    let held = (!copy.tombstone).then_some(copy.version);
    if held == truth { Ok(()) } else { Err(format!("{tier} holds {held:?}, not {truth:?}")) }
}

impl Run {
    /// When the last write was confirmed, and the products that were written, the latest first.
    fn written(&self) -> (Micros, Vec<i64>) {
        let mut latest: HashMap<i64, Micros> = HashMap::new();
        self.each_ack(|ack| {
            let latest = latest.entry(ack.product).or_default();
            *latest = ack.acked.max(*latest);
        });
        let stopped = latest.values().copied().max().unwrap_or(0);
        let mut products: Vec<(Micros, i64)> =
            latest.into_iter().map(|(product, acked)| (acked, product)).collect();
        products.sort_unstable_by(|a, b| b.cmp(a));
        (stopped, products.into_iter().map(|(_, product)| product).collect())
    }
}
