//! The database budget: how many loads run at once, how many may wait, and who goes first.
//!
//! Overload is a queue that does not get shorter. Then products go first that callers wait for who have nothing
//! stale to fall back on, and of those the ones that most wait for. The rest is pushed out at once: waiting longer
//! would only turn overload into timeouts. Who has nothing and has waited for a while is not pushed out any more, and
//! in the end not overtaken either: a refusal after a long wait is worth less than both an answer and a refusal at once.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Error;

/// Who has nothing to fall back on is refused within this time, or not for the sake of others.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

/// How much a load is wanted, at this moment.
#[derive(Debug)]
pub(crate) struct Demand {
    /// For how long: also before it needed a turn, when it waited for somebody else's load.
    since: Instant,
    callers: AtomicUsize,
    empty_handed: AtomicUsize,
}

/// Somebody who waits for a load; until dropped.
#[derive(Debug)]
pub(crate) struct Caller {
    demand: Arc<Demand>,
    empty_handed: bool,
}

impl Default for Demand {
    fn default() -> Self {
        let (callers, empty_handed) = Default::default();
        Self { since: Instant::now(), callers, empty_handed }
    }
}

impl Demand {
    /// One more waits, with nothing stale to fall back on or with something.
    pub(crate) fn wait(self: &Arc<Self>, empty_handed: bool) -> Caller {
        self.callers.fetch_add(1, Ordering::Relaxed);
        self.empty_handed.fetch_add(empty_handed.into(), Ordering::Relaxed);
        Caller { demand: Arc::clone(self), empty_handed }
    }

    /// Whether everybody has left.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.callers.load(Ordering::Relaxed) == 0
    }

    fn urgency(&self) -> (bool, usize) {
        (self.empty_handed.load(Ordering::Relaxed) > 0, self.callers.load(Ordering::Relaxed))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.demand.callers.fetch_sub(1, Ordering::Relaxed);
        self.demand.empty_handed.fetch_sub(self.empty_handed.into(), Ordering::Relaxed);
    }
}

/// Bounds the loads of one instance.
#[derive(Debug)]
pub(super) struct Budget {
    loads: usize,
    queued: usize,
    patience: Duration,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// When those that run began.
    running: Vec<Instant>,
    waiting: Vec<Waiting>,
    /// How long loads took lately.
    took: Duration,
}

#[derive(Debug)]
struct Waiting {
    demand: Arc<Demand>,
    since: Instant,
    turn: oneshot::Sender<Turn>,
}

/// A load's turn.
#[derive(Debug)]
pub(super) struct Turn {
    budget: Option<Arc<Budget>>,
    began: Instant,
}

impl Budget {
    pub(super) fn new(loads: usize, queued: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self { loads, queued, patience, queue: Mutex::default() })
    }

    /// Waits for a turn, but not for long.
    pub(super) async fn turn(self: &Arc<Self>, demand: &Arc<Demand>) -> Result<Turn, Error> {
        let turn = match self.enter(demand) {
            Ok(turn) => return Ok(turn),
            Err(turn) => turn,
        };
        let in_time = tokio::time::timeout(self.patience, turn).await;
        if in_time.is_err() {
            self.queue.lock().waiting.retain(|waiting| !waiting.turn.is_closed());
        }
        // Pushed out, or out of patience.
        in_time.ok().and_then(Result::ok).ok_or(Error::OverBudget)
    }

    pub(super) fn in_use(&self) -> u64 {
        let queue = self.queue.lock();
        (queue.running.len() + queue.waiting.len()) as u64
    }

    /// A turn at once, or a place in the queue.
    fn enter(self: &Arc<Self>, demand: &Arc<Demand>) -> Result<Turn, oneshot::Receiver<Turn>> {
        let since = Instant::now();
        let mut queue = self.queue.lock();
        if queue.running.len() < self.loads {
            queue.running.push(since);
            return Ok(Turn { budget: Some(Arc::clone(self)), began: since });
        }
        let (turn, receiver) = oneshot::channel();
        queue.waiting.push(Waiting { demand: Arc::clone(demand), since, turn });
        if queue.waiting.len() > self.room(&queue) {
            queue.push_out();
        }
        Err(receiver)
    }

    /// After so long it is not overtaken any more, and the rest of its patience is enough for all before it.
    fn overtaken(&self) -> Duration {
        self.patience / 4
    }

    /// How many may wait: as many as will have their turn before they lose patience.
    fn room(&self, queue: &Queue) -> usize {
        // While nothing ends, what has ended says nothing.
        let youngest = queue.running.iter().max().map(Instant::elapsed).unwrap_or_default();
        let took = queue.took.max(youngest);
        if took.is_zero() {
            return self.queued;
        }
        let rounds = (self.patience / 2).as_secs_f64() / took.as_secs_f64();
        // Cut off, and a float that is too large becomes the largest.
        self.queued.min((rounds * self.loads as f64) as usize)
    }

    /// Gives a turn that has ended to whoever is most urgent.
    fn hand_on(self: &Arc<Self>, began: Instant) {
        self.queue.lock().end(began);
        loop {
            let next = {
                let mut queue = self.queue.lock();
                if queue.running.len() >= self.loads {
                    return;
                }
                let Some(next) = queue.take_most_urgent(self.overtaken()) else { return };
                let began = Instant::now();
                queue.running.push(began);
                (next, Turn { budget: Some(Arc::clone(self)), began })
            };
            let (next, turn) = next;
            match next.turn.send(turn) {
                Ok(()) => return,
                // It has just lost patience.
                Err(mut refused) => {
                    refused.budget = None;
                    self.queue.lock().running.retain(|running| *running != refused.began);
                }
            }
        }
    }
}

impl Queue {
    fn end(&mut self, began: Instant) {
        if let Some(place) = self.running.iter().position(|running| *running == began) {
            self.running.swap_remove(place);
        }
        self.took = (self.took * 7 + began.elapsed()) / 8;
    }

    /// Drops the least urgent, who is told; of equals the one that has waited least.
    fn push_out(&mut self) {
        let overdue = long_before(TOLD_WITHIN);
        let urgency = |(_, waiting): &(usize, &Waiting)| waiting.urgency(overdue);
        if let Some((least, _)) = self.waiting.iter().enumerate().min_by_key(urgency) {
            self.waiting.swap_remove(least);
        }
    }

    /// What everybody has given up needs no turn, only its place back.
    fn take_most_urgent(&mut self, overtaken: Duration) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.demand.is_unwanted());
        let overdue = long_before(overtaken);
        let urgency = |(_, waiting): &(usize, &Waiting)| waiting.urgency(overdue);
        let (most, _) = self.waiting.iter().enumerate().max_by_key(urgency)?;
        Some(self.waiting.swap_remove(most))
    }
}

/// So long ago; `None` before the clock began.
fn long_before(age: Duration) -> Option<Instant> {
    Instant::now().checked_sub(age)
}

impl Waiting {
    /// Of those who have nothing, the ones from before `overdue` come first, whoever waits for the others.
    fn urgency(&self, overdue: Option<Instant>) -> (bool, usize, Reverse<Instant>) {
        let (empty_handed, callers) = self.demand.urgency();
        let overdue = overdue.is_some_and(|overdue| self.demand.since < overdue);
        let callers = if empty_handed && overdue { usize::MAX } else { callers };
        (empty_handed, callers, Reverse(self.since))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.hand_on(self.began);
        }
    }
}
