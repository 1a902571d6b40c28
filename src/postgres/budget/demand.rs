//! The demand for a load: its waiters, their callers and deadlines, and whether they have a fallback.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::caller::{CallContext, Caller};
use crate::traces::SpanContext;

/// Callers that are recorded per load, so that the load has the rank of the one with the fewest turns. Further callers only add
/// to the number of waiters. Too high: each choice in the queue may compare all of them. Too low: a load that a few busy callers
/// wait for is refused although another caller waits for it, too.
const MOST_CALLERS: usize = 64;

/// The demand for one load.
#[derive(Debug)]
pub(crate) struct Demand {
    /// The start of the load. It may be earlier than its place in the queue, if the load waited for another instance's lease
    /// first.
    pub(super) since: Instant,
    /// Whether only callers and places in the queue determine its rank, not its age or the number of its waiters.
    pub(super) by_place: bool,
    /// The span of the load, if the call that started it is traced.
    trace: Option<SpanContext>,
    state: Mutex<DemandState>,
}

#[derive(Debug, Default)]
struct DemandState {
    waiters: usize,
    without_fallback: usize,
    callers: Vec<(Caller, usize)>,
    /// The latest deadline of all waiters, also of those that have left.
    until: Option<Instant>,
    /// Whether any of them had no deadline.
    has_no_deadline: bool,
}

/// A call that waits for a load, until it is dropped. A batch counts once, however many of its products are in the load.
#[derive(Debug)]
pub(crate) struct DemandGuard {
    demand: Arc<Demand>,
    caller: Caller,
    without_fallback: bool,
}

/// The guards of one call, one for each load.
#[derive(Debug)]
pub(crate) struct DemandGuards {
    call: CallContext,
    without_fallback: bool,
    /// By the address of the demand, which stays valid because the guard owns a reference.
    known: HashMap<usize, Arc<DemandGuard>, RandomState>,
}

impl Default for Demand {
    fn default() -> Self {
        Self { since: Instant::now(), by_place: false, trace: None, state: Mutex::default() }
    }
}

impl Demand {
    #[cfg(test)]
    pub(super) fn since(since: Instant) -> Self {
        Self { since, ..Self::default() }
    }

    pub(crate) fn traced(trace: Option<SpanContext>) -> Arc<Self> {
        Arc::new(Self { trace, ..Self::default() })
    }

    /// The demand of the writes of one product. It lasts as long as there are any, and the waiters are those of later writes, too.
    pub(crate) fn of_writes() -> Arc<Self> {
        Arc::new(Self { by_place: true, ..Self::default() })
    }

    /// Adds a waiter.
    pub(crate) fn wait(self: &Arc<Self>, call: CallContext, without_fallback: bool) -> DemandGuard {
        let mut state = self.state.lock();
        state.waiters += 1;
        state.without_fallback += usize::from(without_fallback);
        state.until = state.until.max(call.deadline);
        state.has_no_deadline |= call.deadline.is_none();
        let caller = call.caller;
        match state.callers.iter().position(|(known, _)| *known == caller) {
            Some(place) => state.callers[place].1 += 1,
            None if state.callers.len() < MOST_CALLERS => state.callers.push((caller, 1)),
            None => {}
        }
        drop(state);
        DemandGuard { demand: Arc::clone(self), caller, without_fallback }
    }

    /// Whether no waiter is left.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state.lock().waiters == 0
    }

    /// The latest deadline of the waiters; `None` if any has none.
    pub(super) fn until(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.until.filter(|_| !state.has_no_deadline)
    }

    /// Whether any waiter has no fallback, and the number of waiters.
    pub(super) fn urgency(&self) -> (bool, usize) {
        let state = self.state.lock();
        (state.without_fallback > 0, state.waiters)
    }

    /// The waiting caller with the least `key`; [`Caller::BACKGROUND`] when there is none. `lowest` is the least possible key: the
    /// first caller that has it is returned without a look at the others.
    pub(super) fn least<K: Ord>(&self, lowest: &K, key: impl Fn(Caller) -> K) -> Caller {
        let state = self.state.lock();
        let mut least: Option<(K, Caller)> = None;
        for (caller, _) in &state.callers {
            let key = key(*caller);
            if key <= *lowest {
                return *caller;
            }
            if least.as_ref().is_none_or(|(least, _)| key < *least) {
                least = Some((key, *caller));
            }
        }
        least.map_or(Caller::BACKGROUND, |(_, caller)| caller)
    }

    pub(super) fn each_caller(&self, mut visit: impl FnMut(Caller)) {
        let state = self.state.lock();
        match state.callers.is_empty() {
            true => visit(Caller::BACKGROUND),
            false => state.callers.iter().for_each(|(caller, _)| visit(*caller)),
        }
    }
}

impl DemandGuard {
    /// The span of the load, if the call that started it is traced.
    pub(crate) fn trace(&self) -> Option<SpanContext> {
        self.demand.trace
    }
}

impl Drop for DemandGuard {
    fn drop(&mut self) {
        let mut state = self.demand.state.lock();
        state.waiters -= 1;
        state.without_fallback -= usize::from(self.without_fallback);
        if let Some(place) = state.callers.iter().position(|(known, _)| *known == self.caller) {
            // A guard that was beyond `MOST_CALLERS` may decrement a count of later guards of its caller: the load's rank is
            // then too low until they end.
            state.callers[place].1 -= 1;
            if state.callers[place].1 == 0 {
                state.callers.swap_remove(place);
            }
        }
    }
}

impl DemandGuards {
    /// `without_fallback`: whether the call lacks a stale copy of any product that it reads.
    pub(crate) fn new(call: CallContext, without_fallback: bool) -> Self {
        Self { call, without_fallback, known: HashMap::default() }
    }

    /// The call's guard for this demand.
    pub(crate) fn of(&mut self, demand: &Arc<Demand>) -> Arc<DemandGuard> {
        let wait = || Arc::new(demand.wait(self.call, self.without_fallback));
        Arc::clone(self.known.entry(Arc::as_ptr(demand).addr()).or_insert_with(wait))
    }
}
