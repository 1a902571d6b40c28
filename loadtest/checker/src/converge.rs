//! When the writes have stopped: every tier of every instance comes to hold what Postgres holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hotshelf::proto::{
    CachedCopy, ExplainProductRequest, ExplainProductResponse, GetProductRequest, SlotState,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::history::Micros;
use crate::load::{Load, World};
use crate::verify::{Rule, Violation};
use crate::{Error, truth};

/// Looks at once: the instances share the machine.
const LOOKS: usize = 8;

/// What the tiers held.
#[derive(Clone, Debug, Default)]
pub struct Convergence {
    /// Products times instances that were looked at.
    pub looks: usize,
    /// The last moment after the last write at which a tier did not hold what Postgres held.
    pub settled_after: Duration,
    /// Tiers that did not in time.
    pub violations: Vec<Violation>,
}

/// One product at one instance, and what it should hold.
#[derive(Clone, Copy)]
struct Place {
    product: i64,
    instance: usize,
    truth: Option<i64>,
    redis_goes_back: bool,
}

/// Looks at every product that was written, through every instance, until each tier agrees with Postgres or
/// its time is over. Nobody writes any more.
pub(crate) async fn wait(world: &Arc<World>, load: &Load) -> Result<Convergence, Error> {
    let (stopped, written) = world.written();
    let truth: HashMap<i64, i64> =
        truth::current(&world.sql, &world.products).await?.into_iter().collect();
    let mut open: Vec<Place> = Vec::new();
    for product in written {
        let truth = truth.get(&product).copied();
        let redis_goes_back = load.redis_goes_back;
        let place = |instance| Place { product, instance, truth, redis_goes_back };
        open.extend((0..world.clients.len()).map(place));
    }
    let mut convergence = Convergence { looks: open.len(), ..Convergence::default() };
    while !open.is_empty() {
        open = round(world, open, stopped, load.bound, &mut convergence).await;
    }
    Ok(convergence)
}

/// Looks once at every place, and returns those that get another chance.
async fn round(
    world: &Arc<World>,
    open: Vec<Place>,
    stopped: Micros,
    bound: Duration,
    convergence: &mut Convergence,
) -> Vec<Place> {
    let (mut looks, mut rest, mut places) = (JoinSet::new(), Vec::new(), open.into_iter());
    loop {
        while looks.len() < LOOKS
            && let Some(place) = places.next()
        {
            let world = Arc::clone(world);
            looks.spawn(async move { (place, world.clock.now(), look(&world, place).await) });
        }
        let Some(looked) = looks.join_next().await else { return rest };
        let Ok((place, began, Err(what))) = looked else { continue };
        let after = Duration::from_micros(began.saturating_sub(stopped));
        convergence.settled_after = convergence.settled_after.max(after);
        if after <= bound {
            rest.push(place);
            continue;
        }
        let Place { product, instance, .. } = place;
        let what = format!("instance {instance}, {after:?} after the last write: {what}");
        let violation = Violation { rule: Rule::Converges, product, at: began, what };
        convergence.violations.push(violation);
    }
}

async fn look(world: &World, place: Place) -> Result<(), String> {
    let Place { product, instance, truth, redis_goes_back } = place;
    let failed = |status: Status| format!("{:?}: {}", status.code(), status.message());
    let request = ExplainProductRequest { id: product };
    let explained = world.admins[instance].clone().explain_product(request).await;
    agrees(&explained.map_err(failed)?.into_inner(), truth, redis_goes_back)?;
    let request = GetProductRequest { id: product, freshness: None };
    let served = match world.clients[instance].clone().get_product(request).await {
        Ok(response) => Some(response.into_inner().version),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(failed(status)),
    };
    if served == truth { Ok(()) } else { Err(format!("a read gave {served:?}, not {truth:?}")) }
}

/// Whether each tier holds this version, or nothing that it would serve. `None`: there is no such product.
/// Where Redis may have gone back, what it holds and no instance would serve counts as nothing.
///
/// # Errors
/// The tier that does not, and what it holds.
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

impl World {
    /// When the last writer was told so, and what was written, the latest first.
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
