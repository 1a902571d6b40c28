//! Breadth first through everything that can happen, so that a counterexample is as short as any.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash};

use crate::fold_hasher::FoldHasher;

/// What can be checked.
pub trait Model {
    /// Everything that may matter for what happens next.
    type State: Copy + Eq + Hash;
    /// What happens.
    type Action: Copy + Debug;

    /// Where it begins.
    fn initial(&self) -> Self::State;
    /// Everything that can happen in `state`.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Step<Self>>);
    /// The promise that this step breaks, if it breaks one.
    fn broken(&self, before: &Self::State, step: &Step<Self>) -> Option<&'static str>;
    /// The promise that is broken if nothing more happens in `state` by itself.
    fn broken_at_rest(&self, state: &Self::State) -> Option<&'static str>;
    /// The state that stands for all that differ from `state` only in what is of no consequence.
    fn canonical(&self, state: Self::State) -> Self::State;
}

/// One thing that can happen.
#[derive(Clone, Copy, Debug)]
pub struct Step<M: Model + ?Sized> {
    /// What it is.
    pub action: M::Action,
    /// What is then.
    pub after: M::State,
    /// Whether it happens by itself sooner or later. A write, a fault or an eviction need not.
    pub certain: bool,
}

/// What a check came to.
#[derive(Debug)]
pub struct Report<A> {
    /// Different states that were reached.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// States in which nothing more happens by itself.
    pub at_rest: usize,
    /// The first broken promise.
    pub counterexample: Option<Counterexample<A>>,
}

/// How a promise is broken.
#[derive(Debug)]
pub struct Counterexample<A> {
    /// Which one.
    pub promise: &'static str,
    /// What happens, from the beginning. No shorter trace breaks a promise.
    pub trace: Vec<A>,
}

/// Said of a state from which no continuation comes to rest.
pub const NEVER_RESTS: &str = "what is begun comes to an end";

/// Looks at every state of `model` until a promise is broken.
pub fn check<M: Model>(model: &M) -> Report<M::Action> {
    let mut search = Search::new(model);
    let broken = search.run().or_else(|| search.never_rests());
    let counterexample = broken.map(|(promise, at, last)| {
        let mut trace = search.trace(at);
        trace.extend(last);
        Counterexample { promise, trace }
    });
    let Search { known, steps, at_rest, .. } = search;
    Report { states: known.len(), steps, at_rest: at_rest.len(), counterexample }
}

type Broken<A> = (&'static str, u32, Option<A>);

struct Search<'a, M: Model> {
    model: &'a M,
    known: HashMap<M::State, u32, BuildHasherDefault<FoldHasher>>,
    came_by: Vec<Option<(u32, M::Action)>>,
    waiting: VecDeque<(u32, M::State)>,
    certain: Vec<(u32, u32)>,
    at_rest: Vec<u32>,
    steps: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M) -> Self {
        let (known, came_by, waiting) = Default::default();
        let (certain, at_rest, steps) = Default::default();
        let mut search = Self { model, known, came_by, waiting, certain, at_rest, steps };
        search.reach(model.canonical(model.initial()), None);
        search
    }

    fn run(&mut self) -> Option<Broken<M::Action>> {
        let mut steps = Vec::new();
        while let Some((at, state)) = self.waiting.pop_front() {
            steps.clear();
            self.model.steps(&state, &mut steps);
            self.steps += steps.len();
            for step in &steps {
                if let Some(promise) = self.model.broken(&state, step) {
                    return Some((promise, at, Some(step.action)));
                }
                let next = self.reach(self.model.canonical(step.after), Some((at, step.action)));
                if step.certain {
                    self.certain.push((at, next));
                }
            }
            if !steps.iter().any(|step| step.certain) {
                self.at_rest.push(at);
                if let Some(promise) = self.model.broken_at_rest(&state) {
                    return Some((promise, at, None));
                }
            }
        }
        None
    }

    fn reach(&mut self, state: M::State, by: Option<(u32, M::Action)>) -> u32 {
        let next = u32::try_from(self.came_by.len()).expect("fewer than 2^32 states fit in memory");
        let at = *self.known.entry(state).or_insert(next);
        if at == next {
            self.came_by.push(by);
            self.waiting.push_back((at, state));
        }
        at
    }

    /// A state from which what happens by itself cannot come to rest. If there is none, then every fair
    /// continuation does: one in which nothing that is possible again and again is put off for ever.
    fn never_rests(&self) -> Option<Broken<M::Action>> {
        let mut rests = vec![false; self.came_by.len()];
        self.at_rest.iter().for_each(|at| rests[*at as usize] = true);
        let mut changed = true;
        while changed {
            changed = false;
            // Backwards, because most steps lead to a state that was reached later.
            for (from, to) in self.certain.iter().rev() {
                changed |= rests[*to as usize] && !rests[*from as usize];
                rests[*from as usize] |= rests[*to as usize];
            }
        }
        let at = rests.iter().position(|rests| !rests)?;
        Some((NEVER_RESTS, u32::try_from(at).ok()?, None))
    }

    fn trace(&self, mut at: u32) -> Vec<M::Action> {
        let mut trace = Vec::new();
        while let Some((from, action)) = self.came_by[at as usize] {
            trace.push(action);
            at = from;
        }
        trace.reverse();
        trace
    }
}
