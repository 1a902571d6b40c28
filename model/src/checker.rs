//! A breadth-first search of the state space, so that no counterexample is shorter than the one found.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash};

use crate::fold_hasher::FoldHasher;

pub trait Model {
    /// Everything on which later steps may depend.
    type State: Copy + Eq + Hash;
    type Action: Copy + Debug;

    fn initial(&self) -> Self::State;
    /// Appends every step that is possible in `state`.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Step<Self>>);
    /// The promise that this step breaks, if it breaks one.
    fn broken(&self, before: &Self::State, step: &Step<Self>) -> Option<&'static str>;
    /// The promise that is broken if no fair step follows `state`.
    fn broken_when_quiescent(&self, state: &Self::State) -> Option<&'static str>;
    /// The representative of all states that are symmetric to `state`.
    fn canonical(&self, state: Self::State) -> Self::State;
}

/// A transition from one state to another.
#[derive(Clone, Copy, Debug)]
pub struct Step<M: Model + ?Sized> {
    pub action: M::Action,
    pub after: M::State,
    /// Whether the step happens sooner or later, if it stays possible. A write, a fault or an eviction need not happen.
    pub fair: bool,
}

#[derive(Debug)]
pub struct Report<A> {
    /// Distinct states that were reached.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Quiescent states: those without a fair step.
    pub quiescent: usize,
    pub counterexample: Option<Counterexample<A>>,
}

#[derive(Debug)]
pub struct Counterexample<A> {
    pub promise: &'static str,
    /// From the initial state on. No shorter trace breaks a promise.
    pub trace: Vec<A>,
}

/// The promise that is broken by a state from which no quiescent state can be reached.
pub const QUIESCES: &str = "what is begun comes to an end";

/// Visits every state of `model`, until a promise is broken.
pub fn check<M: Model>(model: &M) -> Report<M::Action> {
    let mut search = Search::new(model);
    let broken = search.run().or_else(|| search.never_quiesces());
    let counterexample = broken.map(|(promise, at, last)| {
        let mut trace = search.trace(at);
        trace.extend(last);
        Counterexample { promise, trace }
    });
    let Search { visited, steps, quiescent, .. } = search;
    Report { states: visited.len(), steps, quiescent: quiescent.len(), counterexample }
}

/// A promise, the number of the state before it is broken, and the action that breaks it; without an action the state itself
/// breaks it.
type Broken<A> = (&'static str, u32, Option<A>);

/// States are numbered in the order in which they are reached.
struct Search<'a, M: Model> {
    model: &'a M,
    visited: HashMap<M::State, u32, BuildHasherDefault<FoldHasher>>,
    /// By number: the state before, and the action that led from it.
    predecessors: Vec<Option<(u32, M::Action)>>,
    queue: VecDeque<(u32, M::State)>,
    /// The states before and after each fair step.
    fair: Vec<(u32, u32)>,
    quiescent: Vec<u32>,
    steps: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M) -> Self {
        let (visited, predecessors, queue) = Default::default();
        let (fair, quiescent, steps) = Default::default();
        let mut search = Self { model, visited, predecessors, queue, fair, quiescent, steps };
        search.reach(model.canonical(model.initial()), None);
        search
    }

    fn run(&mut self) -> Option<Broken<M::Action>> {
        let mut steps = Vec::new();
        while let Some((at, state)) = self.queue.pop_front() {
            steps.clear();
            self.model.steps(&state, &mut steps);
            self.steps += steps.len();
            for step in &steps {
                if let Some(promise) = self.model.broken(&state, step) {
                    return Some((promise, at, Some(step.action)));
                }
                let next = self.reach(self.model.canonical(step.after), Some((at, step.action)));
                if step.fair {
                    self.fair.push((at, next));
                }
            }
            if !steps.iter().any(|step| step.fair) {
                self.quiescent.push(at);
                if let Some(promise) = self.model.broken_when_quiescent(&state) {
                    return Some((promise, at, None));
                }
            }
        }
        None
    }

    fn reach(&mut self, state: M::State, by: Option<(u32, M::Action)>) -> u32 {
        let next = self.predecessors.len();
        let next = u32::try_from(next).expect("fewer than 2^32 states fit in memory");
        let at = *self.visited.entry(state).or_insert(next);
        if at == next {
            self.predecessors.push(by);
            self.queue.push_back((at, state));
        }
        at
    }

    /// Finds a state from which no quiescent state can be reached by fair steps. If there is none, every fair execution
    /// becomes quiescent: one that does not postpone for ever a step that is possible again and again.
    fn never_quiesces(&self) -> Option<Broken<M::Action>> {
        let mut quiesces = vec![false; self.predecessors.len()];
        self.quiescent.iter().for_each(|at| quiesces[*at as usize] = true);
        let mut changed = true;
        while changed {
            changed = false;
            // Backwards, because most steps lead to a state that was reached later.
            for (from, to) in self.fair.iter().rev() {
                changed |= quiesces[*to as usize] && !quiesces[*from as usize];
                quiesces[*from as usize] |= quiesces[*to as usize];
            }
        }
        let at = quiesces.iter().position(|quiesces| !quiesces)?;
        Some((QUIESCES, u32::try_from(at).ok()?, None))
    }

    fn trace(&self, mut at: u32) -> Vec<M::Action> {
        let mut trace = Vec::new();
        while let Some((from, action)) = self.predecessors[at as usize] {
            trace.push(action);
            at = from;
        }
        trace.reverse();
        trace
    }
}
