//! The budget of one share of the connections: how many statements run at once, how many may wait, and which goes first.
//!
//! Overload is a queue that does not get shorter. Then the next turn goes to the caller that has had least, and where the queue is
//! full, the caller with the most places loses one, at once: waiting longer would only turn overload into timeouts.
//!
//! Of one caller's loads those go first that are waited for without anything stale to fall back on, and of these the ones with most
//! waiters. A load without fallback that has waited for a while is not pushed out for another of its caller any more, and in the end not
//! overtaken either: a refusal after a long wait is worth less than both an answer and a refusal at once.

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

/// A load without fallback is refused within this time, or not for another load of its caller.
const TOLD_WITHIN: Duration = Duration::from_millis(50);
/// Callers whose tags are kept without looking which of them still matter.
const TAGS: usize = 64;

/// Bounds one share of the connections.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    queue: Mutex<Queue>,
}

/// The bounds of a share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Turns at once.
    pub(super) running: usize,
    /// Turns at once of one caller.
    pub(super) of_one: usize,
    /// Places in the queue.
    pub(super) queued: usize,
    /// How long a place is kept; `None`: for as long as the caller waits.
    pub(super) timeout: Option<Duration>,
    /// Whether the time that turns took lately says how long the next ones take: then no place is given that will not become a turn in
    /// time. Not so of writes, which wait for rows.
    pub(super) is_steady: bool,
}

/// Why there is no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// The queue is full for this caller, or no turn would come before its deadline: refused early.
    Full,
    /// None came in time.
    Late,
}

#[derive(Debug, Default)]
struct Queue {
    running: Vec<Running>,
    waiting: Vec<WaitingLoad>,
    /// How long turns took lately.
    took: Duration,
    /// Start-time fair queueing: the tag of a caller grows by 1 with each turn; the least tag goes next.
    tags: HashMap<Caller, u64, RandomState>,
    /// The tag of the last turn. A caller without a tag has this one: it gains nothing by having been idle.
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

/// A turn, until dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// Whether it was waited for.
    pub(super) has_waited: bool,
    budget: Option<Arc<Budget>>,
    began: Instant,
    caller: Caller,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, queue: Mutex::default() })
    }

    /// Waits for a turn, but not for long.
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
                self.forget_who_left();
                Err(NoTurn::Late)
            }
        }
    }

    /// The same for one call, at most until its deadline.
    pub(super) async fn turn_of(self: &Arc<Self>, call: CallContext) -> Result<Turn, NoTurn> {
        let demand = Arc::default();
        let _waiter = Demand::wait(&demand, call, true);
        let Some(deadline) = call.deadline else { return self.turn(&demand).await };
        let turn = tokio::time::timeout_at(deadline.into(), self.turn(&demand)).await;
        turn.unwrap_or_else(|_| {
            self.forget_who_left();
            Err(NoTurn::Late)
        })
    }

    fn forget_who_left(&self) {
        self.queue.lock().waiting.retain(|waiting| !waiting.turn.is_closed());
    }

    /// Turns that are taken, places that are, and how many turns there are at once.
    pub(super) fn counts(&self) -> [u64; 3] {
        let queue = self.queue.lock();
        [queue.running.len(), queue.waiting.len(), self.limits.running].map(|count| count as u64)
    }

    /// A turn at once, or a place in the queue.
    fn enter(self: &Arc<Self>, demand: &Arc<Demand>) -> Result<Turn, oneshot::Receiver<Turn>> {
        let since = Instant::now();
        let mut queue = self.queue.lock();
        // Where a turn is free, those that wait have as many as one caller may have.
        if queue.running.len() < self.limits.running && queue.may_run(demand, self.limits.of_one) {
            return Ok(self.begin(&mut queue, demand, false));
        }
        let (turn, receiver) = oneshot::channel();
        queue.waiting.push(WaitingLoad { demand: Arc::clone(demand), since, turn });
        if self.limits.is_steady && self.is_in_vain(&queue) {
            queue.waiting.pop();
        } else if queue.waiting.len() > self.room(&queue) {
            queue.push_out();
        }
        Err(receiver)
    }

    fn begin(self: &Arc<Self>, queue: &mut Queue, demand: &Demand, has_waited: bool) -> Turn {
        let (began, caller) = (Instant::now(), queue.charge(demand, self.limits.of_one));
        queue.running.push(Running { began, caller });
        Turn { has_waited, budget: Some(Arc::clone(self)), began, caller }
    }

    /// After so long it is not overtaken any more, and the rest of its time is enough for all before it.
    fn overtaken(&self) -> Duration {
        self.limits.timeout.unwrap_or(Duration::MAX) / 4
    }

    /// How many may wait: as many as will have their turn in time.
    fn room(&self, queue: &Queue) -> usize {
        let took = queue.takes();
        let timeout = self.limits.timeout.filter(|_| self.limits.is_steady && !took.is_zero());
        let Some(timeout) = timeout else { return self.limits.queued };
        let rounds = (timeout / 2).as_secs_f64() / took.as_secs_f64();
        // Cut off, and a float that is too large becomes the largest.
        self.limits.queued.min((rounds * self.limits.running as f64) as usize)
    }

    /// Whether the last that came would not have its turn before all that wait for it have left.
    fn is_in_vain(&self, queue: &Queue) -> bool {
        let Some(last) = queue.waiting.last() else { return false };
        let Some(until) = last.demand.until() else { return false };
        let overdue = long_before(self.overtaken());
        let own = queue.order(last, overdue);
        let ahead = queue.waiting.iter().filter(|other| queue.order(other, overdue) > own).count();
        let wait = queue.takes().mul_f64((ahead + 1) as f64 / self.limits.running as f64);
        until.saturating_duration_since(Instant::now()) < wait
    }

    /// Gives the turn that has ended to the next.
    fn hand_on(self: &Arc<Self>, began: Instant, caller: Caller) {
        let mut queue = self.queue.lock();
        queue.end(began, caller);
        while queue.running.len() < self.limits.running {
            let next = queue.take_next(self.overtaken(), self.limits.of_one);
            let Some(next) = next else { break };
            let turn = self.begin(&mut queue, &next.demand, true);
            if let Err(mut refused) = next.turn.send(turn) {
                // It has just left.
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
    /// How long a turn takes. While none ends, what has ended says nothing.
    fn takes(&self) -> Duration {
        let last = self.running.iter().map(|running| running.began).max();
        self.took.max(last.as_ref().map(Instant::elapsed).unwrap_or_default())
    }

    fn tag(&self, caller: Caller) -> u64 {
        self.tags.get(&caller).copied().unwrap_or_default().max(self.now)
    }

    fn turns_of(&self, caller: Caller) -> usize {
        self.running.iter().filter(|running| running.caller == caller).count()
    }

    /// The caller that takes a turn for this demand: of those that wait the one that has had least.
    fn payer(&self, demand: &Demand, of_one: usize) -> Caller {
        demand.least(|caller| (self.turns_of(caller) >= of_one, self.tag(caller)))
    }

    fn may_run(&self, demand: &Demand, of_one: usize) -> bool {
        self.turns_of(self.payer(demand, of_one)) < of_one
    }

    fn charge(&mut self, demand: &Demand, of_one: usize) -> Caller {
        let caller = self.payer(demand, of_one);
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
        self.took = (self.took * 7 + began.elapsed()) / 8;
    }

    /// What goes first is greatest.
    fn order(&self, waiting: &WaitingLoad, overdue: Option<Instant>) -> impl Ord + use<> {
        let tag = self.tag(waiting.demand.least(|caller| self.tag(caller)));
        let (without_fallback, waiters, since) = waiting.urgency(overdue);
        (without_fallback, Reverse(tag), waiters, since)
    }

    /// Drops the places that every caller has left, or else one of the caller with the most, the least urgent; of equals the one that has waited least.
    fn push_out(&mut self) {
        let places = self.waiting.len();
        self.waiting.retain(|waiting| !waiting.demand.is_unwanted());
        if self.waiting.len() < places {
            return;
        }
        let mut places: HashMap<Caller, usize, RandomState> = HashMap::default();
        for waiting in &self.waiting {
            waiting.demand.each_caller(|caller| *places.entry(caller).or_default() += 1);
        }
        let places = |caller| places.get(&caller).copied().unwrap_or_default();
        let overdue = long_before(TOLD_WITHIN);
        let keep = |(_, waiting): &(usize, &WaitingLoad)| {
            let crowd = places(waiting.demand.least(places));
            (Reverse(crowd), waiting.urgency(overdue))
        };
        if let Some((least, _)) = self.waiting.iter().enumerate().min_by_key(keep) {
            self.waiting.swap_remove(least);
        }
    }

    /// A load that every caller has left needs no turn, only its place back.
    fn take_next(&mut self, overtaken: Duration, of_one: usize) -> Option<WaitingLoad> {
        self.waiting.retain(|waiting| !waiting.demand.is_unwanted());
        let overdue = long_before(overtaken);
        let may_run = |waiting: &WaitingLoad| self.may_run(&waiting.demand, of_one);
        let candidates = self.waiting.iter().enumerate().filter(|(_, waiting)| may_run(waiting));
        let next = candidates.max_by_key(|(_, waiting)| self.order(waiting, overdue));
        let place = next.map(|(place, _)| place)?;
        Some(self.waiting.swap_remove(place))
    }
}

/// So long ago; `None` before the clock began.
fn long_before(age: Duration) -> Option<Instant> {
    Instant::now().checked_sub(age)
}

impl WaitingLoad {
    /// Of those without fallback, the ones from before `overdue` come first, however many wait for the others.
    fn urgency(&self, overdue: Option<Instant>) -> (bool, usize, Reverse<Instant>) {
        let (without_fallback, waiters) = self.demand.urgency();
        let overdue = overdue.is_some_and(|overdue| self.demand.since < overdue);
        let waiters = if without_fallback && overdue { usize::MAX } else { waiters };
        (without_fallback, waiters, Reverse(self.since))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.hand_on(self.began, self.caller);
        }
    }
}
