use futures_util::FutureExt;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

fn budget(running: usize, queued: usize, timeout: Duration) -> Arc<Budget> {
    let timeout = Some(timeout);
    Budget::new(Limits { running, of_one: running, queued, timeout, is_steady: true })
}

fn call(connection: u64) -> CallContext {
    CallContext { caller: Caller::of_connection(connection), ..CallContext::BACKGROUND }
}

fn demand_by(callers: usize, without_fallback: bool) -> (Arc<Demand>, Vec<DemandGuard>) {
    demand_aged(Duration::ZERO, callers, without_fallback)
}

fn demand_aged(
    age: Duration,
    calls: usize,
    without_fallback: bool,
) -> (Arc<Demand>, Vec<DemandGuard>) {
    let since = Instant::now().checked_sub(age).expect("the clock began before");
    let demand = Arc::new(Demand::since(since));
    let waiters = (0..calls).map(|_| demand.wait(call(1), without_fallback)).collect();
    (demand, waiters)
}

/// A load that one call waits for.
fn demand_of_call(call: CallContext) -> (Arc<Demand>, DemandGuard) {
    let demand = Arc::default();
    let waiter = Demand::wait(&demand, call, true);
    (demand, waiter)
}

fn place(budget: &Arc<Budget>, demand: &Arc<Demand>) -> oneshot::Receiver<Turn> {
    budget.enter(demand).expect_err("a place in the queue")
}

fn turn_of(place: &mut oneshot::Receiver<Turn>) -> Option<Turn> {
    place.now_or_never()?.ok()
}

fn is_refused(place: &mut oneshot::Receiver<Turn>) -> bool {
    matches!(place.now_or_never(), Some(Err(_)))
}

fn waits(place: &mut oneshot::Receiver<Turn>) -> bool {
    place.now_or_never().is_none()
}

fn in_use(budget: &Budget) -> u64 {
    let counts = budget.counts();
    counts.running + counts.waiting
}

#[test]
fn a_load_without_fallback_goes_first_and_then_the_one_with_most_waiters() {
    let budget = budget(1, 10, TIMEOUT);
    let (stale, _a) = demand_by(9, false);
    let (cold, _b) = demand_by(1, true);
    let (hot, _c) = demand_by(3, true);
    let turn = budget.enter(&stale).expect("free");
    let mut places = [&stale, &cold, &hot].map(|demand| place(&budget, demand));
    drop(turn);
    let turn = turn_of(&mut places[2]).expect("the one with the most waiters");
    drop(turn);
    let turn = turn_of(&mut places[1]).expect("the other one without fallback");
    drop(turn);
    turn_of(&mut places[0]).expect("the one with a fallback");
    assert_eq!(in_use(&budget), 0);
}

#[test]
fn a_full_queue_evicts_the_least_urgent_load_at_once() {
    let budget = budget(1, 2, TIMEOUT);
    let (cold, _a) = demand_by(1, true);
    let (hot, _b) = demand_by(5, true);
    let _turn = budget.enter(&cold).expect("free");
    let mut first = place(&budget, &cold);
    let mut second = place(&budget, &cold);
    let mut third = place(&budget, &hot);
    assert!(is_refused(&mut second), "refused at once");
    assert!(waits(&mut first) && waits(&mut third));
    assert_eq!(in_use(&budget), 3);
}

#[test]
fn a_load_without_fallback_that_has_waited_is_not_evicted() {
    let budget = budget(1, 2, TIMEOUT);
    let (old, _a) = demand_aged(EVICTABLE_FOR * 2, 1, true);
    let (stale, _b) = demand_aged(EVICTABLE_FOR * 2, 1, false);
    let (hot, _c) = demand_by(5, true);
    let _turn = budget.enter(&hot).expect("free");
    let mut first = place(&budget, &old);
    let mut second = place(&budget, &stale);
    let mut third = place(&budget, &hot);
    assert!(is_refused(&mut second), "it has a fallback");
    let mut fourth = place(&budget, &hot);
    assert!(is_refused(&mut fourth), "the newest");
    assert!(waits(&mut first) && waits(&mut third));
}

#[test]
fn no_load_without_fallback_is_overtaken_for_long() {
    let budget = budget(1, 10, TIMEOUT);
    let (old, _a) = demand_aged(TIMEOUT / 2, 1, true);
    let (older, _b) = demand_aged(TIMEOUT, 1, true);
    let (stale, _c) = demand_aged(TIMEOUT, 9, false);
    let (hot, _d) = demand_by(9, true);
    let turn = budget.enter(&hot).expect("free");
    let mut places = [&stale, &hot, &old, &older].map(|demand| place(&budget, demand));
    drop(turn);
    // The overdue loads go in the order of their places, even if the second one began earlier.
    for next in [2, 3, 1, 0] {
        drop(turn_of(&mut places[next]).expect("in this order"));
    }
}

#[test]
fn an_abandoned_load_gives_its_place_back() {
    let budget = budget(1, 10, TIMEOUT);
    let (wanted, _a) = demand_by(1, false);
    let (abandoned, waiters) = demand_by(9, true);
    let turn = budget.enter(&wanted).expect("free");
    let mut places = [&abandoned, &wanted].map(|demand| place(&budget, demand));
    drop(waiters);
    drop(turn);
    assert!(is_refused(&mut places[0]));
    turn_of(&mut places[1]).expect("the one that is wanted");
}

#[test]
fn an_abandoned_load_evicts_no_other() {
    let budget = budget(1, 1, TIMEOUT);
    let (wanted, _a) = demand_by(1, true);
    let (abandoned, waiters) = demand_by(1, true);
    let _turn = budget.enter(&wanted).expect("free");
    let mut first = place(&budget, &wanted);
    drop(waiters);
    assert!(is_refused(&mut place(&budget, &abandoned)));
    assert!(waits(&mut first));
}

#[test]
fn a_turn_for_a_dropped_waiter_goes_to_the_next() {
    let budget = budget(1, 10, TIMEOUT);
    let (demand, _waiters) = demand_by(1, true);
    let turn = budget.enter(&demand).expect("free");
    let gone = place(&budget, &demand);
    let mut next = place(&budget, &demand);
    drop(gone);
    drop(turn);
    turn_of(&mut next).expect("the next");
    assert_eq!(in_use(&budget), 0);
}

#[test]
fn while_no_turn_ends_the_queue_shrinks() {
    let budget = budget(2, 100, Duration::from_millis(500));
    let ago = |millis| Running {
        began: Instant::now() - Duration::from_millis(millis),
        caller: Caller::BACKGROUND,
    };
    let queue = |ages: [u64; 2]| Queue { running: ages.map(ago).into(), ..Queue::default() };
    assert!(budget.room(&queue([1, 2])) == 100);
    assert!(budget.room(&queue([5_000, 1])) == 100, "one connection is stuck");
    assert!((1..=4).contains(&budget.room(&queue([250, 300]))));
    assert_eq!(budget.room(&queue([5_000, 5_000])), 0, "Postgres is stuck");
}

#[test]
fn the_caller_with_the_fewest_turns_goes_first() {
    let budget = budget(1, 100, TIMEOUT);
    let (many, _a) = demand_of_call(call(1));
    let (few, _b) = demand_of_call(call(2));
    let mut turn = budget.enter(&many).expect("free");
    let mut many: Vec<_> = (0..10).map(|_| place(&budget, &many)).collect();
    for next in &mut many[..3] {
        drop(turn);
        turn = turn_of(next).expect("in its order");
    }
    let mut few = [(); 2].map(|()| place(&budget, &few));
    drop(turn);
    let turn = turn_of(&mut few[0]).expect("not behind the seven earlier places");
    drop(turn);
    let turn = turn_of(&mut many[3]).expect("in turns from then on");
    drop(turn);
    turn_of(&mut few[1]).expect("in turns from then on");
}

#[test]
fn a_full_queue_evicts_loads_of_the_caller_with_the_most_places() {
    let budget = budget(1, 10, TIMEOUT);
    let (many, _a) = demand_by(100, true);
    let (few, _b) = demand_of_call(call(2));
    let _turn = budget.enter(&many).expect("free");
    let mut many: Vec<_> = (0..10).map(|_| place(&budget, &many)).collect();
    for evicted in (5..10).rev() {
        let mut few = place(&budget, &few);
        assert!(waits(&mut few), "whatever the number of waiters of the others");
        assert!(is_refused(&mut many[evicted]), "the last of those");
        std::mem::forget(few);
    }
    let mut few = place(&budget, &few);
    assert!(is_refused(&mut few) || is_refused(&mut many[4]), "each has half");
}

#[test]
fn a_shared_load_has_the_rank_of_its_caller_with_the_fewest_turns() {
    let budget = budget(1, 10, TIMEOUT);
    let (many, _a) = demand_of_call(call(1));
    let (shared, _b) = demand_of_call(call(1));
    let turn = budget.enter(&many).expect("free");
    let mut first = place(&budget, &many);
    let mut second = place(&budget, &shared);
    let _joined = shared.wait(call(2), true);
    drop(turn);
    drop(turn_of(&mut second).expect("for the caller that joined"));
    turn_of(&mut first).expect("the next");
}

#[test]
fn a_batch_waits_once_for_what_is_loaded_together() {
    let (demand, _alone) = demand_of_call(call(1));
    let mut batch = DemandGuards::new(call(2), true);
    let guards: Vec<_> = (0..1_000).map(|_| batch.of(&demand)).collect();
    drop(batch);
    assert_eq!(demand.urgency(), (true, 2));
    drop(guards);
    assert_eq!(demand.urgency(), (true, 1));
}

#[test]
fn a_load_whose_last_waiter_leaves_before_its_turn_is_refused_at_once() {
    let budget = budget(1, 10, TIMEOUT);
    let (first, _a) = demand_of_call(call(1));
    let turn = budget.enter(&first).expect("free");
    // The running turn has taken 2 s so far, so that is the expected duration of a turn.
    budget.queue.lock().running[0].began = Instant::now() - Duration::from_secs(2);
    let within = |time| CallContext { deadline: Some(Instant::now() + time), ..call(2) };
    let (short, _b) = demand_of_call(within(Duration::from_secs(1)));
    assert!(is_refused(&mut place(&budget, &short)), "its turn would come too late");
    let (long, _c) = demand_of_call(within(Duration::from_secs(30)));
    assert!(waits(&mut place(&budget, &long)));
    let _endless = short.wait(call(3), true);
    assert!(waits(&mut place(&budget, &short)), "a waiter without a deadline joined");
    drop(turn);
}

#[test]
fn a_load_has_the_rank_of_any_of_many_callers() {
    const BUSY: u64 = 20;
    let budget = budget(BUSY as usize, 10, TIMEOUT);
    let mut running: Vec<Turn> =
        (1..=BUSY).map(|busy| budget.enter(&demand_of_call(call(busy)).0).expect("free")).collect();
    let (earlier, _a) = demand_by(100, true);
    let shared: Arc<Demand> = Arc::default();
    let _b: Vec<DemandGuard> =
        (1..=BUSY + 1).map(|caller| shared.wait(call(caller), true)).collect();
    let mut places = [&earlier, &shared].map(|demand| place(&budget, demand));
    drop(running.pop());
    drop(turn_of(&mut places[1]).expect("one of its callers has had no turn"));
    turn_of(&mut places[0]).expect("then the one of a caller that has had one");
}
