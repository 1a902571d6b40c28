use futures_util::FutureExt;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn wanted_by(callers: usize, empty_handed: bool) -> (Arc<Demand>, Vec<Caller>) {
    wanted_for(Duration::ZERO, callers, empty_handed)
}

fn wanted_for(age: Duration, callers: usize, empty_handed: bool) -> (Arc<Demand>, Vec<Caller>) {
    let since = Instant::now().checked_sub(age).expect("the clock began before");
    let demand = Arc::new(Demand { since, ..Demand::default() });
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
fn who_has_nothing_and_has_waited_is_not_pushed_out() {
    let budget = Budget::new(1, 2, PATIENCE);
    let (old, _a) = wanted_for(TOLD_WITHIN * 2, 1, true);
    let (stale, _b) = wanted_for(TOLD_WITHIN * 2, 1, false);
    let (hot, _c) = wanted_by(5, true);
    let _turn = budget.enter(&hot).expect("free");
    let mut first = place(&budget, &old);
    let mut second = place(&budget, &stale);
    let mut third = place(&budget, &hot);
    assert!(matches!((&mut second).now_or_never(), Some(Err(_))), "it has something");
    let mut fourth = place(&budget, &hot);
    assert!(matches!((&mut fourth).now_or_never(), Some(Err(_))), "the last who came");
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut third).now_or_never().is_none());
}

#[test]
fn nobody_who_has_nothing_is_overtaken_for_long() {
    let budget = Budget::new(1, 10, PATIENCE);
    let (old, _a) = wanted_for(PATIENCE / 2, 1, true);
    let (older, _b) = wanted_for(PATIENCE, 1, true);
    let (stale, _c) = wanted_for(PATIENCE, 9, false);
    let (hot, _d) = wanted_by(9, true);
    let turn = budget.enter(&hot).expect("free");
    let mut places = [&stale, &hot, &old, &older].map(|demand| place(&budget, demand));
    drop(turn);
    // Those two as they came: however long the second waited elsewhere, the first has no patience for it.
    for next in [2, 3, 1, 0] {
        drop(turn_of(&mut places[next]).expect("in this order"));
    }
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
