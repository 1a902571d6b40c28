//! The budget of one share of the connections: how many statements run at once, how many wait, and in which order.
//!
//! Under overload the queue does not get shorter. Then the next turn goes to the caller that had the fewest (start-time fair
//! queueing), and a full queue evicts a load of the caller with the most places at once, because waiting longer would only end
//! in a timeout.
//!
//! Among one caller's loads, those without fallback go first, and among these the ones with the most waiters. After 50 ms in
//! the queue a load without fallback can no longer be evicted for another load of its caller, and after a quarter of the
//! timeout it is no longer overtaken: a late refusal costs the caller more than an early one.

mod demand;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::caller::{CallContext, Caller};
pub(crate) use demand::{Demand, DemandGuard, DemandGuards};

/// A load without fallback that has waited for longer is not evicted in favour of another load of its caller.
const EVICTABLE_FOR: Duration = Duration::from_millis(50);
/// With more tags than this, those that no longer affect the order are removed.
const TAGS: usize = 64;

#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    queue: Mutex<Queue>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Turns at once.
    pub(super) running: usize,
    /// Turns at once of one caller.
    pub(super) of_one: usize,
    /// Places in the queue.
    pub(super) queued: usize,
    /// The timeout of a place; `None`: until the caller stops waiting.
    pub(super) timeout: Option<Duration>,
    /// Whether the duration of recent turns predicts that of the next ones. Then places that would not become a turn in time are
    /// refused. False for writes, which wait for rows.
    pub(super) is_steady: bool,
}

/// What is taken of the turns and of the queue, and the limits of both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) running: u64,
    pub(super) waiting: u64,
    pub(super) most_running: u64,
    pub(super) most_waiting: u64,
}

/// Why there is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// The queue was full, or no turn was expected before the caller's deadline.
    Full,
    /// The timeout or the deadline passed.
    Late,
}

#[derive(Debug, Default)]
struct Queue {
    running: Vec<Running>,
    waiting: Vec<WaitingLoad>,
    /// The exponential moving average of the duration of turns.
    mean_duration: Duration,
    /// Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each turn adds 1 to the caller's tag; the lowest tag is
    /// next.
    tags: HashMap<Caller, u64, RandomState>,
    /// The tag of the last turn. A caller without a tag has this one, so that idle time earns no turns.
    now: u64,
}

#[derive(Debug)]
struct Running {
    began: Instant,
    caller: Caller,
}

#[derive(Debug)]
struct WaitingLoad {
    demand: Arc<Demand>,
    since: Instant,
    turn: oneshot::Sender<Turn>,
}

/// A turn. Released when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// Whether it was preceded by a place in the queue.
    pub(super) has_waited: bool,
    budget: Option<Arc<Budget>>,
    began: Instant,
    caller: Caller,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, queue: Mutex::default() })
    }

    /// Waits for a turn, at most for the timeout.
    pub(super) async fn turn(self: &Arc<Self>, demand: &Arc<Demand>) -> Result<Turn, NoTurn> {
        let turn = match self.enter(demand) {
            Ok(turn) => return Ok(turn),
            Err(turn) => turn,
        };
        let Some(timeout) = self.limits.timeout else {
            return turn.await.map_err(|_| NoTurn::Full);
        };
        match tokio::time::timeout(timeout, turn).await {
            Ok(turn) => turn.map_err(|_| NoTurn::Full),
            Err(_) => {
                self.remove_abandoned();
                Err(NoTurn::Late)
            }
        }
    }

    /// Waits for a turn for one call, at most until its deadline.
    pub(super) async fn turn_of(self: &Arc<Self>, call: CallContext) -> Result<Turn, NoTurn> {
        let demand = Arc::default();
        let _waiter = Demand::wait(&demand, call, true);
        self.turn_until(&demand, call.deadline).await
    }

    /// Waits for a turn, at most for the timeout and until the deadline.
    pub(super) async fn turn_until(
        self: &Arc<Self>,
        demand: &Arc<Demand>,
        deadline: Option<Instant>,
    ) -> Result<Turn, NoTurn> {
        let Some(deadline) = deadline else { return self.turn(demand).await };
        let turn = tokio::time::timeout_at(deadline.into(), self.turn(demand)).await;
        turn.unwrap_or_else(|_| {
            self.remove_abandoned();
            Err(NoTurn::Late)
        })
    }

    fn remove_abandoned(&self) {
        self.queue.lock().waiting.retain(|waiting| !waiting.turn.is_closed());
    }

    pub(super) fn counts(&self) -> Counts {
        let queue = self.queue.lock();
        Counts {
            running: queue.running.len() as u64,
            waiting: queue.waiting.len() as u64,
            most_running: self.limits.running as u64,
            most_waiting: self.limits.queued as u64,
        }
    }

    /// Returns a turn if one is free, otherwise a place in the queue.
    fn enter(self: &Arc<Self>, demand: &Arc<Demand>) -> Result<Turn, oneshot::Receiver<Turn>> {
        let since = Instant::now();
        let mut queue = self.queue.lock();
        // If a turn is free although loads wait, their callers have reached the limit of one caller.
        if queue.running.len() < self.limits.running && queue.may_run(demand, self.limits.of_one) {
            return Ok(self.begin(&mut queue, demand, false));
        }
        let (turn, receiver) = oneshot::channel();
        queue.waiting.push(WaitingLoad { demand: Arc::clone(demand), since, turn });
        if self.limits.is_steady && self.is_too_late(&queue) {
            queue.waiting.pop();
        } else if queue.waiting.len() > self.room(&queue) {
            queue.evict_one();
        }
        Err(receiver)
    }

    fn begin(self: &Arc<Self>, queue: &mut Queue, demand: &Demand, has_waited: bool) -> Turn {
        let (began, caller) = (Instant::now(), queue.charge(demand, self.limits.of_one));
        queue.running.push(Running { began, caller });
        Turn { has_waited, budget: Some(Arc::clone(self)), began, caller }
    }

    /// After this time in the queue a load is not overtaken. The rest of the timeout suffices for all loads before it, because
    /// [`room`](Self::room) admits only as many as can run in half of it.
    fn overdue_after(&self) -> Duration {
        self.limits.timeout.unwrap_or(Duration::MAX) / 4
    }

    /// The number of places from which a turn can be reached within half of the timeout.
    fn room(&self, queue: &Queue) -> usize {
        let duration = queue.turn_duration();
        let timeout = self.limits.timeout.filter(|_| self.limits.is_steady && !duration.is_zero());
        let Some(timeout) = timeout else { return self.limits.queued };
        let rounds = (timeout / 2).as_secs_f64() / duration.as_secs_f64();
        // The cast truncates, and saturates where the float is too large.
        self.limits.queued.min((rounds * self.limits.running as f64) as usize)
    }

    /// Whether the deadlines of all waiters of the newest load would pass before its turn.
    fn is_too_late(&self, queue: &Queue) -> bool {
        let Some(last) = queue.waiting.last() else { return false };
        let Some(until) = last.demand.until() else { return false };
        let overdue = long_before(self.overdue_after());
        let own = queue.order(last, overdue);
        let ahead = queue.waiting.iter().filter(|other| queue.order(other, overdue) > own).count();
        let wait = queue.turn_duration().mul_f64((ahead + 1) as f64 / self.limits.running as f64);
        until.saturating_duration_since(Instant::now()) < wait
    }

    /// Ends a turn and starts the next ones.
    fn start_next(self: &Arc<Self>, began: Instant, caller: Caller) {
        let mut queue = self.queue.lock();
        queue.end(began, caller);
        while queue.running.len() < self.limits.running {
            let next = queue.take_next(self.overdue_after(), self.limits.of_one);
            let Some(next) = next else { break };
            let turn = self.begin(&mut queue, &next.demand, true);
            if let Err(mut refused) = next.turn.send(turn) {
                // The waiter has just been dropped.
                refused.budget = None;
                queue.forget(refused.began, refused.caller);
            }
        }
        if queue.running.is_empty() && queue.waiting.is_empty() {
            queue.tags.clear();
        }
    }
}

impl Queue {
    /// The expected duration of a turn: at least the time since the last turn began, so that it grows while no turn ends.
    fn turn_duration(&self) -> Duration {
        let last = self.running.iter().map(|running| running.began).max();
        self.mean_duration.max(last.as_ref().map(Instant::elapsed).unwrap_or_default())
    }

    fn tag(&self, caller: Caller) -> u64 {
        self.tags.get(&caller).copied().unwrap_or_default().max(self.now)
    }

    fn turns_of(&self, caller: Caller) -> usize {
        self.running.iter().filter(|running| running.caller == caller).count()
    }

    /// The caller to which a turn for this demand is charged: the waiting one with the fewest turns.
    fn charged_caller(&self, demand: &Demand, of_one: usize) -> Caller {
        demand
            .least(&(false, self.now), |caller| (self.turns_of(caller) >= of_one, self.tag(caller)))
    }

    fn may_run(&self, demand: &Demand, of_one: usize) -> bool {
        self.turns_of(self.charged_caller(demand, of_one)) < of_one
    }

    fn charge(&mut self, demand: &Demand, of_one: usize) -> Caller {
        let caller = self.charged_caller(demand, of_one);
        self.now = self.tag(caller);
        self.tags.insert(caller, self.now + 1);
        if self.tags.len() > TAGS {
            let now = self.now;
            self.tags.retain(|_, tag| *tag > now);
        }
        caller
    }

    fn forget(&mut self, began: Instant, caller: Caller) {
        let is_it = |running: &Running| running.began == began && running.caller == caller;
        if let Some(place) = self.running.iter().position(is_it) {
            self.running.swap_remove(place);
        }
    }

    fn end(&mut self, began: Instant, caller: Caller) {
        self.forget(began, caller);
        self.mean_duration = (self.mean_duration * 7 + began.elapsed()) / 8;
    }

    /// The sort key of a load. The load with the greatest key goes first.
    fn order(&self, waiting: &WaitingLoad, overdue: Option<Instant>) -> impl Ord + use<> {
        let tag = self.tag(waiting.demand.least(&self.now, |caller| self.tag(caller)));
        let (without_fallback, waiters, since) = waiting.urgency(overdue);
        (without_fallback, Reverse(tag), waiters, since)
    }

    /// Drops abandoned loads, or if there are none, the least urgent load of the caller with the most places; among equals the
    /// newest.
    fn evict_one(&mut self) {
        let places = self.waiting.len();
        self.waiting.retain(|waiting| !waiting.demand.is_abandoned());
        if self.waiting.len() < places {
            return;
        }
        let mut places: HashMap<Caller, usize, RandomState> = HashMap::default();
        for waiting in &self.waiting {
            waiting.demand.each_caller(|caller| *places.entry(caller).or_default() += 1);
        }
        let places = |caller| places.get(&caller).copied().unwrap_or_default();
        let overdue = long_before(EVICTABLE_FOR);
        let keep = |(_, waiting): &(usize, &WaitingLoad)| {
            let count = places(waiting.demand.least(&1, places));
            (Reverse(count), waiting.urgency(overdue))
        };
        if let Some((least, _)) = self.waiting.iter().enumerate().min_by_key(keep) {
            self.waiting.swap_remove(least);
        }
    }

    /// Removes the next load from the queue, after abandoned loads are dropped.
    fn take_next(&mut self, overdue_after: Duration, of_one: usize) -> Option<WaitingLoad> {
        self.waiting.retain(|waiting| !waiting.demand.is_abandoned());
        let overdue = long_before(overdue_after);
        let may_run = |waiting: &WaitingLoad| self.may_run(&waiting.demand, of_one);
        let candidates = self.waiting.iter().enumerate().filter(|(_, waiting)| may_run(waiting));
        let next = candidates.max_by_key(|(_, waiting)| self.order(waiting, overdue));
        let place = next.map(|(place, _)| place)?;
        Some(self.waiting.swap_remove(place))
    }
}

/// `None` when the moment is before the start of the clock.
fn long_before(age: Duration) -> Option<Instant> {
    Instant::now().checked_sub(age)
}

impl WaitingLoad {
    /// Among loads without fallback, those from before `overdue` come first, whatever the number of waiters.
    fn urgency(&self, overdue: Option<Instant>) -> (bool, usize, Reverse<Instant>) {
        let (without_fallback, waiters) = self.demand.urgency();
        if self.demand.by_place {
            return (without_fallback, 0, Reverse(self.since));
        }
        let overdue = overdue.is_some_and(|overdue| self.demand.since < overdue);
        let waiters = if without_fallback && overdue { usize::MAX } else { waiters };
        (without_fallback, waiters, Reverse(self.since))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.start_next(self.began, self.caller);
        }
    }
}
