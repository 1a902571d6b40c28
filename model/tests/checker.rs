//! The checker itself finds every kind of broken promise, with the shortest trace.

use hotshelf_model::checker::{Model, QUIESCES, Step, check};

/// Counts from 0 to 9 by ones and twos.
#[derive(Default)]
struct Counting {
    broken_after: Option<u8>,
    broken_when_quiescent: bool,
    cycles: bool,
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
                steps.push(Step { action, after, fair: true });
            } else if self.cycles {
                steps.push(Step { action, after: 8, fair: true });
            }
        }
    }

    fn broken(&self, _before: &u8, step: &Step<Self>) -> Option<&'static str> {
        (Some(step.after) == self.broken_after).then_some("step")
    }

    fn broken_when_quiescent(&self, _state: &u8) -> Option<&'static str> {
        self.broken_when_quiescent.then_some("rest")
    }

    fn canonical(&self, state: u8) -> u8 {
        state
    }
}

#[test]
fn every_state_is_reached_once() {
    let report = check(&Counting::default());
    assert!(report.counterexample.is_none());
    assert_eq!((report.states, report.steps, report.quiescent), (10, 17, 1));
}

#[test]
fn the_shortest_counterexample_is_found() {
    let report = check(&Counting { broken_after: Some(6), ..Counting::default() });
    let found = report.counterexample.expect("a counterexample");
    assert_eq!((found.promise, found.trace), ("step", vec![2, 2, 2]));
}

#[test]
fn a_promise_broken_only_in_a_quiescent_state_is_found() {
    let report = check(&Counting { broken_when_quiescent: true, ..Counting::default() });
    let found = report.counterexample.expect("a counterexample");
    assert_eq!((found.promise, found.trace.iter().sum::<u8>()), ("rest", 9));
}

#[test]
fn an_execution_that_never_becomes_quiescent_is_found() {
    let report = check(&Counting { cycles: true, ..Counting::default() });
    assert_eq!(report.counterexample.expect("a counterexample").promise, QUIESCES);
}
