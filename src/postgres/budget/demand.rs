//! How much a load is wanted: by which callers, until when, and whether they have something stale to fall back on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::caller::{CallContext, Caller};

/// Callers that a load remembers, so that its rank is that of the one that has had least. Too high: each choice in the queue
/// looks at all of them. Beyond, a caller only adds to the number of waiters.
const MOST_CALLERS: usize = 8;

/// How much a load is wanted, at this moment.
#[derive(Debug)]
pub(crate) struct Demand {
    /// For how long: also before it needed a turn, when it waited for another instance's load.
    pub(super) since: Instant,
    wanted: Mutex<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    waiters: usize,
    without_fallback: usize,
    callers: Vec<(Caller, usize)>,
    /// The latest deadline of any waiter until now.
    until: Option<Instant>,
    /// Whether any waiter has no deadline.
    is_endless: bool,
}

/// A call that waits for a load; until dropped. A batch waits once, however many of its products are in the load.
#[derive(Debug)]
pub(crate) struct DemandGuard {
    demand: Arc<Demand>,
    caller: Caller,
    without_fallback: bool,
}

/// The loads that one call waits for.
#[derive(Debug)]
pub(crate) struct DemandGuards {
    call: CallContext,
    without_fallback: bool,
    /// By the address of the demand, which each waiter keeps.
    known: HashMap<usize, Arc<DemandGuard>, RandomState>,
}

impl Default for Demand {
    fn default() -> Self {
        Self { since: Instant::now(), wanted: Mutex::default() }
    }
}

impl Demand {
    #[cfg(test)]
    pub(super) fn since(since: Instant) -> Self {
        Self { since, ..Self::default() }
    }

    /// One more call waits.
    pub(crate) fn wait(self: &Arc<Self>, call: CallContext, without_fallback: bool) -> DemandGuard {
        let mut wanted = self.wanted.lock();
        wanted.waiters += 1;
        wanted.without_fallback += usize::from(without_fallback);
        wanted.until = wanted.until.max(call.deadline);
        wanted.is_endless |= call.deadline.is_none();
        let caller = call.caller;
        match wanted.callers.iter().position(|(known, _)| *known == caller) {
            Some(place) => wanted.callers[place].1 += 1,
            None if wanted.callers.len() < MOST_CALLERS => wanted.callers.push((caller, 1)),
            None => {}
        }
        drop(wanted);
        DemandGuard { demand: Arc::clone(self), caller, without_fallback }
    }

    /// Whether every caller has left.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.wanted.lock().waiters == 0
    }

    /// When the last waiter leaves; `None`: never.
    pub(super) fn until(&self) -> Option<Instant> {
        let wanted = self.wanted.lock();
        wanted.until.filter(|_| !wanted.is_endless)
    }

    /// Whether any waiter has nothing stale to fall back on, and how many waiters there are.
    pub(super) fn urgency(&self) -> (bool, usize) {
        let wanted = self.wanted.lock();
        (wanted.without_fallback > 0, wanted.waiters)
    }

    /// The caller of the waiters for which `key` is least; the background's when there is none.
    pub(super) fn least<K: Ord>(&self, key: impl Fn(Caller) -> K) -> Caller {
        let wanted = self.wanted.lock();
        let callers = wanted.callers.iter().map(|(caller, _)| *caller);
        callers.min_by_key(|caller| key(*caller)).unwrap_or(Caller::BACKGROUND)
    }

    pub(super) fn each_caller(&self, mut visit: impl FnMut(Caller)) {
        let wanted = self.wanted.lock();
        match wanted.callers.is_empty() {
            true => visit(Caller::BACKGROUND),
            false => wanted.callers.iter().for_each(|(caller, _)| visit(*caller)),
        }
    }
}

impl Drop for DemandGuard {
    fn drop(&mut self) {
        let mut wanted = self.demand.wanted.lock();
        wanted.waiters -= 1;
        wanted.without_fallback -= usize::from(self.without_fallback);
        if let Some(place) = wanted.callers.iter().position(|(known, _)| *known == self.caller) {
            // One that was not remembered in time may be taken off another of its caller: then the rank is too low for a
            // moment.
            wanted.callers[place].1 -= 1;
            if wanted.callers[place].1 == 0 {
                wanted.callers.swap_remove(place);
            }
        }
    }
}

impl DemandGuards {
    /// Of one call, which has or has not something stale for all that it asks for.
    pub(crate) fn new(call: CallContext, without_fallback: bool) -> Self {
        Self { call, without_fallback, known: HashMap::default() }
    }

    /// The call's waiter for loads of this demand.
    pub(crate) fn of(&mut self, demand: &Arc<Demand>) -> Arc<DemandGuard> {
        let wait = || Arc::new(demand.wait(self.call, self.without_fallback));
        Arc::clone(self.known.entry(Arc::as_ptr(demand).addr()).or_insert_with(wait))
    }
}
