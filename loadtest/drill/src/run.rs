//! One drill: warm up, measure, break, hold, mend, wait for recovery, check everything that was read.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use checker::history::Micros;
use checker::load::RunInfo;
use checker::{Load, run_beside, verify};
use hotshelf::proto::{BatchGetProductsRequest, ProductServiceClient};
use tonic::transport::Channel;

use crate::database::{DatabaseLoad, DatabaseSampler};
use crate::figures::Figures;
use crate::instance::Instance;
use crate::judge;
use crate::scenario::{Allowance, Scenario};
use crate::servers::{Servers, connect};
use crate::trust::Trust;
use crate::{Error, Fault, Plan};

const POLL: Duration = Duration::from_millis(50);
const WARM_TRIES: usize = 40;
/// P3: how soon every instance serves a change.
const LOADED_WITHIN: Micros = 1_000_000;
/// Lines of the log of each instance.
const WARNINGS: usize = 5;

/// The result of a drill.
#[derive(Debug)]
pub struct DrillResult {
    pub fault: Fault,
    pub figures: Figures,
    /// What shows that the fault took place, one line each.
    pub proofs: Vec<String>,
    /// Broken promises, one line each.
    pub breaches: Vec<String>,
    /// The last warnings in the logs of the instances, to find the cause of a breach.
    pub warnings: Vec<String>,
}

/// The moments of a drill, and what was measured apart from the load.
#[derive(Debug)]
pub(crate) struct DrillTimeline {
    /// The baseline began.
    pub(crate) measured: Micros,
    /// The fault began.
    pub(crate) broken: Micros,
    /// The fault ended.
    pub(crate) mended: Micros,
    /// Every instance trusted its memory again; `None` if not within `Plan::recovery_timeout`.
    pub(crate) trusted: Option<Micros>,
    pub(crate) database: DatabaseLoad,
    pub(crate) trust: Trust,
    pub(crate) proofs: Vec<String>,
    /// Broken promises that only this fault demands.
    pub(crate) breaches: Vec<String>,
    pub(crate) allowances: Vec<Allowance>,
    /// The products that every instance had read before the fault.
    pub(crate) hot: HashSet<i64>,
}

/// Runs one drill on servers of its own.
///
/// # Errors
/// If the drill could not be run, or its fault did not take place. Broken promises are part of the result.
pub async fn run(fault: &Fault, plan: &Plan) -> Result<DrillResult, Error> {
    let servers = Servers::start(fault, plan).await?;
    let target = servers.target().await?;
    let instances = target.instances.clone();
    let beside = async |run: RunInfo| {
        warm(&instances, &run.products[..plan.load.hot]).await;
        drill(fault, plan, &servers, run).await
    };
    let load = Load { redis_goes_back: fault.redis_goes_back, ..plan.load.clone() };
    let (outcome, timeline) = run_beside(&target, &load, beside).await?;
    let mut timeline = timeline?;
    if let Some(since) = uncached_if_changed_since(fault, &timeline) {
        for change in outcome.history.committed.iter().filter(|one| one.written >= since) {
            timeline.hot.remove(&change.product);
        }
    }
    let verdict = verify(&outcome.history, fault.bound.unwrap_or(plan.load.bound));
    let figures = Figures::new(&outcome, &verdict, &timeline);
    let mut breaches = judge::breaches(fault, plan, &figures, servers.budget);
    breaches.extend(timeline.breaches);
    let warnings = servers.instances.iter().flat_map(warnings).collect();
    Ok(DrillResult { fault: fault.clone(), figures, proofs: timeline.proofs, breaches, warnings })
}

/// Products that were changed after this moment do not count as cached: the copy from before the change is not served.
fn uncached_if_changed_since(fault: &Fault, timeline: &DrillTimeline) -> Option<Micros> {
    if fault.changed_may_fail {
        return Some(timeline.measured);
    }
    // Only cached products are served, and an instance may still have been loading the newest changes.
    let only_cached = fault.demands.cached_reads && !fault.demands.reads;
    only_cached.then(|| timeline.broken.saturating_sub(LOADED_WITHIN))
}

fn warnings(instance: &Instance) -> Vec<String> {
    let log = instance.log();
    let warnings = log.lines().rev().filter(|line| !line.contains("INFO"));
    let mut last: Vec<String> = warnings.take(WARNINGS).map(str::to_owned).collect();
    last.reverse();
    last
}

/// Reads every hot product through every instance, so that each instance has all of them in memory.
async fn warm(instances: &[Channel], hot: &[i64]) {
    for instance in instances {
        let request = BatchGetProductsRequest { ids: hot.to_vec(), ..Default::default() };
        let mut client = ProductServiceClient::new(instance.clone());
        for _ in 0..WARM_TRIES {
            // May be refused if the budget is small, for the load has begun. If every try fails, the measured reads fail too.
            if client.batch_get_products(request.clone()).await.is_ok() {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn drill(
    fault: &Fault,
    plan: &Plan,
    servers: &Servers,
    run: RunInfo,
) -> Result<DrillTimeline, Error> {
    tokio::time::sleep(plan.warm_up).await;
    let (clock, hot) = (run.clock, run.products[..plan.load.hot].iter().copied().collect());
    let sampler = DatabaseSampler::start(connect(&servers.postgres.url(), 1).await?, clock);
    let hold = fault.hold.min(plan.longest_hold).max(fault.shortest);
    let scenario = Scenario::new(servers, plan, run, hold);
    let measured = clock.now();
    tokio::time::sleep(plan.baseline).await;
    let broken = clock.now();
    let mut trust = Trust::default();
    tokio::select! {
        done = (fault.steps)(&scenario) => done?,
        never = trust.sample(&servers.instances) => match never {},
    }
    let mended = clock.now();
    scenario.end_allowances();
    let trusted = trusted_within(plan.recovery_timeout, servers).await.then(|| clock.now());
    tokio::time::sleep(plan.aftermath).await;
    let ended = clock.now();
    let (proofs, breaches, allowances) = scenario.finish();
    let database = sampler.between(broken, ended);
    Ok(DrillTimeline {
        measured,
        broken,
        mended,
        trusted,
        database,
        trust,
        proofs,
        breaches,
        allowances,
        hot,
    })
}

/// Waits until every instance trusts its memory. Returns whether that was in time.
async fn trusted_within(timeout: Duration, servers: &Servers) -> bool {
    let began = Instant::now();
    for instance in &servers.instances {
        while instance.metric("hotshelf_hot_lease_valid").await != Some(1.0) {
            if began.elapsed() > timeout {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }
    true
}
