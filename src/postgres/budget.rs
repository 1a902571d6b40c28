//! The database budget: how many loads run at once, how many may wait, and who goes first.
//!
//! Overload is a queue that does not get shorter. Then products go first that callers wait for who have nothing
//! stale to fall back on, and of those the ones that most wait for. The rest is pushed out at once: waiting longer
//! would only turn overload into timeouts.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Error;

/// How much a load is wanted, at this moment.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    callers: AtomicUsize,
    empty_handed: AtomicUsize,
}

/// Somebody who waits for a load; until dropped.
#[derive(Debug)]
pub(crate) struct Caller {
    demand: Arc<Demand>,
    empty_handed: bool,
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

    /// How many may wait: as many as will have their turn before they lose patience.
    fn room(&self, queue: &Queue) -> usize {
        // While nothing ends, what has ended says nothing.
        let youngest = queue.running.iter().max().map(Instant::elapsed).unwrap_or_default();
        let took = queue.took.max(youngest);
        if took.is_zero() {
            return self.queued;
        }
        let rounds = self.patience.as_secs_f64() / took.as_secs_f64();
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
                let Some(next) = queue.take_most_urgent() else { return };
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
        let urgency = |(_, waiting): &(usize, &Waiting)| waiting.urgency();
        if let Some((least, _)) = self.waiting.iter().enumerate().min_by_key(urgency) {
            self.waiting.swap_remove(least);
        }
    }

    /// What everybody has given up needs no turn, only its place back.
    fn take_most_urgent(&mut self) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.demand.is_unwanted());
        let urgency = |(_, waiting): &(usize, &Waiting)| waiting.urgency();
        let (most, _) = self.waiting.iter().enumerate().max_by_key(urgency)?;
        Some(self.waiting.swap_remove(most))
    }
}

impl Waiting {
    fn urgency(&self) -> ((bool, usize), Reverse<Instant>) {
        (self.demand.urgency(), Reverse(self.since))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.hand_on(self.began);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn wanted_by(callers: usize, empty_handed: bool) -> (Arc<Demand>, Vec<Caller>) {
        let demand = Arc::new(Demand::default());
        let callers = (0..callers).map(|_| demand.wait(empty_handed)).collect();
        (demand, callers)
    }

    fn place(budget: &Arc<Budget>, demand: &Arc<Demand>) -> oneshot::Receiver<Turn> {
        budget.enter(demand).expect_err("a place in the queue")
    }

    fn turn_of(place: &mut oneshot::Receiver<Turn>) -> Option<Turn> {
        place.now_or_never()?.ok()
    }

    #[test]
    fn who_has_nothing_to_fall_back_on_goes_first_and_then_what_most_wait_for() {
        let budget = Budget::new(1, 10, PATIENCE);
        let (stale, _a) = wanted_by(9, false);
        let (cold, _b) = wanted_by(1, true);
        let (hot, _c) = wanted_by(3, true);
        let turn = budget.enter(&stale).expect("free");
        let mut places = [&stale, &cold, &hot].map(|demand| place(&budget, demand));
        drop(turn);
        let turn = turn_of(&mut places[2]).expect("the hottest");
        drop(turn);
        let turn = turn_of(&mut places[1]).expect("the other one without anything");
        drop(turn);
        turn_of(&mut places[0]).expect("who had something stale");
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn a_full_queue_pushes_out_the_least_urgent_at_once() {
        let budget = Budget::new(1, 2, PATIENCE);
        let (cold, _a) = wanted_by(1, true);
        let (hot, _b) = wanted_by(5, true);
        let _turn = budget.enter(&cold).expect("free");
        let mut first = place(&budget, &cold);
        let mut second = place(&budget, &cold);
        let mut third = place(&budget, &hot);
        assert!(matches!((&mut second).now_or_never(), Some(Err(_))), "told at once");
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(budget.in_use(), 3);
    }

    #[test]
    fn what_nobody_waits_for_any_more_gives_its_place_back() {
        let budget = Budget::new(1, 10, PATIENCE);
        let (wanted, _a) = wanted_by(1, false);
        let (given_up, callers) = wanted_by(9, true);
        let turn = budget.enter(&wanted).expect("free");
        let mut places = [&given_up, &wanted].map(|demand| place(&budget, demand));
        drop(callers);
        drop(turn);
        assert!(matches!((&mut places[0]).now_or_never(), Some(Err(_))));
        turn_of(&mut places[1]).expect("the one that is wanted");
    }

    #[test]
    fn a_turn_that_is_given_to_one_who_left_goes_to_the_next() {
        let budget = Budget::new(1, 10, PATIENCE);
        let (demand, _callers) = wanted_by(1, true);
        let turn = budget.enter(&demand).expect("free");
        let gone = place(&budget, &demand);
        let mut next = place(&budget, &demand);
        drop(gone);
        drop(turn);
        turn_of(&mut next).expect("the next");
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn while_nothing_ends_fewer_and_fewer_may_wait() {
        let budget = Budget::new(2, 100, Duration::from_millis(500));
        let ago = |millis| Instant::now() - Duration::from_millis(millis);
        let queue = |ages: [u64; 2]| Queue { running: ages.map(ago).into(), ..Queue::default() };
        assert!(budget.room(&queue([1, 2])) == 100);
        assert!(budget.room(&queue([5_000, 1])) == 100, "one is stuck");
        assert!((1..=4).contains(&budget.room(&queue([250, 300]))));
        assert_eq!(budget.room(&queue([5_000, 5_000])), 0, "Postgres is");
    }
}
