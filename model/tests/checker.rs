//! The checker itself: it finds what there is to find, and by the shortest way.

use hotshelf_model::checker::{Model, NEVER_RESTS, Step, check};

/// Counts from 0 to 9 by ones and twos.
#[derive(Default)]
struct Counting {
    broken_after: Option<u8>,
    broken_at_rest: bool,
    circles: bool,
}

impl Model for Counting {
    type State = u8;
    type Action = u8;

    fn initial(&self) -> u8 {
        0
    }

    fn steps(&self, state: &u8, steps: &mut Vec<Step<Self>>) {
        for action in 1..=2 {
            let after = state + action;
            if after < 10 {
                steps.push(Step { action, after, certain: true });
            } else if self.circles {
                steps.push(Step { action, after: 8, certain: true });
            }
        }
    }

    fn broken(&self, _before: &u8, step: &Step<Self>) -> Option<&'static str> {
        (Some(step.after) == self.broken_after).then_some("step")
    }

    fn broken_at_rest(&self, _state: &u8) -> Option<&'static str> {
        self.broken_at_rest.then_some("rest")
    }

    fn canonical(&self, state: u8) -> u8 {
        state
    }
}

#[test]
fn every_state_is_reached_once() {
    let report = check(&Counting::default());
    assert!(report.counterexample.is_none());
    assert_eq!((report.states, report.steps, report.at_rest), (10, 17, 1));
}

#[test]
fn the_shortest_way_to_a_broken_promise_is_told() {
    let report = check(&Counting { broken_after: Some(6), ..Counting::default() });
    let found = report.counterexample.expect("a counterexample");
    assert_eq!((found.promise, found.trace), ("step", vec![2, 2, 2]));
}

#[test]
fn what_is_wrong_only_at_rest_is_found_there() {
    let report = check(&Counting { broken_at_rest: true, ..Counting::default() });
    let found = report.counterexample.expect("a counterexample");
    assert_eq!((found.promise, found.trace.iter().sum::<u8>()), ("rest", 9));
}

#[test]
fn what_goes_round_for_ever_is_found() {
    let report = check(&Counting { circles: true, ..Counting::default() });
    assert_eq!(report.counterexample.expect("a counterexample").promise, NEVER_RESTS);
}
