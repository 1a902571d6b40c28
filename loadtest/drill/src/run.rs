//! One drill: warm up, measure, break, hold, mend, watch it recover, check everything that was read.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use checker::history::Micros;
use checker::{Load, run_beside, verify};
use hotshelf::proto::{BatchGetProductsRequest, ProductServiceClient};
use tonic::transport::Channel;

use crate::database::{DatabaseLoad, Observer};
use crate::figures::Figures;
use crate::instance::Instance;
use crate::judge;
use crate::stage::{Excuse, Stage};
use crate::trust::Trust;
use crate::world::{World, connect};
use crate::{Error, Fault, Plan};

const POLL: Duration = Duration::from_millis(50);
const WARM_TRIES: usize = 40;
/// P3: until then every instance has the newest.
const LOADED_WITHIN: Micros = 1_000_000;
/// Of each instance.
const WARNINGS: usize = 5;

/// What a drill came to.
#[derive(Debug)]
pub struct Drilled {
    /// Which.
    pub fault: Fault,
    /// What was measured.
    pub figures: Figures,
    /// By what it is known that the fault took place.
    pub proofs: Vec<String>,
    /// Broken promises, one line each.
    pub breaches: Vec<String>,
    /// The last warnings of the instances, to find the reason.
    pub warnings: Vec<String>,
}

/// When what happened, and what was seen beside the load.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) measured: Micros,
    pub(crate) broken: Micros,
    pub(crate) mended: Micros,
    /// When every instance trusted its memory again; `None` when that did not happen in time.
    pub(crate) trusted: Option<Micros>,
    pub(crate) database: DatabaseLoad,
    pub(crate) trust: Trust,
    pub(crate) proofs: Vec<String>,
    /// Promises of the fault's own that were broken.
    pub(crate) breaches: Vec<String>,
    pub(crate) excuses: Vec<Excuse>,
    /// The products that every instance had read before.
    pub(crate) hot: HashSet<i64>,
}

/// Does one drill, in a world of its own.
///
/// # Errors
/// When the drill itself could not be done, or its fault did not happen; broken promises are no errors.
pub async fn run(fault: &Fault, plan: &Plan) -> Result<Drilled, Error> {
    let world = World::start(fault, plan).await?;
    let target = world.target().await?;
    let instances = target.instances.clone();
    let beside = async |stage: checker::load::Stage| {
        warm(&instances, &stage.products[..plan.load.hot]).await;
        course(fault, plan, &world, stage).await
    };
    let load = Load { redis_goes_back: fault.redis_goes_back, ..plan.load.clone() };
    let (outcome, course) = run_beside(&target, &load, beside).await?;
    let mut course = course?;
    if let Some(since) = changes_matter_since(fault, &course) {
        for change in outcome.history.committed.iter().filter(|one| one.written >= since) {
            course.hot.remove(&change.product);
        }
    }
    let verdict = verify(&outcome.history, fault.bound.unwrap_or(plan.load.bound));
    let figures = Figures::new(&outcome, &verdict, &course);
    let mut breaches = judge::breaches(fault, plan, &figures, world.budget);
    breaches.extend(course.breaches);
    let warnings = world.instances.iter().flat_map(warnings).collect();
    Ok(Drilled { fault: fault.clone(), figures, proofs: course.proofs, breaches, warnings })
}

/// What was changed since this moment does not count as cached, if there is one: the copy from before the change is not served.
fn changes_matter_since(fault: &Fault, course: &Course) -> Option<Micros> {
    if fault.changed_may_fail {
        return Some(course.measured);
    }
    // Only what is cached is served, and an instance may still have been loading the newest changes.
    let only_cached = fault.demands.cached_reads && !fault.demands.reads;
    only_cached.then(|| course.broken.saturating_sub(LOADED_WITHIN))
}

fn warnings(instance: &Instance) -> Vec<String> {
    let log = instance.log();
    let warnings = log.lines().rev().filter(|line| !line.contains("INFO"));
    let mut last: Vec<String> = warnings.take(WARNINGS).map(str::to_owned).collect();
    last.reverse();
    last
}

/// Every instance reads every hot product, so that it is known what is cached.
async fn warm(instances: &[Channel], hot: &[i64]) {
    for instance in instances {
        let request = BatchGetProductsRequest { ids: hot.to_vec(), ..Default::default() };
        let mut client = ProductServiceClient::new(instance.clone());
        for _ in 0..WARM_TRIES {
            // Refused, where the budget is small and the load has begun. An instance that never can will fail what is measured.
            if client.batch_get_products(request.clone()).await.is_ok() {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn course(
    fault: &Fault,
    plan: &Plan,
    world: &World,
    stage: checker::load::Stage,
) -> Result<Course, Error> {
    tokio::time::sleep(plan.warm_up).await;
    let (clock, hot) = (stage.clock, stage.products[..plan.load.hot].iter().copied().collect());
    let observer = Observer::start(connect(&world.postgres.url(), 1).await?, clock);
    let stage =
        Stage::new(world, plan, stage, fault.hold.min(plan.longest_hold).max(fault.shortest));
    let measured = clock.now();
    tokio::time::sleep(plan.baseline).await;
    let broken = clock.now();
    let mut trust = Trust::default();
    tokio::select! {
        acted = (fault.act)(&stage) => acted?,
        never = trust.watch(&world.instances) => match never {},
    }
    let mended = clock.now();
    stage.well();
    let trusted = trusted(world, plan.patience).await.then(|| clock.now());
    tokio::time::sleep(plan.aftermath).await;
    let ended = clock.now();
    let (proofs, breaches, excuses) = stage.done();
    let database = observer.between(broken, ended);
    Ok(Course {
        measured,
        broken,
        mended,
        trusted,
        database,
        trust,
        proofs,
        breaches,
        excuses,
        hot,
    })
}

/// Waits until every instance says that it trusts its memory.
async fn trusted(world: &World, patience: Duration) -> bool {
    let began = Instant::now();
    for instance in &world.instances {
        while instance.metric("hotshelf_hot_lease_valid").await != Some(1.0) {
            if began.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }
    true
}
